"""A network's function with its weights turned into constants, so that TensorFlow computes it in fewer, larger steps.

TensorFlow can fold constants, but not variables: it merges batch normalisation and activation into the convolution before
them. `python -m benchmarks.encoder` measures the gain.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from batchverify.model.calls_by_shape import CallsByShape
from batchverify.model.saved_model_safety import find_forbidden_in_function

_LOG = logging.getLogger(__name__)
# A graph is one protocol buffer of at most 2 GiB, and freezing holds its constants several times over.
_MAX_WEIGHT_BYTES = 2**30


class StoredFunction(NamedTuple):
    """A function of tensors that has no variables and calls no other function, so that it can be written to a file.

    Attributes:
        definition: TensorFlow's `FunctionDef`, serialised.
        rows: The number of rows that it takes at once; None stands for any number.
    """

    definition: bytes
    rows: int | None


class PreparedCall(NamedTuple):
    """What is kept for one shape of the arguments.

    Attributes:
        call: What computes the function.
        concrete: TensorFlow's concrete function without variables; None where it has some.
    """

    call: Callable[..., Any]
    concrete: Any


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
        call = self._calls.find(arrays).call
        # `tf.constant` would first write each array out as text, for a trace that nobody reads.
        return cast(np.ndarray, call(*map(tf.convert_to_tensor, arrays)).numpy())

    def stored(self, *arrays: np.ndarray) -> StoredFunction | None:
        """Returns what is called for arrays of the shapes of `arrays`; None where it cannot be stored."""
        concrete = self._calls.find(arrays).concrete
        return None if concrete is None else store(concrete)

    def _prepare(self, concrete: Any) -> PreparedCall:
        reason = _reason_not_to_freeze(concrete)
        if reason is None:
            frozen = freeze(concrete)
            return PreparedCall(lambda *tensors: frozen(*tensors)[0], frozen)
        if concrete.variables and not self._has_logged:
            _LOG.info("The network's weights stay variables: %s.", reason)
        self._has_logged = True
        return PreparedCall(lambda *tensors: concrete(*tensors), None if concrete.captured_inputs else concrete)


def freeze(concrete: Any) -> Any:
    """Returns a concrete function with its variables turned into constants."""
    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def store_for_any_rows(function: Callable[..., Any], specs: list[tuple[tuple[int, ...], str]]) -> StoredFunction | None:
    """Returns a function of tensors for any number of rows; None where it cannot be stored.

    Args:
        function: A function that takes tensors and returns one tensor.
        specs: The shape of one row, and the type, of each argument.
    """
    traced = tf.function(function, autograph=False)
    concrete = traced.get_concrete_function(*(tf.TensorSpec((None, *shape), dtype) for shape, dtype in specs))
    if not concrete.variables:
        return None if concrete.captured_inputs else store(concrete)
    return store(freeze(concrete)) if _reason_not_to_freeze(concrete) is None else None


def store(concrete: Any) -> StoredFunction | None:
    """Returns a concrete function without variables; None if it has an operation that `stored_definition` would refuse."""
    definition = concrete.function_def
    if find_forbidden_in_function(definition):
        return None
    return StoredFunction(definition.SerializeToString(), concrete.inputs[0].shape[0])


def stored_definition(stored: StoredFunction) -> Any:
    """Returns the `FunctionDef` of a stored function.

    Raises:
        ValueError: If it has an operation that does more than to compute with tensors in memory.
        Exception: Whatever protobuf raises for what is no function.
    """
    definition = function_pb2.FunctionDef.FromString(stored.definition)
    if forbidden := find_forbidden_in_function(definition):
        raise ValueError(f"it has the operation {forbidden}")
    return definition


def load_function(stored: StoredFunction) -> Callable[..., np.ndarray]:
    """Returns a stored function, as a function of arrays.

    It is given to TensorFlow as it is. To import it as a graph would take half a second, most of it in Python.

    Raises:
        Exception: What `stored_definition` and TensorFlow raise.
    """
    definition = stored_definition(stored)
    # Two functions of one name must be the same.
    name = f"stored_{hashlib.sha256(stored.definition).hexdigest()}"
    definition.signature.name = name
    runtime = context.context()
    runtime.ensure_initialized()
    if not runtime.has_function(name):
        runtime.add_function_def(definition)

    def call(*arrays: np.ndarray) -> np.ndarray:
        (output,) = runtime.call_function(name.encode(), [*map(tf.convert_to_tensor, arrays)], 1)
        return cast(np.ndarray, output.numpy())

    return call


def _reason_not_to_freeze(concrete: Any) -> str | None:
    if not concrete.variables:
        return "it has none"
    if sum(variable.dtype.size * variable.shape.num_elements() for variable in concrete.variables) > _MAX_WEIGHT_BYTES:
        return f"they take more than {_MAX_WEIGHT_BYTES:,} bytes"
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    changing = sorted({node.op for node in nodes if node.op.startswith(("Assign", "Resource", "Scatter"))})
    return f"it changes some when it is called ({changing[0]})" if changing else None
