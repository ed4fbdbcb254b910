"""Directories of TIFF and EXIF that name far more than they hold: refused before Pillow reads them, whatever holds them."""

import io
import struct

import pytest
from PIL import Image

from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.tensorflow_loader import TensorFlowLoader

BYTES, RATIONAL, ORIENTATION, PRIVATE = 7, 5, 0x0112, 50_000
Entry = tuple[int, int, int]


def directory(*entries: Entry, blob: bytes = b"") -> bytes:
    """Returns a block whose entries, tag, type and count, all name the same bytes."""
    parts = b"".join(struct.pack("<HHLL", tag, kind, count, 8) for tag, kind, count in entries)
    return b"II*\0" + struct.pack("<L", 8 + len(blob)) + blob + struct.pack("<H", len(entries)) + parts + bytes(4)


REPEATED = directory(*((PRIVATE + number, BYTES, 2**16) for number in range(2000)), blob=bytes(2**16))
NUMBERS = directory((PRIVATE, RATIONAL, 300_000), blob=struct.pack("<LL", 1, 1) * 300_000)


def saved(form: str, **settings) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, form, **settings)
    return file.getvalue()


def jpeg_with(exif: bytes) -> bytes:
    """Returns a JPEG file with a long block in many parts, behind a comment that holds a harmless block."""
    data, harmless = saved("JPEG"), b"\xff\xe1\0\x20Exif\0\0" + directory()
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    comment = b"\xff\xfe" + struct.pack(">H", len(harmless) + 2) + harmless
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    return data[:2] + comment + segments + data[2:]


def tiff_with(block: bytes) -> bytes:
    return block


HOLDERS = {
    "JPEG": jpeg_with,
    "PNG": lambda block: saved("PNG", exif=block),
    "WebP": lambda block: saved("WEBP", exif=b"Exif\0\0" + block),
    "AVIF": lambda block: saved("AVIF", exif=b"Exif\0\0" + block),
    "TIFF": tiff_with,
}


@pytest.mark.parametrize("loader", [Layout(8, 8), Layout(8, 8, loader=TensorFlowLoader())], ids=["pictures", "tf"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(("block", "words"), [(REPEATED, "name far more bytes"), (NUMBERS, "numbers in an entry")])
def test_a_directory_that_names_too_much_is_refused(block, words, holder, loader):
    failure = decode(HOLDERS[holder](block), loader)
    assert isinstance(failure, ImageFailure) and words in failure.error


@pytest.mark.parametrize("holder", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_ordinary_directory_is_read(holder):
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F], exif[0x011A] = 6, "a camera" * 400, 72.5
    assert not isinstance(decode(saved(holder, exif=exif), Layout(8, 8)), ImageFailure)
