"""The pixel scale that a model's graph shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from batchverify.model.safe_layers import Comparison, TensorOperation


def find_scale_in_graph(model: Any, tensor: Any) -> tuple[str, str] | None:
    """Returns the pixel scale that the first operations on an input show, and which operation shows it; None if none does.

    Args:
        model: A functional or sequential model.
        tensor: One of its inputs.
    """
    if str(tensor.dtype) == "uint8":
        return "0..255", "the input's type uint8 shows"
    done = _Linear(np.ones(()), np.zeros(()))
    for operation, node in _first_operations(model, tensor):
        step = _linear_step(operation, node)
        if step is not None:
            done = done.then(step)
            if scale := _scale_before(done):
                return scale, f"layer '{operation.name}' ({type(operation).__name__}) shows"
        elif not _keeps_scale(operation):
            return None
    return None


@dataclasses.dataclass(frozen=True)
class _Linear:
    """The computation `factor * x + offset` of a pixel x.

    Attributes:
        factor: The factor, float64, one for all channels or one for each.
        offset: The offset in the same form.
    """

    factor: np.ndarray
    offset: np.ndarray

    def then(self, following: _Linear) -> _Linear:
        """Returns the computation that is this one and then the following one."""
        return _Linear(self.factor * following.factor, self.offset * following.factor + following.offset)


# A factor of 1/20 makes 12 of white. One of 200 makes 255 of white in 0..1, and nothing known of white on another scale.
_SMALL_FACTOR, _LARGE_FACTOR = 0.05, 200.0
# Means are written with three digits.
_IMAGENET_MEAN, _DIGITS = (0.485, 0.456, 0.406), 1e-3
# Half of the brightest pixel is 127.5 or 128.
_NEAR_BLACK = 0.01
# The mean of images in 0..255 is hardly ever lower.
_LEAST_MEAN = 10.0
# Pixels that were standardised before deviate by 1.
_LARGEST_DEVIATION = 0.9


def _scale_before(done: _Linear) -> str | None:
    """Returns the only pixel scale after which a linear computation makes sense; None where it could be another one.

    The pixel that becomes 0 is black, or the mean or the middle of the scale. The factor is the inverse of the deviation, or
    takes one scale to another.
    """
    if not np.all(np.isfinite(done.factor)) or np.any(done.factor == 0):
        return None
    factor, zero = np.broadcast_arrays(np.abs(done.factor), -done.offset / done.factor)
    if np.all(factor <= _SMALL_FACTOR):
        return "0..255" if _all_within(zero, 0.0, 255.0) else None
    if _all_within(zero, _LEAST_MEAN, 255.0):
        return "0..255"
    if np.all(factor >= _LARGE_FACTOR):
        return "0..1" if _all_within(zero, 0.0, 1.0) else None
    if np.all(np.abs(zero - 0.5) <= _DIGITS) or _is_mean_of_imagenet(zero):
        return "0..1"
    if np.all(factor == 1):
        return None
    return "-1..1" if _shows_negative_pixels(1 / factor, zero) else None


def _shows_negative_pixels(deviation: np.ndarray, zero: np.ndarray) -> bool:
    """Returns whether -1 becomes 0, or `zero` and `deviation` are a mean and a deviation of -1..1 and of no narrower scale."""
    if np.all(np.abs(zero + 1) <= _NEAR_BLACK):
        return True
    if not np.any(zero) or np.any(deviation > _LARGEST_DEVIATION):
        return False
    narrower = ((0.0, 1.0), (-0.5, 0.5))
    return _can_be(zero, deviation, -1.0, 1.0) and not any(_can_be(zero, deviation, *scale) for scale in narrower)


def _can_be(mean: np.ndarray, deviation: np.ndarray, low: float, high: float) -> bool:
    """Returns whether numbers between `low` and `high` can have this mean and this deviation."""
    return _all_within(mean, low, high) and bool(np.all(deviation**2 <= (mean - low) * (high - mean)))


def _all_within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(np.all((low - _DIGITS <= values) & (values <= high + _DIGITS)))


def _is_mean_of_imagenet(zero: np.ndarray) -> bool:
    means = np.ravel(zero)
    return len(means) == 3 and any(np.all(np.abs(means - order) <= _DIGITS) for order in (_IMAGENET_MEAN, _IMAGENET_MEAN[::-1]))


# The operations that leave the pixel scale as it is.
_KEEP_SCALE = {
    "InputLayer", "Resizing", "GetItem", "Cast", "CenterCrop", "RandomFlip", "RandomCrop", "RandomRotation",
    "RandomTranslation", "RandomZoom", "ZeroPadding2D", "Identity", "Dropout", "GaussianNoise", "Reshape", "Permute",
    "Stack", "Concatenate",
}  # fmt: skip
_KEEP_SCALE_IN_TENSORFLOW = {"cast", "__operators__.getitem", "reshape", "expand_dims", "squeeze", "concat", "stack"}


def _keeps_scale(operation: Any) -> bool:
    if isinstance(operation, TensorOperation):
        return operation.operation in _KEEP_SCALE_IN_TENSORFLOW
    if isinstance(operation, Comparison):
        return operation.kind == "identity"
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.linear
    return type(operation).__name__ in _KEEP_SCALE


def _first_operations(model: Any, tensor: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the operations on a tensor, one after the other, and their nodes; those of a model inside of the model too."""
    graph = getattr(model, "_functional", None) or model
    while (call := _first_consumer(graph, tensor)) is not None:
        operation, node = call
        if getattr(operation, "inputs", None) and hasattr(operation, "layers"):
            yield from _first_operations(operation, operation.inputs[0])
        else:
            yield call
        tensor = node.output_tensors[0]


