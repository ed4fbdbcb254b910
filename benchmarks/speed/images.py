"""JPEG files as hard to decode as photos, from a seed.

A picture is a crop of one of a few base scenes (noise of many octaves, with edges), mixed with a crop of another, with
other light and with a sensor's noise. At quality 90 it takes one to two and a half bits for each pixel, as photos do. Pictures
as large as a telephone's are saved at quality 96, as telephones save them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZES = {"250x250": (250, 250), "1024x768": (1024, 768), "4000x3000": (4000, 3000)}
QUALITY, PHONE_QUALITY, _PHONE_PIXELS = 90, 96, 4 * 10**6
_SCENES, _MOST_SCENE_PIXELS = 64, 10**8  # Large pictures have fewer scenes.
_MARGIN = 1.25  # how much larger than a picture a scene is
_NOISES = 8
_NOISE_LEVELS = 3.0  # standard deviation of the sensor's noise, in 255ths
_DONE = "done"


def ensure_images(folder: Path, size: tuple[int, int], count: int, seed: int) -> list[str]:
    """Returns the paths of `count` JPEG files, made now where they are not there yet.

    Args:
        folder: The folder of the cache; each size and seed has a folder of its own in it.
        size: width and height in pixels.
        count: The number of pictures. Picture k is the same however many there are.
        seed: The seed of everything that is random.
    """
    own = folder / f"images-{size[0]}x{size[1]}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    paths = [own / f"{number:05d}.jpg" for number in range(count)]
    finished = own / _DONE
    made = int(finished.read_text()) if finished.exists() else 0
    if made < count:
        camera = Camera(size, seed)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            list(threads.map(camera.save, range(made, count), paths[made:]))
        finished.write_text(str(count))
    return [str(path) for path in paths]


class Camera:
    """Takes pictures of a few made-up scenes.

    Args:
        size: width and height of the pictures in pixels.
        seed: The seed of everything that is random.
    """

    def __init__(self, size: tuple[int, int], seed: int):
        self._size, self._seed = size, seed
        rng = np.random.default_rng(seed)
        larger = (int(size[0] * _MARGIN), int(size[1] * _MARGIN))
        scenes = max(2, min(_SCENES, _MOST_SCENE_PIXELS // (larger[0] * larger[1])))
        self._scenes = [_scene(larger, rng) for _ in range(scenes)]
        shape = (larger[1], larger[0], 3)
        self._noises = [rng.standard_normal(shape, np.float32) * np.float32(_NOISE_LEVELS) for _ in range(min(_NOISES, scenes))]

    def picture(self, number: int) -> np.ndarray:
        """Returns picture `number`, uint8 `(height, width, 3)`."""
        rng = np.random.default_rng((self._seed, number))
        share = np.float32(rng.uniform(0.6, 1.0))
        light = rng.uniform(0.75, 1.15, 3).astype(np.float32)
        near, far = (self._crop(self._scenes, rng).astype(np.float32) for _ in range(2))
        pixels = (near * share + far * (1 - share)) * light + self._crop(self._noises, rng)
        return np.clip(pixels, 0, 255).astype(np.uint8)

    def save(self, number: int, path: Path) -> None:
        """Writes picture `number` as JPEG."""
        quality = PHONE_QUALITY if self._size[0] * self._size[1] >= _PHONE_PIXELS else QUALITY
        Image.fromarray(self.picture(number)).save(path, "JPEG", quality=quality)

    def _crop(self, arrays: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        whole = arrays[rng.integers(len(arrays))]
        width, height = self._size
        top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
        crop = whole[top : top + height, left : left + width]
        return crop[:, ::-1] if rng.integers(2) else crop


def _scene(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 `(height, width, 3)`: shapes with edges under noise whose amplitude falls with its frequency."""
    texture = np.zeros((size[1], size[0], 3), np.float32)
    cells, amplitude = 3, rng.uniform(35, 50)
    while cells < min(size):
        for channel in range(3):
            grid = rng.standard_normal((cells, cells * size[0] // size[1] + 1), np.float32)
            octave = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
            texture[:, :, channel] += np.float32(amplitude) * np.asarray(octave)
        cells, amplitude = cells * 2, amplitude * 0.62
    # Colour varies less than light does: the channels share most of what they show.
    shared = texture.mean(axis=2, keepdims=True) * np.float32(1.7)
    return np.clip(_shapes(size, rng) + shared + texture * np.float32(0.3), 0, 255).astype(np.uint8)


def _shapes(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    page = Image.new("RGB", size, tuple(rng.integers(60, 200, 3).tolist()))
    pen = ImageDraw.Draw(page)
    for _ in range(24):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        width, height = rng.integers(max(4, size[0] // 20), size[0] // 2), rng.integers(max(4, size[1] // 20), size[1] // 2)
        box = (int(x - width // 2), int(y - height // 2), int(x + width // 2), int(y + height // 2))
        colour = tuple(rng.integers(20, 236, 3).tolist())
        (pen.ellipse if rng.integers(2) else pen.rectangle)(box, fill=colour)
    return np.asarray(page.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
