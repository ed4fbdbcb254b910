"""Every format and head that people have: equals its live model, or is refused in a sentence."""

import base64
import dataclasses
import json
import marshal
import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

import batchverify
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import fetch_bytes
from batchverify.images.layout import Layout
from batchverify.images.tensorflow_loader import TensorFlowLoader
from batchverify.model import probe_images
from batchverify.model.find_model import require_digest
from batchverify.model.load import load_model
from batchverify.model.local_copy import digest_model
from tests.support import model_zoo
from tests.support.model_zoo import CASES, SHAPE, live_scores, siamese, write


def load(path, **options):
    return load_model(ModelConfig(model=str(path), **options))


def pixels_of(uris, channels):
    layout = Layout(model_zoo.SIDE, model_zoo.SIDE, channels, loader=TensorFlowLoader("bilinear"))
    data = [fetch_bytes(uri, 64 * 2**20) for uri in uris]
    return [one if isinstance(one, ImageFailure) else decode(one, layout) for one in data]


def demo_pixels(demo, sides, channels):
    """Returns the decoded images of the pairs of the demo manifest that have two, a list `(left, right)`."""
    decoded = [pixels_of([str(demo / uri) if uri else str(demo / "none") for uri in side], channels) for side in sides]
    readable = [k for k, pair in enumerate(zip(*decoded, strict=True)) if not any(isinstance(x, ImageFailure) for x in pair)]
    return [np.stack([side[k] for k in readable]) for side in decoded]


@pytest.fixture(scope="module")
def demo_pairs(demo):
    """The two sides of the demo manifest, by the number of channels: uint8 `(n, 12, 12, channels)` each."""
    manifest = pd.read_csv(demo / "demo.csv", dtype=str, keep_default_na=False)
    return {channels: demo_pixels(demo, (manifest["left"], manifest["right"]), channels) for channels in (1, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_model_scores_the_demo_images_as_it_does_itself(name, demo_pairs, tmp_path):
    case = CASES[name]
    live, path = write(case, tmp_path)
    model = load(path, **case.options)
    left, right = demo_pairs[1 if name == "grey" else 3]
    encoded_left, encoded_right = model.encode(left), model.encode(right)
    np.testing.assert_allclose(model.compare(encoded_left, encoded_right), live_scores(case, live, left, right), atol=1e-5)
    np.testing.assert_allclose(model.compare(encoded_left, encoded_left), live_scores(case, live, left, left), atol=1e-5)
    assert (model.facts.encodings_per_image, model.facts.encodings_per_pair) == case.encodings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l1", "unshared", "early_fusion", "grey", "encoder_cosine", "keras2_saved_model"])
def test_a_run_with_a_model_of_each_structure_equals_it(name, demo, demo_pairs, tmp_path, read_scores):
    case = CASES[name]
    live, path = write(case, tmp_path)
    manifest = str(demo / "demo.csv")
    config = batchverify.VerificationConfig(manifests=(manifest,), output=str(tmp_path / "out"), model=path, **case.options)
    result = batchverify.run(config)
    scores = read_scores(tmp_path / "out").dropna(subset="score")
    left, right = demo_pairs[1 if name == "grey" else 3]
    np.testing.assert_allclose(scores["score"], live_scores(case, live, left, right), atol=1e-5)
    np.testing.assert_allclose(scores["identity_left"], live_scores(case, live, left, left), atol=1e-5)
    per_image, per_pair = case.encodings
    expected = per_image * result.counters["images_encoded"] + per_pair * len(scores)
    assert result.counters["encodings"] == expected


# Refusals


def with_three_inputs():
    inputs = [keras.Input(SHAPE) for _ in range(3)]
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Add()(inputs))))


def of_numbers():
    left, right = keras.Input((4,)), keras.Input((4,))
    return keras.Model([left, right], keras.layers.Dense(1)(keras.layers.Subtract()([left, right])))


def save(model, path):
    model.save(path)
    return path


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w", force_zip64=True) as entry:
            for _ in range(80):
                entry.write(bytes(2**24))
    return path


