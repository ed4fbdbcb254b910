"""Pixels as TensorFlow gives them, one file at a time or many files in one call: `tf.io.decode_image` and `tf.image.resize`."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from batchverify.images.decode import UndecodedImage, decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.picture import find_turn, turn_pixels
from batchverify.images.picture_loader import open_in_8_bits

# TensorFlow decodes these. It decodes most BMP, GIF and WebP files to the same pixels as Pillow, and some not at all.
_FORMATS = ("JPEG", "MPO", "PNG")
_ANTIALIAS = "-antialias"
_GRAPH_NODE = re.compile(r"\{\{function_node [^}]*\}\} | \[Op:\w+\].*")


class TensorFlowLoader:
    """Loads images as `tf.image.resize(tf.io.decode_image(file, expand_animations=False), size)` does.

    Args:
        method: The method's name in `tf.image.resize`; `-antialias` behind it stands for its `antialias=True`.
        orientation: `apply` to turn images upright as EXIF says, or `ignore`.
        alpha: The colour that replaces transparency, `white` or `black`; `drop` to leave the channel out.
    """

    bytes_per_pixel = 17

    def __init__(self, method: str = "bilinear", orientation: str = "ignore", alpha: str = "drop"):
        self._method, self._antialias = method.removesuffix(_ANTIALIAS), method.endswith(_ANTIALIAS)
        self._orientation, self._alpha = orientation, alpha

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        with tf.device("CPU"):
            pixels = self._decode(data, image, layout.is_grey)
            if isinstance(pixels, ImageFailure):
                return pixels
            resized = self.resize(pixels, layout).numpy()
        return layout.with_channels(resized)

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        pixels = self._decode(data, image, grey)
        if isinstance(pixels, ImageFailure):
            return pixels
        return np.asarray(pixels)[..., 0] if grey else np.asarray(pixels)

    def _decode(self, data: bytes, image: Image.Image, grey: bool) -> Any:
        """Returns uint8 pixels `(height, width, 1 or 3)`, a tensor or an array, or the failure."""
        if not self._is_decoded_by_tensorflow(image, grey):
            # TensorFlow scales 16 bits to 8 as this does.
            picture = open_in_8_bits(image, self._orientation, self._alpha, grey)
            return picture if isinstance(picture, ImageFailure) else np.atleast_3d(np.asarray(picture))
        try:
            pixels = tf.io.decode_image(data, channels=1 if grey else 3, expand_animations=False)
        except tf.errors.OpError as error:
            raise ValueError(_GRAPH_NODE.sub("", error.message)) from None
        turn = find_turn(image) if self._orientation == "apply" else None
        return pixels if turn is None else turn_pixels(pixels.numpy(), turn)

    def _is_decoded_by_tensorflow(self, image: Image.Image, grey: bool) -> bool:
        is_possible = image.format in _FORMATS and not (grey and image.mode == "CMYK")
        return is_possible and (self._alpha == "drop" or not image.has_transparency_data)

    def resize(self, pixels: Any, layout: Layout) -> Any:
        """Resizes uint8 pixels `(height, width, channels)`; in a graph, too."""
        size = layout.height, layout.width
        if layout.fit == "pad":
            return self._as_result(tf.image.resize_with_pad(pixels, *size, method=self._method, antialias=self._antialias))
        pixels = _crop_middle(pixels, size) if layout.fit == "crop" else pixels
        if self._method == "bilinear" and not self._antialias:
            # `tf.image.resize` calls this operation too, but its call costs much more.
            return tf.raw_ops.ResizeBilinear(images=pixels[None], size=size, half_pixel_centers=True)[0]
        return self._as_result(tf.image.resize(pixels, size, method=self._method, antialias=self._antialias))

    def _as_result(self, pixels: Any) -> Any:
        return tf.cast(pixels, self.pixel_dtype(False))

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "uint8" if self._method == "nearest" else "float32"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        if image is None:
            return True
        is_upright = self._orientation == "ignore" or find_turn(image) is None
        return is_upright and self._is_decoded_by_tensorflow(image, grey)


def _crop_middle(pixels: Any, size: tuple[int, int]) -> Any:
    """Returns the middle of an image, in the shape that `size` has, as `keras.utils.image_dataset_from_directory` crops it."""
    shape, (wanted_height, wanted_width) = tf.shape(pixels), size
    height, width = shape[0], shape[1]
    crop_height = tf.maximum(tf.minimum(height, tf.cast(tf.cast(width * wanted_height, "float32") / wanted_width, "int32")), 1)
    crop_width = tf.maximum(tf.minimum(width, tf.cast(tf.cast(height * wanted_width, "float32") / wanted_height, "int32")), 1)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return pixels[top : top + crop_height, left : left + crop_width, :]


class BatchDecoder:
    """Decodes and resizes many files in one call of TensorFlow, to exactly the pixels that `TensorFlowLoader.load` gives.

    Python is not needed between the steps of each image, so threads do not wait there for one another;
    `python -m benchmarks.speed.rates` measures both ways.

    Args:
        layout: The layout of the result.
        loader: The loader of the layout.
        max_pixels: The largest number of pixels; see `images.decode`.
    """

    def __init__(self, layout: Layout, loader: TensorFlowLoader, max_pixels: int):
        self._layout, self._max_pixels = layout, max_pixels
        channels = 1 if layout.is_grey else 3
        result = tf.TensorSpec((layout.height, layout.width, channels), layout.pixel_dtype)

        def decode_one(data: Any) -> Any:
            pixels = tf.raw_ops.DecodeImage(contents=data, channels=channels, expand_animations=False)
            return loader.resize(tf.ensure_shape(pixels, (None, None, channels)), layout)

        def decode_all(files: Any) -> Any:
            with tf.device("CPU"):
                return tf.map_fn(decode_one, files, fn_output_signature=result, parallel_iterations=os.cpu_count() or 1)

        self._traced = tf.function(decode_all, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        self._concrete: Any = None
        self._lock = threading.Lock()

    def __call__(self, files: Sequence[UndecodedImage]) -> Sequence[np.ndarray | ImageFailure]:
        """Returns the pixels `(height, width, channels)`, or the failure, for each file."""
        try:
            # A list is copied once, and a single file's bytes twice. `numpy()` would copy the pixels.
            pixels = np.asarray(self._decode()(tf.constant([file.data for file in files])))
        except tf.errors.OpError:  # One of the files is broken, and TensorFlow does not say which.
            return [decode(file.data, self._layout, self._max_pixels) for file in files]
        return [self._layout.with_channels(image) for image in pixels]

    def _decode(self) -> Any:
        """Returns the trace of the decoding function.

        TensorFlow counts how often functions of one place in the code are traced when they are called, and warns from the
        fifth decoder of a process on.
        """
        with self._lock:  # Several threads may come first at once; one of them traces the function.
            if self._concrete is None:
                self._concrete = self._traced.get_concrete_function()
        return self._concrete
