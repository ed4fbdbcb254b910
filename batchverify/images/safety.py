"""Image files that look small, but keep a decoder busy for hours or need more memory than their pixels do."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, ImageFile

_MAX_SCANS = 100  # This is libtiff's limit too; programs write about ten.
_MAX_SEGMENTS = 1_000
_MAX_GIF_BLOCKS = 4_000
_MAX_STRIPS = 2**18
_MAX_JUNK_BYTES = 2**16
_MAX_PNG_PROFILES, _MAX_PNG_CHUNKS = 10, 100_000
# Pillow reads the numbers of text files, and comments of all, in Python: 60 MB take 10 seconds.
_MAX_PNM_TEXT_BYTES, _MAX_PNM_HEADER_BYTES = 2**22, 2**16
_PNM, _PNM_TEXT = re.compile(rb"P[1-6]\s"), re.compile(rb"P[1-3]\s")
_PNM_HEADER = re.compile(rb"P[1-6](?:(?:\s+|#[^\r\n]*[\r\n])+\d+){2,3}\s")
_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
_TO_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+")
_MARKERS_WITHOUT_LENGTH = {0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
# The bytes of each type of number in a directory (TIFF 6.0, section 2), and the types that Pillow keeps as bytes.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTE_TYPES, _MAX_NUMBERS, _INLINE_BYTES = (1, 2, 6, 7), 2**18, 8
EXIF = b"Exif\0\0"
FRAMES, PROGRESSIVE_FRAME, START_OF_SCAN, APP1 = (0xC0, 0xC1, 0xC2), 0xC2, 0xDA, 0xE1  # ITU-T T.81, table B.1.
# Frames, scans, tables, restart interval, comments, parts of applications: all decoders take them for segments with a length.
_PLAIN_SEGMENTS = frozenset({*FRAMES, START_OF_SCAN, 0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})
# Further files that may hold EXIF: what they begin with, where that stands, and the name of the part.
_EXIF_HOLDERS = ((b"RIFF", 0, b"EXIF"), (b"ftyp", 4, b""))
# What Pillow takes for the start of a directory, also with its bytes in the wrong order.
_DIRECTORY = re.compile(rb"II(?:\*\0|\0\*|\+\0)|MM(?:\0\*|\*\0|\0\+)")


def find_decoding_hazard(data: bytes) -> str | None:
    """Returns what would make a small file take minutes or gigabytes to open; None if there is nothing of the kind."""
    if data.startswith(b"\xff\xd8"):
        return _find_jpeg_hazard(data) or find_directory_hazard(_jpeg_exif(data))
    if data.startswith(b"GIF8") and not _has_short_gif_header(data):
        return f"a GIF file of more than {_MAX_GIF_BLOCKS} blocks before its picture"
    if data.startswith(b"\x89PNG"):
        return _find_png_hazard(data)
    if data.startswith((b"II", b"MM")):
        return find_directory_hazard(data)
    if any(data.startswith(start, place) and name in data for start, place, name in _EXIF_HOLDERS):
        return _find_exif_hazard(data)
    return _find_pnm_hazard(data) if _PNM.match(data) else None


def _find_png_hazard(data: bytes) -> str | None:
    names = png_chunk_names(data)
    if isinstance(names, list) and len(names) > _MAX_PNG_CHUNKS:
        return f"a PNG file of more than {_MAX_PNG_CHUNKS} chunks"
    if names.count(b"iCCP") > _MAX_PNG_PROFILES:
        return "a PNG file of many colour profiles"
    return _find_exif_hazard(data) if b"eXIf" in names else None


def _find_pnm_hazard(data: bytes) -> str | None:
    if _PNM_TEXT.match(data) and len(data) > _MAX_PNM_TEXT_BYTES:
        return f"a PNM file of text of more than {_MAX_PNM_TEXT_BYTES} bytes; store it in binary"
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


def _has_short_gif_header(data: bytes) -> bool:
    position = 13 + (3 << ((data[10] & 7) + 1) if data[10:11] >= b"\x80" else 0)
    in_extension = False
    for _ in range(_MAX_GIF_BLOCKS):
        if position >= len(data) or (not in_extension and data[position] in b",;"):
            return True
        if in_extension:
            in_extension = data[position] > 0
            position += 1 + data[position]
        else:
            in_extension = data[position] == 0x21
            position += 2 if in_extension else 1
    return False


def find_directory_hazard(block: bytes) -> str | None:
    """Returns what would make Pillow's reader of TIFF and EXIF directories take far more memory or time than the block is long.

    Pillow copies what an entry names once for each entry, and turns numbers into Python objects.
    """
    named = 0
    for tag, kind, count, offset in directory_entries(block):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MAX_STRIPS:
            return f"a TIFF file of more than {_MAX_STRIPS} strips"
        size = count * _TYPE_BYTES.get(kind, 1)
        if size <= _INLINE_BYTES or offset + size > len(block):
            continue  # It is in the directory itself, or ends behind the block, and Pillow leaves it out.
        named += size
        if kind not in _BYTE_TYPES and count > _MAX_NUMBERS:
            return f"a directory of TIFF or EXIF with more than {_MAX_NUMBERS} numbers in an entry"
    if named > 2 * len(block) + _MAX_JUNK_BYTES:
        return "a directory of TIFF or EXIF whose entries name far more bytes than it has"
    return None


def directory_entries(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields tag, type, count and offset of each entry of the first directory (TIFF 6.0, section 2; BigTIFF is wider)."""
    order = "<" if block.startswith(b"II") else ">"
    head, size, entry = ("8xQ", "Q", "HHQQ") if block[2:4] in (b"+\0", b"\0+") else ("4xL", "H", "HHLL")
    try:
        (start,) = struct.unpack_from(order + head, block)
        (entries,) = struct.unpack_from(order + size, block, start)
        for number in range(entries):
            position = start + struct.calcsize(order + size) + number * struct.calcsize(order + entry)
            yield struct.unpack_from(order + entry, block, position)
    except (struct.error, OverflowError):  # The file ends early, and Pillow stops reading there too.
        return


