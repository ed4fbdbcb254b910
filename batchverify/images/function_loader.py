"""Pixels that a function of the operator's makes of a decoded image (`--preprocess module:function`)."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from batchverify.errors import PreflightError, short_reason
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import ImageLoader, Layout
from batchverify.schema import ImageStatus


class FunctionLoader:
    """Decodes an image as another loader does, and lets a function do the rest.

    Args:
        loader: The loader that decodes.
        function: A function from uint8 `(h, w, 3)`, or `(h, w)` for a network with one channel, to float32
            `(height, width, channels)`, which the network takes as it is.
        name: The function's name, for messages.
    """

    def __init__(self, loader: ImageLoader, function: Callable[[np.ndarray], Any], name: str):
        self._loader, self._function, self._name = loader, function, name
        self.bytes_per_pixel = loader.bytes_per_pixel

    def load(self, data: bytes, image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        pixels = self._loader.decode(data, image, layout.is_grey)
        if isinstance(pixels, ImageFailure):
            return pixels
        return self.call(pixels, (layout.height, layout.width, layout.channels))

    def call(self, pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | ImageFailure:
        """Returns what the function makes of decoded pixels, float32 of a shape, or the failure."""
        try:
            result = np.asarray(self._function(pixels), np.float32)
        except Exception as error:  # It is the operator's code.
            return ImageFailure(ImageStatus.UNREADABLE, f"--preprocess {self._name} failed ({short_reason(error)})")
        if result.shape == shape[:2] and shape[2] == 1:
            return result[..., None]
        if result.shape != shape:
            problem = f"--preprocess {self._name} gave the shape {result.shape}, and the model takes {shape}"
            return ImageFailure(ImageStatus.UNREADABLE, problem)
        return result

    def decode(self, data: bytes, image: Image.Image, grey: bool) -> np.ndarray | ImageFailure:
        """See `ImageLoader`."""
        return self._loader.decode(data, image, grey)

    def pixel_dtype(self, grey: bool) -> str:
        """See `ImageLoader`."""
        return "float32"

    def can_wait(self, image: Image.Image | None, grey: bool) -> bool:
        """See `ImageLoader`."""
        return False


def describe_function(name: str) -> str:
    """Returns the name of a function with the digest of the file that it stands in, so that a change of the file shows.

    Args:
        name: `module:function`.

    Raises:
        PreflightError: If there is no such function.
    """
    function = import_function(name)
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # It is no function of Python's.
        path = None
    digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest() if path else "no source"
    return f"{name} ({digest})"


def import_function(name: str) -> Callable[[np.ndarray], Any]:
    """Returns the function that `module:function`, with or without a digest behind it, names.

    Raises:
        PreflightError: If there is no such function.
    """
    name = name.partition(" ")[0]
    module, _, attribute = name.partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except Exception as error:  # A module that is imported may raise any exception.
        raise PreflightError(
            f"--preprocess {name}: it cannot be imported ({short_reason(error)}); give module:function, with the module's "
            "folder on PYTHONPATH."
        ) from None
    if not callable(function):
        raise PreflightError(f"--preprocess {name}: it is not a function; give module:function.")
    return function  # type: ignore[no-any-return]
