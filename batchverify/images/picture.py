"""What is done to a picture of Pillow's before it is resized: turned upright, laid on a background, cropped or padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from batchverify.images.layout import Layout

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_TURNS: dict[Image.Transpose, Callable[[np.ndarray], np.ndarray]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: np.fliplr,
    Image.Transpose.ROTATE_180: lambda pixels: np.rot90(pixels, 2),
    Image.Transpose.FLIP_TOP_BOTTOM: np.flipud,
    Image.Transpose.TRANSPOSE: lambda pixels: pixels.swapaxes(0, 1),
    Image.Transpose.ROTATE_270: lambda pixels: np.rot90(pixels, 3),
    Image.Transpose.TRANSVERSE: lambda pixels: np.rot90(pixels.swapaxes(0, 1), 2),
    Image.Transpose.ROTATE_90: np.rot90,
}


# What undoes a turn; every other one undoes itself.
_OPPOSITES = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}


class PaddingError(ValueError):
    """An image would have far too many pixels after padding."""


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what turns an image upright, as its EXIF block says; None if it needs no turning."""
    # An old way to store EXIF, as text that ImageMagick wrote; nothing has looked through it for traps.
    image.info.pop("Raw profile type exif", None)
    try:
        # A PNG file's own `getexif` decodes all pixels; `open_image` has read what stands behind them.
        return _TRANSPOSES.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Warning:  # `decode_or_defer` tries again without warnings.
        raise
    except Exception:  # The EXIF block is broken, but the pixels are whole.
        return None


def find_turn_to_make(image: Image.Image, orientation: str) -> Image.Transpose | None:
    """Returns the turn that an image needs after Pillow has decoded it; None if it needs no turning.

    Pillow turns a TIFF file upright while it decodes it, and forgets the turn; other files stay as they are.

    Args:
        image: The file as Pillow has opened it; its pixels are not decoded.
        orientation: `apply` to turn images upright as EXIF says, or `ignore`.
    """
    turn = find_turn(image)
    if image.format != "TIFF":
        return turn if orientation == "apply" else None
    return None if orientation == "apply" or turn is None else _OPPOSITES.get(turn, turn)


def apply_rules(image: Image.Image, orientation: str, alpha: str) -> Image.Image:
    """Turns an image upright unless `orientation` is `ignore`, and replaces transparency unless `alpha` is `drop`."""
    turn = find_turn_to_make(image, orientation)
    return replace_transparency(turn_picture(image, turn), alpha)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Returns an image in a mode, itself if it has that; `convert` always copies."""
    image.load()
    return image if image.mode == mode else image.convert(mode)


def turn_picture(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """Returns an image after a turn or a reflection."""
    return image if turn is None else image.transpose(turn)


def turn_pixels(pixels: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    """Returns pixels `(height, width[, channels])` after a turn or a reflection."""
    return pixels if turn is None else _TURNS[turn](pixels)


def replace_transparency(image: Image.Image, alpha: str) -> Image.Image:
    """Returns an image with its transparency replaced by a colour, in RGB, or as it is where `alpha` is `drop`."""
    return _lay_on(image, alpha) if alpha != "drop" and image.has_transparency_data else image


def _lay_on(image: Image.Image, colour: str) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, colour)
    background.alpha_composite(image)
    return background.convert("RGB")


def fit_shape(image: Image.Image, layout: Layout, max_pixels: int) -> Image.Image:
    """Crops or pads an image to the shape of the layout.

    Raises:
        PaddingError: If it would have far more pixels than `max_pixels` after padding.
    """
    width, height = fitted_size(image.size, layout, max_pixels)
    if (width, height) == image.size:
        return image
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))  # `crop` fills with black what lies outside of the image.


def fit_pixels(pixels: np.ndarray, layout: Layout, max_pixels: int) -> np.ndarray:
    """Does what `fit_shape` does to pixels `(height, width[, channels])`."""
    height, width = pixels.shape[:2]
    fitted_width, fitted_height = fitted_size((width, height), layout, max_pixels)
    left, top = int((width - fitted_width) / 2), int((height - fitted_height) / 2)
    if left < 0 or top < 0:
        sides = [(-top, -top), (-left, -left)] + [(0, 0)] * (pixels.ndim - 2)
        return np.pad(pixels, sides)
    return pixels[top : top + fitted_height, left : left + fitted_width]


def fitted_size(size: tuple[int, int], layout: Layout, max_pixels: int) -> tuple[int, int]:
    """Returns width and height after cropping or padding, rounded as Keras' `smart_resize` and `pad_to_aspect_ratio` do."""
    width, height = size
    wanted_width, wanted_height = int(height * layout.width / layout.height), int(width * layout.height / layout.width)
    if layout.fit == "crop":
        return max(1, min(width, wanted_width)), max(1, min(height, wanted_height))
    if layout.fit == "pad":
        # Keras pads both sides by the same whole number.
        width, height = width + max(0, wanted_width - width) // 2 * 2, height + max(0, wanted_height - height) // 2 * 2
        if width * height > 2 * max_pixels:
            raise PaddingError(f"padded, it would have {width} × {height} pixels (--fit pad)")
    return width, height
