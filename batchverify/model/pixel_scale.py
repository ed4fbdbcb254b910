"""The pixel scale that a model's graph shows."""

from __future__ import annotations

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
    graph = getattr(model, "_functional", None) or model
    while (call := _first_consumer(graph, tensor)) is not None:
        operation, node = call
        if getattr(operation, "inputs", None) and hasattr(operation, "layers"):
            return find_scale_in_graph(operation, operation.inputs[0])
        if scale := _scale_shown_by(operation, node):
            return scale, f"layer '{operation.name}' ({type(operation).__name__}) shows"
        if type(operation).__name__ not in _KEEP_SCALE:
            return None
        tensor = node.output_tensors[0]
    return None


# The operations that leave the pixel scale as it is.
_KEEP_SCALE = {
    "InputLayer", "Resizing", "GetItem", "Cast", "CenterCrop", "RandomFlip", "RandomCrop", "RandomRotation",
    "RandomTranslation", "RandomZoom", "ZeroPadding2D", "Identity", "Dropout", "GaussianNoise", "TensorOperation",
    "Reshape", "Activation", "Permute",
}  # fmt: skip


def _first_consumer(graph: Any, tensor: Any) -> tuple[Any, Any] | None:
    for operation in graph.operations:
        for node in operation._inbound_nodes:
            if any(source is tensor for source in node.input_tensors):
                return operation, node
    return None


def _scale_shown_by(operation: Any, node: Any) -> str | None:
    kind = type(operation).__name__
    if kind == "Rescaling":
        return _scaled_by(operation.scale) or _shifted_by(operation.offset)
    if kind == "Normalization":
        mean = operation.mean if operation.mean is not None else operation.input_mean
        return _shifted_by(mean) if mean is not None else None
    if isinstance(operation, Comparison):
        return "0..255" if operation.kind.startswith("scale_") else None
    constant = _constant(operation, node)
    name = operation.operation.rsplit(".", 1)[-1] if isinstance(operation, TensorOperation) else kind.lower()
    if constant is None:
        return None
    if name in ("truediv", "divide", "truedivide"):
        return _scaled_by(1 / constant)
    if name in ("mul", "multiply"):
        return _scaled_by(constant)
    if name in ("sub", "subtract", "add", "bias_add"):
        return _shifted_by(constant)
    return None


def _constant(operation: Any, node: Any) -> np.ndarray | None:
    if isinstance(operation, TensorOperation):
        values = list(operation.constants.values())
    else:
        values = [*node.arguments.args, *node.arguments.kwargs.values()]
    for value in values:
        if isinstance(value, (int, float, list, tuple, np.ndarray)) and not isinstance(value, bool):
            try:
                return np.asarray(value, np.float64)
            except (TypeError, ValueError):
                continue
    return None


def _scaled_by(factor: Any) -> str | None:
    largest = float(np.max(np.abs(np.asarray(factor, np.float64))))
    if largest <= 0.05:  # White then becomes 12 at most.
        return "0..255"
    return "0..1" if largest >= 1.5 else None


def _shifted_by(offset: Any) -> str | None:
    largest = float(np.max(np.abs(np.asarray(keras.ops.convert_to_numpy(offset), np.float64))))
    if largest > 10:
        return "0..255"
    return "0..1" if 0.2 < largest <= 1 else None
