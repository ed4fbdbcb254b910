"""A network's function with its weights turned into constants, so that TensorFlow computes it in fewer, larger steps.

TensorFlow can fold constants, but not variables: it merges batch normalisation and activation into the convolution before
them. `python -m benchmarks.encoder` measures the gain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from batchverify.model.calls_by_shape import CallsByShape

_LOG = logging.getLogger(__name__)
# A graph is one protocol buffer of at most 2 GiB, and freezing holds its constants several times over.
_MAX_WEIGHT_BYTES = 2**30


class FrozenFunction:
    """Calls a function of tensors with NumPy arrays; the function is traced and frozen once for each shape of its arguments.

    A function that changes a variable when it is called, as an active dropout layer does, and a function whose weights are
    too large for a graph are traced only; the log says so.

    Args:
        function: A function that takes tensors and returns one tensor.
    """

    def __init__(self, function: Callable[..., Any]):
        self._calls = CallsByShape(function, self._prepare)
        self._has_logged = False

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Returns the function's value for `arrays`."""
        call = self._calls.find(arrays)
        # `tf.constant` would first write each array out as text, for a trace that nobody reads.
        return cast(np.ndarray, call(*map(tf.convert_to_tensor, arrays)).numpy())

    def _prepare(self, concrete: Any) -> Callable[..., Any]:
        reason = _reason_not_to_freeze(concrete)
        if reason is None:
            frozen = freeze(concrete)
            return lambda *tensors: frozen(*tensors)[0]
        if concrete.variables and not self._has_logged:
            _LOG.info("The network's weights stay variables: %s.", reason)
        self._has_logged = True
        return lambda *tensors: concrete(*tensors)


def freeze(concrete: Any) -> Any:
    """Returns a concrete function with its variables turned into constants."""
    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def _reason_not_to_freeze(concrete: Any) -> str | None:
    if not concrete.variables:
        return "it has none"
    if sum(variable.dtype.size * variable.shape.num_elements() for variable in concrete.variables) > _MAX_WEIGHT_BYTES:
        return f"they take more than {_MAX_WEIGHT_BYTES:,} bytes"
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    changing = sorted({node.op for node in nodes if node.op.startswith(("Assign", "Resource", "Scatter"))})
    return f"it changes some when it is called ({changing[0]})" if changing else None