def _first_consumer(graph: Any, tensor: Any) -> tuple[Any, Any] | None:
    for operation in graph.operations:
        for node in operation._inbound_nodes:
            if any(source is tensor for source in node.input_tensors):
                return operation, node
    return None


def _linear_step(operation: Any, node: Any) -> _Linear | None:
    """Returns what an operation computes of each pixel, if that is linear in it."""
    if isinstance(operation, keras.layers.Rescaling):
        return _Linear(_as_array(operation.scale), _as_array(operation.offset))
    if isinstance(operation, keras.layers.Normalization):
        return _normalisation(operation)
    if isinstance(operation, Comparison):
        factors = {"scale_0..1": (1 / 255, 0.0), "scale_-1..1": (1 / 127.5, -1.0), "scale": (operation.factor or 1.0, 0.0)}
        return _Linear(*map(_as_array, factors[operation.kind])) if operation.kind in factors else None
    constant, is_first = _constant(operation, node)
    if constant is None:
        return None
    return _with_constant(_operator(operation), constant, is_first)


def _normalisation(layer: Any) -> _Linear | None:
    mean = layer.mean if layer.mean is not None else layer.input_mean
    variance = layer.variance if layer.variance is not None else layer.input_variance
    if mean is None or variance is None:
        return None
    mean, deviation = _as_array(mean), np.maximum(np.sqrt(_as_array(variance)), keras.config.epsilon())
    return _Linear(deviation, mean) if layer.invert else _Linear(1 / deviation, -mean / deviation)


def _operator(operation: Any) -> str:
    name = operation.operation.rsplit(".", 1)[-1] if isinstance(operation, TensorOperation) else type(operation).__name__
    return str(name).lower()


def _with_constant(operator: str, constant: np.ndarray, is_first: bool) -> _Linear | None:
    """Returns the computation of an operator between a pixel and a constant, which may stand first."""
    one, nothing = np.ones(()), np.zeros(())
    if operator in ("add", "bias_add"):
        return _Linear(one, constant)
    if operator in ("sub", "subtract"):
        return _Linear(-one, constant) if is_first else _Linear(one, -constant)
    if operator in ("mul", "multiply"):
        return _Linear(constant, nothing)
    if operator in ("truediv", "divide", "truedivide") and not is_first and np.all(constant != 0):
        return _Linear(1 / constant, nothing)
    return None


def _constant(operation: Any, node: Any) -> tuple[np.ndarray | None, bool]:
    """Returns the one constant among the arguments of an operation, if there is one, and whether it stands first."""
    if isinstance(operation, TensorOperation):
        names, values = list(operation.constants), list(operation.constants.values())
    else:
        named = node.arguments.kwargs
        names = [*map(str, range(len(node.arguments.args))), *named]
        values = [*node.arguments.args, *named.values()]
    for name, value in zip(names, values, strict=True):
        if _is_tensor(value) or (isinstance(value, (int, float, list, tuple, np.ndarray)) and not isinstance(value, bool)):
            try:
                return _as_array(value), name in ("0", "x", "x1")
            except (TypeError, ValueError):
                continue
    return None, False


def _is_tensor(value: Any) -> bool:
    return bool(keras.ops.is_tensor(value)) and not isinstance(value, keras.KerasTensor)


def _as_array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value) if _is_tensor(value) else value, np.float64)
