"""What is prepared to call a function of tensors, once for each shape of its arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow as tf

Prepared = TypeVar("Prepared")


class CallsByShape(Generic[Prepared]):
    """Traces a function for each shape and type of its arguments, prepares the trace for calls, and keeps the result.

    Args:
        function: A function that takes tensors and returns one tensor.
        prepare: Makes what is kept from TensorFlow's concrete function, which is the trace.
    """

    def __init__(self, function: Callable[..., Any], prepare: Callable[[Any], Prepared]):
        self._traced = tf.function(function, reduce_retracing=False, autograph=False)
        self._prepare = prepare
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._lock = threading.Lock()

    def find(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Returns what was prepared for the shapes and types of `arrays`; prepares it if they are new."""
        key = tuple((array.shape, array.dtype) for array in arrays)
        with self._lock:  # Several threads may come with a new shape at once; one of them prepares the call.
            if key not in self._prepared:
                specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
                self._prepared[key] = self._prepare(self._traced.get_concrete_function(*specs))
        return self._prepared[key]
