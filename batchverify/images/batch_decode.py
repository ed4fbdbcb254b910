"""Decodes and resizes many JPEG files in one call of TensorFlow, to the pixels that `decode` gives."""

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

# Methods whose result lies between the pixels that it is made of.
_WITHIN = ("bilinear", "nearest", "area")
_SMOOTHING = ("gaussian", "mitchellcubic")  # change an image even where its size stays


class TensorFlowResize:
    """Resizes as `tf.image.resize` does without antialiasing, rounded to 8 bits."""

    antialias = False

    def __init__(self, method: str):
        self._method = method

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        pixels = np.asarray(image)
        if pixels.shape[:2] == size and self._method not in _SMOOTHING:
            return pixels
        with tf.device("CPU"):
            resized = self._resize(pixels.reshape(1, *pixels.shape[:2], -1), size).numpy()[0]
        if self._method not in _WITHIN:
            resized = np.clip(resized, 0, 255)
        return np.rint(resized).astype(np.uint8)

    def in_graph(self, pixels: Any, size: tuple[int, int]) -> Any:
        """Does the same to a tensor, within a graph: one by one, these steps would cost more than NumPy's."""
        resized = self._resize(pixels[None], size)[0]
        if self._method not in _WITHIN:
            resized = tf.clip_by_value(resized, 0, 255)
        return tf.cast(tf.round(resized), tf.uint8)

    def _resize(self, images: Any, size: tuple[int, int]) -> Any:
        if self._method == "bilinear":  # what tf.image.resize comes down to, at a fraction of its calling cost
            return tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)
        return tf.image.resize(images, size, method=self._method)


class JpegDecoder:
    """Decodes and resizes JPEG files, many at once, in one call of TensorFlow's: to the very pixels of `images.decode`.

    Pillow comes back to Python between the steps of each image, and its threads wait there for one another;
    `python -m benchmarks.speed.rates` measures both.

    Args:
        layout: of the result, with three channels, stretched.
        resizer: brings images to its size.
        max_pixels: see `images.decode`.
    """

    def __init__(self, layout: Layout, resizer: TensorFlowResize, max_pixels: int):
        self._layout, self._max_pixels = layout, max_pixels
        size = (layout.height, layout.width)
        shape = tf.TensorSpec((*size, 3), tf.uint8)

        def decode_one(data: Any) -> Any:
            pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as Pillow does
            return resizer.in_graph(pixels, size)

        def decode_all(files: Any) -> Any:
            with tf.device("CPU"):
                return tf.map_fn(decode_one, files, fn_output_signature=shape, parallel_iterations=os.cpu_count() or 1)

        self._decode = tf.function(decode_all, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def __call__(self, files: Sequence[UndecodedJpeg]) -> Sequence[np.ndarray | ImageFailure]:
        """Returns uint8 `(height, width, 3)`, or the failure, of each file."""
        try:
            return self._decode(tf.constant([file.data for file in files])).numpy()
        except tf.errors.OpError:  # Of one of them, and nobody says which.
            return [decode(file.data, self._layout, self._max_pixels) for file in files]
