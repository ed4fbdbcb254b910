"""From the pixels of an image to what the network was trained on: size, shape, colour, scale.

A wrong scale ruins every score without any error, so it is never assumed: the graph shows it, or the user says it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import UndecodedJpeg, decode
from batchverify.images.failure import ImageFailure
from batchverify.images.resize import Layout, PillowResize, Resize

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # keras.applications.imagenet_utils
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # the same; blue, green, red
_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear-antialias": Image.Resampling.BILINEAR,
    "bicubic-antialias": Image.Resampling.BICUBIC,
    "lanczos3-antialias": Image.Resampling.LANCZOS,
}
# Methods whose result lies between the pixels that it is made of.
_WITHIN = ("bilinear", "nearest", "area")
_SMOOTHING = ("gaussian", "mitchellcubic")  # change an image even where its size stays
_MEANINGS = {
    "0..255": "0 to 255, as decoded",
    "0..1": "x / 255",
    "-1..1": "x / 127.5 - 1",
    "imagenet": "x / 255, less ImageNet's mean, by its deviation (preprocess_input mode 'torch')",
    "caffe": "blue, green, red less ImageNet's mean (preprocess_input mode 'caffe')",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What is done to a decoded image.

    Attributes:
        height: that the network takes, in pixels.
        width: that the network takes, in pixels.
        channels: 3 or 1.
        pixels: one of `config.PIXELS`.
        color: one of `config.COLORS`.
        resize: one of `config.RESIZES`.
        fit: one of `config.FITS`.
        source: who says on what scale the pixels are.
    """

    height: int
    width: int
    channels: int
    pixels: str
    color: str
    resize: str
    fit: str
    source: str

    def __str__(self) -> str:
        return (
            f"{self.color} {self.height}x{self.width}, {self.fit}, {self.resize}, "
            f"pixels {self.pixels} ({_MEANINGS[self.pixels]}), as {self.source}"
        )

    def layout(self) -> Layout:
        """Returns how images are to be read."""
        grey = self.color == "grey"
        return Layout(self.height, self.width, self.channels, grey, self.resizer(), self.fit)

    def resizer(self) -> Resize:
        """Returns what brings an image to the network's size."""
        if self.resize in _PILLOW:
            return PillowResize(_PILLOW[self.resize], antialias=self.resize.endswith("-antialias"))
        return TensorFlowResize(self.resize)

    def jpeg_decoder(self, max_pixels: int) -> JpegDecoder | None:
        """Returns what decodes JPEG files as `images.decode` does, many at once; None where nothing here does."""
        resizer = self.resizer()
        if isinstance(resizer, TensorFlowResize) and self.fit == "stretch" and self.channels == 3 and self.color != "grey":
            return JpegDecoder(self.layout(), resizer, max_pixels)
        return None

    def to_input(self, images: Any, dtype: str = "float32") -> Any:
        """Returns the network's input of uint8 images `(n, height, width, channels)`, as a tensor of `dtype`."""
        if self.color == "bgr" and self.channels == 3:
            images = images[..., ::-1]
        x = keras.ops.cast(images, "float32")
        if self.pixels == "0..1":
            x = x / 255.0
        elif self.pixels == "-1..1":
            x = x / 127.5 - 1.0
        elif self.pixels == "imagenet":
            x = (x / 255.0 - _by_channel(_IMAGENET_MEAN, self)) / _by_channel(_IMAGENET_STD, self)
        elif self.pixels == "caffe":
            x = x - _by_channel(_CAFFE_MEAN, self)
        return keras.ops.cast(x, dtype)


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


def decide_preprocessing(
    options: ModelConfig, name: str, shape: tuple[int, int, int], found: tuple[str, str] | None, hidden: str = ""
) -> Preprocessing:
    """Decides what the user's options, or else the graph, say.

    Args:
        options: what the user says.
        name: of the model, for messages.
        shape: height, width and channels of the network's input.
        found: pixel scale that the graph shows, and where; or None.
        hidden: why the graph shows nothing, if there is no graph.

    Raises:
        PreflightError: if neither tells the pixel scale.
    """
    color = options.color or ("grey" if shape[2] == 1 else "bgr" if options.pixels == "caffe" else "rgb")
    if shape[2] == 1 and color != "grey":
        raise PreflightError(f"--color is {color}, but --model {name} takes images with one channel; leave --color out.")
    if options.pixels == "caffe" and color != "bgr":
        raise PreflightError(f"--pixels caffe is made for blue, green, red; leave --color {color} out.")
    if options.pixels == "imagenet" and shape[2] == 1:
        raise PreflightError(
            f"--pixels imagenet is made for three channels, but --model {name} takes one; see its training code."
        )
    if options.pixels:
        scale, source = options.pixels, "--pixels says"
    elif found:
        scale, source = found
    else:
        raise PreflightError(_unknown_scale(name, hidden))
    height, width, channels = shape
    resize, fit = options.resize or "bilinear", options.fit or "stretch"
    return Preprocessing(height, width, channels, scale, color, resize, fit, source)


