"""The steps between a decoded image and the network: size, shape, colour and pixel scale.

A wrong scale ruins every score without any error, so it is never assumed: the graph shows it, or the user says it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from PIL import Image

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.batch_decode import JpegDecoder, TensorFlowResize
from batchverify.images.resize import Layout, PillowResize, Resize

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # From keras.applications.imagenet_utils.
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # From the same module, in the order blue, green, red.
_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear-antialias": Image.Resampling.BILINEAR,
    "bicubic-antialias": Image.Resampling.BICUBIC,
    "lanczos3-antialias": Image.Resampling.LANCZOS,
}
_MEANINGS = {
    "0..255": "0 to 255, as decoded",
    "0..1": "x / 255",
    "-1..1": "x / 127.5 - 1",
    "imagenet": "x / 255, less ImageNet's mean, by its deviation (preprocess_input mode 'torch')",
    "caffe": "blue, green, red less ImageNet's mean (preprocess_input mode 'caffe')",
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
        resize: The method that resizes, one of `config.RESIZES`.
        fit: The treatment of images of another shape, one of `config.FITS`.
        source: The source of the pixel scale, as the end of a sentence such as "as --pixels says".
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
            f"{self.color} {self.height}x{self.width}, upright by EXIF, transparency on white, {self.fit}, {self.resize}, "
            f"pixels {self.pixels} ({_MEANINGS[self.pixels]}), as {self.source}"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The height, width and channels that the network takes."""
        return self.height, self.width, self.channels

    def layout(self) -> Layout:
        """Returns the layout in which images are read."""
        grey = self.color == "grey"
        return Layout(self.height, self.width, self.channels, grey, self.resizer(), self.fit)

    def resizer(self) -> Resize:
        """Returns the method that resizes an image."""
        if self.resize in _PILLOW:
            return PillowResize(_PILLOW[self.resize], antialias=self.resize.endswith("-antialias"))
        return TensorFlowResize(self.resize)

    def jpeg_decoder(self, max_pixels: int) -> JpegDecoder | None:
        """Returns a decoder of many JPEG files at once that gives the pixels of `images.decode`; None if there is none."""
        resizer = self.resizer()
        if isinstance(resizer, TensorFlowResize) and self.fit == "stretch" and self.channels == 3 and self.color != "grey":
            return JpegDecoder(self.layout(), resizer, max_pixels)
        return None

    def to_input(self, images: Any, dtype: str = "float32") -> Any:
        """Returns the network's input, a tensor of `dtype`, for uint8 images `(n, height, width, channels)`."""
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
    color = options.color or ("grey" if channels == 1 else "bgr" if options.pixels == "caffe" else "rgb")
    _refuse_contradictions(options, name, channels, color)
    if options.pixels:
        scale, source = options.pixels, "--pixels says"
    elif shown:
        scale, source = shown
    else:
        raise PreflightError(_unknown_scale(name, hidden))
    resize, fit = options.resize or "bilinear", options.fit or "stretch"
    return Preprocessing(height, width, channels, scale, color, resize, fit, source)


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
    if options.pixels and shown and shown[0] != options.pixels:
        return f"--pixels {options.pixels} is used, although {shown[1]} that the network takes {shown[0]}."
    return None


def _by_channel(values: tuple[float, ...], preprocessing: Preprocessing) -> np.ndarray:
    """Returns values for red, green, blue (for caffe: blue, green, red) in the order of the channels."""
    flipped = preprocessing.color == "bgr" and preprocessing.pixels != "caffe"
    return np.asarray(values[::-1] if flipped else values, np.float32)


def _unknown_scale(name: str, hidden: str) -> str:
    choices = "; ".join(f"{scale}: {meaning}" for scale, meaning in _MEANINGS.items())
    return (
        f"--model {name}: {hidden or 'nothing in its graph shows'} on what scale of pixels it was trained, and a wrong one "
        "ruins every score; look in the training code for what is done to an image after it is decoded (a division by 255, "
        f"preprocess_input, ...), and say it with --pixels ({choices})."
    )
