"""Generated images to try a model on: noise, smooth shapes and drawings, the same for the same seed."""

from __future__ import annotations

import numpy as np
from PIL import Image

from batchverify.demo import characters


def probe_images(shape: tuple[int, int, int], count: int, seed: int = 0) -> np.ndarray:
    """Returns uint8 images `(count, height, width, channels)`: noise, smooth shapes and drawings in turn.

    Args:
        shape: The height, width and channels of each image.
        count: The number of images.
        seed: The seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    makers = [_noise, _smooth, _drawing]
    return np.stack([makers[number % len(makers)](shape, rng) for number in range(count)])


def _noise(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def _smooth(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return _as_shape(Image.fromarray(coarse), shape, Image.Resampling.BICUBIC)


def _drawing(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    (character,) = characters.invent_alphabet(rng, 1)
    return _as_shape(characters.draw(character, rng), shape, Image.Resampling.BILINEAR)


def _as_shape(image: Image.Image, shape: tuple[int, int, int], resample: Image.Resampling) -> np.ndarray:
    image = image.convert("RGB" if shape[2] == 3 else "L").resize((shape[1], shape[0]), resample)
    return np.asarray(image).reshape(shape)
