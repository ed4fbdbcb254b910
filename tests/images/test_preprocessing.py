"""Pixels come to the network as Keras and TensorFlow would bring them."""

import io
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from batchverify.config import RESIZES, ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import UndecodedJpeg, decode
from batchverify.images.failure import ImageFailure
from batchverify.images.reader import ImageReader
from batchverify.images.resize import Layout
from batchverify.model.pixel_scale import find_scale_in_graph
from batchverify.model.preprocessing import Preprocessing, decide_preprocessing
from tests.support.outcomes import succeeded

SIZE = (20, 28)


@pytest.fixture(scope="module", params=[(67, 41), (13, 90), (20, 28)], ids=str)
def picture(request) -> np.ndarray:
    """A picture with edges and smooth parts, uint8, of several shapes."""
    height, width = request.param
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 120 * np.sin(x / period) * np.cos(y / (period + 1)) for period in (2.0, 5.0, 11.0)]
    return np.stack(waves, -1).astype(np.uint8)


def read(picture, **layout):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return succeeded(decode(buffer.getvalue(), Layout(*SIZE, **layout))).astype(int)


def preprocessing(pixels="0..255", color="rgb", resize="bilinear", fit="stretch", channels=3):
    return Preprocessing(*SIZE, channels, pixels, color, resize, fit, "the test says")


@pytest.mark.parametrize("method", RESIZES)
def test_each_method_is_that_of_tensorflow(method, picture):
    name, _, antialias = method.partition("-")
    expected = tf.image.resize(picture.astype(np.float32), SIZE, name, antialias=bool(antialias)).numpy()
    found = read(picture, resize=preprocessing(resize=method).resizer())
    # Pillow rounds between its two passes, and cuts overshoots off there.
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=2.0 if antialias else 0.501)


@pytest.mark.parametrize(("fit", "setting"), [("crop", "crop_to_aspect_ratio"), ("pad", "pad_to_aspect_ratio")])
def test_crop_and_pad_are_those_of_keras(fit, setting, picture):
    layer = keras.layers.Resizing(*SIZE, **{setting: True})
    expected = np.asarray(layer(picture[None].astype(np.float32)))[0]
    np.testing.assert_allclose(read(picture, fit=fit, resize=preprocessing().resizer()), expected, atol=0.501)


def jpeg(rng, mode="RGB", **settings):
    """Returns the bytes of a JPEG file of random size and content."""
    height, width = rng.integers(8, 90, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


def decoded_together(preprocessing, folder, files):
    """Returns what `files` become where as many as can be are decoded in one call, and how many those are."""
    reader = ImageReader(preprocessing.layout(), 10**6, 10**6)
    found = []
    for number, data in enumerate(files):
        path = folder / f"{number}.jpg"
        path.write_bytes(data)
        found.append(reader.read_with_version(str(path), defer_jpegs=True).image)
    left = [image for image in found if isinstance(image, UndecodedJpeg)]
    decoded = iter(preprocessing.jpeg_decoder(10**6)(left))
    return [next(decoded) if isinstance(image, UndecodedJpeg) else image for image in found], len(left)


def same(one, other):
    return one == other if isinstance(one, ImageFailure) or isinstance(other, ImageFailure) else np.array_equal(one, other)


@pytest.mark.parametrize("resize", RESIZES)
def test_jpeg_files_decoded_together_are_as_each_decoded_alone(resize, tmp_path):
    preprocessing = Preprocessing(32, 40, 3, "0..255", "rgb", resize, "stretch", "")
    if preprocessing.jpeg_decoder(10**6) is None:
        assert preprocessing.resize.endswith("-antialias") or preprocessing.resize == "nearest"
        return
    rng = np.random.default_rng(3)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[dict[str, Any]] = [
        {"quality": 30}, {"quality": 95}, {"subsampling": 0}, {"subsampling": 2}, {"restart_marker_blocks": 2}, {"mode": "L"},
        {"progressive": True}, {"mode": "CMYK"}, {"exif": turned},
    ]  # fmt: skip
    files = [jpeg(rng, **kind) for kind in kinds]
    found, together = decoded_together(preprocessing, tmp_path, files)
    assert together == 6
    assert all(same(one, decode(data, preprocessing.layout())) for one, data in zip(found, files, strict=True))


def test_damaged_jpeg_files_decoded_together_are_as_each_decoded_alone(tmp_path):
    preprocessing = Preprocessing(32, 40, 3, "0..255", "rgb", "bilinear", "stretch", "")
    rng = np.random.default_rng(4)
    files = []
    for number in range(600):
        data = bytearray(jpeg(rng, progressive=bool(number % 2)))
        place = int(rng.integers(len(data) // 3, len(data)))
        data[place : place + int(rng.integers(4))] = rng.integers(0, 256, int(rng.integers(4)), np.uint8).tobytes()
        files.append(bytes(data[: place if number % 10 == 0 else None]))
    found, together = decoded_together(preprocessing, tmp_path, files)
    assert together > 100
    assert sum(isinstance(one, ImageFailure) for one in found) > 50
    assert [number for number, data in enumerate(files) if not same(found[number], decode(data, preprocessing.layout()))] == []


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
    grey = read(picture, grey=True)
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
