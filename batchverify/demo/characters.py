"""Draws characters of invented alphabets that look like handwriting.

All images of the demo, and the extra classes that the embedded models are trained on, are drawn by this module from a seed. A
character consists of a few pen strokes through control points. Each drawing of it has other random shifts of the control
points, another slant, another size and another pen, as if another writer had drawn it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

_SUPERSAMPLING = 3
_POINTS_PER_SEGMENT = 8


@dataclasses.dataclass(frozen=True)
class Character:
    """The shape that all drawings of a character share.

    Attributes:
        strokes: Control points of each pen stroke, float `(points, 2)`. Coordinates are in the unit square, x to the right
            and y down.
    """

    strokes: tuple[np.ndarray, ...]


def invent_alphabet(rng: np.random.Generator, characters: int) -> list[Character]:
    """Returns characters that share a style: about the same number, length and curl of strokes."""
    strokes = int(rng.integers(2, 5))
    curl = rng.uniform(0.3, 1.6)
    length = rng.uniform(0.25, 0.5)
    return [_invent_character(rng, strokes, curl, length) for _ in range(characters)]


def draw(character: Character, rng: np.random.Generator, size: int = 105) -> Image.Image:
    """Returns a new drawing of `character`: a square 1-bit image, black on white, with `size` pixels a side."""
    scale = size * _SUPERSAMPLING
    image = Image.new("L", (scale, scale), 255)
    pen = ImageDraw.Draw(image)
    width = round(scale * rng.uniform(0.026, 0.040))
    placement = _handwriting_transform(rng)
    for stroke in character.strokes:
        shifted = stroke + rng.normal(0, 0.025, stroke.shape)
        line = _smooth(shifted @ placement[:, :2].T + placement[:, 2]) * scale
        pen.line([tuple(point) for point in line], fill=0, width=width, joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=0)
    return image.resize((size, size), Image.Resampling.BOX).point(lambda grey: 255 * (grey > 160)).convert("1")


def _invent_character(rng: np.random.Generator, strokes: int, curl: float, length: float) -> Character:
    count = max(1, strokes + int(rng.integers(-1, 2)))
    drawn = [_invent_stroke(rng, curl, length) for _ in range(count)]
    points = np.concatenate(drawn)
    low, high = points.min(axis=0), points.max(axis=0)
    # Written characters fill their box, so each side is stretched to between 40% and 70% of the image.
    factor = rng.uniform(0.4, 0.7, 2) / np.maximum(high - low, 0.15)
    return Character(tuple((stroke - (low + high) / 2) * factor + 0.5 for stroke in drawn))


def _invent_stroke(rng: np.random.Generator, curl: float, length: float) -> np.ndarray:
    points = [rng.uniform(0.1, 0.9, 2)]
    heading = rng.uniform(0, 2 * np.pi)
    turn = rng.normal(0, curl)
    for _ in range(int(rng.integers(2, 6))):
        step = length * rng.uniform(0.5, 1.3)
        points.append(points[-1] + step * np.array([np.cos(heading), np.sin(heading)]))
        heading += turn + rng.normal(0, 0.4 * curl)
    return np.array(points)


def _handwriting_transform(rng: np.random.Generator) -> np.ndarray:
    """Returns a 2×3 affine matrix with a random rotation, slant, size and position around the centre of the image."""
    angle, slant = rng.normal(0, 0.10), rng.normal(0, 0.12)
    stretch = rng.normal(1.0, 0.10, 2)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.array([[1.0, slant], [0.0, 1.0]]) @ np.diag(stretch)
    shift = np.array([0.5, 0.5]) + rng.normal(0, 0.03, 2) - linear @ np.array([0.5, 0.5])
    return np.column_stack([linear, shift])


def _smooth(points: np.ndarray) -> np.ndarray:
    """Returns points along the Catmull-Rom curve through `points`, shape `(samples, 2)`."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, _POINTS_PER_SEGMENT, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])