def contradiction(options: ModelConfig, found: tuple[str, str] | None) -> str | None:
    """Returns a warning where the user says another scale than the graph shows."""
    if options.pixels and found and found[0] != options.pixels:
        return f"--pixels {options.pixels} is used, although {found[1]} that the network takes {found[0]}."
    return None


def pixels_in_graph(model: Any, tensor: Any) -> tuple[str, str] | None:
    """Returns the scale that the operations behind an input show, and which one does; None where none does.

    Args:
        model: a functional or sequential model.
        tensor: one of its inputs.
    """
    if str(tensor.dtype) == "uint8":
        return "0..255", "the input's type uint8 shows"
    graph = getattr(model, "_functional", None) or model
    while (call := _first_consumer(graph, tensor)) is not None:
        operation, node = call
        if getattr(operation, "inputs", None) and hasattr(operation, "layers"):
            return pixels_in_graph(operation, operation.inputs[0])
        if scale := _shown_by(operation, node):
            return scale, f"layer '{operation.name}' ({type(operation).__name__}) shows"
        if type(operation).__name__ not in _PASSING:
            return None
        tensor = node.output_tensors[0]
    return None


# Operations that leave the scale of the pixels as it is.
_PASSING = {
    "InputLayer", "Resizing", "GetItem", "Cast", "CenterCrop", "RandomFlip", "RandomCrop", "RandomRotation",
    "RandomTranslation", "RandomZoom", "ZeroPadding2D", "Identity", "Dropout", "GaussianNoise", "TensorOperation",
    "Reshape", "Activation",
}  # fmt: skip


def _first_consumer(graph: Any, tensor: Any) -> tuple[Any, Any] | None:
    for operation in graph.operations:
        for node in operation._inbound_nodes:
            if any(source is tensor for source in node.input_tensors):
                return operation, node
    return None


def _shown_by(operation: Any, node: Any) -> str | None:
    kind = type(operation).__name__
    if kind == "Rescaling":
        return _scaled_by(operation.scale) or _shifted_by(operation.offset)
    if kind == "Normalization":
        mean = operation.mean if operation.mean is not None else operation.input_mean
        return _shifted_by(mean) if mean is not None else None
    if kind == "Comparison":
        return "0..255" if operation.kind.startswith("scale_") else None
    constant = _constant(operation, node)
    name = operation.operation.rsplit(".", 1)[-1] if kind == "TensorOperation" else kind.lower()
    if constant is None:
        return None
    if name in ("truediv", "divide", "truedivide"):
        return _scaled_by(1 / constant)
    if name in ("mul", "multiply"):
        return _scaled_by(constant)
    if name in ("sub", "subtract", "add", "bias_add"):
        return _shifted_by(constant)
    return None


def _constant(operation: Any, node: Any) -> np.ndarray | None:
    if type(operation).__name__ == "TensorOperation":
        values = list(operation.constants.values())
    else:
        values = [*node.arguments.args, *node.arguments.kwargs.values()]
    for value in values:
        if isinstance(value, (int, float, list, tuple, np.ndarray)) and not isinstance(value, bool):
            try:
                return np.asarray(value, np.float64)
            except (TypeError, ValueError):
                continue
    return None


def _scaled_by(factor: Any) -> str | None:
    largest = float(np.max(np.abs(np.asarray(factor, np.float64))))
    if largest <= 0.05:  # 255 of it is 12 at most
        return "0..255"
    return "0..1" if largest >= 1.5 else None


def _shifted_by(offset: Any) -> str | None:
    largest = float(np.max(np.abs(np.asarray(keras.ops.convert_to_numpy(offset), np.float64))))
    if largest > 10:
        return "0..255"
    return "0..1" if 0.2 < largest <= 1 else None


def _by_channel(values: tuple[float, ...], preprocessing: Preprocessing) -> np.ndarray:
    """Returns values given for red, green, blue (caffe: blue, green, red) in the order of the channels."""
    flipped = preprocessing.color == "bgr" and preprocessing.pixels != "caffe"
    return np.asarray(values[::-1] if flipped else values, np.float32)


def _unknown_scale(name: str, hidden: str) -> str:
    choices = "; ".join(f"{scale}: {meaning}" for scale, meaning in _MEANINGS.items())
    return (
        f"--model {name}: {hidden or 'nothing in its graph shows'} on what scale of pixels it was trained, and a wrong one "
        "ruins every score; look in the training code for what is done to an image after it is decoded (a division by 255, "
        f"preprocess_input, ...), and say it with --pixels ({choices})."
    )
