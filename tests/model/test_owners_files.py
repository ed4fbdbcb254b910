"""Model files as their owners have them: compiled with old optimizers, saved from notebooks, copied in part."""

import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.load import load_model
from tests.support.model_zoo import SHAPE, l1, siamese

pytestmark = pytest.mark.slow

# tf_keras itself can revive its optimizers, so it must not be there.
SCORE_WITHOUT_TF_KERAS = """
import sys
sys.modules["tf_keras"] = None
import numpy as np
from batchverify.config import ModelConfig
from batchverify.model.load import load_model
model = load_model(ModelConfig(model=sys.argv[1], pixels="0..255"))
images = np.load(sys.argv[2])
np.save(sys.argv[3], model.compare(model.encode(images), model.encode(images[::-1])))
"""


def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (6, *SHAPE)).astype(np.float32)


def refusal(path, **options) -> str:
    with pytest.raises(PreflightError) as refused:
        load_model(ModelConfig(model=str(path), pixels="0..255", **options))
    return str(refused.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[tf_keras.Model, str]:
    """A model of Keras 2 that was trained with an optimizer with slot variables, and its SavedModel."""
    model = siamese(l1(tf_keras), k=tf_keras)
    model.compile(tf_keras.optimizers.legacy.Adam(), "binary_crossentropy")
    model.fit([images(), images()[::-1]], np.ones((6, 1)), verbose=0)
    path = str(tmp_path_factory.mktemp("trained") / "model")
    model.save(path, save_format="tf")
    return model, path


@pytest.mark.processes
def test_a_saved_model_with_an_old_optimizer_scores_as_it_did_where_it_was_trained(trained, tmp_path):
    model, path = trained
    np.save(tmp_path / "images.npy", images())
    command = [sys.executable, "-c", SCORE_WITHOUT_TF_KERAS, path, tmp_path / "images.npy", tmp_path / "scores.npy"]
    subprocess.run(list(map(str, command)), check=True, timeout=300, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    expected = model.predict([images(), images()[::-1]], verbose=0)[:, 0]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, atol=1e-5)


def test_a_saved_model_without_its_variables_is_told_as_that(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "variables")
    assert "its weights are missing; copy the folder again, with variables/" in refusal(tmp_path / "model")


class L1Dist(keras.layers.Layer):
    def call(self, left, right):
        return keras.ops.abs(left - right)


class CosineDistance(keras.layers.Layer):
    def call(self, left, right):
        return 1 - keras.ops.sum(left * right, -1, keepdims=True)


@pytest.mark.parametrize(("layer", "kind"), [(L1Dist, "l1"), (CosineDistance, "cosine_distance")])
def test_a_class_of_a_notebook_is_named_with_what_it_seems_to_compute(layer, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(layer, "__module__", "__main__")  # Keras then writes null for its module.
    siamese(lambda left, right: layer(name="distance")(left, right)).save(tmp_path / "model.keras")
    assert f"use --custom-object {layer.__name__}={kind} (or " in refusal(tmp_path / "model.keras")
    load_model(ModelConfig(model=str(tmp_path / "model.keras"), custom_objects=(f"{layer.__name__}={kind}",)))
