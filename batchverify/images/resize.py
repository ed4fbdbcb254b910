"""The size and shape that a network wants, and what brings an image to it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from PIL import Image


class Resize(Protocol):
    """Brings an image to a size: uint8 `(height, width[, channels])`.

    Attributes:
        antialias: whether every source pixel counts, so that a JPEG may be decoded at a fraction of its size.
    """

    @property
    def antialias(self) -> bool: ...

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class PillowResize:
    """Resizes with one of Pillow's filters, which antialias, but for the nearest neighbour."""

    resample: Image.Resampling = Image.Resampling.BILINEAR
    antialias: bool = True

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(image.resize((size[1], size[0]), self.resample))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the network wants an image's pixels.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 3 or 1.
        grey: whether colours are taken away.
        resize: what brings an image to this size.
        fit: what becomes of other shapes: `stretch`, `crop` (the middle) or `pad` (with black).
    """

    height: int
    width: int
    channels: int = 3
    grey: bool = False
    resize: Resize = PillowResize()
    fit: str = "stretch"
