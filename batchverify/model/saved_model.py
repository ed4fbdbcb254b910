"""Loads SavedModel folders: checks them first, then chooses a signature."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, short_reason
from batchverify.model.file import ModelFile
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.model.saved_model_safety import find_forbidden_operation
from batchverify.model.saved_model_savers import without_savers
from batchverify.temporary_folder import temporary_copy, temporary_folder

_GRAPH, _FOLDERS_OF_VARIABLES_AND_ASSETS = "saved_model.pb", ("variables", "assets")


def load_saved_model(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    """Loads a SavedModel folder.

    Args:
        file: The folder.
        options: The user's statements about the model.
        digest: The SHA-256 of the folder's files, in hex.

    Raises:
        PreflightError: If it cannot be loaded, or must not be.
    """
    _register_optimizer()
    with _checked_folder(file, options) as folder:
        try:
            loaded = tf.saved_model.load(folder)
        except Exception as error:  # TensorFlow raises any exception on a broken graph.
            raise PreflightError(f"--model {file.name}: {_why_not_loaded(file.local, error)}.") from None
    return _call_signature(file, loaded, _choose_signature(file.name, sorted(loaded.signatures), options.signature), digest)


def _why_not_loaded(folder: str, error: Exception) -> str:
    if not os.path.exists(os.path.join(folder, "variables", "variables.index")):
        return "it has no variables/variables.index, so its weights are missing; copy the folder again, with variables/"
    reason = f"a SavedModel that TensorFlow {tf.__version__} cannot load ({short_reason(error)})"
    return f"{reason}; copy the folder again, whole, or export it again"


class _DiscardedOptimizer(tf.__internal__.tracking.AutoTrackable):  # type: ignore[misc]
    """An optimizer of Keras 2, with variables that are loaded and never used.

    Without a type of that name, TensorFlow cannot load a SavedModel that was compiled with one of the older optimizers
    (https://github.com/tensorflow/tensorflow/issues/61972).
    """

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> Any:
        """Returns a variable for what the optimizer remembers about another one; TensorFlow calls this."""
        return tf.Variable(tf.zeros(shape or var.shape, var.dtype), trainable=False, name=slot_name)


def _register_optimizer() -> None:
    """Lets TensorFlow load models that were compiled with an optimizer of Keras 2, unless Keras 2 itself does that."""
    loading = tf.__internal__.saved_model.load
    if "optimizer" not in loading.registered_identifiers():
        version = loading.VersionedTypeRegistration(lambda _: _DiscardedOptimizer(), 2, 1, 1)
        loading.register_revived_type("optimizer", lambda trackable: isinstance(trackable, _DiscardedOptimizer), [version])


def _call_signature(file: ModelFile, loaded: Any, key: str, digest: str) -> LoadedModel:
    function = loaded.signatures[key]
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    if len(outputs) != 1:
        existing = ", ".join(sorted(outputs)) or "none"
        raise PreflightError(
            f"--model {file.name}: its signature '{key}' has the outputs {existing}; give a signature with one."
        )
    names, output = list(inputs), next(iter(outputs))

    def call(*tensors: Any) -> Any:
        assert loaded is not None  # Holding the model keeps its variables alive.
        return function(**dict(zip(names, tensors, strict=True)))[output]

    specs = tuple(_model_input(file.name, name, spec) for name, spec in inputs.items())
    note = f"Calls the signature '{key}' of the SavedModel."
    return LoadedModel(file.name, digest, call, specs, None, "a SavedModel does not show its layers", (note,))


def refuse_layer_options(file: ModelFile, options: ModelConfig) -> None:
    """Refuses options about layers, which a SavedModel and an ONNX file do not show."""
    layer_options = {
        "--lambda": options.lambdas,
        "--custom-object": options.custom_objects,
        "--mend-shared-encoder": options.mend_shared_encoder,
    }
    for option, value in layer_options.items():
        if value:
            raise PreflightError(
                f"{option} is for .keras and .h5 files, whose layers are named; --model {file.name} is {file.kind.value}, "
                "leave it out."
            )


def _model_input(model: str, name: str, spec: Any) -> ModelInput:
    if spec.shape.rank is None:
        raise PreflightError(
            f"--model {model}: its input '{name}' has no shape; export it with an input signature that has one."
        )
    return ModelInput(name, tuple(spec.shape[1:]), spec.dtype.name, spec.shape[0])


def _choose_signature(model: str, keys: list[str], wanted: str | None) -> str:
    if wanted is None and "serving_default" in keys:
        return "serving_default"
    if wanted is None and len(keys) == 1:
        return keys[0]
    if wanted in keys:
        return str(wanted)
    existing = ", ".join(f"'{key}'" for key in keys)
    if not keys:
        raise PreflightError(f"--model {model}: the SavedModel has no signature; export it again, with model.export('folder').")
    if wanted is None:
        problem = f"--model {model}: it has the signatures {existing}; choose one with --signature."
        raise OpenQuestionError(OpenQuestion(problem, ("--signature", "NAME")))
    raise PreflightError(f"--signature is '{wanted}', but --model {model} has {existing}.")


@contextlib.contextmanager
def _checked_folder(file: ModelFile, options: ModelConfig) -> Iterator[str]:
    """Yields a folder with a SavedModel whose graph only computes; `--trust-model-code` leaves the graph as it is.

    Raises:
        PreflightError: If the graph has an operation that could do more than compute.
    """
    saved = _read_saved_model(file)
    if options.trust_model_code:
        yield file.local
        return
    saved = without_savers(saved)
    if operation := find_forbidden_operation(saved):
        raise PreflightError(
            f"--model {file.name}: its graph holds the operation {operation}, which is not among those that layers of Keras "
            "need; it could read or write files or run code. Add --trust-model-code if you trust whoever made it."
        )
    with temporary_folder() as folder:
        for name in _FOLDERS_OF_VARIABLES_AND_ASSETS:
            os.symlink(os.path.abspath(os.path.join(file.local, name)), os.path.join(folder, name))
        with temporary_copy(f"--model {file.name}"), open(os.path.join(folder, _GRAPH), "wb") as stream:
            stream.write(saved.SerializeToString())
        yield folder


def _read_saved_model(file: ModelFile) -> Any:
    saved = saved_model_pb2.SavedModel()
    try:
        with open(os.path.join(file.local, _GRAPH), "rb") as stream:
            saved.ParseFromString(stream.read())
    except Exception as error:  # protobuf has errors of its own.
        raise PreflightError(
            f"--model {file.name}: {_GRAPH} is damaged ({short_reason(error)}); copy the folder again."
        ) from None
    return saved
