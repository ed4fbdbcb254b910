"""The check before a decoder is called: what it refuses, and what decoders make of what it lets through."""

import io
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from batchverify.config import ModelConfig
from batchverify.images.decode import decode, decode_or_defer
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.loaders import decide_loading, make_loader
from batchverify.images.safety import find_decoding_hazard
from batchverify.schema import ImageTraits

MANY = 150


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return saved(progressive=False)


def saved(progressive: bool) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=progressive)
    return file.getvalue()


def split_at_scan(data: bytes) -> tuple[bytes, bytes]:
    """Returns the header, and the scan with the end of the file."""
    place = data.index(b"\xff\xda")
    return data[:place], data[place:]


@pytest.mark.parametrize("loader", ["batchverify", "tf"])
def test_scans_behind_the_only_one_of_a_sequential_file_are_not_decoded(jpeg, loader):
    header, scan = split_at_scan(jpeg)
    layout = Layout(20, 24, loader=make_loader(decide_loading(ModelConfig(loader=loader))))
    found = decode(header + scan[:-2] * MANY + b"\xff\xd9", layout)
    assert isinstance(found, ImageFailure) and "scans" not in found.error  # The decoder itself refuses the second one.
    assert isinstance(decode(jpeg, layout), np.ndarray)


def one_component(scan: bytes) -> bytes:
    return b"\xff\xda\0\x08\1\1\0\0\x3f\0" + scan[14:-2]


# What libjpeg takes for the first frame header is not the one that a reader of lengths finds: `\xff\1` has no length.
HIDDEN = b"\xff\1\0\x15" + b"\xff\xc2\0\x11\x08\0\x28\0\x30\3\1\x22\0\2\x11\1\3\x11\1"


@pytest.mark.parametrize(
    "make",
    [
        lambda header, scan: header + one_component(scan) * MANY,
        lambda header, scan: header.replace(b"\xff\xc0", b"\xff\xc2") + scan[:-2] * MANY,
        lambda header, scan: header.replace(b"\xff\xc0", b"\xff\xff\xc0") + scan[:-2] * MANY,
        lambda header, scan: header[:2] + HIDDEN + header[2:] + scan[:-2] * MANY,
        lambda header, scan: header + header[header.index(b"\xff\xc0") :] + scan[:-2] * MANY,
    ],
    ids=["scans of one component", "progressive", "a fill byte", "a marker without a length", "two frames"],
)
def test_many_scans_are_refused_unless_the_header_is_plain_and_sequential(jpeg, make):
    hazard = find_decoding_hazard(make(*split_at_scan(jpeg)) + b"\xff\xd9")
    assert hazard == "a JPEG file of more than 100 scans"


def test_files_as_programs_write_them_pass(jpeg):
    assert find_decoding_hazard(jpeg) is None
    assert find_decoding_hazard(saved(progressive=True)) is None
    assert find_decoding_hazard(jpeg[: len(jpeg) // 2]) is None


def png_chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


@pytest.fixture(scope="module")
def png() -> tuple[bytes, bytes]:
    """A PNG file up to its pixels, and the rest."""
    file = io.BytesIO()
    Image.new("RGB", (4, 6)).save(file, "PNG")
    place = file.getvalue().index(b"IDAT") - 4
    return file.getvalue()[:place], file.getvalue()[place:]


def test_png_files_of_a_hundred_thousand_chunks_are_refused(png):
    start, rest = png
    comment = png_chunk(b"tEXt", b"a\0")
    assert find_decoding_hazard(start + comment * 99_000 + rest) is None
    assert find_decoding_hazard(start + comment * 100_000 + rest) == "a PNG file of more than 100000 chunks"


@pytest.mark.parametrize("end", [b"", b"\0\0\0\1broken"])
def test_profiles_of_a_png_file_are_counted_also_where_it_is_broken(png, end):
    start, rest = png
    data = start + png_chunk(b"iCCP", b"a\0\0") * 11 + (end or rest)
    assert find_decoding_hazard(data) == "a PNG file of many colour profiles"


def test_names_of_chunks_within_a_chunk_count_for_nothing(png):
    start, rest = png
    assert find_decoding_hazard(start + png_chunk(b"tEXt", b"a\0" + b"iCCP" * 20) + rest) is None


@pytest.mark.parametrize("behind_the_pixels", [False, True])
def test_a_turn_in_a_png_file_is_found_before_and_behind_its_pixels(png, behind_the_pixels):
    start, rest = png
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = start + rest[:-12] + chunk + rest[-12:] if behind_the_pixels else start + chunk + rest
    loader = make_loader(decide_loading(ModelConfig(loader="batchverify")))
    found = decode_or_defer(data, Layout(4, 4, loader=loader), 1000, defer=False, budget=None)
    assert found.traits is ImageTraits.TURNED
