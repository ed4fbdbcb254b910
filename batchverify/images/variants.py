"""Small changes of a picture that a steady model should not mind."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageOps

from batchverify.images.formats import open_image
from batchverify.images.picture import find_turn, to_mode
from batchverify.images.safety import find_decoding_hazard, find_memory_hazard, find_slow_form

JPEG_QUALITY = 75
_BRIGHTER = 1.05


def _reencoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _shifted(picture: Image.Image) -> Image.Image:
    """Moves the picture by a pixel to the right and downwards; its first row and column are repeated."""
    moved = picture.copy()
    moved.paste(picture.crop((0, 0, picture.width, 1)), (1, 0))
    moved.paste(picture.crop((0, 0, 1, picture.height)), (0, 1))
    moved.paste(picture, (1, 1))
    return moved


def _brightened(picture: Image.Image) -> Image.Image:
    return picture.point(lambda value: min(255, round(value * _BRIGHTER)))


def _mirrored(picture: Image.Image) -> Image.Image:
    return ImageOps.mirror(picture)


# How each change is named in words. A mirrored image need not match: many things look different in a mirror.
CHANGES = {
    "jpeg": f"saved as JPEG of quality {JPEG_QUALITY}",
    "shift": "shifted by one pixel",
    "brighten": "brightened by 5%",
    "mirror": "mirrored",
}
JUDGED_CHANGES = ("jpeg", "shift", "brighten")
VARIANTS: dict[str, Callable[[Image.Image], bytes | Image.Image]] = {
    "jpeg": _reencoded,
    "shift": _shifted,
    "brighten": _brightened,
    "mirror": _mirrored,
}


def make_variants(data: bytes, max_pixels: int) -> tuple[int, dict[str, bytes | Image.Image]] | None:
    """Returns the number of pixels of a picture, and for each of `VARIANTS` a file or a picture of mode `L` or `RGB`.

    Args:
        data: The bytes of an image file.
        max_pixels: The largest number of pixels.

    Returns:
        None for a picture that has more pixels, or more than 8 bits a channel, or that EXIF turns, or that cannot be decoded
        or changed: Pillow saves no JPEG file of more than 65,500 pixels a side.
    """
    try:
        if find_decoding_hazard(data):
            return None
        with open_image(data) as image:
            if image.mode not in ("1", "L", "P", "RGB", "CMYK") or image.width * image.height > max_pixels:
                return None
            if find_memory_hazard(image, max_pixels) or find_slow_form(image, len(data)):
                return None
            if find_turn(image) is not None:
                return None  # Saved as JPEG without its EXIF, it would lie on its side.
            picture = to_mode(image, "L" if image.mode in ("1", "L") else "RGB")
        return picture.width * picture.height, {name: change(picture) for name, change in VARIANTS.items()}
    except Exception:  # Pillow raises any exception on a file that it cannot decode, which the run itself reports, or save.
        return None
