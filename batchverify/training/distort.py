"""Random distortions of the images of a batch, different at each step."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Koch, Zemel, Salakhutdinov (2015), section 3.3, apply each component with probability 0.5, to images of 105×105 pixels.
_ANGLE = np.pi / 18
_SHEAR = 0.3
_SCALE = 0.2
_SHIFT = 2 / 105
# `strokes` is not from their paper. It moves the points of a coarse grid, and changes the width of the pen by up to 0.7 pixels.
_STROKES_SHIFT = 4 / 105
_BEND = 0.03
_BEND_POINTS = 5
_PEN = 0.7


def distort(images: tf.Tensor, seed: tf.Tensor, kind: str) -> tf.Tensor:
    """Distorts each image differently. Places outside of an image have the colour of its border.

    Args:
        images: Images, uint8 `(n, size, size, channels)`.
        seed: Seed, int `(2,)`. The same seed gives the same distortions.
        kind: One of `recipe.DISTORTIONS`. `affine` rotates, shears, scales and shifts as Koch et al. do. `strokes` also bends
            lines and changes the width of the pen, which suits handwriting and signatures.

    Returns:
        Images of the same shape and scale, float32.
    """
    if kind == "none":
        return tf.cast(images, tf.float32)
    background = _border_median(images)
    # Ink is the difference from the background, so that it is zero outside of the image.
    ink = background - tf.cast(images, tf.float32)
    x, y = _affine_positions(images.shape[0], images.shape[1], seed, _STROKES_SHIFT if kind == "strokes" else _SHIFT)
    if kind == "strokes":
        bend_x, bend_y = _bends(images.shape[0], images.shape[1], seed)
        x, y = x + bend_x, y + bend_y
    ink = _sample(ink, x, y)
    if kind == "strokes":
        ink = _with_pen(ink, _component(13, _PEN, images.shape[0], seed))
    return background - ink


def _component(number: int, limit: float, count: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns `(count,)` values: each is 0 with probability 0.5, and otherwise uniform in ±limit."""
    draws = tf.random.stateless_uniform((2, count), seed + number, -1.0, 1.0)
    return tf.where(draws[0] > 0, draws[1] * limit, 0.0)


def _border_median(images: tf.Tensor) -> tf.Tensor:
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    border = tf.sort(tf.concat(sides, axis=1), axis=1)
    return tf.cast(border[:, border.shape[1] // 2], tf.float32)[:, None, None]


def _affine_positions(count: int, size: int, seed: tf.Tensor, shift: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the positions x and y in the original from which the pixels are taken, in pixels; `(count, size, size)` each."""
    angle = _component(0, _ANGLE, count, seed)
    shear_x, shear_y = _component(1, _SHEAR, count, seed), _component(2, _SHEAR, count, seed)
    scale_x, scale_y = 1 + _component(3, _SCALE, count, seed), 1 + _component(4, _SCALE, count, seed)
    shift_x, shift_y = _component(5, shift * size, count, seed), _component(6, shift * size, count, seed)
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b = scale_x * (cos - shear_y * sin), scale_x * (shear_x * cos - sin)
    c, d = scale_y * (sin + shear_y * cos), scale_y * (shear_x * sin + cos)
    middle = (size - 1) / 2
    axis = tf.range(size, dtype=tf.float32) - middle
    y, x = tf.meshgrid(axis, axis, indexing="ij")
    a, b, c, d, shift_x, shift_y = (values[:, None, None] for values in (a, b, c, d, shift_x, shift_y))
    return a * x + b * y + middle + shift_x, c * x + d * y + middle + shift_y


def _bends(count: int, size: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns smooth random displacements in x and y, in pixels; `(count, size, size)` each."""
    strength = tf.abs(_component(12, _BEND * size, count, seed))[:, None, None, None]
    grid = tf.random.stateless_normal((count, _BEND_POINTS, _BEND_POINTS, 2), seed + 11) * strength
    bends = tf.image.resize(grid, (size, size), "bicubic")
    return bends[..., 0], bends[..., 1]


def _sample(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Samples images `(n, size, size, channels)` bilinearly at x and y. Images are zero outside."""
    count, size, _, channels = images.shape
    row_length = size + 2  # Each image is padded by one pixel on each side.
    flat = tf.reshape(tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), [-1, channels])
    x, y = tf.clip_by_value(x + 1, 0.0, size + 0.999), tf.clip_by_value(y + 1, 0.0, size + 0.999)
    left, top = tf.floor(x), tf.floor(y)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    first = tf.range(count)[:, None, None] * row_length * row_length
    corner = first + tf.cast(top, tf.int32) * row_length + tf.cast(left, tf.int32)

    def at(offset: int) -> tf.Tensor:
        return tf.gather(flat, corner + offset)

    upper = at(0) * (1 - right_share) + at(1) * right_share
    lower = at(row_length) * (1 - right_share) + at(row_length + 1) * right_share
    return upper * (1 - lower_share) + lower * lower_share


def _with_pen(ink: tf.Tensor, change: tf.Tensor) -> tf.Tensor:
    """Widens strokes (change > 0) or narrows them (change < 0); `change` is `(n,)`, in pixels."""
    wider, narrower = tf.nn.max_pool2d(ink, 3, 1, "SAME"), -tf.nn.max_pool2d(-ink, 3, 1, "SAME")
    change = change[:, None, None, None]
    return tf.where(change > 0, ink + change * (wider - ink), ink - change * (narrower - ink))
