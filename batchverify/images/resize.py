"""The size and shape of images that a network takes, and how an image is resized to them."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from PIL import Image


class Resize(Protocol):
    """Resizes an image to uint8 pixels `(height, width[, channels])`.

    Attributes:
        antialias: Whether every source pixel counts, so that a JPEG file may be decoded at a fraction of its size.
    """

    @property
    def antialias(self) -> bool: ...

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class PillowResize:
    """Resizes with one of Pillow's filters; all of them antialias, except the nearest neighbour.

    Attributes:
        resample: The filter.
        antialias: Whether the filter antialiases.
    """

    resample: Image.Resampling = Image.Resampling.BILINEAR
    antialias: bool = True

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Returns the pixels of `image`, resized to height and width `size`."""
        return np.asarray(image.resize((size[1], size[0]), self.resample))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of an image's pixels that a network takes.

    Attributes:
        height: The height in pixels.
        width: The width in pixels.
        channels: The number of channels, 3 or 1.
        grey: Whether colours are removed.
        resize: The method that resizes an image to this size.
        fit: The treatment of images of another shape: `stretch`, `crop` (keep the middle) or `pad` (with black).
    """

    height: int
    width: int
    channels: int = 3
    grey: bool = False
    resize: Resize = PillowResize()
    fit: str = "stretch"
