"""Pixels as OpenCV gives them: `cv2.imread` and `cv2.resize`. OpenCV is an optional dependency."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from batchverify.images.failure import ImageFailure
from batchverify.images.picture import apply_rules, find_turn_to_make, fit_pixels, to_mode, turn_pixels
from batchverify.schema import ImageStatus

if TYPE_CHECKING:
    from batchverify.images.layout import Layout

INTERPOLATIONS = {
    "bilinear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos4": cv2.INTER_LANCZOS4,
}
# OpenCV decodes these. The other formats that this program reads are decoded by Pillow.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "PPM")


@dataclasses.dataclass(frozen=True)
class OpenCvLoader:
    """Loads images as `cv2.resize(cv2.imread(file), size, interpolation=…)` does, in the order red, green, blue.

    Attributes:
        interpolation: The name of the interpolation in `INTERPOLATIONS`.
        orientation: `apply` to turn images upright as OpenCV does, or `ignore`.
        alpha: The colour that replaces transparency, `white` or `black`; `drop` to leave the channel out.
        bytes_per_pixel: See `ImageLoader`.
    """

    interpolation: str = "bilinear"
    orientation: str = "apply"
    alpha: str = "drop"
    bytes_per_pixel: int = 17

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        pixels = self.decode(data, image, layout.is_grey)
        if isinstance(pixels, ImageFailure):
            return pixels
        pixels = np.ascontiguousarray(fit_pixels(pixels, layout, max_pixels))
        resized = cv2.resize(pixels, (layout.width, layout.height), interpolation=INTERPOLATIONS[self.interpolation])
        return layout.with_channels(resized)

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        if image.format not in _FORMATS or (self.alpha != "drop" and image.has_transparency_data):
            return np.asarray(to_mode(apply_rules(image, self.orientation, self.alpha), "L" if grey else "RGB"))
        flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
        if self.orientation == "ignore":
            flags |= cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is None:
            return ImageFailure(ImageStatus.UNREADABLE, "OpenCV cannot decode it; repair it, or leave --loader opencv out")
        if image.format == "TIFF":  # OpenCV turns TIFF files upright as Pillow does, whatever the flags say.
            pixels = turn_pixels(pixels, find_turn_to_make(image, self.orientation))
        return pixels if grey else pixels[..., ::-1]

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "uint8"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        return False
