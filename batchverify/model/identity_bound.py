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
from batchverify.model.safe_layers import PAIR_KINDS, sigmoid
from batchverify.model.split import SplitModel

# The kinds that are zero for equal embeddings and never negative.
_DISTANCES = ("l1", "squared", "euclidean", "squared_euclidean", "manhattan", "cosine_distance")
# The largest distance in one dimension of the kinds that give one for each, by the width of the dimension's range of values.
_LARGEST_DISTANCES: dict[str, Callable[[float], float]] = {"l1": lambda width: width, "squared": lambda width: width**2}
# The meanings of an output that is low for a match.
_FALLING = ("distance", "dissimilarity")
# The width of the range of values that each activation function gives.
_RANGES = {"sigmoid": 1.0, "hard_sigmoid": 1.0, "softmax": 1.0, "tanh": 2.0, "softsign": 2.0}


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

    Args:
        split: The model in two parts.
        config: Its settings `output_is` and `match_column` say how the output becomes a score.
    """
    last = _last_dense(split.head)
    if last is None or not split.shared or len(split.head.inputs) != 2:
        return UNKNOWN_BOUND
    dense, distance = last
    weights, bias = _weights_and_bias(dense, config)
    comparison = _name_comparison(keras.Model(split.head.inputs, distance))
    known = IdentityBound(comparison, tuple(weights), bias, None, None, None)
    if comparison == "cosine":
        # Equal embeddings have the cosine 1, which no other pair exceeds.
        identity = sigmoid(bias + float(weights.sum()))
        return dataclasses.replace(known, identity_score=identity, holds=bool(np.all(weights >= 0)))
    if comparison not in _DISTANCES:
        return known
    identity, holds = sigmoid(bias), bool(np.all(weights <= 0))
    if config.output_is == "distance":  # 1 / (1 + x) rises and falls as sigmoid(-x) does, but has other values.
        return dataclasses.replace(known, holds=holds)
    bound = identity if holds else _highest_score(split.encoder, comparison, weights, bias)
    return dataclasses.replace(known, identity_score=identity, holds=holds, bound=bound)


def _weights_and_bias(dense: keras.layers.Dense, config: ModelConfig) -> tuple[np.ndarray, float]:
    """Returns float64 weights `(d,)` and the bias towards a match; a softmax of two is turned into the sigmoid it equals."""
    kernel, bias = dense.kernel.numpy(), dense.bias.numpy() if dense.use_bias else np.zeros(dense.units)
    if dense.units == 2:
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    is_reversed = config.output_is in _FALLING or (dense.units == 2 and config.match_column == 0)
    sign = -1.0 if is_reversed else 1.0
    return sign * kernel[:, 0].astype(float), sign * float(bias[0])


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


def _last_dense(head: keras.Model) -> tuple[Any, Any] | None:
    """Returns the dense layer that the score comes from, and its input; None if the head does not end in one."""
    tensor = head.outputs[0]
    while True:
        operation, number, _ = tensor._keras_history
        node = operation._inbound_nodes[number]
        if isinstance(operation, keras.layers.Dense):
            return (operation, node.input_tensors[0]) if operation.units in (1, 2) else None
        if len(node.input_tensors) != 1 or getattr(operation, "weights", None):
            return None
        tensor = node.input_tensors[0]


def _name_comparison(model: keras.Model) -> str | None:
    """Names the comparison that `model` makes of two embeddings. It is found by a trial, however the model is written."""
    rng = np.random.default_rng(0)
    left, right = (rng.uniform(0.1, 0.9, (16, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs)
    output = np.asarray(model([left, right], training=False))
    for kind, function in PAIR_KINDS.items():
        try:
            expected = np.asarray(function(left, right))
        except Exception:  # This comparison takes embeddings of another shape.
            continue
        if expected.size == output.size and np.allclose(expected.reshape(output.shape), output, atol=2e-4):
            return kind
    return None
