"""Pixels of an image as people see it: upright, without transparency, in eight bits; the training of this program uses them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from batchverify.images.failure import ImageFailure
from batchverify.images.picture import find_turn_to_make, fit_shape, replace_transparency, to_mode, turn_picture
from batchverify.schema import ImageStatus

if TYPE_CHECKING:
    from batchverify.images.layout import Layout


@dataclasses.dataclass(frozen=True)
class PictureLoader:
    """Loads images with Pillow: turned upright, transparency replaced, 16 bits scaled to 8, resized with antialiasing.

    Attributes:
        resample: Pillow's filter.
        orientation: `apply` to turn images upright as EXIF says, or `ignore`.
        alpha: The colour that replaces transparency, `white` or `black`; `drop` to leave the channel out.
        bytes_per_pixel: See `ImageLoader`. A PNG file of 64 million pixels with transparency took 16.1: its pixels, the
            background and the sum.
    """

    resample: Image.Resampling = Image.Resampling.BILINEAR
    orientation: str = "apply"
    alpha: str = "white"
    bytes_per_pixel: int = 17

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        # JPEG decodes at a half, a quarter or an eighth of its size at a fraction of the cost. Twice the wanted size keeps
        # the result within what the resize filter itself would smooth.
        if self.resample is not Image.Resampling.NEAREST and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (2 * max(layout.height, layout.width),) * 2)
        picture = open_in_8_bits(image, self.orientation, self.alpha, layout.is_grey)
        if isinstance(picture, ImageFailure):
            return picture
        resized = fit_shape(picture, layout, max_pixels).resize((layout.width, layout.height), self.resample)
        return layout.with_channels(np.asarray(resized))

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        picture = open_in_8_bits(image, self.orientation, self.alpha, grey)
        return picture if isinstance(picture, ImageFailure) else np.asarray(picture)

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "uint8"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        return False


def open_in_8_bits(image: Image.Image, orientation: str, alpha: str, grey: bool) -> Image.Image | ImageFailure:
    """Returns the picture of a file in mode `RGB`, or `L` where colours are removed, under the rules of `apply_rules`."""
    # The turn is looked up in the file's own metadata, which a picture that was made of it does not have.
    turn = find_turn_to_make(image, orientation)
    eight_bits = _to_8_bits(image)
    if isinstance(eight_bits, ImageFailure):
        return eight_bits
    return to_mode(replace_transparency(turn_picture(eight_bits, turn), alpha), "L" if grey else "RGB")


def _to_8_bits(image: Image.Image) -> Image.Image | ImageFailure:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> _bits(image) - 8).astype(np.uint8))
    if image.mode == "I" and image.format in (None, "PNG", "PPM"):  # Pillow's mode for their 16-bit files
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return no_agreed_scale(image) or image


def _bits(image: Image.Image) -> int:
    """Returns how many bits a pixel has in a file whose pixels Pillow gives in 16 bits; 12 are possible in TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2[ExifTags.Base.BitsPerSample][0])


def no_agreed_scale(image: Image.Image) -> ImageFailure | None:
    """Returns a failure for pixels that are neither 8 nor 16 bits."""
    if image.mode in ("I", "F", "LAB"):
        return ImageFailure(ImageStatus.UNSUPPORTED, f"pixels of kind {image.mode} have no agreed scale; store 8 or 16 bits")
    return None
