"""Pixels come to the network as Keras and TensorFlow would bring them."""

import io

import keras
import numpy as np
import pytest
from PIL import Image

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import decode
from batchverify.images.layout import Layout
from batchverify.images.loaders import decide_loading
from batchverify.model.pixel_scale import find_scale_in_graph
from batchverify.model.preprocessing import Preprocessing, decide_preprocessing
from tests.support.outcomes import succeeded

SIZE = (20, 28)


def preprocessing(pixels="0..255", color="rgb", channels=3, **options):
    return Preprocessing(*SIZE, channels, pixels, color, decide_loading(ModelConfig(**options)), "stretch", "the test says")


def test_a_sliver_is_not_padded_without_limit():
    failure = read_bytes(np.zeros((1, 30_000, 3), np.uint8), fit="pad")
    assert str(failure.status) == "too_large"


def read_bytes(picture, **layout):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return decode(buffer.getvalue(), Layout(*SIZE, **layout))


@pytest.mark.parametrize(("pixels", "mode"), [("-1..1", "tf"), ("imagenet", "torch"), ("caffe", "caffe")])
def test_scales_are_those_of_preprocess_input(pixels, mode):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    expected = keras.src.applications.imagenet_utils.preprocess_input(images.astype(np.float32), mode=mode)
    color = "bgr" if pixels == "caffe" else "rgb"
    np.testing.assert_allclose(preprocessing(pixels, color).to_input(images), expected, atol=1e-5)


def test_bgr_is_rgb_turned_round_and_grey_has_three_equal_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    np.testing.assert_array_equal(preprocessing(color="bgr").to_input(images), images[..., ::-1])
    picture = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
    grey = succeeded(read_bytes(picture, grey=True))
    assert grey.shape == (*SIZE, 3) and np.all(grey == grey[..., :1])


def shown(*layers):
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Conv2D(2, 3, padding="same")])
    found = find_scale_in_graph(model, model.inputs[0])
    return found and found[0]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (lambda: [keras.layers.Rescaling(1 / 255)], "0..255"),
        (lambda: [keras.layers.Resizing(8, 8), keras.layers.Rescaling(1 / 127.5, -1)], "0..255"),
        (lambda: [keras.layers.Rescaling(2.0, -1)], "0..1"),
        (lambda: [keras.layers.Rescaling(255.0)], "0..1"),
        (lambda: [keras.layers.Normalization(mean=0.5, variance=0.1)], "0..1"),
        (lambda: [keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))], "0..255"),
        (lambda: [keras.layers.Resizing(8, 8)], None),
        (lambda: [], None),
    ],
)
def test_the_graph_shows_the_scale_or_does_not(layers, expected):
    assert shown(*layers()) == expected


def test_a_scale_that_nothing_shows_is_asked_for():
    with pytest.raises(PreflightError, match="say it with --pixels"):
        decide_preprocessing(ModelConfig(model="m.keras"), "m.keras", (*SIZE, 3), None)
