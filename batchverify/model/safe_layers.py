"""Layers that replace code in model files: Lambda layers, custom distances, calls of TensorFlow.

Each of them computes one of `KINDS` or `TENSOR_OPERATIONS`. A model's config is rewritten to these registered layers, so that
Keras loads it in safe mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

_EPSILON = 1e-12


@keras.saving.register_keras_serializable("batchverify")  # type: ignore[untyped-decorator]
def hard_sigmoid_of_keras_2(x: Any) -> Any:
    """Returns what Keras 2 calls `hard_sigmoid`; that of Keras 3 is x / 6 + 0.5 between 0 and 1."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable("batchverify")
class UpSampling2DOfKeras2(keras.layers.UpSampling2D):  # type: ignore[misc]
    """Keras 2's `UpSampling2D`, which gives fractions for pixels that are whole numbers; that of Keras 3 rounds them."""

    def call(self, inputs: Any) -> Any:
        return super().call(ops.cast(inputs, self.compute_dtype))


def guarded_root(squared: Any, guard: float, is_added: bool) -> Any:
    """Returns a square root whose gradient at 0 is finite, because `guard` is added or is the smallest value."""
    return ops.sqrt(squared + guard if is_added else ops.maximum(squared, guard))


def cosine_similarity(left: Any, right: Any) -> Any:
    """Returns the cosines `(n, 1)` of embeddings `(n, d)`."""
    lengths = ops.sum(ops.square(left), -1, keepdims=True) * ops.sum(ops.square(right), -1, keepdims=True)
    return ops.sum(left * right, -1, keepdims=True) / ops.sqrt(ops.maximum(lengths, _EPSILON))


def _l2_normalised(x: Any) -> Any:
    return x / ops.sqrt(ops.maximum(ops.sum(ops.square(x), -1, keepdims=True), _EPSILON))


# The order is that of messages and of docs/model.md; of kinds that give the same, the first one names a comparison.
PAIR_KINDS: dict[str, Callable[..., Any]] = {
    "l1": lambda a, b: ops.abs(a - b),
    "squared": lambda a, b: ops.square(a - b),
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    # The guard is that of the example on keras.io. `Comparison` takes another one.
    "euclidean": lambda a, b: guarded_root(ops.sum(ops.square(a - b), -1, keepdims=True), 1e-7, False),
    "squared_euclidean": lambda a, b: ops.sum(ops.square(a - b), -1, keepdims=True),
    "manhattan": lambda a, b: ops.sum(ops.abs(a - b), -1, keepdims=True),
    "cosine": cosine_similarity,
    "cosine_distance": lambda a, b: 1.0 - cosine_similarity(a, b),
    "dot": lambda a, b: ops.sum(a * b, -1, keepdims=True),
    "concatenate": lambda a, b: ops.concatenate([a, b], -1),
    "scaled_add": lambda a, b, factor=1.0: a + b * factor,
}
SINGLE_KINDS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "abs": ops.abs,
    "square": ops.square,
    "sqrt": lambda x: ops.sqrt(ops.maximum(x, 0.0)),
    "sum": lambda x: ops.sum(x, -1, keepdims=True),
    "l2_normalize": _l2_normalised,
    "scale_0..1": lambda x: x / 255.0,
    "scale_-1..1": lambda x: x / 127.5 - 1.0,
    "scale": lambda x, factor=1.0: x * factor,
}
KINDS = (*PAIR_KINDS, *SINGLE_KINDS)
SCALED_KINDS = ("scaled_add", "scale")


@keras.saving.register_keras_serializable("batchverify")
class Comparison(keras.layers.Layer):  # type: ignore[misc]
    """Computes one of `KINDS` from one tensor or two tensors, which are passed one by one or as a list.

    Args:
        kind: One of `KINDS`.
        factor: The factor of the kinds `SCALED_KINDS`.
        guard: For the kind `euclidean`, what keeps the gradient at 0 finite: the number, and whether it is added to the squared
            distance or is its smallest value. None takes that of the kind.
        settings: The settings of every Keras layer.
    """

    def __init__(self, kind: str, factor: float | None = None, guard: list[Any] | None = None, **settings: Any):
        super().__init__(**settings)
        self.kind, self.factor, self.guard = kind, factor, guard

    def call(self, *inputs: Any, mask: Any = None, **named: Any) -> Any:
        tensors = _flat([*inputs, *(value for value in named.values() if hasattr(value, "shape"))])
        count = 2 if self.kind in PAIR_KINDS else 1
        if len(tensors) != count:
            raise ValueError(f"'{self.kind}' takes {count} tensors, but layer '{self.name}' joins {len(tensors)}")
        if self.kind == "euclidean" and self.guard is not None:
            return guarded_root(PAIR_KINDS["squared_euclidean"](*tensors), *self.guard)
        factor = {} if self.factor is None else {"factor": self.factor}
        return (PAIR_KINDS if count == 2 else SINGLE_KINDS)[self.kind](*tensors, **factor)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "factor": self.factor, "guard": self.guard}


def _slice(x: Any, slice_spec: Any) -> Any:
    parts = slice_spec if isinstance(slice_spec, list) else [slice_spec]
    return x[tuple(_slice_part(part) for part in parts)]


def _slice_part(part: Any) -> Any:
    if isinstance(part, dict) and {"start", "stop", "step"} <= set(part):
        return slice(part["start"], part["stop"], part["step"])
    if isinstance(part, dict):  # tf.keras wrote Ellipsis and None as dictionaries.
        return Ellipsis if "ELLIPSIS" in str(part.values()).upper() else None
    return Ellipsis if part in ("...", "Ellipsis") else part


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, axis=axis, keepdims=keepdims)


