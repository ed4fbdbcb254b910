"""The check before a decoder is called: what it refuses, and what decoders make of what it lets through."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from batchverify.config import ModelConfig
from batchverify.images.decode import decode, decode_or_defer
from batchverify.images.failure import ImageFailure
from batchverify.images.formats import open_image
from batchverify.images.layout import Layout
from batchverify.images.loaders import decide_loading, make_loader
from batchverify.images.safety import find_decoding_hazard
from batchverify.images.traits import find_traits
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


@pytest.mark.parametrize("name", [b"eXIf", b"iTXt"])
@pytest.mark.parametrize("behind_the_pixels", [False, True])
def test_the_traits_of_a_png_file_are_found_without_its_pixels(png, name, behind_the_pixels):
    start, rest = png
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    chunk = png_chunk(name, xmp if name == b"iTXt" else exif.tobytes().removeprefix(b"Exif\0\0"))
    data = start + rest[:-12] + chunk + rest[-12:] if behind_the_pixels else start + chunk + rest
    with open_image(data) as image:
        assert find_traits(data, image) is ImageTraits.TURNED
        assert image.tile  # Pillow empties it when it decodes.


def gif(*blocks: bytes) -> bytes:
    """Returns a GIF file of 10 × 10 pixels with blocks behind its frame."""
    file = io.BytesIO()
    Image.new("P", (10, 10)).save(file, "GIF")
    return file.getvalue()[:-1] + b"".join(blocks) + b";"


FRAME = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([], ImageTraits.NONE),
        ([b"!\xfe\3abc\0"], ImageTraits.NONE),
        ([b"!\xfe\3a,c\0", FRAME], ImageTraits.MULTI_FRAME),
        ([b"junk", FRAME], ImageTraits.MULTI_FRAME),
        ([FRAME[:7]], ImageTraits.NONE),
    ],
    ids=["nothing", "a comment", "a comment and a frame", "junk and a frame", "a frame without an end"],
)
def test_a_second_frame_of_a_gif_file_is_found_behind_whatever_follows_the_first(blocks, expected):
    assert decode_or_defer(gif(*blocks), Layout(4, 4), 1000, defer=False).traits is expected


def test_a_long_comment_behind_the_picture_of_a_gif_file_takes_no_time():
    data, started = gif(b"!\xfe" + b"\1a" * 500_000 + b"\0"), time.thread_time()
    assert isinstance(decode(data, Layout(4, 4)), np.ndarray)
    assert time.thread_time() - started < 2


def raw_tiff(width: int, tags: dict[int, tuple[int, ...]]) -> bytes:
    """Returns a grey TIFF file of two lines that are not packed, with tags of one or two long numbers."""
    tags = {256: (width,), 257: (2,), 258: (8,), 259: (1,), 262: (1,), 277: (1,)} | tags
    start = 8 + 2 * width
    behind = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        value = numbers[0] if len(numbers) == 1 else behind + len(values)
        values += struct.pack(f"<{len(numbers)}L", *numbers) if len(numbers) > 1 else b""
        entries += struct.pack("<HHLL", tag, 4, len(numbers), value)
    return b"II*\0" + struct.pack("<L", start) + bytes(2 * width) + struct.pack("<H", len(tags)) + entries + bytes(4) + values


WIDTH = 100_000


@pytest.mark.parametrize(
    "tags",
    [
        {278: (1,), 273: (8, 9), 279: (WIDTH, WIDTH)},
        {322: (WIDTH,), 323: (1,), 324: (9, 8), 325: (WIDTH, WIDTH)},
        {278: (1,), 273: (8, 8 + WIDTH // 10), 279: (WIDTH, WIDTH)},
    ],
    ids=["strips", "tiles", "a tenth of a line"],
)
def test_a_tiff_file_whose_strips_begin_less_than_a_line_apart_is_refused(tags):
    failure = decode(raw_tiff(WIDTH, tags), Layout(4, 4))
    assert isinstance(failure, ImageFailure) and failure.status == "unreadable" and "strips overlap" in failure.error


@pytest.mark.parametrize("second", [8, 8 + WIDTH])
def test_a_tiff_file_whose_strips_are_a_line_apart_or_the_same_is_read(second):
    data = raw_tiff(WIDTH, {278: (1,), 273: (8, second), 279: (WIDTH, WIDTH)})
    assert isinstance(decode(data, Layout(4, 4)), np.ndarray)


def run_lengths(width: int, height: int, pixels: bytes, bits: int = 8) -> bytes:
    """Returns a BMP file of run lengths; its colour 7 is (30, 29, 28)."""
    start = 54 + 1024
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + bytes(range(256)) * 4 + pixels


SLOW_RUNS = {
    "ends of lines": run_lengths(240_000, 30, b"\1\7\0\0" * 300),
    "many pixels": run_lengths(4096, 4096, b"\1\7\0\0" * 300),
    "a small picture of many bytes": run_lengths(8, 8, b"\0\0" * 2_200_000),
    "runs of one": run_lengths(2000, 2000, b"\1\7" * 2_200_000),
    "four bits": run_lengths(2000, 2000, b"\1\7" * 2_200_000, bits=4),
}


@pytest.mark.parametrize("as_dib", [False, True], ids=["BMP", "DIB"])
@pytest.mark.parametrize("name", SLOW_RUNS)
def test_run_lengths_that_python_would_decode_for_long_are_refused(name, as_dib):
    started = time.thread_time()
    failure = decode(SLOW_RUNS[name][14 if as_dib else 0 :], Layout(4, 4))
    assert isinstance(failure, ImageFailure) and failure.status == "unreadable"
    assert "in a form that takes long to decode; store it as PNG" in failure.error
    assert time.thread_time() - started < 1


def test_run_lengths_as_programs_write_them_are_read():
    line = b"\xff\7" * 15 + b"\x0f\7\0\0"
    pixels = decode(run_lengths(3840, 2160, line * 2160), Layout(4, 4))
    assert isinstance(pixels, np.ndarray) and pixels[0, 0].tolist() == [30, 29, 28]
