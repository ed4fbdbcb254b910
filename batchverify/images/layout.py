"""The size and shape of images that a network takes, and what makes them of a file."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from PIL import Image

from batchverify.images.failure import ImageFailure
from batchverify.images.picture_loader import PictureLoader


class ImageLoader(Protocol):
    """Turns an image file into pixels, exactly as a library does that people train networks with.

    Attributes:
        bytes_per_pixel: The memory that an image takes at most while it is decoded, divided by its number of pixels.
    """

    @property
    def bytes_per_pixel(self) -> int: ...

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """Returns the pixels of a file.

        Args:
            data: The file's bytes.
            image: The file as Pillow has opened it; its size and format have been checked, its pixels are not decoded.
            layout: The layout of the result.
            max_pixels: The largest number of pixels; padding may double it.

        Returns:
            `(height, width, channels)`, of the type that `pixel_dtype` names, or the failure.

        Raises:
            Exception: If the file cannot be decoded. Decoders raise any exception on a broken file.
        """

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """Returns the pixels of a file before they are resized, `(h, w, 3)`, or `(h, w)` where colours are removed."""

    def pixel_dtype(self, grey: bool) -> str:
        """Returns the type of the pixels, `uint8` or `float32`; `grey` says whether colours are removed."""

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """Returns whether a batch decoder can decode a file later, together with others.

        Args:
            image: The file as Pillow has opened it; None for a plain file, as `plain_jpeg_size` and
                `plain_png_size` have it.
            grey: Whether colours are removed.
        """


_PICTURES = PictureLoader()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of an image's pixels that a network takes.

    Attributes:
        height: The height in pixels.
        width: The width in pixels.
        channels: The number of channels, 3 or 1.
        grey: Whether colours are removed.
        loader: What turns a file into pixels of this layout.
        fit: The treatment of images of another shape: `stretch`, `crop` (keep the middle) or `pad` (with black).
    """

    height: int
    width: int
    channels: int = 3
    grey: bool = False
    loader: ImageLoader = _PICTURES
    fit: str = "stretch"

    @property
    def is_grey(self) -> bool:
        """Whether colours are removed, because that was asked for or because there is one channel only."""
        return self.grey or self.channels == 1

    @property
    def pixel_dtype(self) -> str:
        """The type of the pixels, `uint8` or `float32`."""
        return self.loader.pixel_dtype(self.is_grey)

    def with_channels(self, pixels: np.ndarray) -> np.ndarray:
        """Returns pixels `(height, width)` or `(height, width, 1 or 3)` with the layout's number of channels."""
        pixels = pixels.reshape(self.height, self.width, -1)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] < self.channels else pixels
