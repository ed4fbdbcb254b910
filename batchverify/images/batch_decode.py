"""Decodes and resizes many JPEG files in one call of TensorFlow, to the same pixels as `decode` gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from batchverify.images.decode import UndecodedJpeg, decode
from batchverify.images.failure import ImageFailure
from batchverify.images.resize import Layout

# Methods whose result lies between the values of the pixels that it is computed from.
_NEVER_OVERSHOOT = ("bilinear", "nearest", "area")
_SMOOTH_ALWAYS = ("gaussian", "mitchellcubic")  # These change an image even where its size stays the same.


class TensorFlowResize:
    """Resizes as `tf.image.resize` does without antialiasing, and rounds to 8 bits.

    Args:
        method: The method's name in `tf.image.resize`.
    """

    antialias = False

    def __init__(self, method: str):
        self._method = method

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Returns the pixels of `image`, resized to height and width `size`."""
        pixels = np.asarray(image)
        if pixels.shape[:2] == size and self._method not in _SMOOTH_ALWAYS:
            return pixels
        with tf.device("CPU"):
            resized = self._resize(pixels.reshape(1, *pixels.shape[:2], -1), size).numpy()[0]
        if self._method not in _NEVER_OVERSHOOT:
            resized = np.clip(resized, 0, 255)
        return np.asarray(np.rint(resized), np.uint8)

    def in_graph(self, pixels: Any, size: tuple[int, int]) -> Any:
        """Does the same to a tensor within a graph. Outside of a graph, these steps would cost more than NumPy's."""
        resized = self._resize(pixels[None], size)[0]
        if self._method not in _NEVER_OVERSHOOT:
            resized = tf.clip_by_value(resized, 0, 255)
        return tf.cast(tf.round(resized), tf.uint8)

    def _resize(self, images: Any, size: tuple[int, int]) -> Any:
        if self._method == "bilinear":  # `tf.image.resize` calls this operation too, but its call costs much more.
            return tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)
        return tf.image.resize(images, size, method=self._method)


class JpegDecoder:
    """Decodes and resizes many JPEG files in one call of TensorFlow, to exactly the pixels that `images.decode` gives.

    Pillow returns to Python between the steps of each image, and its threads wait there for one another;
    `python -m benchmarks.speed.rates` measures both.

    Args:
        layout: The layout of the result, with three channels and `fit` `stretch`.
        resizer: The method that resizes an image.
        max_pixels: The largest number of pixels; see `images.decode`.
    """

    def __init__(self, layout: Layout, resizer: TensorFlowResize, max_pixels: int):
        self._layout, self._max_pixels = layout, max_pixels
        size = (layout.height, layout.width)
        shape = tf.TensorSpec((*size, 3), tf.uint8)

        def decode_one(data: Any) -> Any:
            pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # Pillow uses the same method.
            return resizer.in_graph(pixels, size)

        def decode_all(files: Any) -> Any:
            with tf.device("CPU"):
                return tf.map_fn(decode_one, files, fn_output_signature=shape, parallel_iterations=os.cpu_count() or 1)

        self._decode = tf.function(decode_all, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def __call__(self, files: Sequence[UndecodedJpeg]) -> Sequence[np.ndarray | ImageFailure]:
        """Returns uint8 `(height, width, 3)`, or the failure, for each file."""
        try:
            return list(self._decode(tf.constant([file.data for file in files])).numpy())
        except tf.errors.OpError:  # One of the files is broken, and TensorFlow does not say which.
            return [decode(file.data, self._layout, self._max_pixels) for file in files]
