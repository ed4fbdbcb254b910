"""Directories of TIFF and EXIF that name far more than they hold: refused before Pillow reads them, whatever holds them."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from batchverify.images.decode import decode, decode_or_defer
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.tensorflow_loader import TensorFlowLoader
from batchverify.schema import ImageTraits

SHORT, LONG, BYTES, RATIONAL, ORIENTATION, PRIVATE = 3, 4, 7, 5, 0x0112, 50_000
EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY = 34_665, 34_853, 40_965
EXIF = b"Exif\0\0"
Entry = tuple[int, int, int]


def directory(*entries: Entry, blob: bytes = b"", head: bytes = b"II*\0") -> bytes:
    """Returns a block whose entries, tag, type and count, all name the same bytes."""
    order = "<" if head.startswith(b"II") else ">"
    parts = b"".join(struct.pack(order + "HHLL", tag, kind, count, 8) for tag, kind, count in entries)
    start, length = struct.pack(order + "L", 8 + len(blob)), struct.pack(order + "H", len(entries))
    return head + start + blob + length + parts + bytes(4)


REPEATED = directory(*((PRIVATE + number, BYTES, 2**16) for number in range(2000)), blob=bytes(2**16))
NUMBERS = directory((PRIVATE, RATIONAL, 300_000), blob=struct.pack("<LL", 1, 1) * 300_000)


def saved(form: str, size: tuple[int, int] = (8, 8), **settings) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, form, **settings)
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


def png_with(name: bytes, content: bytes, behind_the_pixels: bool = False, size: tuple[int, int] = (8, 8)) -> bytes:
    """Returns a PNG file with a further chunk."""
    data, chunk = saved("PNG", size=size), name + content
    place = data.index(b"IEND" if behind_the_pixels else b"IDAT") - 4
    return data[:place] + struct.pack(">L", len(content)) + chunk + struct.pack(">L", zlib.crc32(chunk)) + data[place:]


HOLDERS = {
    "JPEG": jpeg_with,
    "JPEG, prefixed twice": lambda block: jpeg_with(EXIF + block),
    "PNG, as text": lambda block: png_with(b"tEXt", b"exif\0" + block),
    "PNG, behind its pixels": lambda block: png_with(b"eXIf", block, behind_the_pixels=True),
    "PNG, as text behind its pixels": lambda block: png_with(b"tEXt", b"exif\0" + block, behind_the_pixels=True),
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


def hazard(data: bytes) -> str:
    failure = decode(data, Layout(8, 8))
    assert isinstance(failure, ImageFailure) and failure.status == "unreadable"
    return failure.error


def test_a_directory_that_pillow_reads_as_a_classic_one_is_not_taken_for_a_big_one():
    block = directory(*((PRIVATE + number, BYTES, 2**16) for number in range(2000)), blob=bytes(2**16), head=b"MM\0+")
    for data in (block, jpeg_with(block)):
        assert "name far more bytes" in hazard(data)


def test_a_directory_of_more_entries_than_a_classic_one_can_have_is_refused():
    entries = struct.pack("<HHQQ", PRIVATE, BYTES, 4, 8) * 65_537
    assert "more than 65536 entries" in hazard(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 65_537) + entries)


def test_a_directory_of_pictures_in_a_jpeg_file_that_names_too_much_is_refused():
    data = saved("JPEG")
    pictures = b"MPF\0" + directory(*((PRIVATE + number, RATIONAL, 7_000) for number in range(300)), blob=bytes(56_000))
    segment = b"\xff\xe2" + struct.pack(">H", len(pictures) + 2) + pictures
    assert "name far more bytes" in hazard(data[:2] + segment + data[2:])


def tiff_that_names(pointers: list[tuple[int, int, int, bytes]], inner: list[bytes]) -> bytes:
    """Returns a grey TIFF file of 8 × 8 pixels with further entries, and directories that begin at 72, one behind the other.

    The bytes from 8 to 71 are its pixels.
    """
    numbers = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
    entries = [struct.pack("<HHLL", tag, LONG, 1, value) for tag, value in numbers]
    entries += [struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in pointers]
    body = struct.pack("<QQQ", 104, 0, 0) + bytes(40) + b"".join(inner)
    return b"II*\0" + struct.pack("<L", 8 + len(body)) + body + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def inner_directory(*entries: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)


GREEDY = inner_directory(*((PRIVATE + number, BYTES, 24_000, 0) for number in range(2000)))


@pytest.mark.parametrize(
    ("pointers", "inner"),
    [
        ([(EXIF_DIRECTORY, LONG, 1, struct.pack("<L", 72))], [GREEDY]),
        ([(GPS_DIRECTORY, SHORT, 1, struct.pack("<HH", 72, 0))], [GREEDY]),
        ([(EXIF_DIRECTORY, LONG, 2, struct.pack("<L", 8))], [bytes(32), GREEDY]),  # The first of two numbers at 8 is 104.
        (
            [(tag, LONG, 1, struct.pack("<L", 72)) for tag in (EXIF_DIRECTORY, INTEROP_DIRECTORY)],
            [inner_directory((INTEROP_DIRECTORY, LONG, 1, 90)), GREEDY],
        ),
    ],
    ids=["EXIF", "GPS as a short number", "the first of two numbers", "interoperability within EXIF"],
)
def test_a_directory_within_a_tiff_file_that_names_too_much_is_refused(pointers, inner):
    assert "name far more bytes" in hazard(tiff_that_names(pointers, inner))


def test_a_tiff_file_with_ordinary_directories_within_it_is_read():
    pointers = [(tag, LONG, 1, struct.pack("<L", 72)) for tag in (EXIF_DIRECTORY, GPS_DIRECTORY)]
    data = tiff_that_names(pointers, [inner_directory((PRIVATE, BYTES, 40, 8))])
    assert not isinstance(decode(data, Layout(8, 8)), ImageFailure)


@pytest.mark.parametrize("holder", ["JPEG", "WebP", "PNG, as text"])
def test_a_block_that_begins_many_times_is_refused(holder):
    assert "begins 10 times" in hazard(HOLDERS[holder](EXIF * 20 + directory()))


def test_a_file_of_directories_without_end_is_refused_at_once():
    data, started = HOLDERS["WebP"](b"II*\0" * 100_000), time.thread_time()
    assert "more than 32 directories" in hazard(data)
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("behind_the_pixels", [False, True])
def test_exif_as_imagemagick_wrote_it_is_left_alone_wherever_it_stands(behind_the_pixels):
    text = "\nexif\n0\n" + directory((ORIENTATION, SHORT, 1)).hex()
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x/>"
    profile = b"Raw profile type exif\0\0" + zlib.compress(text.encode())
    data = png_with(b"zTXt", profile, behind_the_pixels)
    place = data.index(b"IDAT") - 4
    chunk = b"iTXt" + xmp
    data = data[:place] + struct.pack(">L", len(xmp)) + chunk + struct.pack(">L", zlib.crc32(chunk)) + data[place:]
    for loader in (Layout(8, 8), Layout(8, 8, loader=TensorFlowLoader(orientation="apply"))):
        assert decode_or_defer(data, loader, 1000, defer=False).traits is ImageTraits.NONE
