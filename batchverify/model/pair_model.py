"""A trained model that is called with arrays: pixels to embeddings, two embeddings to a score."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.batch_rows import choose_rows, trace
from batchverify.model.facts import ModelFacts
from batchverify.model.frozen_graph import FrozenFunction, StoredFunction, store_for_any_rows
from batchverify.model.identity_bound import IdentityBound, find_identity_bound
from batchverify.model.loaded import LoadedModel
from batchverify.model.plan import ExecutionPlan
from batchverify.model.precision import use_tensor_float_32, whole_float_32
from batchverify.model.preprocessing import Preprocessing
from batchverify.model.runtimes import OpenVinoFunction, compile_for_runtime
from batchverify.model.split import SplitModel, check_split, largest_difference
from batchverify.schema import without_rounding

_LOG = logging.getLogger(__name__)
_MAX_VALUES_COMPARED_AT_ONCE = 2**24
_MAX_PAIRS_AT_ONCE = 8192
_MAX_DIFFERENCE_OF_RUNTIMES = 1e-3
# A function that encodes, where the model can be split, and one that compares.
_Parts = tuple[Callable[[Any], Any] | None, Callable[[Any, Any], Any]]


class StoredParts(NamedTuple):
    """What computes a network, as functions that can be stored.

    Attributes:
        encode: The function from loaded images, as many as the encoder takes at once, to embeddings.
        compare: The function from two batches of embeddings to scores.
        whole: The whole model, from two batches of loaded images to its output; None for an encoder without a head.
        head: The function from two batches of embeddings to the same output; None for an encoder without a head.
    """

    encode: StoredFunction | None
    compare: StoredFunction | None
    whole: StoredFunction | None
    head: StoredFunction | None


class PairModel:
    """A Siamese network, ready to be called with NumPy arrays.

    Every call has the same shape, padded at the end, so that each function is traced once. A call that exhausts the
    device's memory is repeated with half the rows, and the smaller shape is kept.

    Args:
        loaded: The model as it was loaded.
        preprocessing: The steps between a decoded image and the network.
        split: The model in two parts; None where it is used whole, or has one input.
        plan: The functions that encode and compare.
        config: The batch size and the runtime.
        reference: The same functions in float32; None where `plan` computes in that.

    Attributes:
        facts: The facts about the model that a run records.
        preprocessing: The steps between a decoded image and the network.
        loaded: The model as it was loaded.
        split: The model in two parts; None where it is used whole, or has one input.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        preprocessing: Preprocessing,
        split: SplitModel | None,
        plan: ExecutionPlan,
        config: ModelConfig,
        reference: ExecutionPlan | None = None,
    ):
        self.loaded, self.preprocessing, self.split, self._plan = loaded, preprocessing, split, plan
        self._reference, self._runtime = reference or plan, (config.runtime, config.precision)
        rows = choose_rows(plan, loaded, preprocessing, config)
        self._encode = plan.encode and FixedShapeCall(compile_for_runtime(plan.encode, loaded, config), rows)
        size, dtype = plan.embedding
        pairs = max(1, min(_MAX_PAIRS_AT_ONCE, _MAX_VALUES_COMPARED_AT_ONCE // size))
        compare = FrozenFunction(plan.compare) if plan.encode else compile_for_runtime(plan.compare, loaded, config)
        self._compare = FixedShapeCall(compare, pairs if plan.encode else rows)
        self.facts = ModelFacts(
            path=loaded.name,
            digest=loaded.digest,
            image_shape=preprocessing.image_shape,
            embedding_size=size,
            embedding_bytes=size * np.dtype(dtype).itemsize,
            structure=plan.structure,
            encodings_per_image=plan.encodings_per_image,
            encodings_per_pair=plan.encodings_per_pair,
            preprocessing=str(preprocessing),
            notes=plan.notes,
            runtime=loaded.runtime if loaded.runtime != "tensorflow" else config.runtime,
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 embeddings `(n, d)` of images `(n, height, width, channels)`, as they were loaded.

        A model that is used whole has no embeddings; this returns the pixels `(n, d)` instead.
        """
        return images.reshape(len(images), -1) if self._encode is None else self._encode(images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns float32 scores `(n,)` of two arrays of embeddings `(n, d)`; see `without_rounding`."""
        return without_rounding(self._compare(left, right))

    @property
    def images_at_once(self) -> int:
        """The number of images, or of pairs of images where the model is used whole, that are computed together."""
        return (self._encode or self._compare).rows

    def rows_at_once(self) -> tuple[int, int]:
        """Returns the numbers of images and of pairs that are computed together; fewer are padded to as many."""
        return self._encode.rows if self._encode else 1, self._compare.rows

    def operations(self) -> tuple[int, int]:
        """Returns the floating-point operations of encoding one image and of comparing one pair, as TensorFlow counts them."""
        images = tf.TensorSpec((1, *self.facts.image_shape), self.preprocessing.layout().pixel_dtype)
        embedding = tf.TensorSpec((1, self.facts.embedding_size), self._plan.embedding[1])
        return (
            _count_operations(self._plan.encode, images) if self._plan.encode else 0,
            _count_operations(self._plan.compare, embedding, embedding),
        )

    def describe_runtime(self, images: np.ndarray) -> str | None:
        """Compares the scores of another runtime or precision with TensorFlow's in float32, and turns on TensorFloat-32.

        Args:
            images: Images `(n, height, width, channels)`, as they were loaded, n > 0.

        Returns:
            A sentence with the difference of the scores; None where TensorFlow computes in float32.

        Raises:
            PreflightError: If the scores differ by more than rounding does, although full precision was asked for.
        """
        if self._runtime == ("tensorflow", "float32"):
            return None
        use_tensor_float_32(self._runtime[1] == "tensorfloat32")
        parts, reference = (self._encode, self._compare), (self._reference.encode, self._reference.compare)
        return compare_runtimes(*self._runtime, images, parts, reference)

    def identity_bound(self, config: ModelConfig) -> IdentityBound | None:
        """Returns what the weights of the head prove; None where the model could not be split."""
        return find_identity_bound(self.split, config) if self.split else None

    def stored_parts(self) -> StoredParts | None:
        """Returns what computes the network, as functions that can be stored; None where one of them cannot be."""
        encode, compare = (call and call.function for call in (self._encode, self._compare))
        if not isinstance(encode, FrozenFunction | OpenVinoFunction) or not isinstance(compare, FrozenFunction):
            return None
        if self.loaded.inputs[0].batch:
            return None
        assert self._encode is not None
        shape, (size, dtype) = self.facts.image_shape, self._plan.embedding
        pixel_dtype = self.preprocessing.layout().pixel_dtype
        embeddings = np.zeros((self._compare.rows, size), dtype)
        parts = StoredParts(
            encode.stored(np.zeros((self._encode.rows, *shape), pixel_dtype)),
            compare.stored(embeddings, embeddings),
            store_for_any_rows(self._output_of_whole, [(shape, pixel_dtype)] * 2) if self.split else None,
            store_for_any_rows(self._plan.head, [((size,), dtype)] * 2) if self._plan.head else None,
        )
        is_complete = all(parts) if self.split else all(parts[:2])
        return parts if is_complete else None

    def _output_of_whole(self, left: Any, right: Any) -> Any:
        dtype = self.loaded.inputs[0].dtype
        return self.loaded.call(*(self.preprocessing.to_input(side, dtype) for side in (left, right)))

    def check_split(self, images: np.ndarray) -> None:
        """Compares the scores of the two parts with those of the whole model; does nothing if the model is not split.

        Args:
            images: Images `(n, height, width, channels)`, as they were loaded.

        Raises:
            SplitError: If they differ.
        """
        if self.split is not None and len(images):
            dtype = self.loaded.inputs[0].dtype
            left = self.preprocessing.to_input(images, dtype)
            right = self.preprocessing.to_input(np.roll(images, 1, axis=0), dtype)
            with whole_float_32():
                check_split(self.split, self.loaded.call, left, right)


class FixedShapeCall:
    """Calls a function on slices of the same number of rows, pads the last slice, and joins the results.

    Args:
        function: A function that takes arrays of `rows` rows each, and returns one array of `rows` rows.
        rows: The largest number of rows at once; it is halved when the device runs out of memory.

    Attributes:
        function: The function.
        rows: The number of rows at once.
    """

    def __init__(self, function: Callable[..., np.ndarray], rows: int):
        self.function, self.rows = function, rows

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        while True:
            rows = self.rows  # Another thread may halve the number meanwhile.
            try:
                # An empty array is computed as one padded slice, to learn the shape of its rows.
                starts = range(0, max(1, len(arrays[0])), rows)
                return np.concatenate([self._slice(arrays, start, rows) for start in starts])
            except tf.errors.ResourceExhaustedError:
                if rows == 1:
                    raise
                self.rows = min(self.rows, rows // 2)
                _LOG.warning("The device is out of memory; from now on it computes %d rows at once.", self.rows)

    def _slice(self, arrays: tuple[np.ndarray, ...], start: int, rows: int) -> np.ndarray:
        parts = [array[start : start + rows] for array in arrays]
        count = len(parts[0])
        return self.function(*(_padded(part, rows) for part in parts))[:count]


def compare_runtimes(runtime: str, precision: str, images: np.ndarray, parts: _Parts, reference: _Parts) -> str:
    """Compares the scores of another runtime or precision with TensorFlow's in float32.

    Args:
        runtime: One of `config.RUNTIMES`.
        precision: One of `config.PRECISIONS`.
        images: Images `(n, height, width, channels)`, as they were loaded, n > 0.
        parts: The functions from images to embeddings and from two batches of embeddings to scores.
        reference: The same functions of TensorFlow in float32.

    Returns:
        A sentence with the difference of the scores.

    Raises:
        PreflightError: If the scores differ by more than rounding does, although full precision was asked for, or only one of
            the two gives a number.
    """
    here = _shifted_scores(images, *parts)
    with whole_float_32():
        in_tensorflow = _shifted_scores(images, *reference)
    difference = largest_difference(here, in_tensorflow)
    if math.isinf(difference):
        option = f"--runtime {runtime}" if precision == "float32" else f"--precision {precision}"
        raise PreflightError(
            f"{option}: on trial a score is a number either with it or without it, but not both; leave {option} out."
        )
    if precision == "float32" and difference > _MAX_DIFFERENCE_OF_RUNTIMES:
        raise PreflightError(
            f"--runtime {runtime}: its scores differ from TensorFlow's by {difference:.2g}, "
            f"more than {_MAX_DIFFERENCE_OF_RUNTIMES:g}; leave --runtime out."
        )
    return (
        f"The network is run by {runtime} in {precision}: on {len(images)} images its scores differ from TensorFlow's "
        f"in float32 by {difference:.1g}."
    )


def _shifted_scores(images: np.ndarray, encode: Callable[[Any], Any] | None, compare: Callable[[Any, Any], Any]) -> np.ndarray:
    """Returns scores of each image with itself and with its neighbours."""
    embeddings = np.asarray(encode(images)) if encode else images.reshape(len(images), -1)
    shifts = range(min(3, len(images)))
    return np.stack([np.asarray(compare(embeddings, np.roll(embeddings, shift, axis=0))) for shift in shifts])


def _count_operations(function: Callable[..., Any], *arguments: tf.TensorSpec) -> int:
    graph = trace(function, *arguments)
    settings = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    return int(tf.compat.v1.profiler.profile(graph, options=settings).total_float_ops)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])
