"""The pixels of an image file: decoded by Pillow, turned upright, fitted and resized."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from batchverify.errors import short_reason
from batchverify.images.failure import ImageFailure
from batchverify.images.foreign_formats import isobmff_format, name_foreign_format
from batchverify.images.formats import FORMATS_IN_WORDS, PILLOW_FORMATS, open_image, pixels_to_reserve
from batchverify.images.pillow_settings import no_limit_or_warnings, whole_files_only
from batchverify.images.pixel_budget import PixelBudget
from batchverify.images.resize import Layout
from batchverify.images.safety import find_decoding_hazard, find_memory_hazard, lacks_strips
from batchverify.schema import ImageStatus

# A batch decoder decodes one file for each core at the same time, beside all threads.
_MAX_DEFERRED_PIXELS = 8_000_000
# The next marker after a JPEG file's scan; within the scan, 0xff stands only before 0x00 or a restart (ITU-T T.81, B.1.1).
_MARKER, _END_OF_IMAGE = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]"), b"\xff\xd9"


class UndecodedJpeg(NamedTuple):
    """A JPEG file that passed all checks and that a batch decoder decodes to the same pixels as Pillow.

    Attributes:
        data: The file's bytes.
    """

    data: bytes


def decode(
    data: bytes, layout: Layout, max_pixels: int = 64_000_000, budget: PixelBudget | None = None
) -> np.ndarray | ImageFailure:
    """Decodes an image file and resizes it.

    The first frame is used, the EXIF orientation is applied, transparency is replaced by white, and 16 bits are scaled to 8.

    Args:
        data: The bytes of an image file.
        layout: The layout of the result.
        max_pixels: The largest number of pixels; a file whose header names more is `too_large` and is not decoded.
        budget: The pixels that all threads may decode at the same time; None sets no bound.

    Returns:
        uint8 `(height, width, channels)`, or the failure.
    """
    image = decode_or_defer(data, layout, max_pixels, defer_jpeg=False, budget=budget)
    assert not isinstance(image, UndecodedJpeg)
    return image


def decode_or_defer(
    data: bytes, layout: Layout, max_pixels: int, defer_jpeg: bool, budget: PixelBudget | None = None
) -> np.ndarray | UndecodedJpeg | ImageFailure:
    """Does what `decode` does, with two further arguments.

    Args:
        data: As in `decode`.
        layout: As in `decode`.
        max_pixels: As in `decode`.
        defer_jpeg: Whether a plain JPEG file that is not large is returned undecoded, for a batch decoder.
        budget: The pixels that all threads may decode at the same time; None sets no bound.
    """
    if hazard := find_decoding_hazard(data):
        return ImageFailure(ImageStatus.UNREADABLE, hazard)
    Image.init()  # Pillow loads its rarer formats late, and not when `Image.open` is given names of formats.
    try:
        with whole_files_only:
            try:
                return _open_and_decode(data, layout, max_pixels, defer_jpeg, budget)
            except (Image.DecompressionBombError, Warning):  # The program's own limit, or its filter that raises warnings.
                with no_limit_or_warnings:
                    return _open_and_decode(data, layout, max_pixels, defer_jpeg, budget)
    except UnidentifiedImageError:
        return _describe_unidentified(data)
    except Image.DecompressionBombError as error:
        return ImageFailure(ImageStatus.TOO_LARGE, str(error))
    except MemoryError:
        return ImageFailure(ImageStatus.TOO_LARGE, "there is not enough memory to decode it")
    except Exception as error:  # Pillow's decoders raise any exception on a broken file.
        return ImageFailure(ImageStatus.UNREADABLE, f"it cannot be decoded ({short_reason(error)})")


def _open_and_decode(
    data: bytes, layout: Layout, max_pixels: int, defer_jpeg: bool, budget: PixelBudget | None
) -> np.ndarray | UndecodedJpeg | ImageFailure:
    with open_image(data) as image:
        if failure := _check_header(image, max_pixels):
            return failure
        if defer_jpeg and image.width * image.height <= _MAX_DEFERRED_PIXELS and _is_plain_jpeg(image, data):
            return UndecodedJpeg(data)
        # JPEG decodes at a half, a quarter or an eighth of its size at a fraction of the cost. Twice the wanted size keeps
        # the result within what the resize filter itself would smooth.
        if layout.resize.antialias and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (2 * max(layout.height, layout.width),) * 2)
        with budget.reserve(pixels_to_reserve(image)) if budget else contextlib.nullcontext():
            return _to_pixels(image, layout, max_pixels)


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> ImageFailure | None:
    if image.width * image.height > max_pixels:
        size = f"{image.width} × {image.height} pixels, more than {max_pixels}"
        return ImageFailure(ImageStatus.TOO_LARGE, f"{size} (--max-image-pixels)")
    if hazard := find_memory_hazard(image, max_pixels):
        return ImageFailure(ImageStatus.TOO_LARGE, hazard)
    if lacks_strips(image):
        return ImageFailure(ImageStatus.UNREADABLE, "it cannot be decoded (a part of its pixels is missing)")
    return None


def _is_plain_jpeg(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Returns whether only decoding is left to do, and every decoder gives the same pixels.

    Decoders differ where scans are missing or follow one another in an unusual order. So the file must have one scan, whose
    end is the end of the image. Pillow has read the file up to that scan.
    """
    if image.fp is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or "progressive" in image.info:
        return False
    end = _MARKER.search(data, image.fp.tell())
    return end is not None and end[0] == _END_OF_IMAGE and _orientation(image) is None


