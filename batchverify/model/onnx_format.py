"""Loads ONNX files, which onnxruntime computes: an optional dependency."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, UnsuitableModelError, short_reason
from batchverify.model.file import ONNX_WEIGHTS_SUFFIX, ModelFile
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.temporary_folder import temporary_folder

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8"}
# A location of weights that stands for an address in the memory of the process (core/framework/tensorprotoutils.h).
_MEMORY_ADDRESS = b"_ORT_MEM_ADDR_"
_CHUNK = 2**24
_FATAL = 4
# From version 1.32 on, onnxruntime reports its use to its makers as soon as it is imported, unless this says otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load_onnx_file(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    """Loads an ONNX file, with the weights that may lie beside it in `FILE.data`.

    Args:
        file: The file.
        options: The user's statements about the model.
        digest: The file's SHA-256, in hex.

    Raises:
        PreflightError: If it cannot be loaded, or must not be, or onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise PreflightError(f"--model {file.name}: an ONNX file needs onnxruntime; pip install 'batchverify[onnx]'.")
    _refuse_other_runtimes(file.name, options)
    if _contains(file.local, _MEMORY_ADDRESS):
        raise PreflightError(f"--model {file.name}: it names an address in memory as its weights; don't trust it.")
    session = _open_session(file)
    outputs = session.get_outputs()
    if len(outputs) != 1:
        raise UnsuitableModelError(f"--model {file.name}: it has {len(outputs)} outputs; give a model with one.")
    inputs = tuple(_model_input(file.name, node) for node in session.get_inputs())
    return LoadedModel(
        name=file.name,
        digest=_digest_with_weights(file.local, digest),
        call=_call(session, inputs),
        inputs=inputs,
        graph=None,
        opaque="an ONNX file does not show layers of Keras",
        notes=("onnxruntime computes the network, on the processor.",),
        runtime="onnxruntime",
    )


def _refuse_other_runtimes(name: str, options: ModelConfig) -> None:
    for option, value, default in (
        ("--runtime", options.runtime, "tensorflow"), ("--precision", options.precision, "float32"),
    ):  # fmt: skip
        if value != default:
            raise PreflightError(f"{option} {value} is not for --model {name}, which onnxruntime computes; leave it out.")


def _contains(path: str, text: bytes) -> bool:
    before = b""
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            if text in before + data:
                return True
            before = data[-len(text) :]
    return False


def _open_session(file: ModelFile) -> Any:
    """Opens the file in a folder of its own: a location of weights that leads elsewhere leads to nothing."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = tf.config.threading.get_intra_op_parallelism_threads()
    # Threads that wait for the next call would take the cores from those that decode.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with temporary_folder() as folder:
        path = os.path.join(folder, os.path.basename(file.name))
        for suffix in filter(lambda suffix: os.path.isfile(file.local + suffix), ("", ONNX_WEIGHTS_SUFFIX)):
            os.symlink(os.path.abspath(file.local + suffix), path + suffix)
        try:
            # Its second try would be announced on standard output.
            return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # onnxruntime has an exception for each of its statuses.
            reason = short_reason(error)
    if "xternal data" in reason:
        expected = os.path.basename(file.name) + ONNX_WEIGHTS_SUFFIX
        raise PreflightError(
            f"--model {file.name}: its weights lie in another file, which is not {expected} "
            "beside it on this machine; export it in one file, with external_data=False."
        )
    raise PreflightError(
        f"--model {file.name}: an ONNX file that onnxruntime {onnxruntime.__version__} cannot load ({reason}); copy it again, "
        "whole, or export it again."
    )


def _model_input(name: str, node: Any) -> ModelInput:
    if node.type not in _TYPES or not node.shape:
        raise UnsuitableModelError(f"--model {name}: its input '{node.name}' is a {node.type}, which is no batch of images.")
    batch, *shape = (length if isinstance(length, int) and length > 0 else None for length in node.shape)
    return ModelInput(node.name, tuple(shape), _TYPES[node.type], batch)


def _call(session: Any, inputs: tuple[ModelInput, ...]) -> Callable[..., Any]:
    """Returns the function from tensors with values, in the order of `inputs`, to one such tensor."""

    def call(*tensors: Any) -> Any:
        arrays = (np.ascontiguousarray(keras.ops.convert_to_numpy(tensor)) for tensor in tensors)
        (output,) = session.run(None, {one.name: array for one, array in zip(inputs, arrays, strict=True)})
        return tf.convert_to_tensor(output)

    return call


def _digest_with_weights(local: str, digest: str) -> str:
    if not os.path.isfile(local + ONNX_WEIGHTS_SUFFIX):
        return digest
    with open(local + ONNX_WEIGHTS_SUFFIX, "rb") as weights:
        return hashlib.sha256((digest + hashlib.file_digest(weights, "sha256").hexdigest()).encode()).hexdigest()
