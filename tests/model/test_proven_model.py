"""The cache of models: what it gives computes the same bit for bit, and it is used for nothing else than it was made of."""

import dataclasses
import gc
import importlib.util
import io
import logging
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchverify
from batchverify import garbage_collector
from batchverify.cli.main import main
from batchverify.config import ModelConfig, ScoringConfig
from batchverify.errors import PreflightError, SplitError
from batchverify.model.cache_switch import model_cache
from batchverify.model.start_tensorflow import start_tensorflow
from batchverify.pipeline.keras_network import load_parts
from tests.support.exchanged_file import exchanged_once_copied

start_tensorflow()

import tensorflow as tf  # noqa: E402

from batchverify.model import proven_model  # noqa: E402
from batchverify.model.frozen_graph import load_function  # noqa: E402
from batchverify.model.load import load_model  # noqa: E402
from batchverify.model.pair_model import PairModel  # noqa: E402
from batchverify.model.proven_model import ProvenModel, load_proven  # noqa: E402


class Load:
    """Loads a model through the cache.

    Attributes:
        loads: The configurations whose models did not come from there.
    """

    def __init__(self, loaded: PairModel):
        self._loaded, self.loads = loaded, list[ModelConfig]()

    def __call__(self, config: ModelConfig) -> PairModel | ProvenModel:
        with model_cache(True):
            return load_proven(config, self._from_file)

    def _from_file(self, config: ModelConfig) -> PairModel:
        self.loads.append(config)
        return self._loaded


@pytest.fixture(scope="module")
def config(small_model) -> ModelConfig:
    return ModelConfig(model=small_model, batch_size=8)


@pytest.fixture(scope="module")
def loaded(config) -> PairModel:
    return load_model(config)


@pytest.fixture(scope="module")
def images(loaded) -> np.ndarray:
    return loaded.preprocessing.as_loaded(np.random.default_rng(7).integers(0, 256, (20, 16, 16, 3), np.uint8))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchverify" / "models"


@pytest.fixture
def load(loaded, home) -> Load:
    return Load(loaded)


def only_file(home: Path) -> Path:
    (path,) = home.iterdir()
    return path