def hdf5_bomb(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("model_weights/x", shape=(2**40,), dtype="f4", chunks=(2**20,))
    return path


def empty_folder(path):
    path.mkdir()
    return path


def climbing_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("../../evil.txt", "x")
    return path


def truncated(path):
    whole = save(siamese(model_zoo.l1()), path.with_name("whole.keras")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def truncated_hdf5(path):
    whole = save(siamese(model_zoo.lambda_l1()), path.with_name("whole.h5")).read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    return path


def containing(data):
    def make(path):
        path.write_bytes(data)
        return path

    return make


def custom_distance_in(suffix):
    return lambda path: save(siamese(lambda a, b: model_zoo.L1Dist(name="l1_dist")(a, b)), path.with_suffix(suffix))


def linked_hdf5(path):
    with h5py.File(path, "w") as file:
        file["weights"] = h5py.ExternalLink("/etc/passwd", "/")
    return path


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str | None]] = {
    "three_inputs": (lambda p: save(with_three_inputs(), p), {}, "it has 3 inputs"),
    "numbers": (lambda p: save(of_numbers(), p), {}, "no batch of images"),
    "one_input": (lambda p: save(model_zoo.encoder_alone(), p), {}, "--compare"),
    "compare_of_two_inputs": (lambda p: save(siamese(model_zoo.l1()), p), {"compare": "l1"}, "for a model with one input"),
    "truncated": (truncated, {}, "truncated zip archive"),
    "truncated_hdf5": (truncated_hdf5, {}, "HDF5 file is damaged"),
    "empty": (containing(b""), {}, "the file is empty"),
    "text": (containing(b"epoch 1 loss 0.3\n"), {}, "it is a text file"),
    "web_page": (containing(b"<!DOCTYPE html><html>404"), {}, "web page"),
    "lfs": (containing(b"version https://git-lfs.github.com/spec/v1\n"), {}, "git lfs pull"),
    "pickle": (containing(pickle.dumps({"weights": [1.0]})), {}, "it is a pickle"),
    "noise": (containing(bytes(range(128, 256))), {}, "no .keras archive, no HDF5"),
    "zip_bomb": (zip_bomb, {}, "bomb"),
    "hdf5_bomb": (hdf5_bomb, {}, "bomb"),
    "climbing_archive": (climbing_archive, {}, "points outside"),
    "linked_hdf5": (linked_hdf5, {}, "links elsewhere"),
    "weights_alone": (lambda p: h5py.File(p, "w").close() or p, {}, "without an architecture"),
    "no_such_file": (lambda p: p, {}, "there is no such file"),
    "empty_folder": (empty_folder, {}, "no saved_model.pb"),
    "custom_class": (custom_distance_in(".keras"), {}, r"class MyLayers>L1Dist.*--custom-object MyLayers>L1Dist=l1"),
    "custom_class_h5": (custom_distance_in(".h5"), {}, r"class MyLayers>L1Dist.*--custom-object MyLayers>L1Dist=l1"),
    "lambda": (lambda p: save(siamese(model_zoo.lambda_l1()), p), {}, "is a Lambda that joins 'encoder' and 'encoder'"),
    "wrong_lambda_name": (lambda p: save(siamese(model_zoo.lambda_l1()), p), {"lambdas": ("x=l1",)}, "it has 'distance'"),
    "wrong_lambda_kind": (lambda p: save(siamese(model_zoo.lambda_l1()), p), {"lambdas": ("l3",)}, "'l3', which is not known"),
    "no_scale": (lambda p: save(siamese(model_zoo.l1(), rescale=False), p), {}, "--pixels"),
    "distance": (lambda p: save(siamese(model_zoo.euclidean, keras.layers.Identity()), p), {}, "--output-is distance"),
    "softmax": (lambda p: save(CASES["softmax"].build(), p), {}, "--match-column"),
    "unknown_module": (lambda p: save(siamese(model_zoo.l1()), p), {"custom_objects": ("X=no_such_module:X",)}, None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence(name, tmp_path):
    make, options, expected = REFUSED[name]
    path = make(tmp_path / "model.keras")
    if expected is None:
        load(path, **options)  # an option about a class that the model does not have harms nothing
        return
    with pytest.raises(PreflightError, match=expected) as caught:
        load(path, **options)
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_planted_lambda_never_runs(suffix, tmp_path):
    path, planted = tmp_path / f"model{suffix}", tmp_path / "planted"
    siamese(model_zoo.lambda_l1()).save(path)
    evil = eval(f"lambda t: open({str(planted)!r}, 'w').close() or abs(t[0] - t[1])")
    code = base64.b64encode(marshal.dumps(evil.__code__)).decode()
    _edit_config(path, lambda text: _with_code(text, code))
    with pytest.raises(PreflightError, match="--lambda distance=l1"):
        load(path)
    load(path, lambdas=("l1",))
    assert not planted.exists()
    load(path, trust_model_code=True)
    assert planted.exists()  # so the test would have seen it run


def _edit_config(path, change):
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = change(file.attrs["model_config"])
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["config.json"] = change(entries["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _with_code(text, code):
    config = json.loads(text)
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Lambda":
            function = layer["config"]["function"]
            (function["config"] if isinstance(function["config"], dict) else function)["code"] = code
            layer["config"]["output_shape"] = [6]
            layer["config"].pop("output_shape", None)
    return json.dumps(config)


def test_a_saved_model_that_writes_files_is_refused(tmp_path):
    class Evil(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None, *SHAPE])])
        def serve(self, left, right):
            tf.io.write_file(str(tmp_path / "planted"), "x")
            return tf.reduce_mean(tf.abs(left - right), axis=[1, 2, 3])

    module = Evil()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    with pytest.raises(PreflightError, match="WriteFile"):
        load(tmp_path / "model", pixels="0..1")
    assert not (tmp_path / "planted").exists()


# Broken and odd graphs


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_shared_encoder_that_lost_its_second_call_is_refused_and_mended(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    case = CASES["sequential_encoder" if suffix == ".keras" else "h5_lambda"]
    live = case.build()
    live.save(path)
    # What Keras 3.2.1 wrote: both branches take the encoder's first call.
    _edit_config(path, lambda text: text.replace('"keras_history": ["encoder", 1, 0]', '"keras_history": ["encoder", 0, 0]'))
    with pytest.raises(PreflightError, match=r"does not depend on the input 'right'.*--mend-shared-encoder"):
        load(path, **case.options)
    model = load(path, mend_shared_encoder=True, **case.options)
    images = probe_images.probe_images(SHAPE, 6)
    scores = model.compare(model.encode(images), model.encode(images[::-1]))
    np.testing.assert_allclose(scores, live_scores(case, live, images, images[::-1]), atol=1e-5)
    assert any("Mended" in note for note in model.facts.notes)


def test_a_score_that_ignores_an_image_is_found_by_feeding_noise(tmp_path):
    class Deaf(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None, *SHAPE])])
        def serve(self, left, right):
            return tf.reduce_mean(left, axis=[1, 2, 3]) + 0.0 * tf.reduce_mean(right)

    module = Deaf()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    with pytest.raises(PreflightError, match="does not depend on the right image"):
        load(tmp_path / "model", pixels="0..1")


