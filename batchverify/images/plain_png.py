"""PNG files whose chunks are so plain that nothing in them need be looked at but the size of the picture."""

from __future__ import annotations

import zlib

from batchverify.images.plain_jpeg import PictureSize
from batchverify.images.png_chunks import png_chunks

_START = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS, _MAX_TEXT_BYTES = 10_000, 2**12
# Colour types without transparency, and their depths of eight bits or fewer (PNG specification, table 11.1).
_GREY, _RGB, _PALETTE = 0, 2, 3
_DEPTHS = {_GREY: (1, 2, 4, 8), _RGB: (8,), _PALETTE: (1, 2, 4, 8)}
# Chunks that change no pixel here, by name, with the length that each must have; None for any. Others are not plain.
_SKIPPED = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7, b"bKGD": None, b"sBIT": None, b"IEND": 0}
_TEXT = b"tEXt"
# Pillow takes what stands under such keywords for metadata that may turn a picture.
_METADATA = (b"exif", b"xmp")


def plain_png_size(data: bytes) -> PictureSize | None:
    """Returns the size of a plain PNG file; None for any other file, which must be opened to be known.

    A plain file has at most eight bits in grey, colour or a palette, no transparency, no EXIF, no colour profile, one frame,
    and whole chunks up to its last one. Pillow opens such a file without an error, and it need not be searched for traps; see
    `plain_jpeg_size`.
    """
    if not data.startswith(_START):
        return None
    size, colour, has_palette, has_pixels = None, -1, False, False
    for number, (name, start, end) in enumerate(png_chunks(data)):
        if number == 0:
            size, colour = _read_header(name, data[start:end])
            if size is None or not _is_whole(data, start, end):
                return None
        elif number > _MAX_CHUNKS:
            return None
        elif name == b"IDAT":
            has_pixels = True  # The decoder checks them.
        elif not _is_whole(data, start, end):
            return None
        elif name == b"PLTE":
            if has_palette or has_pixels or colour != _PALETTE or not _is_palette(end - start):
                return None
            has_palette = True
        elif not _is_skipped(name, data[start:end]):
            return None
        elif name == b"IEND":
            return size if has_pixels and has_palette == (colour == _PALETTE) else None
    return None


def _read_header(name: bytes, header: bytes) -> tuple[PictureSize | None, int]:
    """Returns the size and the colour type in the first chunk; no size if it is not plain."""
    if name != b"IHDR" or len(header) != 13:
        return None, -1
    size = PictureSize(int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"))
    depth, colour, compression, filters, interlace = header[8:]
    is_plain = depth in _DEPTHS.get(colour, ()) and compression == filters == 0 and interlace in (0, 1)
    return (size if is_plain and min(size) > 0 and max(size) < 2**31 else None), colour


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Returns whether a chunk's checksum, which also covers its name, is right."""
    return zlib.crc32(data[start - 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def _is_palette(length: int) -> bool:
    return length % 3 == 0 and 3 <= length <= 768


def _is_skipped(name: bytes, content: bytes) -> bool:
    """Returns whether a chunk changes nothing."""
    if name == _TEXT:
        keyword = content.partition(b"\0")[0].lower()
        return len(content) <= _MAX_TEXT_BYTES and not any(word in keyword for word in _METADATA)
    return name in _SKIPPED and _SKIPPED[name] in (None, len(content))
