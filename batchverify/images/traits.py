"""Traits of image files that libraries treat in different ways: turned by EXIF, transparent, of several frames."""

from __future__ import annotations

from PIL import Image

from batchverify.images.picture import find_turn
from batchverify.images.safety import png_chunk_names
from batchverify.schema import ImageTraits


def find_traits(data: bytes, image: Image.Image) -> ImageTraits:
    """Returns the traits that the metadata of a file names.

    Args:
        data: The file's bytes.
        image: The file as Pillow has opened it. Pillow may have to read on to its second frame, so decode its pixels first.
    """
    traits = ImageTraits.TURNED if _is_turned(data, image) else ImageTraits.NONE
    if image.has_transparency_data:
        traits |= ImageTraits.TRANSPARENT
    return traits | ImageTraits.MULTI_FRAME if _has_frames(image) else traits


def _is_turned(data: bytes, image: Image.Image) -> bool:
    # Pillow decodes a whole PNG file to look for a block that is not there.
    if image.format == "PNG" and not {"exif", "xmp"} & image.info.keys() and b"eXIf" not in png_chunk_names(data):
        return False
    return find_turn(image) is not None


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # What follows the first frame is broken, and nobody looks at it.
        return False
