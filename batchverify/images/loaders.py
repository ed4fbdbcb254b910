"""The libraries whose pixels networks are trained on, and how each one loads an image by default."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util

from PIL import Image

from batchverify.config import LOADER_RESIZES, ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.function_loader import FunctionLoader, describe_function, import_function
from batchverify.images.layout import ImageLoader
from batchverify.images.picture_loader import PictureLoader
from batchverify.images.pillow_loader import PillowLoader

_PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """What a library does unless it is told otherwise.

    Attributes:
        call: The calls that are meant.
        resize: The method of resizing, one of the loader's `config.LOADER_RESIZES`.
        orientation: Whether it turns images upright, one of `config.ORIENTATIONS`.
        alpha: What becomes of transparency, one of `config.ALPHAS`.
        color: The order of the channels, `rgb` or `bgr`.
        white: The value of a white pixel.
        package: The package to import and the extra that installs it, for an optional dependency.
    """

    call: str
    resize: str = "bilinear"
    orientation: str = "ignore"
    alpha: str = "drop"
    color: str = "rgb"
    white: float = 255.0
    package: tuple[str, str] | None = None


_DEFAULTS = {
    "tf": _Defaults("tf.io.decode_image and tf.image.resize"),
    "keras-dataset": _Defaults("keras.utils.image_dataset_from_directory"),
    "keras-load-img": _Defaults("keras.utils.load_img", resize="nearest"),
    "keras-generator": _Defaults("ImageDataGenerator.flow_from_directory", resize="nearest"),
    "pillow": _Defaults("Image.open, convert and resize", resize="bicubic"),
    "torchvision": _Defaults("torchvision's Resize on Pillow's images"),
    "opencv": _Defaults("cv2.imread and cv2.resize", orientation="apply", color="bgr", package=("cv2", "opencv")),
    "skimage": _Defaults("skimage.io.imread and skimage.transform.resize", white=1.0, package=("skimage", "skimage")),
    "batchverify": _Defaults("batchverify train", orientation="apply", alpha="white"),
}
_ORIENTATIONS = {"apply": "turned upright by EXIF", "ignore": "EXIF's orientation ignored"}
_ALPHAS = {"white": "transparency on white", "black": "transparency on black", "drop": "transparency dropped"}


@dataclasses.dataclass(frozen=True)
class Loading:
    """How files are turned into pixels.

    Attributes:
        loader: The library, one of `config.LOADERS`.
        resize: The method of resizing, one of the loader's `config.LOADER_RESIZES`.
        orientation: Whether images are turned upright, one of `config.ORIENTATIONS`.
        alpha: What becomes of transparency, one of `config.ALPHAS`.
        preprocess: A function that takes the place of resizing and scaling, with the digest of its file; empty without one.
    """

    loader: str
    resize: str
    orientation: str
    alpha: str
    preprocess: str = ""

    def __str__(self) -> str:
        rules = f"{_ORIENTATIONS[self.orientation]}, {_ALPHAS[self.alpha]}"
        if self.preprocess:
            return f"decoded as --loader {self.loader}, {rules}, then as --preprocess {self.preprocess} says"
        return f"loaded as by {_DEFAULTS[self.loader].call} (--loader {self.loader}), {rules}, {self.resize}"

    @property
    def color(self) -> str:
        """The order of the channels that the library gives, `rgb` or `bgr`."""
        return _DEFAULTS[self.loader].color

    @property
    def white(self) -> float:
        """The value that the library gives a white pixel."""
        return _DEFAULTS[self.loader].white


def decide_loading(options: ModelConfig) -> Loading:
    """Decides how files are turned into pixels, by the user's options, or else as the library does by default.

    Raises:
        PreflightError: If the library is not installed, does not have the method of resizing, or there is no such function.
    """
    name = options.loader or "tf"
    defaults = _DEFAULTS[name]
    if defaults.package and importlib.util.find_spec(defaults.package[0]) is None:
        extra = defaults.package[1]
        raise PreflightError(f"--loader {name}: it is not installed; pip install 'batchverify[{extra}]'.")
    resize = options.resize or defaults.resize
    if resize not in LOADER_RESIZES[name]:
        methods = ", ".join(LOADER_RESIZES[name])
        raise PreflightError(f"--resize is '{resize}', which --loader {name} does not have; give one of {methods}.")
    function = describe_function(options.preprocess) if options.preprocess else ""
    return Loading(name, resize, options.orientation or defaults.orientation, options.alpha or defaults.alpha, function)


def make_loader(loading: Loading) -> ImageLoader:
    """Returns the loader that does this."""
    loader = _make_loader(loading)
    return FunctionLoader(loader, import_function(loading.preprocess), loading.preprocess) if loading.preprocess else loader


def _make_loader(loading: Loading) -> ImageLoader:
    rules = loading.orientation, loading.alpha
    if loading.loader in ("tf", "keras-dataset"):
        # TensorFlow takes seconds to import.
        from batchverify.images.tensorflow_loader import TensorFlowLoader

        return TensorFlowLoader(loading.resize, *rules)
    if loading.loader == "opencv":
        from batchverify.images.opencv_loader import OpenCvLoader

        return OpenCvLoader(loading.resize, *rules)
    if loading.loader == "skimage":
        from batchverify.images.skimage_loader import ORDERS, SkimageLoader

        return SkimageLoader(ORDERS[loading.resize], *rules)
    if loading.loader == "batchverify":
        return PictureLoader(_PILLOW_FILTERS[loading.resize], *rules)
    return PillowLoader(_PILLOW_FILTERS[loading.resize], *rules, keeps_16_bits=loading.loader.startswith("keras"))