def _jpeg_exif(data: bytes) -> bytes:
    """Returns the block of EXIF in a JPEG file, empty without one. Pillow joins its parts."""
    parts = [segment for marker, segment in _jpeg_segments(data) if marker == APP1 and segment.startswith(EXIF)]
    return b"".join(part.removeprefix(EXIF) for part in parts)


def png_chunk_names(data: bytes) -> list[bytes] | bytes:
    """Returns the names of a PNG file's chunks, as far as one more than a file may have.

    To search the whole file for a name would take far longer, while no other thread can run. Only where the chunks cannot be
    followed to the end is it the file itself that is returned, in which every name can be found, too.
    """
    names: list[bytes] = []
    for name, _, _ in png_chunks(data):
        names.append(name)
        if name == b"IEND" or len(names) > _MAX_PNG_CHUNKS:
            return names
    return data


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and end of what stands in each chunk of a PNG file, up to its last one, or as far as the file goes."""
    position = 8
    while position + 8 <= len(data):
        name, start = data[position + 4 : position + 8], position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        yield name, start, end
        if name == b"IEND":
            return
        position = end + 4


def _find_exif_hazard(data: bytes) -> str | None:
    """Returns the hazard in what Pillow may take for a block of EXIF in a file that is neither JPEG nor TIFF."""
    blocks = (data[found.start() :] for found in _DIRECTORY.finditer(data))
    return next(filter(None, map(find_directory_hazard, blocks)), None)


def find_memory_hazard(image: ImageFile.ImageFile, max_pixels: int) -> str | None:
    """Returns what would make a decoder hold more than the image's own pixels; None if there is nothing of the kind."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(ExifTags.Base.TileWidth, 1), tags.get(ExifTags.Base.TileLength, 1)
        if width * height > max(max_pixels, 2**20):
            return f"its tiles have {width} × {height} pixels, more than {max_pixels} (--max-image-pixels)"
    # One jump in a run-length-encoded BMP file may be 255 rows long.
    if image.tile and image.tile[0][0] == "bmp_rle" and 256 * image.width > max(max_pixels, 2**20):
        return f"run lengths of rows of {image.width} pixels, which {max_pixels} cannot hold (--max-image-pixels)"
    return None


def lacks_strips(image: ImageFile.ImageFile) -> bool:
    """Returns whether a TIFF file has too few strips for its pixels; Pillow would leave the rest black."""
    pixels = 0
    for tile in image.tile:
        left, upper, right, lower = tile.extents or (0, 0, *image.size)
        pixels += (right - left) * (lower - upper)
    return image.format == "TIFF" and pixels < image.width * image.height
