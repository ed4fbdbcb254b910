"""Small image files that keep a decoder busy for hours, or make it ask for more memory than the image has pixels."""

from __future__ import annotations

import re
import struct

from PIL import ExifTags, ImageFile

_MOST_SCANS = 100  # as libtiff has it; programs write ten or so
_MOST_SEGMENTS = 1_000
_MOST_GIF_BLOCKS = 4_000
_MOST_STRIPS = 2**18
_MOST_JUNK_BYTES = 2**16
_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\x01-\x04]")
_TO_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+")
_MARKERS_WITHOUT_LENGTH = {0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}


def find_decoding_hazard(data: bytes) -> str | None:
    """Returns what makes a small file take minutes or gigabytes to open; None of an honest one."""
    if data.startswith(b"\xff\xd8"):
        # Only the first count is cheap; the second one passes over what merely looks like a scan.
        if data.count(b"\xff\xda") > _MOST_SCANS and sum(1 for _ in _SCAN.finditer(data)) > _MOST_SCANS:
            return f"a JPEG file of more than {_MOST_SCANS} scans"
        if not _has_short_jpeg_header(data):
            return f"a JPEG file of more than {_MOST_SEGMENTS} segments, or with junk between them"
    if data.startswith(b"GIF8") and not _has_short_gif_header(data):
        return f"a GIF file of more than {_MOST_GIF_BLOCKS} blocks before its picture"
    if data.startswith(b"\x89PNG") and data.count(b"iCCP") > 10:
        return "a PNG file of many colour profiles"
    if data.startswith((b"II", b"MM")) and _strips(data) > _MOST_STRIPS:
        return f"a TIFF file of more than {_MOST_STRIPS} strips"
    return None


def _has_short_jpeg_header(data: bytes) -> bool:
    place = 2
    for _ in range(_MOST_SEGMENTS):
        found = _TO_NEXT_MARKER.match(data, place)
        if found is None or found.end() + 3 > len(data) or data[found.end()] == 0xDA:
            return True
        if found.end() - place > _MOST_JUNK_BYTES:
            return False
        place = found.end() + 1
        if data[found.end()] not in _MARKERS_WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
    return False


def _has_short_gif_header(data: bytes) -> bool:
    place = 13 + (3 << ((data[10] & 7) + 1) if data[10:11] >= b"\x80" else 0)
    inside = False
    for _ in range(_MOST_GIF_BLOCKS):
        if place >= len(data) or (not inside and data[place] in b",;"):
            return True
        if inside:
            inside = data[place] > 0
            place += 1 + data[place]
        else:
            inside = data[place] == 0x21
            place += 2 if inside else 1
    return False


def _strips(data: bytes) -> int:
    """Returns how many strips or tiles the first picture in a TIFF file says that it has."""
    order = "<" if data.startswith(b"II") else ">"
    head, count, entry = ("8xQ", "Q", "HHQQ") if data[2:3] == b"+" else ("4xL", "H", "HHLL")
    most = 0
    try:
        (start,) = struct.unpack_from(order + head, data)
        (entries,) = struct.unpack_from(order + count, data, start)
        for number in range(entries):
            place = start + struct.calcsize(order + count) + number * struct.calcsize(order + entry)
            tag, _, length, _ = struct.unpack_from(order + entry, data, place)
            most = max(most, length if tag in (273, 324) else 0)
    except (struct.error, OverflowError):  # It ends early; so does Pillow's reading.
        pass
    return most


def find_memory_hazard(image: ImageFile.ImageFile, max_pixels: int) -> str | None:
    """Returns what makes a decoder hold more than the image's own pixels; None of an honest file."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        sides = (tags.get(ExifTags.Base.TileWidth, 1), tags.get(ExifTags.Base.TileLength, 1))
        if sides[0] * sides[1] > max(max_pixels, 2**20):
            return f"its tiles have {sides[0]} × {sides[1]} pixels, more than {max_pixels} (--max-image-pixels)"
    # One leap in a run-length-encoded BMP may be 255 rows long.
    if image.tile and image.tile[0][0] == "bmp_rle" and 256 * image.width > max(max_pixels, 2**20):
        return f"run lengths of rows of {image.width} pixels, which {max_pixels} cannot hold (--max-image-pixels)"
    return None


def lacks_strips(image: ImageFile.ImageFile) -> bool:
    """Returns whether a TIFF file has too few strips; Pillow would leave the rest black."""
    found = 0
    for tile in image.tile:
        left, upper, right, lower = tile.extents or (0, 0, *image.size)
        found += (right - left) * (lower - upper)
    return image.format == "TIFF" and found < image.width * image.height