def _to_pixels(image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
    image = _apply_orientation(image)
    width, height = _fitted_size(image.size, layout)
    if width * height > 2 * max_pixels:
        return ImageFailure(ImageStatus.TOO_LARGE, f"padded, it would have {width} × {height} pixels (--fit pad)")
    eight_bits = _to_8_bits(image)
    if isinstance(eight_bits, ImageFailure):
        return eight_bits
    image = _flatten_on_white(eight_bits) if eight_bits.has_transparency_data else eight_bits
    mode = "L" if layout.grey or layout.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # `convert` copies even where nothing changes.
    pixels = layout.resize(_fit(image, layout), (layout.height, layout.width))
    pixels = pixels.reshape(layout.height, layout.width, -1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] < layout.channels else pixels


def _to_8_bits(image: Image.Image) -> Image.Image | ImageFailure:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and image.format in (None, "PNG", "PPM"):  # Pillow's mode for their 16-bit files
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        return ImageFailure(ImageStatus.UNSUPPORTED, f"pixels of kind {image.mode} have no agreed scale; store 8 or 16 bits")
    return image


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF block says. Pillow's own `exif_transpose` also copies an image that needs no turning."""
    image.load()
    transpose = _orientation(image)
    return image if transpose is None else image.transpose(transpose)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Warning:  # `decode_or_defer` tries again without warnings.
        raise
    except Exception:  # The EXIF block is broken, but the pixels are whole.
        return None


def _fit(image: Image.Image, layout: Layout) -> Image.Image:
    width, height = _fitted_size(image.size, layout)
    if (width, height) == image.size:
        return image
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))  # `crop` fills with black what lies outside of the image.


def _fitted_size(size: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Returns width and height after cropping or padding, rounded as Keras' `smart_resize` and `pad_to_aspect_ratio` do."""
    width, height = size
    wanted_width, wanted_height = int(height * layout.width / layout.height), int(width * layout.height / layout.width)
    if layout.fit == "crop":
        return max(1, min(width, wanted_width)), max(1, min(height, wanted_height))
    if layout.fit == "pad":
        # Keras pads both sides by the same whole number.
        return width + max(0, wanted_width - width) // 2 * 2, height + max(0, wanted_height - height) // 2 * 2
    return size


def _flatten_on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _describe_unidentified(data: bytes) -> ImageFailure:
    """Tells a file of a format that is not supported from a broken file."""
    if isobmff_format(data) == "AVIF":
        return ImageFailure(ImageStatus.UNREADABLE, "it is an AVIF file that cannot be decoded; copy it again, whole")
    if description := name_foreign_format(data):
        return ImageFailure(ImageStatus.UNSUPPORTED, description)
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if name not in PILLOW_FORMATS and accept is not None and accept(data[:16]) is True:
            return ImageFailure(ImageStatus.UNSUPPORTED, f"{name} files are not read; store {FORMATS_IN_WORDS}")
    return ImageFailure(ImageStatus.UNREADABLE, "it is no image of a known format")