# The names are those of TensorFlow's Python API, as tf.keras wrote them into its TFOpLambda layers.
TENSOR_OPERATIONS: dict[str, Callable[..., Any]] = {
    "math.abs": ops.abs,
    "abs": ops.abs,
    "math.add": lambda x, y: x + y,
    "math.subtract": lambda x, y: x - y,
    "math.multiply": lambda x, y: x * y,
    "math.truediv": lambda x, y: x / y,
    "math.divide": lambda x, y: x / y,
    "math.pow": lambda x, y: x**y,
    "math.maximum": lambda x, y: ops.maximum(x, y),
    "math.minimum": lambda x, y: ops.minimum(x, y),
    "math.negative": lambda x: -x,
    "math.square": ops.square,
    "math.squared_difference": lambda x, y: ops.square(x - y),
    "math.sqrt": ops.sqrt,
    "math.exp": ops.exp,
    "math.sigmoid": ops.sigmoid,
    "nn.relu": lambda features: ops.relu(features),
    "math.reduce_sum": _reduced(ops.sum),
    "math.reduce_mean": _reduced(ops.mean),
    "math.reduce_max": _reduced(ops.max),
    "math.l2_normalize": lambda x, axis=-1, epsilon=_EPSILON: (
        x / ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis, keepdims=True), epsilon))
    ),
    "nn.bias_add": lambda value, bias, data_format=None: value + ops.convert_to_tensor(bias),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),  # noqa: A006
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),  # noqa: A006
    "__operators__.add": lambda x, y: x + y,
    "__operators__.getitem": _slice,
}
TENSOR_OPERATIONS |= {
    f"__operators__.{name}": TENSOR_OPERATIONS[f"math.{other}"]
    for name, other in {"sub": "subtract", "mul": "multiply", "truediv": "truediv", "pow": "pow"}.items()
}
TENSOR_OPERATIONS["linalg.l2_normalize"] = TENSOR_OPERATIONS["nn.l2_normalize"] = TENSOR_OPERATIONS["math.l2_normalize"]


@keras.saving.register_keras_serializable("batchverify")
class TensorOperation(keras.layers.Layer):  # type: ignore[misc]
    """Computes one of `TENSOR_OPERATIONS` from tensors and constants.

    Args:
        operation: The operation's name in TensorFlow's API.
        constants: The arguments that are no tensors, by name.
        order: The names of the arguments that are tensors; None stands for one that was passed by position, and `["*"]` for
            one list of tensors.
        settings: The settings of every Keras layer.
    """

    def __init__(self, operation: str, constants: dict[str, Any], order: list[str | None], **settings: Any):
        super().__init__(**settings)
        self.operation, self.constants, self.order = operation, constants, order

    def call(self, *inputs: Any, mask: Any = None) -> Any:
        tensors = _flat(inputs)
        function = TENSOR_OPERATIONS[self.operation]
        if self.order == ["*"]:
            return function(tensors, **self.constants)
        by_position = [tensor for tensor, name in zip(tensors, self.order, strict=True) if name is None]
        by_name = {name: tensor for tensor, name in zip(tensors, self.order, strict=True) if name is not None}
        return function(*by_position, **by_name, **self.constants)

    def get_config(self) -> dict[str, Any]:
        own = {"operation": self.operation, "constants": self.constants, "order": self.order}
        return {**super().get_config(), **own}


def _flat(inputs: Any) -> list[Any]:
    if isinstance(inputs, (list, tuple)):
        return [tensor for part in inputs for tensor in _flat(part)]
    return [inputs]


# The formulas that turn two embeddings into a score in [0, 1], which is 1 for equal embeddings.
SCORE_FORMULAS = {
    "cosine": "(1 + cos(e(x), e(y))) / 2",
    "euclidean": "1 / (1 + ||e(x) - e(y)||)",
    "l1": "1 / (1 + sum |e(x) - e(y)|)",
}


def compare_embeddings(kind: str, left: Any, right: Any) -> Any:
    """Returns scores `(n, 1)` in [0, 1] of embeddings `(n, d)`, by the formula `kind` of `SCORE_FORMULAS`."""
    if kind == "cosine":
        return as_score("cosine", cosine_similarity(left, right))
    if kind == "euclidean":
        return as_score("distance", ops.sqrt(ops.sum(ops.square(left - right), -1, keepdims=True)))
    return as_score("distance", ops.sum(ops.abs(left - right), -1, keepdims=True))


def as_score(meaning: str, output: Any) -> Any:
    """Turns a model's output x into scores in [0, 1].

    Args:
        meaning: The meaning of the output, which decides the formula: `score` leaves it as it is; `logit` gives
            1 / (1 + exp(-x)); `distance` gives 1 / (1 + max(x, 0)), so that a distance of 1 scores 0.5; `dissimilarity`, which
            lies in [0, 1] and is low for a match, gives 1 - x; `cosine` gives (1 + x) / 2.
        output: A tensor of any shape.
    """
    if meaning == "logit":
        return ops.sigmoid(output)
    if meaning == "distance":
        return 1.0 / (1.0 + ops.maximum(output, 0.0))
    if meaning == "dissimilarity":
        return 1.0 - output
    if meaning == "cosine":
        return ops.clip((1.0 + output) / 2.0, 0.0, 1.0)
    return output


def sigmoid(x: float) -> float:
    """Returns 1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
