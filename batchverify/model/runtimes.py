"""The runtime of the network: TensorFlow, or another runtime that the user has installed and asked for."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.calls_by_shape import CallsByShape
from batchverify.model.frozen_graph import FrozenFunction, PreparedCall, StoredFunction, freeze, store, stored_definition
from batchverify.model.loaded import LoadedModel
from batchverify.temporary_folder import temporary_copy, temporary_folder

# OpenVINO's names of number formats. The only 16-bit format that processors compute in is bfloat16.
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def choose_runtime(config: ModelConfig) -> ModelConfig:
    """Returns the configuration with the runtime that `auto` stands for in this process.

    OpenVINO is taken where it is installed and can compute as TensorFlow would: in float32, on processors. An ONNX file has a
    runtime of its own.
    """
    if config.runtime != "auto":
        return config
    is_onnx = (config.model or "").lower().endswith(".onnx")
    is_possible = config.precision == "float32" and not is_onnx and importlib.util.find_spec("openvino") is not None
    runtime = "openvino" if is_possible and not tf.config.list_physical_devices("GPU") else "tensorflow"
    return dataclasses.replace(config, runtime=runtime)


def compile_for_runtime(function: Callable[..., Any], loaded: LoadedModel, config: ModelConfig) -> Callable[..., np.ndarray]:
    """Turns a function of tensors, which calls `loaded`, into a function of arrays that runs on the runtime of `config`.

    Raises:
        PreflightError: If the runtime is not installed.
    """
    if loaded.runtime != "tensorflow":
        return lambda *arrays: np.asarray(function(*arrays))
    if config.runtime == "tensorflow":
        return FrozenFunction(function)
    if importlib.util.find_spec("openvino") is None:
        raise PreflightError("--runtime openvino: the package openvino is not installed; pip install 'batchverify[openvino]'.")
    return OpenVinoFunction(function, config.precision)


def load_in_openvino(stored: StoredFunction, precision: str) -> Callable[..., np.ndarray]:
    """Returns a stored function, as a function of arrays that OpenVINO computes.

    Raises:
        Exception: What `frozen_graph.stored_definition`, TensorFlow and OpenVINO raise for a damaged one.
    """
    definition = stored_definition(stored)
    graph, _ = function_def_to_graph_def(definition)
    return _OpenVinoCall(graph, [f"{argument.name}:0" for argument in definition.signature.input_arg], precision)


class OpenVinoFunction:
    """Calls a function of tensors with NumPy arrays; the function is converted for OpenVINO once for each shape.

    Args:
        function: A function that takes tensors and returns one tensor.
        precision: The number format in which OpenVINO may compute, one of `config.PRECISIONS`.
    """

    def __init__(self, function: Callable[..., Any], precision: str):
        self._precision = precision
        self._calls = CallsByShape(function, self._prepare)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Returns the function's value for `arrays`."""
        return cast(np.ndarray, self._calls.find(arrays).call(*arrays))

    def stored(self, *arrays: np.ndarray) -> StoredFunction | None:
        """Returns what was compiled for arrays of the shapes of `arrays`; None where it cannot be stored."""
        return store(self._calls.find(arrays).concrete)

    def _prepare(self, concrete: Any) -> PreparedCall:
        frozen = freeze(concrete)
        names = [tensor.name for tensor in frozen.inputs]
        return PreparedCall(_OpenVinoCall(frozen.graph.as_graph_def(), names, self._precision), frozen)


class _OpenVinoCall:
    """Calls a graph with NumPy arrays, from any thread.

    Args:
        graph: TensorFlow's `GraphDef`, without variables and with one output.
        input_names: The names of its inputs, in the order of the arguments.
        precision: The number format in which OpenVINO may compute, one of `config.PRECISIONS`.
    """

    def __init__(self, graph: Any, input_names: Sequence[str], precision: str):
        self._model, self._input_names = _compile(graph, precision), input_names
        self._idle_requests = collections.deque[Any]()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Returns the graph's value for `arrays`."""
        inputs = {name: np.ascontiguousarray(array) for name, array in zip(self._input_names, arrays, strict=True)}
        try:
            request = self._idle_requests.pop()
        except IndexError:  # Each thread that calls at the same time needs a request of its own.
            request = self._model.create_infer_request()
        try:
            # The output is copied, because the next call writes to the same memory.
            return np.array(request.infer(inputs, share_inputs=True)[0])
        finally:
            self._idle_requests.append(request)


def _compile(graph: Any, precision: str) -> Any:
    """Returns OpenVINO's compiled model of a graph.

    The graph goes through a file, because `openvino.convert_model` reports its use to OpenVINO's makers, from a process
    that it forks and that never ends where there is no network.
    """
    import openvino

    _fill_type_tables()
    core = openvino.Core()
    with temporary_folder() as folder:
        path = Path(folder) / "graph.pb"
        with temporary_copy("--runtime openvino"):
            path.write_bytes(graph.SerializeToString())
        model = core.read_model(path)
    settings = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "PERFORMANCE_HINT": "THROUGHPUT"}
    return core.compile_model(model, "CPU", settings)


_type_tables = threading.Lock()


def _fill_type_tables() -> None:
    """Has OpenVINO fill its tables of types now, in one thread.

    It fills them at their first use, holds a lock of C++ meanwhile, and waits for Python's lock. A second thread that holds
    Python's lock and wants the same table then waits for the first one for ever.
    """
    import openvino

    with _type_tables:
        for dtype in (np.float32, np.uint8):
            for is_shared in (False, True):
                tensor = openvino.Tensor(np.zeros(1, dtype), shared_memory=is_shared)
                tensor.get_element_type().to_dtype()
                tensor.data.sum()
