"""Pixels come to the network as Keras and TensorFlow would bring them."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
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


@pytest.mark.parametrize("loader", ["tf", "skimage"])
def test_standardize_is_per_image_standardization(loader):
    rng = np.random.default_rng(0)
    images = np.stack([rng.integers(0, 256, (*SIZE, 3)), rng.integers(90, 93, (*SIZE, 3)), np.full((*SIZE, 3), 7)])
    images = images.astype(np.float32) / (255 if loader == "skimage" else 1)
    expected = tf.image.per_image_standardization(images)
    np.testing.assert_allclose(preprocessing("standardize", loader=loader).to_input(images), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("pixels", "black", "white"), [("0..1-binary:210", 0, 1), ("-1..1-binary:99.5", -1, 1), ("0..255-binary:0", 0, 255)]
)
@pytest.mark.parametrize("brightest", [1, 255])
def test_a_threshold_makes_pixels_above_it_white_and_the_others_black(pixels, black, white, brightest):
    images, threshold = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), float(pixels.rpartition(":")[2])
    given = images if brightest == 255 else images.astype(np.float64) / 255
    loader = "tf" if brightest == 255 else "skimage"
    found = preprocessing(pixels, "grey", 1, loader=loader).to_input(given.astype(np.float32))
    np.testing.assert_array_equal(found, np.where(images > threshold, np.float32(white), np.float32(black)))


@pytest.mark.parametrize("pixels", ["0..1-binary:", "0..1-binary:x", "binary:3", "0..2", "0..1-binary:nan", "0..1-binary:300"])
def test_a_scale_or_threshold_that_is_none_is_refused(pixels):
    with pytest.raises(PreflightError, match="--pixels is '"):
        ModelConfig(pixels=pixels)


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
        (lambda: [normalised(0.5, 0.1)], "0..1"),
        (lambda: [keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))], "0..255"),
        (lambda: [keras.layers.Resizing(8, 8)], None),
        (lambda: [], None),
    ],
)
def test_the_graph_shows_the_scale_or_does_not(layers, expected):
    assert shown(*layers()) == expected


def normalised(mean, variance):
    return keras.layers.Normalization(mean=mean, variance=variance)


IMAGENET, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# What the first steps of a network compute of a pixel, and the one scale on which that makes sense.
FIRST_STEPS = {
    # A scale and an offset together
    "1/255": (lambda x: keras.layers.Rescaling(1 / 255)(x), "0..255"),
    "x/255-0.5": (lambda x: x / 255 - 0.5, "0..255"),
    "x/127.5-1": (lambda x: keras.layers.Rescaling(1 / 127.5, -1)(x), "0..255"),
    "(x-128)/128": (lambda x: (x - 128) / 128, "0..255"),
    "x/64": (lambda x: x / 64, "0..255"),
    "1-x/255": (lambda x: keras.layers.Rescaling(-1 / 255, 1)(x), "0..255"),
    "255-x": (lambda x: 255 - x, "0..255"),
    "x less a mean of 0..255": (lambda x: x - np.array([103.939, 116.779, 123.68], np.float32), "0..255"),
    "preprocess_input of ResNet50": (keras.applications.resnet50.preprocess_input, "0..255"),
    "preprocess_input of MobileNetV2": (keras.applications.mobilenet_v2.preprocess_input, "0..255"),
    "channels turned round, then x/127.5-1": (
        lambda x: keras.ops.concatenate([x[..., 2:], x[..., 1:2], x[..., :1]], axis=-1) / 127.5 - 1, "0..255",
    ),
    "x/255+0.5": (lambda x: keras.layers.Rescaling(1 / 255, 0.5)(x), None),
    "2x-1": (lambda x: keras.layers.Rescaling(2.0, -1)(x), "0..1"),
    "2x-1, in two steps": (lambda x: x * 2 - 1, "0..1"),
    "1-2x": (lambda x: 1 - 2 * x, "0..1"),
    "255x": (lambda x: keras.layers.Rescaling(255.0)(x), "0..1"),
    "255x-128": (lambda x: x * 255 - 128, "0..1"),
    "x-0.5": (lambda x: x - 0.5, "0..1"),
    "(x-0.5)/0.5": (lambda x: (x - 0.5) / 0.5, "0..1"),
    "x less ImageNet's mean": (lambda x: (x - np.array(IMAGENET)) / np.array(DEVIATION), "0..1"),
    "127.5x+127.5": (lambda x: keras.layers.Rescaling(127.5, offset=127.5)(x), "-1..1"),
    "(x+1)127.5": (lambda x: (x + 1) * 127.5, "-1..1"),
    "(x+1)/2": (lambda x: (x + 1) / 2, "-1..1"),
    "0.5x+0.5": (lambda x: keras.layers.Rescaling(0.5, offset=0.5)(x), "-1..1"),
    "127.5x+128": (lambda x: x * 127.5 + 128, "-1..1"),
    # Steps that fit several scales
    "x": (lambda x: x, None),
    "x+1": (lambda x: x + 1, None),
    "log(x+1)": (lambda x: keras.ops.log(x + 1) / 255, None),
    "1-x": (lambda x: 1 - x, None),
    "2x": (lambda x: x * 2, None),
    "127.5x": (lambda x: x * 127.5, None),
    "x/2": (lambda x: x / 2, None),
    "x**2/255": (lambda x: x**2 / 255, None),
    "1/x": (lambda x: 255 / x, None),
    "relu": (lambda x: keras.layers.Rescaling(1 / 255)(keras.layers.Activation("relu")(x)), None),
    # A mean and a variance
    "mean of 0..255": (lambda x: normalised([120.0, 110.0, 100.0], [3000.0, 3100.0, 3200.0])(x), "0..255"),
    "mean of dark images": (lambda x: normalised(7.0, 900.0)(x), "0..255"),
    "mean of 0.5": (lambda x: normalised(0.5, 0.1)(x), "0..1"),
    "mean of ImageNet": (lambda x: normalised(IMAGENET, np.square(DEVIATION))(x), "0..1"),
    "mean of -1..1, dark": (lambda x: normalised(-0.7, 0.3)(x), "-1..1"),
    "mean of -1..1, bright": (lambda x: normalised(0.8, 0.3)(x), "-1..1"),
    "mean of -1..1, grey": (lambda x: normalised(-0.05, 0.3)(x), "-1..1"),
    "mean of bright images, 0..1 or -1..1": (lambda x: normalised(0.8, 0.1)(x), None),
    "mean of dark images, 0..1 or -1..1": (lambda x: normalised(0.13, 0.095)(x), None),
    "mean of grey images, -0.5..0.5 or -1..1": (lambda x: normalised(-0.05, 0.1)(x), None),
    "mean of standardised pixels": (lambda x: normalised(-0.01, 0.98)(x), None),
    "mean out of every scale": (lambda x: normalised(-3.0, 2.0)(x), None),
    "variance out of every scale": (lambda x: normalised(-0.7, 4.0)(x), None),
    "nothing learned": (lambda x: normalised(0.0, 1.0)(x), None),
    "nothing learned, then x/255": (lambda x: normalised(0.0, 1.0)(x) / 255, "0..255"),
    "x turned back": (lambda x: keras.layers.Normalization(mean=127.5, variance=127.5**2, invert=True)(x), "-1..1"),
    # A model inside of the model
    "a model that mirrors, then x/255": (lambda x: keras.Sequential([keras.layers.RandomFlip()])(x) / 255, "0..255"),
    "a model of half of the steps": (lambda x: keras.Sequential([keras.layers.Rescaling(1.0, 1.0)])(x) / 2, "-1..1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_first_steps_that_fit_one_scale_show_it_and_others_do_not(name):
    steps, expected = FIRST_STEPS[name]
    pixels = keras.Input((8, 8, 3))
    model = keras.Model(pixels, keras.layers.Conv2D(2, 3)(steps(pixels)))
    found = find_scale_in_graph(model, pixels)
    assert (found and found[0]) == expected


def test_a_scale_that_nothing_shows_is_asked_for():
    with pytest.raises(PreflightError, match="say it with --pixels"):
        decide_preprocessing(ModelConfig(model="m.keras"), "m.keras", (*SIZE, 3), None)
