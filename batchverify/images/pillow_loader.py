"""Pixels as programs get them from Pillow: by `keras.utils.load_img`, by torchvision, or by Pillow's own calls."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from batchverify.images.failure import ImageFailure
from batchverify.images.picture import apply_rules, fit_shape, to_mode
from batchverify.images.picture_loader import no_agreed_scale

if TYPE_CHECKING:
    from batchverify.images.layout import Layout


@dataclasses.dataclass(frozen=True)
class PillowLoader:
    """Loads images as `Image.open(file).convert("RGB").resize(size, resample)` does.

    Attributes:
        resample: The filter; all antialias when they make an image smaller, except the nearest neighbour.
        orientation: `apply` to turn images upright as EXIF says, or `ignore`.
        alpha: The colour that replaces transparency, `white` or `black`; `drop` to leave the channel out.
        keeps_16_bits: Whether grey images of 16 bits keep their values, as `keras.utils.load_img` leaves them. Pillow itself
            cuts them off at 255.
        bytes_per_pixel: See `ImageLoader`.
    """

    resample: Image.Resampling
    orientation: str = "ignore"
    alpha: str = "drop"
    keeps_16_bits: bool = False
    bytes_per_pixel: int = 17

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        opened = self._open(image, layout.is_grey)
        if isinstance(opened, ImageFailure):
            return opened
        image, size = opened, (layout.width, layout.height)
        if image.size == size:
            resized = image
        elif layout.fit == "crop":
            resized = image.resize(size, self.resample, box=_crop_box(image.size, size))
        else:
            resized = fit_shape(image, layout, max_pixels).resize(size, self.resample)
        return layout.with_channels(np.asarray(resized).astype(self.pixel_dtype(layout.is_grey), copy=False))

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        opened = self._open(image, grey)
        return opened if isinstance(opened, ImageFailure) else np.asarray(opened)

    def _open(self, image: Image.Image, grey: bool) -> Image.Image | ImageFailure:
        if failure := no_agreed_scale(image) if image.format not in ("PNG", "PPM") else None:
            return failure
        image.load()  # Pillow turns TIFF files upright here, for these libraries as well, and finds no turn behind it.
        return self._to_mode(apply_rules(image, self.orientation, self.alpha), grey)

    def _to_mode(self, image: Image.Image, grey: bool) -> Image.Image:
        mode = "L" if grey else "RGB"
        return image if grey and self.keeps_16_bits and image.mode in ("I;16", "I") else to_mode(image, mode)

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "float32" if grey and self.keeps_16_bits else "uint8"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        return False


def _crop_box(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns left, upper, right and lower of the middle, as `keras.utils.load_img(keep_aspect_ratio=True)` has it."""
    width, height = size
    crop_width, crop_height = min(width, height * wanted[0] // wanted[1]), min(height, width * wanted[1] // wanted[0])
    crop_width, crop_height = max(1, crop_width), max(1, crop_height)
    left, upper = (width - crop_width) // 2, (height - crop_height) // 2
    return left, upper, left + crop_width, upper + crop_height
