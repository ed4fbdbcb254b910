"""The pixels of an image file: decoded by Pillow, turned upright, fitted and resized."""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from batchverify.errors import short_reason
from batchverify.images.failure import ImageFailure
from batchverify.images.resize import Layout
from batchverify.images.safety import find_decoding_hazard, find_memory_hazard, lacks_strips
from batchverify.schema import ImageStatus

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
# Of the files of these formats, where a folder is looked through.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Within a JPEG file's scan, neither the byte 0xff itself nor a restart (ITU-T T.81, B.1.1).
_MARKER, _END_OF_IMAGE = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]"), b"\xff\xd9"


class UndecodedJpeg(NamedTuple):
    """A JPEG file without traps or oddities, left to whoever decodes many at once.

    Attributes:
        data: the file's bytes.
    """

    data: bytes


def decode(data: bytes, layout: Layout, max_pixels: int = 64_000_000) -> np.ndarray | ImageFailure:
    """Decodes an image file and resizes it.

    The first frame is taken, EXIF orientation honoured, transparency laid on white, 16 bits scaled to 8.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file.
        layout: of the result.
        max_pixels: more than these, by the file's header, is `too_large`; nothing is decoded.

    Returns:
        uint8 `(height, width, channels)`, or the failure.
    """
    image = decode_or_defer(data, layout, max_pixels, leave_jpeg=False)
    assert not isinstance(image, UndecodedJpeg)
    return image


def decode_or_defer(
    data: bytes, layout: Layout, max_pixels: int, leave_jpeg: bool
) -> np.ndarray | UndecodedJpeg | ImageFailure:
    if trap := find_decoding_hazard(data):
        return ImageFailure(ImageStatus.UNREADABLE, trap)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                found = f"{image.width} × {image.height} pixels, more than {max_pixels}"
                return ImageFailure(ImageStatus.TOO_LARGE, f"{found} (--max-image-pixels)")
            if trap := find_memory_hazard(image, max_pixels):
                return ImageFailure(ImageStatus.TOO_LARGE, trap)
            if lacks_strips(image):
                return ImageFailure(ImageStatus.UNREADABLE, "it cannot be decoded (a part of its pixels is missing)")
            if leave_jpeg and _is_plain_jpeg(image, data):
                return UndecodedJpeg(data)
            # JPEG decodes at a half, a quarter, an eighth at a fraction of the cost; twice the wanted size keeps
            # the result within what the resize filter itself would smooth.
            if layout.resize.antialias:
                image.draft(None, (2 * max(layout.height, layout.width),) * 2)
            return _pixels(image, layout, max_pixels)
    except UnidentifiedImageError:
        return _unidentified(data)
    except Image.DecompressionBombError as error:
        return ImageFailure(ImageStatus.TOO_LARGE, str(error))
    except MemoryError:
        return ImageFailure(ImageStatus.TOO_LARGE, "there is not enough memory to decode it")
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to.
        return ImageFailure(ImageStatus.UNREADABLE, f"it cannot be decoded ({short_reason(error)})")


def _is_plain_jpeg(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Returns whether decoding is all that is left to do, and gives the same pixels whoever does it.

    Of scans that are missing or follow one another oddly, each decoder makes its own; so there is to be one, and its end
    is to be the image's. Pillow has read the file up to that scan.
    """
    if image.fp is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or "progressive" in image.info:
        return False
    end = _MARKER.search(data, image.fp.tell())
    return end is not None and end[0] == _END_OF_IMAGE and _orientation(image) is None


def _pixels(image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
    image = _apply_orientation(image)
    width, height = _fitted_size(image.size, layout)
    if width * height > 2 * max_pixels:
        return ImageFailure(ImageStatus.TOO_LARGE, f"padded, it would have {width} × {height} pixels (--fit pad)")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format in (None, "PNG"):  # Pillow's mode for some 16-bit PNG files
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F", "LAB"):
        return ImageFailure(ImageStatus.UNSUPPORTED, f"pixels of kind {image.mode} have no agreed scale; store 8 or 16 bits")
    if image.has_transparency_data:
        image = _flatten_on_white(image)
    mode = "L" if layout.grey or layout.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which copies all the same
    pixels = layout.resize(_fitted(image, layout), (layout.height, layout.width))
    pixels = pixels.reshape(layout.height, layout.width, -1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] < layout.channels else pixels


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF block says. Pillow's own `exif_transpose` also copies what is not turned."""
    image.load()
    turn = _orientation(image)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Of a broken block; the pixels are whole.
        return None


def _fitted(image: Image.Image, layout: Layout) -> Image.Image:
    width, height = _fitted_size(image.size, layout)
    if (width, height) == image.size:
        return image
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))  # what lies outside is black


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
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def _unidentified(data: bytes) -> ImageFailure:
    """Tells a whole file of a format that is not read from a broken one."""
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if name not in _FORMATS and accept is not None and accept(data[:16]) is True:
            return ImageFailure(ImageStatus.UNSUPPORTED, f"{name} files are not read; store JPEG, PNG, WebP, BMP, GIF or TIFF")
    return ImageFailure(ImageStatus.UNREADABLE, "it is no image of a known format")


# It warns of sizes and of odd metadata; the limits here decide. For the whole process, as decoding runs in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow's own limit only guesses; the header is checked against --max-image-pixels before anything is allocated.
Image.MAX_IMAGE_PIXELS = None
# A truncated file must fail, not come back half grey; this is Pillow's default, and other libraries change it.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow loads its rarer formats on demand, and not when they are asked for by name. MPO opens as JPEG.
Image.init()