def rewrite(path: Path, **changed: bytes) -> None:
    """Writes a file of the cache again, with other content under some names."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()} | changed
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    path.write_bytes(packed.getvalue())


def test_the_second_time_nothing_is_loaded_and_everything_is_the_same(load, config, loaded, images):
    assert load(config) is loaded
    proven = load(config)
    assert isinstance(proven, ProvenModel) and load.loads == [config]
    embeddings = proven.encode(images)
    np.testing.assert_array_equal(embeddings, loaded.encode(images))
    others = np.roll(embeddings, 1, axis=0)
    np.testing.assert_array_equal(proven.compare(embeddings, others), loaded.compare(embeddings, others))
    assert (proven.facts, proven.preprocessing) == (loaded.facts, loaded.preprocessing)
    assert proven.identity_bound(config) == loaded.identity_bound(config)
    proven.check_split(images)
    assert load.loads == [config]


def test_an_encoder_without_a_head_comes_from_the_cache_too(home, tmp_path, images):
    import keras

    pixels = keras.Input((16, 16, 3))
    keras.Model(pixels, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))).save(tmp_path / "encoder.keras")
    config = ModelConfig(model=str(tmp_path / "encoder.keras"), compare="cosine")
    with model_cache(True):
        model, proven = (load_proven(config, load_model) for _ in range(2))
    assert isinstance(model, PairModel) and isinstance(proven, ProvenModel)
    left, right = (proven.encode(some) for some in (images, images[::-1]))
    np.testing.assert_array_equal(left, model.encode(images))
    np.testing.assert_array_equal(proven.compare(left, right), model.compare(left, right))
    proven.check_split(images)


def test_a_file_that_is_exchanged_while_it_is_loaded_is_kept_as_it_was(home, tmp_path, images):
    import keras

    def save_encoder(name: str, seed: int) -> np.ndarray:
        keras.utils.set_random_seed(seed)
        pixels = keras.Input((16, 16, 3))
        encoder = keras.Model(pixels, keras.layers.Dense(4)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))))
        encoder.save(tmp_path / name)
        return np.asarray(encoder(images))

    path, config = tmp_path / "model.keras", ModelConfig(model=str(tmp_path / "model.keras"), compare="cosine")
    expected = save_encoder("model.keras", 1)
    save_encoder("other.keras", 2)
    shutil.copy(path, tmp_path / "kept.keras")
    with model_cache(True):
        with exchanged_once_copied(path, tmp_path / "other.keras", "model"):
            load_proven(config, load_model)
        shutil.copy(tmp_path / "kept.keras", path)
        proven = load_proven(config, load_model)
    assert isinstance(proven, ProvenModel)
    np.testing.assert_allclose(proven.encode(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda config, patch: dataclasses.replace(config, batch_size=4),
        lambda config, patch: dataclasses.replace(config, pixels="0..255"),
        lambda config, patch: dataclasses.replace(config, lambdas=("l1",)),
        lambda config, patch: dataclasses.replace(config, custom_objects=("Distance=l1",)),
        lambda config, patch: patch.setattr(proven_model, "VERSION", "0.0.0"),
        lambda config, patch: patch.setattr(tf, "__version__", "0.0.0"),
        lambda config, patch: patch.setattr(proven_model, "_processor", lambda: ["another"]),
        lambda config, patch: patch.setattr(proven_model, "_digest_of_package", lambda: "other code"),
        lambda config, patch: patch.setenv("TF_ENABLE_ONEDNN_OPTS", "0"),
    ],
    ids=["batch", "pixels", "lambda", "custom object", "version", "TensorFlow", "processor", "code", "environment"],
)
def test_what_differs_is_loaded(change, load, config, monkeypatch):
    load(config)
    load(change(config, monkeypatch) or config)
    assert len(load.loads) == 2


def test_another_file_of_the_same_name_is_loaded(load, config, tmp_path):
    path = tmp_path / "model.keras"
    shutil.copy(config.model, path)
    named = dataclasses.replace(config, model=str(path))
    load(named)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("note", "changed")
    assert not isinstance(load(named), ProvenModel) and len(load.loads) == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"trust_model_code": True}, {"custom_objects": ("Distance=module:Distance",)}, {"architecture": "model.json"},
        {"precision": "bfloat16"}, {"preprocess": "module:function"},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_a_model_that_more_decides_than_its_file_is_not_kept(changed, load, config, home):
    assert not isinstance(load(dataclasses.replace(config, **changed)), ProvenModel)
    assert not home.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"Conv2D", b"Conv3D")),
        lambda path: rewrite(path, encode=b"no function"),
        lambda path: rewrite(path, **{"facts.json": b"{}"}),
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o666),
    ],
    ids=["cut off", "changed", "no function", "no facts", "empty", "open to others"],
)
def test_a_damaged_file_is_told_and_written_again(damage, load, config, home, caplog):
    load(config)
    damage(only_file(home))
    with caplog.at_level(logging.WARNING, "batchverify"):
        assert not isinstance(load(config), ProvenModel)
    assert "loaded again, as its file in the cache cannot be used" in caplog.text
    assert isinstance(load(config), ProvenModel) and len(load.loads) == 2


def test_an_operation_that_reads_files_is_never_run(load, config, home, tmp_path, caplog):
    (tmp_path / "secret").write_text("secret")

    @tf.function
    def reads(images):
        return tf.io.read_file(str(tmp_path / "secret"))

    load(config)
    definition = reads.get_concrete_function(tf.TensorSpec((8, 16, 16, 3), tf.float32)).function_def
    rewrite(only_file(home), encode=definition.SerializeToString())
    assert not isinstance(load(config), ProvenModel)
    assert "it has the operation ReadFile" in caplog.text


def test_the_parts_are_compared_with_the_whole_model_on_each_manifests_images(load, config, home, images):
    load(config)

    @tf.function
    def another(left, right):
        return tf.reduce_mean(left, axis=[1, 2, 3])[:, None] / 255

    specs = [tf.TensorSpec((None, 16, 16, 3), tf.float32)] * 2
    rewrite(only_file(home), whole=another.get_concrete_function(*specs).function_def.SerializeToString())
    proven = load(config)
    assert isinstance(proven, ProvenModel)
    with pytest.raises(SplitError, match="differ from the whole model's"):
        proven.check_split(images)


def test_a_cache_that_cannot_be_used_changes_nothing(load, config, home, loaded, caplog, monkeypatch):
    monkeypatch.setattr(loaded, "stored_parts", lambda: pytest.fail("there is no place for them"), raising=False)
    home.parent.parent.mkdir(parents=True)
    home.parent.touch()
    with caplog.at_level(logging.INFO, "batchverify"):
        assert load(config) is loaded
    assert caplog.text == ""


def test_a_runtime_that_is_not_installed_is_refused_in_a_sentence(config, home, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with model_cache(True), pytest.raises(PreflightError, match="the package openvino is not installed"):
        load_proven(dataclasses.replace(config, runtime="openvino"), load_model)


def test_when_a_device_is_out_of_memory_the_model_is_loaded_for_smaller_batches(load, config, loaded, images, monkeypatch):
    def for_few_rows(stored):
        function = load_function(stored)

        def call(*arrays):
            if len(arrays[0]) > 4:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return function(*arrays)

        return call

    load(config)
    monkeypatch.setattr(proven_model, "load_function", for_few_rows)
    np.testing.assert_allclose(load(config).encode(images), loaded.encode(images), atol=1e-6)
    assert len(load.loads) == 2


def test_garbage_is_collected_once_everything_is_imported(small_model):
    garbage_collector.pause()
    load_parts(ScoringConfig(model=small_model))
    assert gc.isenabled()


@pytest.mark.slow
def test_only_the_program_uses_the_cache_and_not_with_no_cache(home, tmp_path, small_model, pictures, read_scores):
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("left,right\n" + "".join(f"{pictures}/p{n}.png,{pictures}/p{9 - n}.png\n" for n in range(10)))

    words = ["--manifest", str(manifest), "--model", small_model, "--quiet", "--output"]
    batchverify.run(batchverify.VerificationConfig(manifests=(str(manifest),), output=str(tmp_path / "0"), model=small_model))
    assert main([*words, str(tmp_path / "1"), "--check", "--no-cache"]) == 0
    assert not home.exists()
    for name in ("1", "2"):
        assert main([*words, str(tmp_path / name)]) == 0
        assert len(list(home.iterdir())) == 1
        pd.testing.assert_frame_equal(read_scores(tmp_path / name), read_scores(tmp_path / "0"))
