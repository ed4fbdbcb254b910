"""The pixels of an image file, or the reason why it has none: the checks before a decoder is called, and its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from batchverify.errors import short_reason
from batchverify.images.failure import ImageFailure
from batchverify.images.foreign_formats import isobmff_format, name_foreign_format
from batchverify.images.formats import FORMATS_IN_WORDS, PILLOW_FORMATS, open_image, pixels_to_reserve
from batchverify.images.layout import Layout
from batchverify.images.picture import PaddingError
from batchverify.images.pillow_settings import no_limit_or_warnings, whole_files_only
from batchverify.images.pixel_budget import PixelBudget
from batchverify.images.plain_jpeg import plain_jpeg_size
from batchverify.images.plain_png import plain_png_size
from batchverify.images.safety import (
    find_decoding_hazard,
    find_memory_hazard,
    find_slow_form,
    has_overlapping_strips,
    lacks_strips,
)
from batchverify.images.traits import find_traits
from batchverify.schema import ImageStatus, ImageTraits


class UndecodedImage(NamedTuple):
    """A file that passed all checks and that a batch decoder decodes to the pixels that the loader would give.

    Attributes:
        data: The file's bytes.
        pixels: The number of pixels that its header names.
    """

    data: bytes
    pixels: int


# Decodes files to the pixels `(height, width, channels)` of each, or its failure.
BatchDecode = Callable[[Sequence[UndecodedImage]], Sequence[np.ndarray | ImageFailure]]


class DecodedImage(NamedTuple):
    """What became of an image file.

    Attributes:
        image: The pixels `(height, width, channels)`, the file where a batch decoder decodes it later, or the failure.
        traits: What the file holds beyond the colours of one upright picture.
    """

    image: np.ndarray | UndecodedImage | ImageFailure
    traits: ImageTraits = ImageTraits.NONE


def decode(
    data: bytes, layout: Layout, max_pixels: int = 64_000_000, budget: PixelBudget | None = None
) -> np.ndarray | ImageFailure:
    """Decodes an image file and resizes it.

    The first frame is used. The loader of the layout decides on orientation, transparency, 16 bits and the method of resizing.

    Args:
        data: The bytes of an image file.
        layout: The layout of the result.
        max_pixels: The largest number of pixels; a file whose header names more is `too_large` and is not decoded.
        budget: The pixels that all threads may decode at the same time; None sets no bound.

    Returns:
        `(height, width, channels)`, of the type `layout.pixel_dtype`, or the failure.
    """
    image = decode_or_defer(data, layout, max_pixels, defer=False, budget=budget).image
    assert not isinstance(image, UndecodedImage)
    return image


def resize_picture(picture: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
    """Resizes a picture in memory, as `decode` does with a file that Pillow alone decodes.

    Args:
        picture: The picture, of mode `L` or `RGB`.
        layout: The layout of the result.
        max_pixels: The largest number of pixels; padding may double it.

    Returns:
        As `decode`.
    """
    try:
        # A loader looks at the bytes only where it decodes the format itself, and a picture in memory has none.
        return layout.loader.load(b"", picture, layout, max_pixels)
    except PaddingError as error:
        return ImageFailure(ImageStatus.TOO_LARGE, str(error))
    except Exception as error:  # A library's resizing raises any exception where it cannot take a size.
        return ImageFailure(ImageStatus.UNREADABLE, f"it cannot be resized ({short_reason(error)})")


def decode_or_defer(
    data: bytes, layout: Layout, max_pixels: int, defer: bool, budget: PixelBudget | None = None
) -> DecodedImage:
    """Does what `decode` does, with two further arguments, and finds the file's traits.

    Args:
        data: As in `decode`.
        layout: As in `decode`.
        max_pixels: As in `decode`.
        defer: Whether a file is returned undecoded where the loader has a batch decoder for it.
        budget: The pixels that all threads may decode at the same time; None sets no bound.
    """
    if defer and layout.loader.can_wait(None, layout.is_grey) and (plain := _as_plain(data, max_pixels)):
        return DecodedImage(plain)
    Image.init()  # Pillow loads its rarer formats late, and not when `Image.open` is given names of formats.
    try:
        if hazard := find_decoding_hazard(data):
            return DecodedImage(ImageFailure(ImageStatus.UNREADABLE, hazard))
        with whole_files_only:
            try:
                return _open_and_decode(data, layout, max_pixels, defer, budget)
            except (Image.DecompressionBombError, Warning):  # The program's own limit, or its filter that raises warnings.
                with no_limit_or_warnings:
                    return _open_and_decode(data, layout, max_pixels, defer, budget)
    except UnidentifiedImageError:
        failure = _describe_unidentified(data)
    except (Image.DecompressionBombError, PaddingError) as error:
        failure = ImageFailure(ImageStatus.TOO_LARGE, str(error))
    except MemoryError:
        failure = ImageFailure(ImageStatus.TOO_LARGE, "there is not enough memory to decode it")
    except Exception as error:  # Pillow's decoders raise any exception on a broken file.
        failure = ImageFailure(ImageStatus.UNREADABLE, f"it cannot be decoded ({short_reason(error)})")
    return DecodedImage(failure)


def _as_plain(data: bytes, max_pixels: int) -> UndecodedImage | None:
    """Returns a file that can be left to the batch decoder without being opened by Pillow; None for any other."""
    size = plain_jpeg_size(data) or plain_png_size(data)
    if size is None or size.width * size.height > max_pixels:
        return None
    return UndecodedImage(data, size.width * size.height)


def _open_and_decode(data: bytes, layout: Layout, max_pixels: int, defer: bool, budget: PixelBudget | None) -> DecodedImage:
    with open_image(data) as image:
        if failure := _check_header(image, max_pixels, len(data)):
            return DecodedImage(failure)
        traits = find_traits(data, image)
        if defer and layout.loader.can_wait(image, layout.is_grey):
            return DecodedImage(UndecodedImage(data, image.width * image.height), traits)
        with budget.reserve(pixels_to_reserve(image, layout.loader.bytes_per_pixel)) if budget else contextlib.nullcontext():
            return DecodedImage(layout.loader.load(data, image, layout, max_pixels), traits)


def _check_header(image: ImageFile.ImageFile, max_pixels: int, file_bytes: int) -> ImageFailure | None:
    if image.width * image.height > max_pixels:
        size = f"{image.width} × {image.height} pixels, more than {max_pixels}"
        return ImageFailure(ImageStatus.TOO_LARGE, f"{size} (--max-image-pixels)")
    if hazard := find_memory_hazard(image, max_pixels):
        return ImageFailure(ImageStatus.TOO_LARGE, hazard)
    if slow_form := find_slow_form(image, file_bytes):
        return ImageFailure(ImageStatus.UNREADABLE, slow_form)
    if lacks_strips(image):
        return ImageFailure(ImageStatus.UNREADABLE, "it cannot be decoded (a part of its pixels is missing)")
    if has_overlapping_strips(image):
        return ImageFailure(ImageStatus.UNREADABLE, "it cannot be decoded (its strips overlap)")
    return None


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
