"""A model that scores images at hand: `batchverify.load(model).score(left, right)`."""

from __future__ import annotations

import logging
import os
from typing import Any, overload

import numpy as np
import pyarrow as pa

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.errors import PreflightError
from batchverify.keywords import field_names, make_config
from batchverify.model.registry import resolve_models
from batchverify.model.sidecar import apply_sidecar, read_sidecar
from batchverify.notebook.images import ImageFiles, absolute_uris, as_images, errors_without_folder
from batchverify.pipeline.buckets import distinct_uris
from batchverify.pipeline.compare import compare_block
from batchverify.pipeline.image_arrays import BlockImages
from batchverify.pipeline.keras_network import keras_loader
from batchverify.pipeline.network import Network
from batchverify.temporary_folder import temporary_folder

_LOG = logging.getLogger(__name__)
_OF_IMAGES = {"max_image_pixels", "max_image_bytes", "max_decoding_pixels", "on_nan", "image_timeout", "fetch_threads"}
_OPTIONS = field_names(ModelConfig) - {"model"} | _OF_IMAGES


def load(model: str | os.PathLike[str] | None, **options: Any) -> Scorer:
    """Loads a model, to score images at hand.

    Args:
        model: The path of the model; None means the embedded demo model.
        options: What the model's file does not say, and the limits of images, as fields of `ScoringConfig`.

    Returns:
        The loaded model. Several may be loaded at the same time.

    Raises:
        PreflightError: If the model or an option cannot be used.

    Examples:
        >>> import batchverify
        >>> scorer = batchverify.load("model.keras")
        >>> score = scorer.score("images/a2_c0_w0.png", "images/a2_c0_w0.png")
        >>> round(score, 2)
        1.0
    """
    config = make_config(ScoringConfig, "load", options, _OPTIONS, model=model)
    config, _ = resolve_models(config)
    sidecar = read_sidecar(config.model)
    config = apply_sidecar(config, sidecar)
    return Scorer(config, keras_loader(config, sidecar.golden_pairs).get())


class Scorer:
    """A loaded model; `load` makes one.

    Attributes:
        threshold: The threshold in force; a score of at least that is a match.

    Examples:
        >>> import batchverify
        >>> scorer = batchverify.load("model.keras")
        >>> scorer.threshold
        0.5
    """

    def __init__(self, config: ScoringConfig, network: Network):
        self._config, self._network = config, network
        self.threshold = config.match_threshold()

    @overload
    def score(self, left: str | os.PathLike[str] | bytes, right: str | os.PathLike[str] | bytes) -> float: ...

    @overload
    def score(self, left: Any, right: Any) -> Any: ...

    def score(self, left: Any, right: Any) -> Any:
        """Scores one pair of images, or many.

        An image is a path, a URI, the bytes of a file, a NumPy array of uint8 `(height, width)` or
        `(height, width, channels)`, or an image of Pillow's. Relative paths start from the working directory. Each distinct
        image of a call is encoded once; millions of pairs are for `run`.

        Args:
            left: An image, or a list, series or array of n images, such as a uint8 array `(n, height, width, channels)`.
            right: Likewise; a single image is compared with each one of the other side.

        Returns:
            The score of one pair, a float, or float32 `(n,)`. A pair with an image that cannot be read has NaN, and a warning
            in the log says why.

        Raises:
            PreflightError: If something is no image, or the numbers of images differ.
            RunError: If the model gives a score that is not a number in [0, 1], unless `on_nan` is `keep`.

        Examples:
            >>> import batchverify
            >>> scorer = batchverify.load("model.keras")
            >>> probe, gallery = "images/a2_c0_w0.png", ["images/a2_c0_w0.png", "images/a2_c0_w1.png"]
            >>> scorer.score(probe, gallery).shape
            (2,)
        """
        (lefts, is_one_left), (rights, is_one_right) = as_images(left), as_images(right)
        lefts, rights = _of_one_length(lefts, rights, is_one_left, is_one_right)
        with temporary_folder() as folder, errors_without_folder(folder):
            files = ImageFiles(folder)
            sides = {self._config.left_column: lefts, self._config.right_column: rights}
            block = pa.table({name: absolute_uris(files.uris(images, name)) for name, images in sides.items()})
            images = self._network.encode(distinct_uris(block, self._config))
            scored = compare_block(block, BlockImages(images), self._network, self._config)
            _warn_of_failures(files.plain_errors(scored["error"]))
        scores = scored["score"].to_numpy().astype(np.float32)
        return float(scores[0]) if is_one_left and is_one_right else scores


def _of_one_length(lefts: list[Any], rights: list[Any], is_one_left: bool, is_one_right: bool) -> tuple[list[Any], list[Any]]:
    if is_one_left and not is_one_right:
        lefts = lefts * len(rights)
    if is_one_right and not is_one_left:
        rights = rights * len(lefts)
    if len(lefts) != len(rights):
        raise PreflightError(
            f"there are {len(lefts):,} images on the left and {len(rights):,} on the right; give as many, or a single one."
        )
    return lefts, rights


def _warn_of_failures(errors: pa.ChunkedArray) -> None:
    failed = errors.drop_null()
    if len(failed):
        more = f" ({len(failed) - 1:,} more pairs have no score)" if len(failed) > 1 else ""
        _LOG.warning("%s%s", failed[0].as_py(), more)
