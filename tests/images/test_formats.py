"""Every format that is read, from a file as another program writes it to pixels."""

import io
import sys
import time

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.schema import ImageStatus

SIZE = (48, 64)  # Height and width.
LAYOUT = Layout(*SIZE)


def picture() -> Image.Image:
    """A smooth picture whose quarters have four colours, so that any turn of it shows."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:] = (220, 40, 40), (40, 200, 60)
    pixels[24:, :32], pixels[24:, 32:] = (50, 60, 210), (200, 200, 60)
    return Image.fromarray(pixels)


def encode(form: str, image: Image.Image | None = None, **settings) -> bytes:
    file = io.BytesIO()
    image = image or picture()
    if form == "HEIF":
        pillow_heif.from_pillow(image).save(file, quality=90, **settings)
    else:
        image.save(file, form, **settings)
    return file.getvalue()


def pixels_of(data: bytes, layout: Layout = LAYOUT) -> np.ndarray:
    pixels = decode(data, layout)
    assert isinstance(pixels, np.ndarray), pixels
    return pixels


@pytest.mark.parametrize(
    ("form", "settings", "tolerance"),
    [
        *[(form, {}, 0) for form in ("PNG", "BMP", "TIFF", "PPM", "GIF")],
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("AVIF", {"quality": 95}, 6),
        ("HEIF", {}, 8),
    ],
)
def test_a_picture_comes_back(form, settings, tolerance):
    difference = np.abs(pixels_of(encode(form, **settings)).astype(int) - np.asarray(picture()).astype(int))
    assert np.median(difference) <= tolerance and difference[::4, ::4].mean() <= tolerance


@pytest.mark.parametrize("form", ["AVIF", "HEIF", "JPEG", "PNG"])
def test_a_turned_photo_is_turned_upright(form):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: turn by 90 degrees to the right.
    data = encode(form, exif=exif.tobytes())
    upright = pixels_of(data, Layout(64, 48)).astype(int)
    expected = np.asarray(picture().transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(upright[8::48, 8::32] - expected[8::48, 8::32]).max() < 24


@pytest.mark.parametrize("form", ["AVIF", "HEIF", "PNG", "WEBP"])
def test_transparency_is_laid_on_white(form):
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert pixels_of(encode(form, image)).min() >= 250


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5 2 1 255\n\x00\xff", [0, 255]),
        (b"P2\n# drawn by hand\n2 1\n255\n7 200\n", [7, 200]),
        (b"P5 2 1 65535\n\x12\x34\xff\xff", [0x12, 0xFF]),
        (b"P4 2 1\n\x40", [255, 0]),
    ],
    ids=["grey", "text", "16 bits", "bits"],
)
def test_files_of_the_pnm_family_are_read(data, expected):
    assert pixels_of(data, Layout(1, 2, channels=1)).ravel().tolist() == expected


LONG = b"a" * 2**17


@pytest.mark.parametrize(
    "data",
    [
        b"P3 4600 4600 255\n" + b"9 " * 3_000_000,
        b"P6 " + b"# \n" * 100_000,
        b"P5 1 1\n#" + LONG + b"\n255\n\0",
        b"P5 12#\n34 5\n#" + LONG + b"\n255\n\0",
        b"P6" + b" " * 60 + b"x",
        b"P3 2000 2000 255\n" + b"#\n" * 1_000_000,
        b"P6 1700 1700 254\n" + bytes(3 * 1700 * 1700),
    ],
    ids=[
        "text", "comments", "a comment behind two numbers", "a comment within a number", "blanks without an end",
        "comments among the numbers", "values up to 254",
    ],
)  # fmt: skip
def test_a_pnm_file_that_python_would_read_for_long_is_refused(data):
    started = time.thread_time()
    failure = decode(data, LAYOUT)
    assert isinstance(failure, ImageFailure) and ("a PNM file" in failure.error or "takes long to decode" in failure.error)
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("magic", "status"),
    [(b"Pf", "unsupported"), *((kind, "unreadable") for kind in (b"PyP", b"PyRGBA", b"PyCMYK", b"P0CMYK", b"P7", b"P5x"))],
)
def test_other_kinds_of_the_pnm_family_are_not_begun(magic, status):
    failure = decode(magic + b"\n1 1\n255\n" + bytes(4), LAYOUT)
    assert isinstance(failure, ImageFailure) and failure.status == status
    started = time.thread_time()
    assert isinstance(decode(magic + b"\n" + b" " * 2**24 + b"1 1\n255\n" + bytes(4), LAYOUT), ImageFailure)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_half_a_file_is_unreadable(form):
    data = encode(form)
    failure = decode(data[: len(data) // 2], LAYOUT)
    assert isinstance(failure, ImageFailure) and failure.status is ImageStatus.UNREADABLE


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_the_header_decides_whether_a_picture_is_too_large(form):
    failure = decode(encode(form), LAYOUT, max_pixels=1000)
    assert isinstance(failure, ImageFailure) and failure.status is ImageStatus.TOO_LARGE


def test_without_its_decoder_heic_is_named_with_what_to_install(monkeypatch):
    data = encode("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    failure = decode(data, LAYOUT)
    assert isinstance(failure, ImageFailure) and failure.status is ImageStatus.UNSUPPORTED
    assert failure.error.startswith("HEIC files need a decoder; pip install 'batchverify[heif]'")


def test_a_program_that_decodes_heic_here_keeps_the_formats_that_its_pillow_opens():
    data, before = encode("HEIF"), set(Image.OPEN)  # Another library of this process may have registered it.
    pixels_of(data)
    assert set(Image.OPEN) == before
