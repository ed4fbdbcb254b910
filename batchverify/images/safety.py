"""Image files that look small, but keep a decoder busy for hours or need more memory than their pixels do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile

from batchverify.images.directories import EXIF, find_directory_hazard, find_exif_hazard, find_hidden_hazard
from batchverify.images.formats import PNM
from batchverify.images.gif_blocks import MAX_BLOCKS, has_short_gif_header
from batchverify.images.png_chunks import MAX_CHUNKS, find_png_exif, png_chunks

_MAX_SCANS = 100  # This is libtiff's limit too; programs write about ten.
_MAX_SEGMENTS = 1_000
_MAX_JUNK_BYTES = 2**16
_MAX_PNG_PROFILES = 10
# Pillow reads the header of a PNM file byte by byte in Python, and copies a mebibyte for each comment in a file of text.
_MAX_PNM_HEADER_BYTES, _MAX_PNM_COMMENTS = 2**16, 1_000
_PNM_TEXT = re.compile(rb"P[1-3]\s")
# Pillow reads on behind a comment that follows a digit, as if it were not there. There is one way only to match each byte,
# so that a header that does not match takes no longer.
_PNM_NUMBER = rb"\s(?:\s|#[^\r\n]*[\r\n])*\d+"
_PNM_HEADER = re.compile(rb"P(?:[14](?:%s){2}|[2356](?:%s){3})\s" % (_PNM_NUMBER, _PNM_NUMBER))
# Pillow decodes run lengths of BMP files and some PNM files in Python: so many bytes take up to 3 seconds, so many values one.
_MAX_SLOW_BYTES, _MAX_SLOW_VALUES = 2**22, 2**23
_MAX_LEAP_ROWS = 256  # One jump in a run-length-encoded BMP file may be 255 rows long.
_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
_TO_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+")
_MARKERS_WITHOUT_LENGTH = {0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
FRAMES, PROGRESSIVE_FRAME, START_OF_SCAN, APP1, _APP2 = (0xC0, 0xC1, 0xC2), 0xC2, 0xDA, 0xE1, 0xE2  # ITU-T T.81, table B.1.
# Frames, scans, tables, restart interval, comments, parts of applications: all decoders take them for segments with a length.
_PLAIN_SEGMENTS = frozenset({*FRAMES, START_OF_SCAN, 0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})
# Further files that may hold EXIF: what they begin with, where that stands, and the name of the part.
_EXIF_HOLDERS = ((b"RIFF", 0, b"EXIF"), (b"ftyp", 4, b""))
_MPF = b"MPF\0"  # The directory of further pictures in a JPEG file (CIPA DC-007).


def find_decoding_hazard(data: bytes) -> str | None:
    """Returns what would make a small file take minutes or gigabytes to open; None if there is nothing of the kind."""
    if data.startswith(b"\xff\xd8"):
        return _find_jpeg_hazard(data) or _find_jpeg_directory_hazard(data)
    if data.startswith(b"GIF8") and not has_short_gif_header(data):
        return f"a GIF file of more than {MAX_BLOCKS} blocks before its picture"
    if data.startswith(b"\x89PNG"):
        return _find_png_hazard(data)
    if data.startswith((b"II", b"MM")):
        return find_directory_hazard(data, follow=True)
    if any(data.startswith(start, place) and name in data for start, place, name in _EXIF_HOLDERS):
        return find_hidden_hazard(data)
    return _find_pnm_hazard(data) if PNM.match(data) else None


def _find_png_hazard(data: bytes) -> str | None:
    names, blocks = [], []
    for name, start, end in itertools.islice(png_chunks(data), MAX_CHUNKS + 1):
        names.append(name)
        if (block := find_png_exif(data, name, start, end)) is not None:
            blocks.append(block)
    if len(names) > MAX_CHUNKS:
        return f"a PNG file of more than {MAX_CHUNKS} chunks"
    if names.count(b"iCCP") > _MAX_PNG_PROFILES:
        return "a PNG file of many colour profiles"
    if len(blocks) > _MAX_PNG_PROFILES:
        return "a PNG file of many blocks of EXIF"
    return next(filter(None, map(find_exif_hazard, blocks)), None)


def _find_pnm_hazard(data: bytes) -> str | None:
    if _PNM_TEXT.match(data) and data.count(b"#") > _MAX_PNM_COMMENTS:
        return f"a PNM file of more than {_MAX_PNM_COMMENTS} comments"
    if not _PNM_HEADER.match(data[:_MAX_PNM_HEADER_BYTES]):
        return f"a PNM file whose first {_MAX_PNM_HEADER_BYTES} bytes are no header"
    return None


def _find_jpeg_hazard(data: bytes) -> str | None:
    if _has_one_scan(data):
        return None
    if has_many_scans(data):
        return f"a JPEG file of more than {_MAX_SCANS} scans"
    if not _has_short_jpeg_header(data):
        return f"a JPEG file of more than {_MAX_SEGMENTS} segments, or with junk between them"
    return None


def has_many_scans(data: bytes) -> bool:
    """Returns whether a JPEG file has more scans than programs write."""
    # NumPy lets other threads run while it counts what may begin a scan.
    numbers = np.frombuffer(data, np.uint8)
    if np.count_nonzero((numbers[:-1] == 0xFF) & (numbers[1:] == START_OF_SCAN)) <= _MAX_SCANS:
        return False
    return sum(1 for _ in itertools.islice(_SCAN.finditer(data), _MAX_SCANS + 1)) > _MAX_SCANS


def _has_one_scan(data: bytes) -> bool:
    """Returns whether decoders decode one scan at most: a sequential frame, whose first scan has all of its components.

    Then libjpeg refuses a second scan (`consume_markers` in its jdinput.c). The header must be so plain that all decoders
    find the same segments in it, so that the bytes behind it need not be searched.
    """
    components = 0
    for marker, start, end in plain_segments(data):
        if marker == START_OF_SCAN:
            return 0 < components == data[start]
        if marker in FRAMES:
            if marker == PROGRESSIVE_FRAME or components or end - start < 6:
                return False
            components = data[start + 5]
    return False


def plain_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of a JPEG file's segments up to the first scan, as long as they are plain.

    A plain segment follows right behind the last one, and has a length, so that all decoders find the same one. A file whose
    header is not plain ends before its scan.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if position + 5 > len(data) or data[position] != 0xFF:
            return
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        start, end = position + 4, position + 2 + length
        if marker not in _PLAIN_SEGMENTS or length < 2 or end > len(data):
            return
        yield marker, start, end
        if marker == START_OF_SCAN:
            return
        position = end


def _has_short_jpeg_header(data: bytes) -> bool:
    """Returns whether the scan begins, or the file ends, before there are too many segments or too much junk."""
    try:
        return sum(1 for _ in _jpeg_segments(data)) < _MAX_SEGMENTS
    except ValueError:
        return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the markers before the scan and what stands in their segments, at most `_MAX_SEGMENTS`, as Pillow finds them.

    Raises:
        ValueError: If there is more than `_MAX_JUNK_BYTES` between two of them.
    """
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _TO_NEXT_MARKER.match(data, position)
        if found is None or found.end() + 3 > len(data) or data[found.end()] == 0xDA:
            return
        if found.end() - position > _MAX_JUNK_BYTES:
            raise ValueError("junk")
        marker, position = data[found.end()], found.end() + 1
        if marker in _MARKERS_WITHOUT_LENGTH:
            yield marker, b""
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        yield marker, data[position + 2 : position + length]
        position += length


