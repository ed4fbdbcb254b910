"""TensorFlow in formats of fewer bits: scores move by what the log says, and float32 is float32."""

import dataclasses
import logging
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, SplitError
from batchverify.model.load import load_model
from batchverify.model.probe_images import probe_images
from batchverify.model.split import check_split, split_model


def scores(model, images):
    embeddings = model.encode(images)
    assert embeddings.dtype == np.float32
    return model.compare(embeddings, np.roll(embeddings, 1, axis=0)), model.compare(embeddings, embeddings)


def is_tensor_float_32_on():
    return tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_sixteen_bits_move_scores_by_about_what_the_log_says(precision, most, small_model, caplog):
    caplog.set_level(logging.INFO)
    images = probe_images((16, 16, 3), 40, seed=4).astype(np.float32)
    expected, identity = scores(load_model(ModelConfig(model=small_model)), images)
    found, found_identity = scores(load_model(ModelConfig(model=small_model, precision=precision)), images)
    difference = np.abs(found - expected).max()
    assert 0 < difference < most
    np.testing.assert_array_equal(found_identity, identity)  # Its two embeddings are the same, whatever the format.
    (said,) = re.findall(
        rf"run by tensorflow in {precision}: .* scores differ from TensorFlow's in float32 by (\S+)\.", caplog.text
    )
    assert difference / 10 < float(said) < difference * 10


def test_an_encoder_without_a_head_computes_in_sixteen_bits_too(tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    )
    model.save(tmp_path / "encoder.keras")
    images = probe_images((8, 8, 3), 10, seed=4).astype(np.float32)
    config = ModelConfig(model=str(tmp_path / "encoder.keras"), compare="cosine")
    embeddings = [load_model(dataclasses.replace(config, precision=one)).encode(images) for one in ("float32", "bfloat16")]
    assert 0 < np.abs(embeddings[0] - embeddings[1]).max() < 0.05


def test_tensor_float_32_is_on_only_where_it_is_asked_for(small_model):
    load_model(ModelConfig(model=small_model, precision="tensorfloat32"))
    assert is_tensor_float_32_on()
    load_model(ModelConfig(model=small_model))
    assert not is_tensor_float_32_on()


def test_a_split_is_checked_in_whole_float_32(small_model, monkeypatch):
    model = load_model(ModelConfig(model=small_model, precision="tensorfloat32"))
    seen = []
    monkeypatch.setattr("batchverify.model.pair_model.check_split", lambda *_: seen.append(is_tensor_float_32_on()))
    model.check_split(probe_images((16, 16, 3), 4, seed=1))
    assert seen == [False] and is_tensor_float_32_on()


def test_a_model_whose_layers_are_hidden_is_refused(tmp_path):
    keras.utils.set_random_seed(1)
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    score = keras.layers.Dense(1, activation="sigmoid")(keras.ops.abs(encoder(left) - encoder(right)))
    keras.Model([left, right], score).export(str(tmp_path / "saved"), verbose=False)
    with pytest.raises(PreflightError, match="--precision float16 is not for --model"):
        load_model(ModelConfig(model=str(tmp_path / "saved"), pixels="0..1", precision="float16"))


@pytest.fixture
def parts(small_model):
    """A network, its two parts, and two batches of images."""
    network = keras.models.load_model(small_model)
    images = probe_images((16, 16, 3), 8, seed=2).astype(np.float32)
    return network, split_model(network), images, np.roll(images, 1, axis=0)


def test_noise_of_the_device_is_no_fault_of_the_split(parts):
    network, split, left, right = parts
    rng = np.random.default_rng(3)
    for _ in range(20):
        assert check_split(split, lambda *pair: network(pair).numpy() + rng.normal(0, 5e-5, (8, 1)), left, right) > 1e-5


@pytest.mark.parametrize("fault", [lambda rng: 1e-4, lambda rng: rng.normal(0, 0.1, (8, 1))], ids=["steady", "large"])
def test_what_no_noise_explains_is_a_fault_of_the_split(fault, parts):
    network, split, left, right = parts
    rng = np.random.default_rng(3)
    with pytest.raises(SplitError, match="differ from the whole model's by"):
        check_split(split, lambda *pair: network(pair).numpy() + fault(rng), left, right)
