"""A network's function with its weights folded into the graph, which TensorFlow then computes in fewer, larger steps.

Of a variable TensorFlow knows nothing until it reads it; of a constant it does: it merges batch normalisation and
activation into the convolution before them. `python -m benchmarks.encoder` measures what that gives.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

_LOG = logging.getLogger(__name__)
# A graph is one protocol buffer, of 2 GiB at most, and folding holds its constants several times over.
_MOST_WEIGHT_BYTES = 2**30


class FrozenFunction:
    """Calls a function of tensors with NumPy arrays; traced and frozen once for each shape that it is called with.

    A function that changes a variable when it is called, as dropout left on does, or whose weights are too large for a
    graph, is traced only, and the log says so.

    Args:
        function: takes tensors, returns one.
    """

    def __init__(self, function: Callable[..., Any]):
        self._traced = tf.function(function, reduce_retracing=False, autograph=False)
        self._by_shape: dict[tuple, Callable[..., Any]] = {}
        self._preparing = threading.Lock()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        shapes = tuple((array.shape, array.dtype) for array in arrays)
        with self._preparing:  # Several threads may come with a new shape; one of them prepares it.
            if shapes not in self._by_shape:
                self._by_shape[shapes] = self._prepare(arrays)
        return self._by_shape[shapes](*(tf.constant(array) for array in arrays)).numpy()

    def _prepare(self, arrays: tuple[np.ndarray, ...]) -> Callable[..., Any]:
        concrete = self._traced.get_concrete_function(*(tf.TensorSpec(array.shape, array.dtype) for array in arrays))
        if reason := _why_not(concrete):
            if concrete.variables and not self._by_shape:
                _LOG.info("The network's weights stay variables: %s.", reason)
            return concrete
        frozen = freeze(concrete)
        return lambda *tensors: frozen(*tensors)[0]


def freeze(concrete: Any) -> Any:
    """Returns a concrete function with its variables turned into constants."""
    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def _why_not(concrete: Any) -> str | None:
    if not concrete.variables:
        return "it has none"
    if sum(variable.dtype.size * variable.shape.num_elements() for variable in concrete.variables) > _MOST_WEIGHT_BYTES:
        return f"they take more than {_MOST_WEIGHT_BYTES:,} bytes"
    graph = concrete.graph.as_graph_def()
    operations = {node.op for function in graph.library.function for node in function.node_def} | {n.op for n in graph.node}
    if changing := sorted(name for name in operations if name.startswith(("Assign", "Resource", "Scatter"))):
        return f"it changes some when it is called ({changing[0]})"
    return None
