"""The certificate of a distance head: whether any pair at all can outscore an image compared with itself.

For f(x, y) = sigmoid(w . d(e(x), e(y)) + b) with a distance d that is zero for equal embeddings and nowhere negative,
f(x, x) = sigmoid(b). No pair scores higher if no weight is positive; otherwise the highest score that embeddings in a
box of side r_i can reach is at most sigmoid(b + sum max(w_i, 0) d_i), where d_i is the largest distance in dimension i.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from batchverify.model.safe_layers import PAIR_KINDS, sigmoid
from batchverify.model.split import SplitModel

# Kinds that are zero for equal embeddings and never negative.
_DISTANCES = ("l1", "squared", "euclidean", "squared_euclidean", "manhattan", "cosine_distance")
_ELEMENTWISE = ("l1", "squared")
_RANGES = {"sigmoid": 1.0, "hard_sigmoid": 1.0, "softmax": 1.0, "tanh": 2.0, "softsign": 2.0}


@dataclasses.dataclass(frozen=True)
class IdentityBound:
    """What the weights of a head say.

    Attributes:
        comparison: what the head computes of two embeddings, one of `comparisons.PAIR_KINDS`; None if it is none of them.
        weights: of the last layer, towards a match; empty if there is none to see.
        bias: of the last layer.
        identity_score: exact f(x, x); None if it depends on the image or can't be told.
        holds: whether no pair can outscore an identity score; None if the weights don't tell.
        bound: no pair scores higher than this; None if embeddings have no bounds.
    """

    comparison: str | None
    weights: tuple[float, ...]
    bias: float
    identity_score: float | None
    holds: bool | None
    bound: float | None


UNKNOWN_BOUND = IdentityBound(None, (), 0.0, None, None, None)


def bound_identity(siamese: SplitModel) -> IdentityBound:
    """Returns what the head of a split network proves, by looking at its last dense layer and what feeds it."""
    found = _last_dense(siamese.head)
    if found is None or not siamese.shared or len(siamese.head.inputs) != 2:
        return UNKNOWN_BOUND
    dense, distance = found
    kernel, bias = dense.kernel.numpy(), dense.bias.numpy() if dense.use_bias else np.zeros(dense.units)
    if dense.units == 2:
        kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    weights, offset = kernel[:, 0].astype(float), float(bias[0])
    comparison = _name_comparison(keras.Model(siamese.head.inputs, distance))
    if comparison == "cosine":
        # The cosine of equal embeddings is 1, the highest that there is.
        best = sigmoid(offset + float(weights.sum()))
        return IdentityBound(comparison, tuple(weights), offset, best, bool(np.all(weights >= 0)), None)
    if comparison not in _DISTANCES:
        return IdentityBound(comparison, tuple(weights), offset, None, None, None)
    identity = sigmoid(offset)
    holds = bool(np.all(weights <= 0))
    if holds:
        return IdentityBound(comparison, tuple(weights), offset, identity, True, identity)
    return IdentityBound(comparison, tuple(weights), offset, identity, False, _bound(siamese, comparison, weights, offset))


def _bound(siamese: SplitModel, comparison: str, weights: np.ndarray, offset: float) -> float | None:
    widest = _embedding_range(siamese.encoder)
    if widest is None or comparison not in _ELEMENTWISE:
        return None
    return sigmoid(offset + float(np.maximum(weights, 0).sum()) * (widest if comparison == "l1" else widest**2))


def _embedding_range(encoder: keras.Model) -> float | None:
    """Returns how far two values of one embedding dimension can lie apart; None if there is no limit."""
    operation = encoder.outputs[0]._keras_history.operation
    while getattr(operation, "layers", None):
        operation = operation.outputs[0]._keras_history.operation
    activation = getattr(operation, "activation", None)
    return _RANGES.get(getattr(activation, "__name__", type(operation).__name__.lower()))


def _last_dense(head: keras.Model) -> tuple[Any, Any] | None:
    """Returns the dense layer that the score comes from, and the tensor that it is given."""
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
    """Names what `model` computes of two embeddings, by trying it: so it does not matter how it is written."""
    rng = np.random.default_rng(0)
    left, right = (rng.uniform(0.1, 0.9, (16, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs)
    found = np.asarray(model([left, right], training=False))
    for kind, function in PAIR_KINDS.items():
        try:
            expected = np.asarray(function(left, right))
        except Exception:  # a comparison of another shape
            continue
        if expected.size == found.size and np.allclose(expected.reshape(found.shape), found, atol=2e-4):
            return kind
    return None
