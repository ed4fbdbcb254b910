"""A trained model as the pipeline uses it: images to embeddings, two embeddings to a score."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.facts import ModelFacts
from batchverify.model.frozen_graph import FrozenFunction
from batchverify.model.loaded import LoadedModel
from batchverify.model.plan import ExecutionPlan
from batchverify.model.preprocessing import Preprocessing
from batchverify.model.runtimes import compile_for_runtime
from batchverify.model.split import SplitModel, check_split

_LOG = logging.getLogger(__name__)
_FLOATS_COMPARED_AT_ONCE = 2**24
_MOST_PAIRS_AT_ONCE = 8192
_MOST_DIFFERENCE = 1e-3
_NUMBERS_ENCODED_AT_ONCE = 2**28


class PairModel:
    """A Siamese network, ready to be called with NumPy arrays.

    Every call has one fixed shape, padded at the end, so that there is one trace of each function. A call that
    exhausts the device's memory is repeated with half the rows, and the smaller shape is kept.

    Attributes:
        facts: what a run writes down about the model.
        preprocessing: what is done to an image before the network sees it.
        loaded: the model as it was loaded.
        siamese: its two parts; None where it is used whole, or has one input.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        preprocessing: Preprocessing,
        siamese: SplitModel | None,
        plan: ExecutionPlan,
        config: ModelConfig,
    ):
        self.loaded, self.preprocessing, self.siamese, self._plan = loaded, preprocessing, siamese, plan
        self._runtime = config.runtime, config.precision
        numbers = preprocessing.height * preprocessing.width * preprocessing.channels
        rows = loaded.inputs[0].batch or max(1, min(config.batch_size, _NUMBERS_ENCODED_AT_ONCE // numbers))
        self._encode = plan.encode and FixedShapeCall(compile_for_runtime(plan.encode, config), rows)
        size, dtype = plan.embedding
        pairs = max(1, min(_MOST_PAIRS_AT_ONCE, _FLOATS_COMPARED_AT_ONCE // size))
        compare = FrozenFunction(plan.compare) if plan.encode else compile_for_runtime(plan.compare, config)
        self._compare = FixedShapeCall(compare, pairs if plan.encode else rows)
        self.facts = ModelFacts(
            path=loaded.name,
            digest=loaded.digest,
            image_shape=(preprocessing.height, preprocessing.width, preprocessing.channels),
            embedding_size=size,
            embedding_bytes=size * np.dtype(dtype).itemsize,
            structure=plan.structure,
            encodings_per_image=plan.encodings_per_image,
            encodings_per_pair=plan.encodings_per_pair,
            preprocessing=str(preprocessing),
            notes=plan.notes,
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns embeddings, float32 `(n, d)`, of uint8 images `(n, height, width, channels)`; uint8 if used whole."""
        return images.reshape(len(images), -1) if self._encode is None else self._encode(images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of two arrays of embeddings `(n, d)`."""
        return self._compare(left, right)

    def operations(self) -> tuple[int, int]:
        """Returns floating-point operations of encoding one image, and of comparing one pair, as TensorFlow counts them."""
        images = tf.TensorSpec((1, *self.facts.image_shape), tf.uint8)
        kept = tf.TensorSpec((1, self.facts.embedding_size), self._plan.embedding[1])
        return (
            _count_operations(self._plan.encode, images) if self._plan.encode else 0,
            _count_operations(self._plan.compare, kept, kept),
        )

    def judge_runtime(self, images: np.ndarray) -> str | None:
        """Compares another runtime's scores with TensorFlow's own on uint8 images `(n, height, width, channels)`, n > 0.

        Returns:
            By how much they differ, in words; None where TensorFlow runs the network.

        Raises:
            PreflightError: if they differ by more than rounding does and no less precision was asked for.
        """
        runtime, precision = self._runtime
        if runtime == "tensorflow":
            return None
        difference = self._difference(images)
        if precision == "float32" and not difference <= _MOST_DIFFERENCE:
            raise PreflightError(
                f"--runtime {runtime}: its scores differ from TensorFlow's by {difference:.2g}, "
                f"more than {_MOST_DIFFERENCE:g}; leave --runtime out."
            )
        return (
            f"Run by {runtime} in {precision}: on {len(images)} images its scores differ from TensorFlow's by {difference:.1g}."
        )

    def _difference(self, images: np.ndarray) -> float:

        def scores(encode: Callable[[Any], Any] | None, compare: Callable[[Any, Any], Any]) -> np.ndarray:
            kept = np.asarray(encode(images)) if encode else images.reshape(len(images), -1)
            return np.stack([np.asarray(compare(kept, np.roll(kept, shift, axis=0))) for shift in range(min(3, len(images)))])

        return float(np.nanmax(np.abs(scores(self._encode, self._compare) - scores(self._plan.encode, self._plan.compare))))

    def check_split(self, images: np.ndarray) -> None:
        """Compares the parts with the whole network on uint8 images `(n, height, width, channels)`.

        Raises:
            SplitError: if they differ.
        """
        if self.siamese is not None and len(images):
            dtype = self.loaded.inputs[0].dtype
            left = self.preprocessing.to_input(images, dtype)
            right = self.preprocessing.to_input(np.roll(images, 1, axis=0), dtype)
            check_split(self.siamese, self.loaded.call, left, right)


class FixedShapeCall:
    """Calls a function on slices of `rows` rows, the last one padded, and joins the results.

    Args:
        function: takes arrays of `rows` rows each, returns one array of `rows` rows.
        rows: at most so many at once.
    """

    def __init__(self, function: Callable[..., np.ndarray], rows: int):
        self._function, self.rows = function, rows

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        while True:
            rows = self.rows  # Another thread may halve them meanwhile.
            try:
                # Of an empty array one padded slice is computed, for the shape of its rows.
                starts = range(0, max(1, len(arrays[0])), rows)
                return np.concatenate([self._slice(arrays, start, rows) for start in starts])
            except tf.errors.ResourceExhaustedError:
                if rows == 1:
                    raise
                self.rows = min(self.rows, rows // 2)
                _LOG.warning("The device is out of memory; from here on it is given %d rows at once.", self.rows)

    def _slice(self, arrays: tuple[np.ndarray, ...], start: int, rows: int) -> np.ndarray:
        parts = [array[start : start + rows] for array in arrays]
        count = len(parts[0])
        return self._function(*(_padded(part, rows) for part in parts))[:count]


# Arrays and tensors


def _count_operations(function: Callable[..., Any], *arguments: tf.TensorSpec) -> int:
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    settings = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    return tf.compat.v1.profiler.profile(graph, options=settings).total_float_ops


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])
