"""The bound that a head's weights put on scores: whether any pair at all can outscore an image compared with itself.

For f(x, y) = sigmoid(w . d(e(x), e(y)) + b) with a distance d that is zero for equal embeddings and never negative,
f(x, x) = sigmoid(b). If no weight is positive, no pair scores higher. Otherwise the highest score that embeddings within
bounds can reach is at most sigmoid(b + sum max(w_i, 0) d_i), where d_i is the largest distance in dimension i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from batchverify.config import ModelConfig
from batchverify.model.safe_layers import PAIR_KINDS, TensorOperation, as_score, sigmoid
from batchverify.model.split import SplitModel

# The kinds that are zero for equal embeddings and never negative.
_DISTANCES = ("l1", "squared", "euclidean", "squared_euclidean", "manhattan", "cosine_distance")
# The largest distance in one dimension of the kinds that give one for each, by the width of the dimension's range of values.
_LARGEST_DISTANCES: dict[str, Callable[[float], float]] = {"l1": lambda width: width, "squared": lambda width: width**2}
# The meanings of an output that is low for a match.
_FALLING = ("distance", "dissimilarity")
# The largest difference between the identity score that the bias gives and the one that the head gives.
_TOLERANCE = 1e-4
# The width of the range of values that each activation function gives.
_RANGES = {"sigmoid": 1.0, "hard_sigmoid": 1.0, "hard_sigmoid_of_keras_2": 1.0, "softmax": 1.0, "tanh": 2.0, "softsign": 2.0}


@dataclasses.dataclass(frozen=True)
class IdentityBound:
    """The bound that the weights of a head put on scores.

    Attributes:
        comparison: The comparison that the head makes of two embeddings, one of `safe_layers.PAIR_KINDS`; None if it is none
            of them.
        weights: The weights of the last layer, towards a match; empty if the head does not end in a dense layer.
        bias: The bias of the last layer.
        identity_score: The exact f(x, x); None if it depends on the image or is unknown.
        holds: Whether no pair can outscore an identity score; None if the weights do not tell.
        bound: The score that no pair can exceed; None if embeddings have no bounds.
    """

    comparison: str | None
    weights: tuple[float, ...]
    bias: float
    identity_score: float | None
    holds: bool | None
    bound: float | None


UNKNOWN_BOUND = IdentityBound(None, (), 0.0, None, None, None)


def find_identity_bound(split: SplitModel, config: ModelConfig) -> IdentityBound:
    """Returns the bound that the last dense layer of a split model's head, and the comparison before it, put on scores.

    It is unknown where anything but a sigmoid, a softmax of two or `config.output_is` makes the score of the dense layer, and
    where the head gives equal embeddings another score than the weights say.

    Args:
        split: The model in two parts.
        config: Its settings `output_is` and `match_column` say how the output becomes a score.
    """
    end = _find_end(split.head)
    if end is None or not split.shared or len(split.head.inputs) != 2:
        return UNKNOWN_BOUND
    is_sigmoid = end.is_score_a_sigmoid(config)
    if is_sigmoid is None:
        return UNKNOWN_BOUND
    weights, bias = _weights_and_bias(end.dense, config)
    comparison = _name_comparison(keras.Model(split.head.inputs, end.distance))
    known = IdentityBound(comparison, tuple(weights), bias, None, None, None)
    if comparison == "cosine":
        # Equal embeddings have the cosine 1, which no other pair exceeds.
        identity, holds = sigmoid(bias + float(weights.sum())), bool(np.all(weights >= 0))
    elif comparison in _DISTANCES:
        identity, holds = sigmoid(bias), bool(np.all(weights <= 0))
    else:
        return known
    if not is_sigmoid:  # The score has other values, and stays the same where it is cut off.
        return dataclasses.replace(known, holds=holds or None)
    if not _gives_equal_embeddings(split.head, config, identity):
        return UNKNOWN_BOUND
    bound = identity if holds else _highest_score(split.encoder, comparison, weights, bias)
    return dataclasses.replace(known, identity_score=identity, holds=holds, bound=bound)


def _weights_and_bias(dense: keras.layers.Dense, config: ModelConfig) -> tuple[np.ndarray, float]:
    """Returns float64 weights `(d,)` and the bias towards a match; a softmax of two is turned into the sigmoid it equals."""
    kernel, bias = dense.kernel.numpy(), dense.bias.numpy() if dense.use_bias else np.zeros(dense.units)
    if dense.units == 2:
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    is_reversed = (config.output_is in _FALLING) != (dense.units == 2 and config.match_column == 0)
    sign = -1.0 if is_reversed else 1.0
    return sign * kernel[:, 0].astype(float), sign * float(bias[0])


def _gives_equal_embeddings(head: keras.Model, config: ModelConfig, score: float) -> bool:
    """Returns whether the head gives equal embeddings this score."""
    embeddings = _random_embeddings(head.inputs[0], np.random.default_rng(1))
    output = np.asarray(head([embeddings, embeddings], training=False)).reshape(len(embeddings), -1)
    column = output[:, config.match_column or 0] if output.shape[1] == 2 else output[:, 0]
    given = np.asarray(as_score(config.output_is or "score", column))
    return bool(np.max(np.abs(given - score)) <= _TOLERANCE)


def _highest_score(encoder: keras.Model, comparison: str, weights: np.ndarray, bias: float) -> float | None:
    width = _embedding_range(encoder)
    if width is None or comparison not in _LARGEST_DISTANCES:
        return None
    return sigmoid(bias + float(np.maximum(weights, 0).sum()) * _LARGEST_DISTANCES[comparison](width))


def _embedding_range(encoder: keras.Model) -> float | None:
    """Returns the largest difference of two values of one embedding dimension; None if there is no limit."""
    operation = encoder.outputs[0]._keras_history.operation
    while getattr(operation, "layers", None):
        operation = operation.outputs[0]._keras_history.operation
    activation = getattr(operation, "activation", None)
    return _RANGES.get(getattr(activation, "__name__", type(operation).__name__.lower()))


@dataclasses.dataclass(frozen=True)
class _End:
    """The end of a head: its last dense layer, and the functions of the layer's output that give the head's.

    Attributes:
        dense: The dense layer, of one unit or two.
        distance: The tensor that it takes.
        functions: The functions, each `sigmoid` or `softmax`.
    """

    dense: keras.layers.Dense
    distance: Any
    functions: tuple[str, ...]

    def is_score_a_sigmoid(self, config: ModelConfig) -> bool | None:
        """Returns whether the score is a sigmoid of the dense layer's output, True, or at least never falls with it, False.

        A score that falls is turned round, as `_weights_and_bias` does. Returns None where neither is known.
        """
        expected = ("sigmoid",) if self.dense.units == 1 else ("softmax",)
        if self.functions == expected:
            return config.output_is in (None, "score", "dissimilarity")
        if self.functions or self.dense.units == 2 or config.output_is in (None, "score"):
            return None
        return config.output_is == "logit"


# The operations of Keras and of TensorFlow that change no value.
_KEEP_VALUES = ("Reshape", "Flatten", "Identity", "Dropout", "Squeeze", "ExpandDims", "squeeze", "reshape", "expand_dims")
_ACTIVATIONS: dict[Any, tuple[str, ...]] = {
    keras.activations.sigmoid: ("sigmoid",), keras.activations.softmax: ("softmax",), keras.activations.linear: (),
}  # fmt: skip
_OPERATIONS: dict[str, tuple[str, ...]] = {
    "Sigmoid": ("sigmoid",), "Softmax": ("softmax",), "math.sigmoid": ("sigmoid",), **dict.fromkeys(_KEEP_VALUES, ()),
}  # fmt: skip


def _find_end(head: keras.Model) -> _End | None:
    """Returns the end of a head; None if it does not end in a dense layer and known functions."""
    tensor, functions = head.outputs[0], tuple[str, ...]()
    while True:
        operation, number, _ = tensor._keras_history
        node = operation._inbound_nodes[number]
        found = _functions_of(operation)
        if found is None or len(node.input_tensors) != 1:
            return None
        functions = (*found, *functions)
        tensor = node.input_tensors[0]
        if isinstance(operation, keras.layers.Dense):
            return _End(operation, tensor, functions) if operation.units in (1, 2) else None


def _functions_of(operation: Any) -> tuple[str, ...] | None:
    """Returns the functions that a dense layer or an operation applies at the end; None if they are not known."""
    if isinstance(operation, (keras.layers.Dense, keras.layers.Activation)):
        return _ACTIVATIONS.get(operation.activation)
    if isinstance(operation, TensorOperation):
        return _OPERATIONS.get(operation.operation)
    name = type(operation).__name__
    if not type(operation).__module__.startswith("keras.") or (name == "Softmax" and operation.axis != -1):
        return None
    return _OPERATIONS.get(name)


def _name_comparison(model: keras.Model) -> str | None:
    """Names the comparison that `model` makes of two embeddings. It is found by a trial, however the model is written."""
    if any(None in tensor.shape[1:] for tensor in model.inputs):  # The size of the images is open, and so is that of the maps.
        return None
    rng = np.random.default_rng(0)
    left, right = (_random_embeddings(tensor, rng) for tensor in model.inputs)
    output = np.asarray(model([left, right], training=False))
    for kind, function in PAIR_KINDS.items():
        try:
            expected = np.asarray(function(left, right))
        except Exception:  # This comparison takes embeddings of another shape.
            continue
        if expected.size == output.size and np.allclose(expected.reshape(output.shape), output, atol=2e-4):
            return kind
    return None


def _random_embeddings(tensor: Any, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.1, 0.9, (16, *tensor.shape[1:])).astype(np.float32)