def test_the_signature_of_a_saved_model_is_chosen(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None, *SHAPE])])
        def serve(self, left, right):
            return tf.exp(-tf.reduce_mean(tf.abs(left - right), axis=[1, 2, 3]))

    module = Two()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"one": module.serve, "two": module.serve})
    with pytest.raises(PreflightError, match="'one', 'two'; choose one with --signature"):
        load(tmp_path / "model", pixels="0..1")
    assert "'two'" in " ".join(load(tmp_path / "model", pixels="0..1", signature="two").facts.notes)


@pytest.mark.parametrize("names", [("query", "gallery"), ("gallery", "query")])
def test_inputs_and_an_output_in_dictionaries_are_taken_in_the_order_of_their_keys(names, tmp_path):
    model = siamese(lambda a, b: keras.layers.Concatenate()([a, b]), names=names)
    keras.Model(dict(zip(names, model.inputs, strict=True)), {"score": model.outputs[0]}).save(tmp_path / "m.keras")
    found = load(tmp_path / "m.keras")
    images = probe_images.probe_images(SHAPE, 6)
    sides = dict(zip(sorted(names), (images, images[::-1]), strict=True))
    expected = np.asarray(model([sides[name] for name in names], training=False))[:, 0]
    np.testing.assert_allclose(found.compare(found.encode(images), found.encode(images[::-1])), expected, atol=1e-5)
    assert "Inputs 'gallery' and 'query' are taken as left and right by their position." in found.facts.notes