def _find_jpeg_directory_hazard(data: bytes) -> str | None:
    """Returns the hazard in a JPEG file's EXIF, whose parts Pillow joins, or in its last directory of further pictures."""
    exif, pictures = [], b""
    for marker, segment in _jpeg_segments(data):
        if marker == APP1 and segment.startswith(EXIF):
            exif.append(segment.removeprefix(EXIF))
        elif marker == _APP2 and segment.startswith(_MPF):
            pictures = segment.removeprefix(_MPF)
    return find_exif_hazard(b"".join(exif)) or find_directory_hazard(pictures)


def find_memory_hazard(image: ImageFile.ImageFile, max_pixels: int) -> str | None:
    """Returns what would make a decoder hold more than the image's own pixels; None if there is nothing of the kind."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(ExifTags.Base.TileWidth, 1), tags.get(ExifTags.Base.TileLength, 1)
        if width * height > max(max_pixels, 2**20):
            return f"its tiles have {width} × {height} pixels, more than {max_pixels} (--max-image-pixels)"
    if _has_run_lengths(image) and _MAX_LEAP_ROWS * image.width > max(max_pixels, 2**20):
        return f"run lengths of rows of {image.width} pixels, which {max_pixels} cannot hold (--max-image-pixels)"
    return None


def find_slow_form(image: ImageFile.ImageFile, size: int) -> str | None:
    """Returns what would keep a decoder of Pillow's that is written in Python busy; None if there is nothing of the kind.

    Args:
        image: The file as Pillow has opened it.
        size: The number of its bytes.
    """
    if not image.tile or image.tile[0].codec_name not in Image.DECODERS:
        return None
    rows = max(image.height, _MAX_LEAP_ROWS) if _has_run_lengths(image) else image.height
    # Each value of this one takes a fixed number of bytes.
    read_bytes = 0 if image.tile[0].codec_name == "ppm" else size
    for found, most, unit in (
        (read_bytes, _MAX_SLOW_BYTES, "bytes"),
        (image.width * rows * len(image.getbands()), _MAX_SLOW_VALUES, "values"),
    ):
        if found > most:
            return f"a {image.format} file of more than {most} {unit} in a form that takes long to decode; store it as PNG"
    return None


def _has_run_lengths(image: ImageFile.ImageFile) -> bool:
    return bool(image.tile) and image.tile[0].codec_name == "bmp_rle"


def lacks_strips(image: ImageFile.ImageFile) -> bool:
    """Returns whether a TIFF file has too few strips for its pixels; Pillow would leave the rest black."""
    pixels = 0
    for tile in image.tile:
        left, upper, right, lower = tile.extents or (0, 0, *image.size)
        pixels += (right - left) * (lower - upper)
    return image.format == "TIFF" and pixels < image.width * image.height


def has_overlapping_strips(image: ImageFile.ImageFile) -> bool:
    """Returns whether strips or tiles of a TIFF file that is not packed begin less than a line apart.

    Pillow reads as far as the next one begins, and copies all that it has read each time, until it has a whole line.
    """
    if image.format != "TIFF" or not image.tile or image.tile[0].codec_name != "raw":
        return False
    tiles = sorted(image.tile, key=lambda tile: tile.offset)
    # A line has at least one bit for each pixel.
    return any(0 < 8 * (after.offset - tile.offset) < _width(tile, image) for tile, after in itertools.pairwise(tiles))


def _width(tile: ImageFile._Tile, image: ImageFile.ImageFile) -> int:
    left, _, right, _ = tile.extents or (0, 0, *image.size)
    return right - left
