"""Pixels as scikit-image gives them: `skimage.io.imread` and `skimage.transform.resize`. It is an optional dependency."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import skimage.color
import skimage.transform
from PIL import Image

from batchverify.images.failure import ImageFailure
from batchverify.images.picture import apply_rules, find_turn_to_make, fit_pixels, turn_pixels

if TYPE_CHECKING:
    from batchverify.images.layout import Layout

_resize: Any = skimage.transform.resize  # It has no types.
ORDERS = {"bilinear": 1, "nearest": 0, "bicubic": 3}
# imageio, which reads for scikit-image, decodes these with Pillow, and needs a plug-in of its own for the others.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")


@dataclasses.dataclass(frozen=True)
class SkimageLoader:
    """Loads images as `skimage.transform.resize(skimage.io.imread(file), size)` does: floats in [0, 1].

    Grey images are repeated for three channels, as `skimage.color.gray2rgb` does; colours become grey as
    `skimage.color.rgb2gray` does.

    Attributes:
        order: The order of the spline, 0, 1 or 3; scikit-image smooths before it makes an image smaller, except for order 0.
        orientation: `apply` to turn images upright as EXIF says, or `ignore`.
        alpha: The colour that replaces transparency, `white` or `black`; `drop` to leave the channel out.
        bytes_per_pixel: See `ImageLoader`. The pixels are 8-byte floats, of which there are several copies.
    """

    order: int = 1
    orientation: str = "ignore"
    alpha: str = "drop"
    bytes_per_pixel: int = 120

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        pixels = self.decode(data, image, layout.is_grey)
        order = 0 if pixels.dtype == bool else self.order  # scikit-image interpolates no truth values.
        resized: np.ndarray = _resize(fit_pixels(pixels, layout, max_pixels), (layout.height, layout.width), order=order)
        return layout.with_channels(resized.astype(np.float32))

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray:
        """See `ImageLoader`; the pixels have the type of the file's, or are floats in [0, 1] if colours were removed."""
        pixels = self._read(image)
        if pixels.ndim == 3:
            return np.asarray(skimage.color.rgb2gray(pixels)) if grey else pixels
        return pixels if grey else np.stack([pixels] * 3, axis=-1)  # This is `skimage.color.gray2rgb`.

    def _read(self, image: Image.Image) -> np.ndarray:
        """Returns pixels `(h, w)` or `(h, w, 3)`, of the type that the file has."""
        if self.alpha != "drop" and image.has_transparency_data:
            return np.asarray(apply_rules(image, self.orientation, self.alpha))
        turn = find_turn_to_make(image, self.orientation)
        pixels = turn_pixels(np.array(_as_imageio(image)), turn)
        if pixels.ndim == 3 and pixels.shape[2] == 2:  # Grey with transparency.
            return np.asarray(pixels[..., 0])
        return np.asarray(pixels[..., :3] if pixels.ndim == 3 else pixels)

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "float32"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        return False


def _as_imageio(image: Image.Image) -> Image.Image:
    """Returns a picture in the mode in which imageio takes its pixels from Pillow.

    imageio itself would also decode every frame of a PNG file, and all that its EXIF names.
    """
    if image.format not in _FORMATS or image.mode == "CMYK":
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    return image.convert(image.palette.mode) if image.mode == "P" and image.palette else image