@keras.saving.register_keras_serializable("MyLayers")
class ExchangesFiles(keras.layers.Layer):
    """A distance that puts another file in the place of the model's, once."""

    files: tuple[str, str] | None = None

    def __init__(self, **settings):
        super().__init__(**settings)
        files, ExchangesFiles.files = ExchangesFiles.files, None
        if files:
            os.replace(*files)

    def call(self, left, right):
        return keras.ops.abs(left - right)


def test_a_file_that_is_exchanged_while_it_is_loaded_counts_as_it_was(tmp_path):
    first, other = str(tmp_path / "first.keras"), str(tmp_path / "other.keras")
    model = siamese(lambda a, b: ExchangesFiles()(a, b))
    model.save(first)
    images = probe_images.probe_images(SHAPE, 6)
    expected, digest = np.asarray(model([images, images[::-1]], training=False))[:, 0], digest_model(first)
    model.set_weights([2 * weights for weights in model.get_weights()])
    model.save(other)
    ExchangesFiles.files = (other, first)
    found = load(first, custom_objects=(f"ExchangesFiles={__name__}:ExchangesFiles",))
    assert not os.path.exists(other) and found.facts.digest == digest
    np.testing.assert_allclose(found.compare(found.encode(images), found.encode(images[::-1])), expected, atol=1e-5)


@pytest.mark.slow
def test_a_sidecar_answers_for_the_model_and_its_golden_pair_is_checked(tmp_path, demo):
    case = dataclasses.replace(CASES["told_0..1"], options={})
    _, path = write(case, tmp_path)
    images = [str(demo / "images" / name) for name in sorted(os.listdir(demo / "images"))[:2]]
    sidecar = Path(path + ".batchverify.json")
    golden = {"left": images[0], "right": images[0], "score": 0.5}
    sidecar.write_text(json.dumps({"pixels": "0..1", "threshold": 0.3, "golden": [golden]}))
    config = batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(tmp_path / "out"), model=path)
    summary = batchverify.run(config).summary  # an untrained L1 head has no bias: f(x, x) is 0.5
    assert summary["run"]["threshold"] == 0.3 and "pixels 0..1" in summary["run"]["preprocessing"]

    sidecar.write_text(json.dumps({"pixels": "0..1", "golden": [golden | {"score": 0.9}]}))
    with pytest.raises(PreflightError, match=r"should score 0\.9, but scores 0\.5"):
        batchverify.run(dataclasses.replace(config, output=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"pixels": 3}', "wrong type"),
        ('{"pixel": "0..1"}', "'pixel' is not a setting"),
        ("[1]", "no JSON object"),
        ("{", "cannot be read"),
        ('{"custom_object": "X=os:system"}', "names code to import"),
        ('{"trust_model_code": true}', "'trust_model_code' is not a setting"),
    ],
)
def test_a_sidecar_that_says_what_it_may_not_is_refused(said, expected, tmp_path):
    from batchverify.model.sidecar import read_sidecar

    (tmp_path / "m.keras.batchverify.json").write_text(said)
    with pytest.raises(PreflightError, match=expected):
        read_sidecar(str(tmp_path / "m.keras"))


class Shelf(LocalFileSystem):
    """A store that, like an object store, knows files by full names only and no folders."""

    @classmethod
    def scheme(cls):
        return "shelf"

    def has_dirs(self):
        return False

    def _list(self, prefix):
        root = prefix.removeprefix("shelf:/").rsplit("/", 1)[0]
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                yield FileMetadata(f"shelf:/{path}", os.path.getsize(path))

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return super().open(path.removeprefix("shelf:/"), mime_type, compression_type)

    def exists(self, path):
        return os.path.isfile(path.removeprefix("shelf:/"))


@pytest.mark.parametrize("name", ["l1", "h5_lambda", "saved_model"])
def test_a_model_in_a_store_is_copied_to_the_worker(name, tmp_path):
    case = CASES[name]
    _, path = write(case, tmp_path)
    here, there = load(path, **case.options), load(f"shelf:/{path}", **case.options)
    assert here.facts.digest == there.facts.digest
    images = probe_images.probe_images(SHAPE, 4)
    np.testing.assert_array_equal(here.encode(images), there.encode(images))


def test_a_model_that_is_in_no_store_is_refused():
    with pytest.raises(PreflightError, match=r"it cannot be fetched .*check the URI"):
        load("shelf://nowhere/model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l1", "h5_lambda", "saved_model"])
