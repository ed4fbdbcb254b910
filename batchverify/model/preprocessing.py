"""The steps between a decoded image and the network: size, shape, colour and pixel scale.

A wrong scale ruins every score without any error, so it is never assumed: the graph shows it, or the user says it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from batchverify.config import ModelConfig, split_pixels
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError
from batchverify.images.failure import ImageFailure
from batchverify.images.function_loader import FunctionLoader
from batchverify.images.layout import Layout
from batchverify.images.loaders import Loading, decide_loading, make_loader
from batchverify.images.tensorflow_loader import BatchDecoder, TensorFlowLoader

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # From keras.applications.imagenet_utils.
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # From the same module, in the order blue, green, red.
_MEANINGS = {
    "0..255": "0 to 255, as decoded",
    "0..1": "x / 255",
    "-1..1": "x / 127.5 - 1",
    "imagenet": "x / 255, less ImageNet's mean, by its deviation (preprocess_input mode 'torch')",
    "caffe": "blue, green, red less ImageNet's mean (preprocess_input mode 'caffe')",
    "standardize": "each image less its own mean, by its own deviation, as tf.image.per_image_standardization",
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps between a decoded image and the network.

    Attributes:
        height: The height that the network takes, in pixels.
        width: The width that the network takes, in pixels.
        channels: The number of channels, 3 or 1.
        pixels: The pixel scale, one of `config.PIXELS`.
        color: The order of the channels, one of `config.COLORS`.
        loading: The library that turns files into pixels, and how it does that.
        fit: The treatment of images of another shape, one of `config.FITS`.
        source: The source of the pixel scale, as the end of a sentence such as "as --pixels says".
    """

    height: int
    width: int
    channels: int
    pixels: str
    color: str
    loading: Loading
    fit: str
    source: str

    def __str__(self) -> str:
        if self.loading.preprocess:
            return f"{self.color} {self.height}x{self.width}, {self.loading}"
        scale, threshold = split_pixels(self.pixels)
        binary = "" if threshold is None else f"white above {threshold:g} and black elsewhere, "
        return (
            f"{self.color} {self.height}x{self.width}, {self.loading}, {self.fit}, "
            f"pixels {self.pixels} ({binary}{_MEANINGS[scale]}), as {self.source}"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The height, width and channels that the network takes."""
        return self.height, self.width, self.channels

    def takes_same_pixels(self, other: Preprocessing) -> bool:
        """Returns whether both networks take the same pixels of a file.

        The scale and the order of the channels may differ: each network applies its own to the pixels that were loaded.
        """
        return self._loaded_pixels() == other._loaded_pixels()

    def _loaded_pixels(self) -> tuple[Any, ...]:
        return *self.image_shape, self.color == "grey", self.loading, self.fit

    def layout(self) -> Layout:
        """Returns the layout in which images are read."""
        grey = self.color == "grey"
        return Layout(self.height, self.width, self.channels, grey, make_loader(self.loading), self.fit)

    def batch_decoder(self, max_pixels: int) -> BatchDecoder | None:
        """Returns a decoder of many files at once that gives the pixels of `images.decode`; None if there is none."""
        layout = self.layout()
        return BatchDecoder(layout, layout.loader, max_pixels) if isinstance(layout.loader, TensorFlowLoader) else None

    def as_loaded(self, images: np.ndarray) -> np.ndarray:
        """Returns generated uint8 images as the loader would give them, in its type and on its scale.

        Raises:
            PreflightError: If the function of `--preprocess` fails on them, or gives another shape than the model takes.
        """
        loader, dtype = self.layout().loader, self.layout().pixel_dtype
        if isinstance(loader, FunctionLoader):
            made = [loader.call(image[..., 0] if self.channels == 1 else image, self.image_shape) for image in images]
            if failure := next((one for one in made if isinstance(one, ImageFailure)), None):
                raise PreflightError(f"{failure.error}; repair the function.")
            return np.stack([one for one in made if not isinstance(one, ImageFailure)])
        return (images / np.float32(255 / self.loading.white)).astype(dtype) if dtype == "float32" else images

    def to_input(self, images: Any, dtype: str = "float32") -> Any:
        """Returns the network's input, a tensor of `dtype`, for images `(n, height, width, channels)` as they were loaded."""
        if self.loading.preprocess:
            return keras.ops.cast(images, dtype)
        if self.color == "bgr" and self.channels == 3:
            images = images[..., ::-1]
        scale, threshold = split_pixels(self.pixels)
        white = self.loading.white
        x = keras.ops.cast(images, "float32")
        if threshold is not None:
            x, white = keras.ops.where(x > threshold * white / 255.0, 255.0, 0.0), 255.0
        return keras.ops.cast(self._to_scale(x, scale, white), dtype)

    def _to_scale(self, x: Any, scale: str, white: float) -> Any:
        """Returns pixels, of which `white` is the brightest, on the scale that the network takes."""
        if scale == "0..1":
            return x if white == 1.0 else x / white
        if scale == "-1..1":
            return x / (white / 2) - 1.0
        if scale == "imagenet":
            x = x if white == 1.0 else x / white
            return (x - _by_channel(_IMAGENET_MEAN, self)) / _by_channel(_IMAGENET_STD, self)
        if scale == "standardize":
            return _standardize(x)
        x = x if white == 255.0 else x * (255.0 / white)
        return x - _by_channel(_CAFFE_MEAN, self) if scale == "caffe" else x


def decide_preprocessing(
    options: ModelConfig, name: str, shape: tuple[int, int, int], shown: tuple[str, str] | None, hidden: str = ""
) -> Preprocessing:
    """Decides the steps by the user's options, or else by the graph.

    Args:
        options: The user's statements about the model.
        name: The model's name, for messages.
        shape: The height, width and channels of the network's input.
        shown: The pixel scale that the graph shows, and where it shows it; None if it shows none.
        hidden: The reason why the graph shows nothing, if there is no graph.

    Raises:
        PreflightError: If neither tells the pixel scale, or the options contradict the number of channels.
    """
    height, width, channels = shape
    loading = decide_loading(options)
    color = options.color or ("grey" if channels == 1 else "bgr" if options.pixels == "caffe" else loading.color)
    _refuse_contradictions(options, name, channels, color)
    if options.preprocess:
        scale, source = "0..255", "--preprocess says"
    elif options.pixels:
        scale, source = options.pixels, "--pixels says"
    elif shown:
        scale, source = shown
    else:
        raise OpenQuestionError(OpenQuestion(_unknown_scale(name, hidden), ("--pixels", "SCALE"), {"pixels": "0..1"}))
    return Preprocessing(height, width, channels, scale, color, loading, options.fit or "stretch", source)


def _refuse_contradictions(options: ModelConfig, name: str, channels: int, color: str) -> None:
    if channels == 1 and color != "grey":
        raise PreflightError(f"--color is {color}, but --model {name} takes images with one channel; leave --color out.")
    if options.pixels == "caffe" and color != "bgr":
        raise PreflightError(f"--pixels caffe is made for blue, green, red; leave --color {color} out.")
    if options.pixels == "imagenet" and channels == 1:
        raise PreflightError(
            f"--pixels imagenet is made for three channels, but --model {name} takes one; see its training code."
        )


def scale_contradiction(options: ModelConfig, shown: tuple[str, str] | None) -> str | None:
    """Returns a warning if the user names another pixel scale than the graph shows, or None."""
    if options.pixels and shown and shown[0] != split_pixels(options.pixels)[0]:
        return f"--pixels {options.pixels} is used, although {shown[1]} that the network takes {shown[0]}."
    return None


def _standardize(x: Any) -> Any:
    """Returns each image less its mean, by its deviation, as `tf.image.per_image_standardization` and FaceNet's code do."""
    axes = (1, 2, 3)
    values = math.prod(x.shape[1:])
    deviation = keras.ops.maximum(keras.ops.std(x, axis=axes, keepdims=True), 1.0 / math.sqrt(values))
    return (x - keras.ops.mean(x, axis=axes, keepdims=True)) / deviation


def _by_channel(values: tuple[float, ...], preprocessing: Preprocessing) -> np.ndarray:
    """Returns values for red, green, blue (for caffe: blue, green, red) in the order of the channels."""
    flipped = preprocessing.color == "bgr" and preprocessing.pixels != "caffe"
    return np.asarray(values[::-1] if flipped else values, np.float32)


def _unknown_scale(name: str, hidden: str) -> str:
    choices = "; ".join(f"{scale}: {meaning}" for scale, meaning in _MEANINGS.items())
    return (
        f"--model {name}: {hidden or 'nothing in its graph shows'} on what scale of pixels it was trained, and a wrong one "
        "ruins every score; look in the training code for what is done to an image between the decoder and the model (a "
        f"division by 255, preprocess_input, ...), and say it with --pixels ({choices}); what the model does itself does not "
        "count, and if it does all of that, say 0..255."
    )
