"""Traits of image files that libraries treat in different ways: turned by EXIF, transparent, of several frames."""

from __future__ import annotations

from PIL import Image

from batchverify.images.gif_blocks import has_second_frame
from batchverify.images.picture import find_turn
from batchverify.schema import ImageTraits


def find_traits(data: bytes, image: Image.Image) -> ImageTraits:
    """Returns the traits that the metadata of a file names.

    Args:
        data: The file's bytes.
        image: The file as Pillow has opened it; its pixels are not decoded. Pillow forgets the turn of a TIFF file then.
    """
    traits = ImageTraits.TURNED if find_turn(image) is not None else ImageTraits.NONE
    if image.has_transparency_data:
        traits |= ImageTraits.TRANSPARENT
    has_frames = has_second_frame(data) if image.format == "GIF" else getattr(image, "is_animated", False)
    return traits | ImageTraits.MULTI_FRAME if has_frames else traits