def test_a_damaged_file_is_loaded_or_refused_and_nothing_else(name, tmp_path):
    case = CASES[name]
    _, path = write(case, tmp_path)
    target = Path(path) / "saved_model.pb" if Path(path).is_dir() else Path(path)
    whole, rng = target.read_bytes(), np.random.default_rng(3)
    for attempt in range(12):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 1 + attempt):
            data[place] = rng.integers(0, 256)
        target.write_bytes(data[: rng.integers(len(data))] if attempt % 4 == 0 else data)
        try:
            load(path, **case.options)
        except PreflightError as refused:
            assert len(refused.problems) == 1 and "\n" not in refused.problems[0]


def test_weights_that_fail_their_checksum_are_refused_as_damaged(tmp_path):
    case = CASES["l1"]  # Its config is rewritten, which copies the weights.
    _, path = write(case, tmp_path)
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 0xFF
    Path(path).write_bytes(data)
    with pytest.raises(PreflightError, match=r"the file is damaged \(.*CRC.*copy it again, whole"):
        load(path, **case.options)


def test_compressed_weights_are_loaded(tmp_path):
    """Zeros are what compresses best: here to a thousandth."""
    image = keras.Input(SHAPE)
    wide = keras.layers.Dense(5_000_000 // 12, kernel_initializer="zeros")
    values = keras.layers.Flatten()(image)
    encoder = keras.Model(image, keras.layers.Dense(8)(values) + keras.layers.Dense(8)(wide(keras.layers.Dense(12)(values))))
    model = model_zoo.siamese(lambda a, b: keras.ops.abs(a - b), encoder=encoder)
    assert model.count_params() > 2 * 2**22
    model.save(tmp_path / "plain.h5")
    with h5py.File(tmp_path / "plain.h5") as file, h5py.File(tmp_path / "small.h5", "w") as packed:
        packed.attrs.update(file.attrs)
        file.visititems(lambda name, item: _pack(packed, name, item))
    assert os.path.getsize(tmp_path / "small.h5") < os.path.getsize(tmp_path / "plain.h5") / 2
    images = probe_images.probe_images(SHAPE, 4)
    here, there = (load(tmp_path / name, pixels="0..1") for name in ("plain.h5", "small.h5"))
    np.testing.assert_array_equal(here.encode(images), there.encode(images))


def _pack(target: h5py.File, name: str, item) -> None:
    copy = target.create_group(name) if isinstance(item, h5py.Group) else None
    if copy is None:
        settings = {"compression": "gzip", "chunks": True} if item.size > 1 else {}
        copy = target.create_dataset(name, data=item[()], **settings)
    copy.attrs.update(item.attrs)


class NeverReady(keras.layers.Layer):
    """A layer that is made only once `release` is set, if there is one."""

    release: threading.Event | None = None

    def __init__(self, **settings):
        super().__init__(**settings)
        if self.release:
            self.release.wait(60)
            raise ValueError("nobody waits any more")

    def call(self, values):
        return values


@pytest.fixture
def model_without_end(tmp_path, monkeypatch):
    """The path of a model that is never loaded, and the option that names its class."""
    siamese = model_zoo.siamese(lambda a, b: NeverReady()(keras.ops.abs(a - b)))
    siamese.save(tmp_path / "model.keras")
    release = threading.Event()
    monkeypatch.setattr(NeverReady, "release", release)
    monkeypatch.setattr("batchverify.model.time_limit._STEP_LIMIT_S", 3.0)
    yield str(tmp_path / "model.keras"), f"NeverReady={__name__}:NeverReady"
    release.set()


def test_a_model_that_loads_without_end_is_refused(model_without_end):
    path, option = model_without_end
    with pytest.raises(PreflightError, match=r"model.keras: it has been loading for 0\.05 minutes without an end; check that"):
        load(path, pixels="0..1", custom_objects=(option,))


def test_a_model_of_an_earlier_run_that_loads_without_end_is_refused(model_without_end):
    path, option = model_without_end
    with pytest.raises(PreflightError, match=r"model.keras: it has been loading for 0\.05 minutes without an end; check that"):
        require_digest(path, "sha256:other", {"custom_objects": [option], "pixels": "0..1"}, "name another")
