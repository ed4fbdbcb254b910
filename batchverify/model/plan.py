"""How a model is run: split into encoder and head, as an encoder alone, or whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.model.loaded import LoadedModel
from batchverify.model.preprocessing import Preprocessing
from batchverify.model.safe_layers import SCORE_FORMULAS, as_score, compare_embeddings
from batchverify.model.split import SplitModel


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How a model is run.

    Attributes:
        structure: the same in words.
        encode: uint8 images to embeddings `(n, d)`, as tensors; None to keep the pixels.
        compare: two of what is kept of an image to scores `(n,)`, as tensors.
        embedding: numbers and type of what is kept of an image.
        encodings_per_image: see `ModelFacts`.
        encodings_per_pair: see `ModelFacts`.
        notes: what was found and decided.
    """

    structure: str
    encode: Callable[[Any], Any] | None
    compare: Callable[[Any, Any], Any]
    embedding: tuple[int, str]
    encodings_per_image: int
    encodings_per_pair: int
    notes: tuple[str, ...]


def plan_split(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, siamese: SplitModel) -> ExecutionPlan:
    to_score = _to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    sample = siamese.encode(preprocessing.to_input(np.zeros((1, *image_shape_of(preprocessing)), np.uint8), dtype))
    shapes = [tuple(tensor.shape[1:]) for tensor in sample]
    bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
    types = [tensor.dtype for tensor in siamese.head.inputs]

    def encode(images: Any) -> Any:
        tensors = siamese.encode(preprocessing.to_input(images, dtype))
        return tf.concat([flatten_rows(tensor) for tensor in tensors], axis=1)

    def tensors_of(embeddings: Any) -> list[Any]:
        parts = zip(bounds, bounds[1:], shapes, strict=False)
        return [tf.reshape(embeddings[:, start:end], [-1, *shape]) for start, end, shape in parts]

    def compare(left: Any, right: Any) -> Any:
        tensors = [*tensors_of(left)[siamese.left], *tensors_of(right)[siamese.right]]
        cast = [keras.ops.cast(tensor, kind) for tensor, kind in zip(tensors, types, strict=True)]
        return to_score(siamese.head(cast, training=False))

    structure = (
        "one encoder for both images, each image encoded once"
        if siamese.shared
        else "an encoder for the left image and another for the right, each image encoded once by each"
    )
    notes = loaded.notes
    return ExecutionPlan(structure, encode, compare, (bounds[-1], "float32"), 1 if siamese.shared else 2, 0, notes)


def plan_encoder(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> ExecutionPlan:
    kind = config.compare
    if kind is None:
        formulas = "; ".join(f"{name}: {formula}" for name, formula in SCORE_FORMULAS.items())
        raise PreflightError(
            f"--model {loaded.name}: it has one input, '{loaded.inputs[0].name}', so it is an encoder without a head; "
            f"say how two embeddings are compared, with --compare ({formulas})."
        )
    dtype = loaded.inputs[0].dtype

    def encode(images: Any) -> Any:
        return flatten_rows(loaded.call(preprocessing.to_input(images, dtype)))

    def compare(left: Any, right: Any) -> Any:
        return tf.reshape(compare_embeddings(kind, left, right), [-1])

    size = int(call_in_trial(loaded, lambda: encode(blank_images(loaded, preprocessing))).shape[1])
    structure = f"an encoder, each image encoded once; score {SCORE_FORMULAS[kind]}, as --compare {kind} says"
    return ExecutionPlan(structure, encode, compare, (size, "float32"), 1, 0, loaded.notes)


def plan_whole(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, reason: str) -> ExecutionPlan:
    to_score = _to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    shape = image_shape_of(preprocessing)

    def compare(left: Any, right: Any) -> Any:
        pair = (preprocessing.to_input(tf.reshape(side, [-1, *shape]), dtype) for side in (left, right))
        return to_score(loaded.call(*pair))

    structure = f"whole: {reason}"
    return ExecutionPlan(structure, None, compare, (math.prod(shape), "uint8"), 2, 2, loaded.notes)


def _to_score(loaded: LoadedModel, config: ModelConfig) -> Callable[[Any], Any]:
    def to_score(output: Any) -> Any:
        shape = tuple(output.shape[1:])
        if math.prod(shape) == 2:
            if config.match_column is None:
                raise PreflightError(
                    f"--model {loaded.name}: its output has two columns; say which one is the probability of a match, "
                    "--match-column 0 or --match-column 1."
                )
            output = tf.reshape(output, [-1, 2])[:, config.match_column]
        elif math.prod(shape) != 1:
            raise PreflightError(
                f"--model {loaded.name}: its output has the shape (n, {', '.join(map(str, shape))}); give one score."
            )
        return tf.cast(tf.reshape(as_score(config.output_is or "score", output), [-1]), tf.float32)

    return to_score


def call_in_trial(loaded: LoadedModel, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PreflightError:
        raise
    except Exception as error:  # A model raises whatever its layers do.
        raise PreflightError(
            f"--model {loaded.name}: it cannot be called on images of its own input's shape ({short_reason(error)}); "
            "check that it works where it was trained, and export it again."
        ) from None


def image_shape_of(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return preprocessing.height, preprocessing.width, preprocessing.channels


def blank_images(loaded: LoadedModel, preprocessing: Preprocessing) -> np.ndarray:
    return np.zeros((loaded.inputs[0].batch or 1, *image_shape_of(preprocessing)), np.uint8)


def flatten_rows(tensor: Any) -> Any:
    return tf.cast(tf.reshape(tensor, [tf.shape(tensor)[0], math.prod(tensor.shape[1:])]), tf.float32)
