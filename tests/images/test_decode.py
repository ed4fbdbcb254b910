"""Every format and every way for an image to fail, with real files."""

import io
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import fetch_bytes
from batchverify.images.layout import Layout
from batchverify.schema import ImageStatus
from tests.support.outcomes import failed, succeeded

SIZE = (32, 48)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth colour picture, 96×64."""
    y, x = np.mgrid[0:64, 0:96]
    return Image.fromarray(np.stack([x * 255 / 95, y * 255 / 63, (x + y) * 255 / 158], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def reference(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_each_format_and_mode(kind, mode, picture):
    image = picture.convert(mode)
    if kind in ("JPEG", "WEBP") and mode in ("1", "P"):
        image = image.convert("RGB")
    settings = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    pixels = succeeded(decode(encoded(image, kind, **settings), Layout(*SIZE)))
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8
    # JPEG and WebP lose a little, and so does a GIF of more than 256 colours.
    assert np.abs(pixels - reference(image)).mean() < (6 if settings or (kind, mode) == ("GIF", "RGB") else 1)


def test_cmyk_jpeg(picture):
    pixels = succeeded(decode(encoded(picture.convert("CMYK"), "JPEG", quality=95), Layout(*SIZE)))
    assert np.abs(pixels - reference(picture)).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    grey = (np.linspace(0, 65535, 64 * 96).reshape(64, 96)).astype(np.uint16)
    pixels = succeeded(decode(encoded(Image.fromarray(grey), kind), Layout(*SIZE, channels=1)))
    assert pixels.shape == (*SIZE, 1)
    assert pixels[0].mean() < 6 and pixels[-1].mean() > 249


def test_twelve_bits_are_scaled_to_eight():
    # Two lines of four pixels: white, grey, black and black, in three bytes for two pixels.
    pixels = b"\xff\xf8\x00\0\0\0" * 2
    numbers = [(256, 4), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in numbers)
    data = b"II*\0" + struct.pack("<L", 8 + len(pixels)) + pixels + struct.pack("<H", len(numbers)) + entries + bytes(4)
    assert succeeded(decode(data, Layout(2, 4, channels=1)))[..., 0].tolist() == [[255, 128, 0, 0]] * 2


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (succeeded(decode(encoded(clear, "PNG"), Layout(*SIZE))) == 255).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = succeeded(decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), Layout(*SIZE)))
    assert (pixels == [255, 0, 0]).all()


def test_exif_orientation_is_honoured(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = succeeded(decode(encoded(picture, "JPEG", quality=95, exif=exif), Layout(*SIZE)))
    assert np.abs(turned - reference(picture.transpose(Image.Transpose.ROTATE_270))).mean() < 6


def test_one_channel(picture):
    assert succeeded(decode(encoded(picture, "PNG"), Layout(*SIZE, channels=1))).shape == (*SIZE, 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no image at all", ImageStatus.UNREADABLE),
        (encoded(Image.new("L", (50, 50)), "PNG")[:60], ImageStatus.UNREADABLE),
        (encoded(Image.effect_noise((50, 50), 40), "JPEG")[:700], ImageStatus.UNREADABLE),
        (encoded(Image.new("RGB", (5, 5)), "PCX"), ImageStatus.UNSUPPORTED),
        (encoded(Image.new("F", (5, 5)), "TIFF"), ImageStatus.UNSUPPORTED),
        (encoded(Image.new("1", (3000, 3000)), "PNG"), ImageStatus.TOO_LARGE),
    ],
)
def test_what_is_no_picture_is_a_typed_failure(data, status):
    failure = decode(data, Layout(*SIZE), max_pixels=2_000_000)
    assert isinstance(failure, ImageFailure) and failure.status == status and failure.error


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(101))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    found = {
        name: fetch_bytes(str(tmp_path / name), 100) for name in ("empty", "large", "loop", "fifo", "none", "empty/x", ".")
    }
    assert {name: failed(failure).status for name, failure in found.items()} == {
        "empty": "empty", "large": "too_large", "loop": "missing", "fifo": "unreadable",
        "none": "missing", "empty/x": "missing", ".": "unreadable",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_denied(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    assert failed(fetch_bytes(str(tmp_path / "secret"), 100)).status == ImageStatus.DENIED


def test_a_scheme_that_nobody_installed_is_unsupported():
    assert failed(fetch_bytes("gopher://host/a.png", 100)).status == ImageStatus.UNSUPPORTED


def test_nothing_outside_the_root_is_opened(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_bytes(b"x")
    (root / "link").symlink_to(tmp_path / "outside")
    for name in ("../outside", "link"):
        assert failed(fetch_bytes(str(root / name), 100, str(root))).status == ImageStatus.OUTSIDE_ROOT
    (root / "inside").write_bytes(b"x")
    assert fetch_bytes(str(root / "inside"), 100, str(root)) == b"x"


def test_a_link_that_nobody_may_read_is_a_status(tmp_path):
    (tmp_path / "link").symlink_to("/proc/1/cwd/x.png")
    for name in ("/proc/1/cwd/x.png", str(tmp_path / "link")):  # Python raises an error when it resolves such a link.
        assert failed(fetch_bytes(name, 100, str(tmp_path))).status == ImageStatus.OUTSIDE_ROOT


def test_a_long_chain_of_links_is_a_status(tmp_path):
    (tmp_path / "0").write_bytes(b"x")
    for number in range(1, 1500):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    assert failed(fetch_bytes(str(tmp_path / "1499"), 100, str(tmp_path))).status == ImageStatus.MISSING
    assert fetch_bytes(str(tmp_path / "9"), 100, str(tmp_path)) == b"x"


EXCHANGE = """
import os, sys
inside, outside, spare = sys.argv[1:]
while True:
    os.rename(inside, spare)
    os.symlink(outside, inside)
    os.unlink(inside)
    os.rename(spare, inside)
"""


@pytest.mark.processes
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux shows where an open file lies")
def test_a_folder_that_becomes_a_link_meanwhile_leads_to_nothing_outside_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, content in ((root / "folder", b"inside"), (outside, b"outside")):
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(content)
    paths = [str(root / "folder"), str(outside), str(tmp_path / "spare")]
    exchanger = subprocess.Popen([sys.executable, "-c", EXCHANGE, *paths])
    try:
        end = time.monotonic() + 2
        found = set()
        while time.monotonic() < end:
            result = fetch_bytes(str(root / "folder" / "x"), 100, str(root), timeout_s=0.1)
            found.add(result if isinstance(result, bytes) else result.status)
    finally:
        exchanger.kill()
        exchanger.wait()
    assert b"outside" not in found
    assert found <= {b"inside", ImageStatus.OUTSIDE_ROOT, ImageStatus.MISSING, ImageStatus.UNAVAILABLE}
