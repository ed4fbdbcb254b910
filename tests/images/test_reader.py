"""What the reader makes of a file: large ones are decoded where they are read, and some are changed."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from batchverify.config import ModelConfig
from batchverify.images.decode import UndecodedImage, decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.loaders import decide_loading
from batchverify.images.pixel_budget import PixelBudget
from batchverify.images.reader import ImageReader
from batchverify.model.preprocessing import Preprocessing
from benchmarks.hostile_images import many_scans

MOST = 10**8
PREPROCESSING = Preprocessing(32, 40, 3, "0..255", "rgb", decide_loading(ModelConfig()), "stretch", "")
DECODE_BATCH = PREPROCESSING.batch_decoder(MOST)


def noise(side: int, kind: str) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def flat(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(file, "JPEG")
    return file.getvalue()


def read(tmp_path, data, decode_batch=DECODE_BATCH):
    path = tmp_path / "image"
    path.write_bytes(data)
    budget = PixelBudget(MOST)
    reader = ImageReader(PREPROCESSING.layout(), MOST, MOST, budget=budget, decode_batch=decode_batch)
    return reader.read_with_version(str(path), defer=True).image


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a.png ", "; its name ends with a blank"),
        ("a.png\N{NO-BREAK SPACE}", "; its name ends with a blank"),
        (" a.png", "; its name begins with a blank"),
        (" /images/a.png", "; a part of its path begins with a blank"),
        ("an image.png", ""),
    ],
)
def test_a_blank_at_the_end_of_a_missing_files_name_is_told(tmp_path, name, where):
    reader = ImageReader(PREPROCESSING.layout(), MOST, MOST)
    found, _ = reader.read(f"{tmp_path}/{name}")
    assert isinstance(found, ImageFailure) and found.error == f"there is no such file{where}"


LARGE = {
    "a JPEG file of two megabytes": noise(1500, "JPEG"),
    "a PNG file of two megabytes": noise(900, "PNG"),
    "a small file of ten million pixels": flat(4000, 2500),
}


@pytest.mark.parametrize("decode_batch", [DECODE_BATCH, None], ids=["batch decoder", "none"])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_is_decoded_where_it_is_read_to_the_pixels_of_the_loader(tmp_path, name, decode_batch):
    found, expected = read(tmp_path, LARGE[name], decode_batch), decode(LARGE[name], PREPROCESSING.layout())
    assert isinstance(found, np.ndarray) and isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(found, expected)


def test_a_small_file_waits_for_its_batch(tmp_path):
    assert read(tmp_path, noise(20, "JPEG")) == UndecodedImage(noise(20, "JPEG"), 400)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_that_is_cut_fails_as_it_does_alone(tmp_path, name):
    cut = LARGE[name][: len(LARGE[name]) // 2]
    found = read(tmp_path, cut)
    assert isinstance(found, ImageFailure) and found == decode(cut, PREPROCESSING.layout())


@pytest.mark.parametrize("loader", ["batchverify", "tf", "keras-load-img", "pillow", "torchvision", "opencv"])
def test_changes_of_a_picture_are_those_that_their_names_tell(tmp_path, loader):
    file = tmp_path / "picture.png"
    pixels = np.random.default_rng(5).integers(0, 256, (24, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    loading = decide_loading(ModelConfig(loader=loader))
    layout = Preprocessing(24, 30, 3, "0..255", "rgb", loading, "stretch", "").layout()
    found = ImageReader(layout, MOST, MOST).read_changed(str(file), MOST)
    assert found is not None
    count, changed = found
    assert count == 24 * 30
    shifted = np.pad(pixels, ((1, 0), (1, 0), (0, 0)), mode="edge")[:24, :30]
    np.testing.assert_array_equal(changed["shift"], shifted)
    np.testing.assert_array_equal(changed["brighten"], np.minimum(255, np.round(1.05 * pixels.astype(float))))
    np.testing.assert_array_equal(changed["mirror"], pixels[:, ::-1])
    saved = io.BytesIO()
    Image.fromarray(pixels).save(saved, "JPEG", quality=75)
    np.testing.assert_array_equal(changed["jpeg"], decode(saved.getvalue(), layout))


def test_a_picture_that_exif_turns_is_not_changed(tmp_path):
    file, exif = tmp_path / "picture.jpg", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 24)).save(file, exif=exif)
    assert ImageReader(Layout(24, 30), MOST, MOST).read_changed(str(file), MOST) is None


def test_a_grey_picture_is_changed_in_grey(tmp_path):
    file = tmp_path / "picture.png"
    pixels = np.random.default_rng(5).integers(0, 256, (24, 30), np.uint8)
    Image.fromarray(pixels).save(file)
    found = ImageReader(Layout(24, 30, channels=1), MOST, MOST).read_changed(str(file), MOST)
    assert found is not None
    np.testing.assert_array_equal(found[1]["mirror"][..., 0], pixels[:, ::-1])


@pytest.mark.parametrize("loader", ["batchverify", "tf", "opencv"])
@pytest.mark.parametrize(("width", "height"), [(70_000, 1), (70_000, 2), (1, 70_000)])
def test_a_picture_that_jpeg_cannot_hold_is_read_and_not_changed(tmp_path, loader, width, height):
    file = tmp_path / "picture.png"
    Image.new("RGB", (width, height)).save(file)
    layout = Preprocessing(24, 30, 3, "0..255", "rgb", decide_loading(ModelConfig(loader=loader)), "stretch", "").layout()
    reader = ImageReader(layout, MOST, MOST)
    assert isinstance(reader.read(str(file))[0], np.ndarray)
    assert reader.read_changed(str(file), MOST) is None


def test_a_picture_of_one_pixel_is_changed(tmp_path):
    file = tmp_path / "picture.png"
    Image.new("RGB", (1, 1)).save(file)
    assert ImageReader(Layout(24, 30), MOST, MOST).read_changed(str(file), MOST) is not None


def test_a_picture_that_would_keep_a_decoder_busy_is_not_changed(tmp_path):
    file = tmp_path / "picture.jpg"
    file.write_bytes(many_scans(40, 150))
    assert ImageReader(Layout(24, 30), MOST, MOST).read_changed(str(file), MOST) is None
