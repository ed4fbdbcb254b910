"""Files that are left to the batch decoder unopened: Pillow would have found nothing else in them."""

import io
import random

import numpy as np
import pytest
from PIL import ExifTags, Image

from batchverify.images.plain_jpeg import plain_jpeg_size
from batchverify.images.safety import find_decoding_hazard
from batchverify.images.traits import find_traits
from batchverify.schema import ImageTraits

SIZE = (48, 40)
MUTATIONS = 6_000


def saved(mode: str = "RGB", kind: str = "JPEG", **settings) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def exif(**tags) -> Image.Exif:
    found = Image.Exif()
    for name, value in tags.items():
        found[ExifTags.Base[name]] = value
    return found


def with_segment(marker: int, content: bytes) -> bytes:
    jpeg = saved()
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


PLAIN = {
    "colour": saved(),
    "grey": saved("L"),
    "optimized": saved(optimize=True),
    "with a comment": saved(comment=b"of a camera"),
    "with a profile": saved(icc_profile=b"profile" * 50),
    "with restarts": saved(restart_marker_rows=1),
    "progressive": saved(progressive=True),
    "grey and progressive": saved("L", progressive=True),
    "EXIF without a turn": saved(exif=exif(Make="Maker", Software="9.1")),
    "EXIF of an upright picture": saved(exif=exif(Make="Maker", Orientation=1)),
}
OTHERS = {
    "turned": saved(exif=exif(Orientation=6)),
    "turned in EXIF of the other byte order": with_segment(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "a turn of another type": with_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\4\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    "two blocks of EXIF": with_segment(0xE1, saved(exif=exif(Make="Maker"))[6:70]),
    "XMP": with_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
    "a second picture": saved(kind="MPO", save_all=True, append_images=[Image.new("RGB", SIZE)]),
    "four inks": saved("CMYK"),
    "progressive, of many scans": saved(progressive=True) + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 100,
    "two frames": saved().replace(b"\xff\xda", saved()[saved().index(b"\xff\xc0") :][:19] + b"\xff\xda", 1),
    "twelve bits": saved().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "no height": saved().replace(b"\xff\xc0\0\x11\x08\0\x28", b"\xff\xc0\0\x11\x08\0\0"),
    "a broken table": saved().replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x10", 1),
    "the header alone": saved()[: saved().index(b"\xff\xda") + 6],
    "a PNG file": saved(kind="PNG"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_has_the_size_that_its_header_names(name):
    assert plain_jpeg_size(PLAIN[name]) == SIZE


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_file_has_to_be_opened(name):
    assert plain_jpeg_size(OTHERS[name]) is None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # It warns about EXIF that ends early.
@pytest.mark.parametrize("name", PLAIN)
def test_pillow_opens_every_plain_file_and_finds_nothing_else_in_it(name):
    """A few bytes of the header are changed in each of many ways, from a seed."""
    rng, whole = random.Random(0), PLAIN[name]
    header, plain = whole.index(b"\xff\xda") + 8, 0
    for _ in range(MUTATIONS // len(PLAIN)):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            changed[rng.randrange(2, header)] = rng.choice((0, 1, 2, 3, 6, 8, 0xC0, 0xE1, 0xFF, rng.randrange(256)))
        data = bytes(changed)
        if size := plain_jpeg_size(data):
            plain += 1
            assert find_decoding_hazard(data) is None
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == size and image.mode in ("L", "RGB") and image.format == "JPEG"
                assert find_traits(data, image) is ImageTraits.NONE
    assert 0.2 < plain / (MUTATIONS // len(PLAIN)) < 0.99
