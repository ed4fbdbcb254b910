"""The ways to run a model: split into encoder and head, as an encoder alone, or whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, UnsuitableModelError, short_reason
from batchverify.model.loaded import LoadedModel
from batchverify.model.preprocessing import Preprocessing
from batchverify.model.safe_layers import SCORE_FORMULAS, Comparison, as_score, compare_embeddings
from batchverify.model.split import SplitModel


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """The functions that encode images and compare pairs, and what they cost.

    Attributes:
        structure: A description of how the model is run.
        encode: A function from loaded images `(n, height, width, channels)` to embeddings `(n, d)`, as tensors; None where the
            pixels themselves are stored instead of embeddings.
        compare: A function from two tensors of embeddings, or of pixels, `(n, d)` to scores `(n,)`.
        embedding: The number d of values that are stored for an image, and their type.
        encodings_per_image: The number of encodings for each image; see `ModelFacts`.
        encodings_per_pair: The number of encodings for each pair; see `ModelFacts`.
        notes: The decisions that were made, one sentence each.
        head: A function like `compare` that returns the output as the model gives it; None without a head.
    """

    structure: str
    encode: Callable[[Any], Any] | None
    compare: Callable[[Any, Any], Any]
    embedding: tuple[int, str]
    encodings_per_image: int
    encodings_per_pair: int
    notes: tuple[str, ...]
    head: Callable[[Any, Any], Any] | None = None


def plan_split(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, split: SplitModel) -> ExecutionPlan:
    """Returns the plan for a model in two parts: an image is encoded once, and a pair takes the head only."""
    to_score = _output_to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    blank = np.zeros((1, *preprocessing.image_shape), preprocessing.layout().pixel_dtype)
    shapes = [tuple(tensor.shape[1:]) for tensor in split.encode(preprocessing.to_input(blank, dtype))]
    bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
    types = [tensor.dtype for tensor in split.head.inputs]

    def encode(images: Any) -> Any:
        tensors = split.encode(preprocessing.to_input(images, dtype))
        return tf.concat([_flatten_rows(tensor) for tensor in tensors], axis=1)

    def unpack(embeddings: Any) -> list[Any]:
        """Returns the encoder's tensors, which `encode` joined."""
        parts = zip(bounds, bounds[1:], shapes, strict=False)
        return [tf.reshape(embeddings[:, start:end], [-1, *shape]) for start, end, shape in parts]

    def head(left: Any, right: Any) -> Any:
        tensors = [*unpack(left)[split.left], *unpack(right)[split.right]]
        typed = [keras.ops.cast(tensor, kind) for tensor, kind in zip(tensors, types, strict=True)]
        return split.head(typed, training=False)

    def compare(left: Any, right: Any) -> Any:
        return to_score(head(left, right))

    structure = (
        "one encoder for both images, each image encoded once"
        if split.shared
        else "an encoder for the left image and another for the right, each image encoded once by each"
    )
    encodings = 1 if split.shared else 2
    return ExecutionPlan(structure, encode, compare, (bounds[-1], "float32"), encodings, 0, loaded.notes, head)


