"""Image files that look small, but keep a decoder busy for hours or need more memory than their pixels do."""

from __future__ import annotations

import re
import struct

from PIL import ExifTags, ImageFile

_MAX_SCANS = 100  # This is libtiff's limit too; programs write about ten.
_MAX_SEGMENTS = 1_000
_MAX_GIF_BLOCKS = 4_000
_MAX_STRIPS = 2**18
_MAX_JUNK_BYTES = 2**16
_MAX_PNG_PROFILES = 10
# Pillow reads the numbers of text files, and comments of all, in Python: 60 MB take 10 seconds.
_MAX_PNM_TEXT_BYTES, _MAX_PNM_HEADER_BYTES = 2**22, 2**16
_PNM, _PNM_TEXT = re.compile(rb"P[1-6]\s"), re.compile(rb"P[1-3]\s")
_PNM_HEADER = re.compile(rb"P[1-6](?:(?:\s+|#[^\r\n]*[\r\n])+\d+){2,3}\s")
_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
_TO_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+")
_MARKERS_WITHOUT_LENGTH = {0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324


def find_decoding_hazard(data: bytes) -> str | None:
    """Returns what would make a small file take minutes or gigabytes to open; None if there is nothing of the kind."""
    if data.startswith(b"\xff\xd8"):
        return _find_jpeg_hazard(data)
    if data.startswith(b"GIF8") and not _has_short_gif_header(data):
        return f"a GIF file of more than {_MAX_GIF_BLOCKS} blocks before its picture"
    if data.startswith(b"\x89PNG") and data.count(b"iCCP") > _MAX_PNG_PROFILES:
        return "a PNG file of many colour profiles"
    if data.startswith((b"II", b"MM")) and _count_tiff_strips(data) > _MAX_STRIPS:
        return f"a TIFF file of more than {_MAX_STRIPS} strips"
    return _find_pnm_hazard(data) if _PNM.match(data) else None


def _find_pnm_hazard(data: bytes) -> str | None:
    if _PNM_TEXT.match(data) and len(data) > _MAX_PNM_TEXT_BYTES:
        return f"a PNM file of text of more than {_MAX_PNM_TEXT_BYTES} bytes; store it in binary"
    if not _PNM_HEADER.match(data[:_MAX_PNM_HEADER_BYTES]):
        return f"a PNM file whose first {_MAX_PNM_HEADER_BYTES} bytes are no header"
    return None


def _find_jpeg_hazard(data: bytes) -> str | None:
    # Only the first count is cheap; the second one leaves out bytes that only resemble the start of a scan.
    if data.count(b"\xff\xda") > _MAX_SCANS and sum(1 for _ in _SCAN.finditer(data)) > _MAX_SCANS:
        return f"a JPEG file of more than {_MAX_SCANS} scans"
    if not _has_short_jpeg_header(data):
        return f"a JPEG file of more than {_MAX_SEGMENTS} segments, or with junk between them"
    return None


def _has_short_jpeg_header(data: bytes) -> bool:
    position = 2
    for _ in range(_MAX_SEGMENTS):
        marker = _TO_NEXT_MARKER.match(data, position)
        if marker is None or marker.end() + 3 > len(data) or data[marker.end()] == 0xDA:
            return True
        if marker.end() - position > _MAX_JUNK_BYTES:
            return False
        position = marker.end() + 1
        if data[marker.end()] not in _MARKERS_WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return False


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


def _count_tiff_strips(data: bytes) -> int:
    """Returns the number of strips or tiles that the first picture in a TIFF file claims to have."""
    order = "<" if data.startswith(b"II") else ">"
    head, count, entry = ("8xQ", "Q", "HHQQ") if data[2:3] == b"+" else ("4xL", "H", "HHLL")
    strips = 0
    try:
        (start,) = struct.unpack_from(order + head, data)
        (entries,) = struct.unpack_from(order + count, data, start)
        for number in range(entries):
            position = start + struct.calcsize(order + count) + number * struct.calcsize(order + entry)
            tag, _, length, _ = struct.unpack_from(order + entry, data, position)
            strips = max(strips, length if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) else 0)
    except (struct.error, OverflowError):  # The file ends early, and Pillow stops reading there too.
        pass
    return strips


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
