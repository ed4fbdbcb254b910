"""The chunks of a PNG file, and those behind its pixels that may say that its picture is turned."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

from PIL import PngImagePlugin

MAX_CHUNKS = 100_000
_PIXELS = (b"IDAT", b"fdAT")
# The chunks that Pillow takes for EXIF and for XMP, by name, and the keyword that they begin with.
_EXIF = {b"eXIf": b"", b"tEXt": b"exif\0"}
_METADATA = _EXIF | {b"iTXt": b"XML:com.adobe.xmp\0"}


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


def find_png_exif(data: bytes, name: bytes, start: int, end: int) -> bytes | None:
    """Returns the block of EXIF that a chunk holds; None for any other chunk."""
    keyword = _EXIF.get(name)
    return None if keyword is None or not data.startswith(keyword, start) else data[start + len(keyword) : end]


def read_png_end(data: bytes) -> dict[Any, Any]:
    """Returns what Pillow adds to `Image.info` once it has read EXIF and XMP behind a PNG file's pixels.

    Pillow itself decodes all pixels to get there.
    """
    file, has_pixels = io.BytesIO(data), False
    stream = PngImagePlugin.PngStream(file)
    for name, start, end in itertools.islice(png_chunks(data), MAX_CHUNKS):
        keyword = _METADATA.get(name) if has_pixels else None
        if keyword is not None and data.startswith(keyword, start):
            file.seek(start)
            try:
                stream.call(name, start, end - start)
            except Exception:  # The chunk is broken, but the pixels are whole.
                break
        has_pixels = has_pixels or name in _PIXELS
    return stream.im_info