def plan_encoder(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> ExecutionPlan:
    """Returns the plan for a model with one input: an encoder, whose embeddings are compared as `config.compare` says.

    Raises:
        PreflightError: If `config.compare` is None, or the model cannot be called.
    """
    kind = config.compare
    if kind is None:
        formulas = "; ".join(f"{name}: {formula}" for name, formula in SCORE_FORMULAS.items())
        problem = (
            f"--model {loaded.name}: it has one input, '{loaded.inputs[0].name}', so it is an encoder without a head; "
            f"say how two embeddings are compared, with --compare ({formulas})."
        )
        raise OpenQuestionError(OpenQuestion(problem, ("--compare", "KIND"), {"compare": "cosine"}))
    dtype = loaded.inputs[0].dtype

    def encode(images: Any) -> Any:
        return _flatten_rows(loaded.call(preprocessing.to_input(images, dtype)))

    def compare(left: Any, right: Any) -> Any:
        return tf.reshape(compare_embeddings(kind, left, right), [-1])

    blank = _blank_images(loaded, preprocessing)
    shape = tuple(call_in_trial(loaded, lambda: loaded.call(preprocessing.to_input(blank, dtype))).shape[1:])
    if len(shape) == 3 and shape[:2] == preprocessing.image_shape[:2]:
        raise UnsuitableModelError(
            f"--model {loaded.name}: it gives images of {shape[0]}x{shape[1]} pixels, as an autoencoder does, and no "
            "embeddings; save its encoder as a model of its own and give that."
        )
    size = int(call_in_trial(loaded, lambda: encode(blank)).shape[1])
    structure = f"an encoder, each image encoded once; score {SCORE_FORMULAS[kind]}, as --compare {kind} says"
    return ExecutionPlan(structure, encode, compare, (size, "float32"), 1, 0, loaded.notes)


def plan_whole(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, reason: str) -> ExecutionPlan:
    """Returns the plan for a model that cannot be split: the pixels are stored, and a pair goes through the whole model."""
    to_score = _output_to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    shape = preprocessing.image_shape

    def compare(left: Any, right: Any) -> Any:
        pair = (preprocessing.to_input(tf.reshape(side, [-1, *shape]), dtype) for side in (left, right))
        return to_score(loaded.call(*pair))

    structure = f"whole: {reason}"
    return ExecutionPlan(structure, None, compare, (math.prod(shape), preprocessing.layout().pixel_dtype), 2, 2, loaded.notes)


def _output_to_score(loaded: LoadedModel, config: ModelConfig) -> Callable[[Any], Any]:
    """Returns the function from the model's output to float32 scores `(n,)`."""

    def to_score(output: Any) -> Any:
        shape = tuple(output.shape[1:])
        if math.prod(shape) == 2:
            if config.match_column is None:
                problem = (
                    f"--model {loaded.name}: its output has two columns; say which one is the probability of a match, "
                    "--match-column 0 or --match-column 1."
                )
                raise OpenQuestionError(
                    OpenQuestion(problem, ("--match-column", "COLUMN"), {"match_column": 1}, is_about_output=True)
                )
            output = tf.reshape(output, [-1, 2])[:, config.match_column]
        elif math.prod(shape) != 1:
            refusal = PreflightError if _ends_in_comparison(loaded) else UnsuitableModelError
            raise refusal(f"--model {loaded.name}: its output has the shape (n, {', '.join(map(str, shape))}); give one score.")
        return tf.cast(tf.reshape(as_score(config.output_is or "score", output), [-1]), tf.float32)

    return to_score


def _ends_in_comparison(loaded: LoadedModel) -> bool:
    """Returns whether the last layer is one that the user describes, so that another description gives another shape."""
    return loaded.graph is not None and isinstance(loaded.graph.outputs[0]._keras_history.operation, Comparison)


def call_in_trial(loaded: LoadedModel, call: Callable[[], Any]) -> Any:
    """Returns the value of `call`; every exception of the model becomes a refusal.

    Raises:
        PreflightError: If the model cannot be called.
    """
    try:
        return call()
    except PreflightError:
        raise
    except Exception as error:  # A model raises every exception of its layers.
        refuse_channels_first(loaded.name, error)
        raise PreflightError(
            f"--model {loaded.name}: it cannot be called on images of the shape of its input ({short_reason(error)}); "
            "check that it works where it was trained, and export it again."
        ) from None


def refuse_channels_first(name: str, error: Exception) -> None:
    """Refuses a model whose convolutions TensorFlow cannot compute on a processor, if that is what `error` says.

    Raises:
        PreflightError: With the remedy.
    """
    if isinstance(error, tf.errors.UnimplementedError) and "NHWC" in str(error):
        raise PreflightError(
            f"--model {name}: its convolutions take images with their channels first, which TensorFlow does not compute on "
            "this processor; run it on a GPU, or build the network with channels last and give it the same weights."
        ) from None


def _blank_images(loaded: LoadedModel, preprocessing: Preprocessing) -> np.ndarray:
    return np.zeros((loaded.inputs[0].batch or 1, *preprocessing.image_shape), preprocessing.layout().pixel_dtype)


def _flatten_rows(tensor: Any) -> Any:
    return tf.cast(tf.reshape(tensor, [tf.shape(tensor)[0], math.prod(tensor.shape[1:])]), tf.float32)
