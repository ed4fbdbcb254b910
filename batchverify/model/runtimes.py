"""What runs the network: TensorFlow, or another runtime that the user has installed and asked for."""

from __future__ import annotations

import collections
import importlib.util
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.frozen_graph import FrozenFunction, freeze

# OpenVINO's names. Of 16 bits, processors know bfloat16.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def compile_for_runtime(function: Callable[..., Any], config: ModelConfig) -> Callable[..., np.ndarray]:
    """Returns a function of tensors as a function of arrays, run as `config` asks.

    Raises:
        PreflightError: if the runtime is not installed.
    """
    if config.runtime == "tensorflow":
        return FrozenFunction(function)
    if importlib.util.find_spec("openvino") is None:
        raise PreflightError("--runtime openvino: the package openvino is not installed; pip install 'batchverify[openvino]'.")
    return OpenVinoFunction(function, config.precision)


class OpenVinoFunction:
    """Calls a function of tensors with NumPy arrays, converted for OpenVINO once for each shape that it is called with.

    Args:
        function: takes tensors, returns one.
        precision: of `config.PRECISIONS`: what OpenVINO may compute in.
    """

    def __init__(self, function: Callable[..., Any], precision: str):
        self._traced = tf.function(function, reduce_retracing=False, autograph=False)
        self._settings = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "PERFORMANCE_HINT": "THROUGHPUT"}
        self._by_shape: dict[tuple, Any] = {}
        self._preparing = threading.Lock()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        shapes = tuple((array.shape, array.dtype) for array in arrays)
        with self._preparing:
            if shapes not in self._by_shape:
                self._by_shape[shapes] = self._prepare(arrays)
        names, model, idle = self._by_shape[shapes]
        given = {name: np.ascontiguousarray(array) for name, array in zip(names, arrays, strict=True)}
        try:
            request = idle.pop()
        except IndexError:  # One for each thread that calls at the same time.
            request = model.create_infer_request()
        try:
            return request.infer(given)[0].copy()  # The next call writes to the same place.
        finally:
            idle.append(request)

    def _prepare(self, arrays: tuple[np.ndarray, ...]) -> tuple[list[str], Any, collections.deque[Any]]:
        """Returns the inputs' names, what computes the output, and requests for that which nobody uses now.

        The graph goes through a file: `openvino.convert_model` would report to its makers, in a process that it forks and
        that never ends where there is no network.
        """
        import openvino

        specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
        frozen = freeze(self._traced.get_concrete_function(*specs))
        core = openvino.Core()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.pb"
            path.write_bytes(frozen.graph.as_graph_def().SerializeToString())
            model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", self._settings)
        return [tensor.name for tensor in frozen.inputs], compiled, collections.deque()
