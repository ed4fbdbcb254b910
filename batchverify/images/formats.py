"""The image formats that are read, and how a file of each is opened."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
from typing import cast

from PIL import Image, ImageFile, UnidentifiedImageError

from batchverify.images.foreign_formats import isobmff_format
from batchverify.images.pixel_budget import reserved_pixels
from batchverify.images.png_chunks import read_png_end

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM")
FORMATS_IN_WORDS = "JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF or PNM"
# The suffixes that these formats have, for a search through a folder.
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff",
    ".pgm", ".ppm", ".pbm", ".pnm",
)  # fmt: skip
PNM = re.compile(rb"P[1-6]\s")  # What a file of Pillow's format PPM begins with.
# An AVIF file's header may name fewer pixels than its picture has. libavif decodes up to 16,384 × 16,384 of them, at 6 bytes
# each, before it scales them to the size in the header; so many pixels take as much memory in another format.
_AVIF_PIXELS = 95_000_000


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Opens an image file; its pixels are decoded by `load`. What may turn it is in its `info`, wherever the file has that.

    Raises:
        Exception: If no decoder knows the file, or if its header is broken. Pillow's decoders raise any exception.
    """
    if isobmff_format(data) in ("HEIC", "HEIF") and can_read_heif():
        # The decoder is not registered, because that would change what Pillow opens in a program that uses this package.
        return cast(ImageFile.ImageFile, importlib.import_module("pillow_heif").HeifImageFile(io.BytesIO(data)))
    if data.startswith(b"P") and not PNM.match(data):  # Pillow also reads kinds of its own, byte by byte in Python.
        raise UnidentifiedImageError("it begins like a PNM file, but is none of P1 to P6")
    image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    if image.format == "PNG":
        image.info.update(read_png_end(data))
    return image


def can_read_heif() -> bool:
    """Returns whether the optional decoder of HEIC and HEIF files is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def pixels_to_reserve(image: ImageFile.ImageFile, bytes_per_pixel: int) -> int:
    """Returns the number of pixels, of `pixel_budget.BYTES_PER_PIXEL` each, whose memory the decoder may take at most."""
    pixels = reserved_pixels(image.width * image.height, bytes_per_pixel)
    return max(pixels, _AVIF_PIXELS) if image.format == "AVIF" else pixels
