"""Loads Keras' own formats: `.keras` archives and HDF5 files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, UnsuitableModelError, short_reason
from batchverify.model.file import ModelFile, ModelKind
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.model.rewrite import prepare_config
from batchverify.temporary_folder import temporary_folder

_ALWAYS_ALLOWED_WEIGHTS = 2**22
_ALLOWED_WEIGHTS_PER_BYTE = 8
_FILE_NAMES = {ModelKind.KERAS: "model.keras", ModelKind.HDF5: "model.h5"}


def load_keras_file(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    """Loads a `.keras` or HDF5 file.

    Args:
        file: The file.
        options: The user's statements about the model.
        digest: The file's SHA-256, in hex.

    Raises:
        PreflightError: If it cannot be loaded, or must not be.
    """
    loadable = prepare_config(file, options)
    with temporary_folder() as folder:
        if loadable.changed or file.holds_weights_only:
            path = file.rewritten(loadable.config, folder)
        else:  # Keras tells the format from the suffix of the name.
            path = os.path.join(folder, _FILE_NAMES[file.kind])
            os.symlink(os.path.abspath(file.local), path)
        model = _load_without_excess(file, path, loadable.custom_objects, options)
    if getattr(model, "inputs", None) and getattr(model, "outputs", None):
        return _as_functional(file, digest, getattr(model, "_functional", None) or model, loadable.notes)
    return LoadedModel(
        name=file.name,
        digest=digest,
        call=_call_for_inference(model),
        inputs=_built_inputs(file.name, model),
        graph=None,
        opaque=f"it is a subclassed model ({type(model).__name__}), whose layers cannot be seen",
        notes=loadable.notes,
    )


def _as_functional(file: ModelFile, digest: str, graph: keras.Model, notes: tuple[str, ...]) -> LoadedModel:
    if len(graph.outputs) != 1:
        raise UnsuitableModelError(f"--model {file.name}: it has {len(graph.outputs)} outputs; give a model with one.")
    # A model may take or give its tensors by name, in a dictionary.
    graph = keras.Model(list(graph.inputs), graph.outputs[0], name=graph.name)
    inputs = tuple(_model_input(tensor) for tensor in graph.inputs)
    return LoadedModel(file.name, digest, _call_for_inference(graph), inputs, graph, "", notes)


class _WeightCounter:
    """Counts the weights of a model while it is built, and stops before TensorFlow takes memory for more than are allowed.

    A short config may ask for terabytes.

    Args:
        most: The largest number of weights.
        runs_own_code: Whether classes of the user's own are built, whose initializers may compute with NumPy.

    Attributes:
        exceeding: The number of weights that was too large; 0 while none was.
    """

    def __init__(self, most: int, runs_own_code: bool):
        self._most, self._runs_own_code = most, runs_own_code
        self._found, self.exceeding = 0, 0

    def __call__(self, create: Callable[..., Any], **arguments: Any) -> Any:
        """Creates a variable, as `tf.variable_creator_scope` asks for it."""
        self._found += self._count(arguments["initial_value"])
        if self._found > self._most:
            self.exceeding = self._found
            raise MemoryError("its config asks for too many weights")
        return create(**arguments)

    def _count(self, initial_value: Any) -> int:
        """Returns how many numbers a variable will hold; a graph tells it without computing them."""
        try:
            with tf.__internal__.FuncGraph("count_weights").as_default():
                value = initial_value() if callable(initial_value) else initial_value
                return int(tf.convert_to_tensor(value).shape.num_elements() or 0)
        except Exception:
            if self._runs_own_code:
                return 0
            raise


def _load_without_excess(file: ModelFile, path: str, custom_objects: dict[str, Any], options: ModelConfig) -> keras.Model:
    counter = _WeightCounter(
        _ALLOWED_WEIGHTS_PER_BYTE * file.weight_bytes + _ALWAYS_ALLOWED_WEIGHTS,
        runs_own_code=bool(custom_objects) or options.trust_model_code,
    )
    try:
        with tf.variable_creator_scope(counter):
            return _load_with_keras(file, path, custom_objects, options)
    finally:  # Keras passes over some exceptions, and wraps others.
        if counter.exceeding:
            raise PreflightError(
                f"--model {file.name}: its config asks for {counter.exceeding:,} weights or more, but it has "
                f"{file.weight_bytes:,} bytes of them, so it is either damaged or made to exhaust memory; don't trust it."
            ) from None


def _load_with_keras(file: ModelFile, path: str, custom_objects: dict[str, Any], options: ModelConfig) -> keras.Model:
    try:
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=not options.trust_model_code
        )
    except RecursionError:
        reason = "its layers are nested too deeply"
    except Exception as error:  # Keras raises every exception of its layers.
        reason = short_reason(error)
    if options.trust_model_code and "marshal" in reason:
        remedy = "a Lambda in it was written by another Python; say what it computes instead, with --lambda"
    else:
        remedy = "load it where it was trained, and save it again with model.save('model.keras') or model.export('folder')"
    origin = f", written by Keras {file.keras_version}," if file.keras_version else ""
    raise PreflightError(
        f"--model {file.name}: {file.kind.value}{origin} that Keras {keras.__version__} cannot load ({reason}); {remedy}."
    )


def _model_input(tensor: Any) -> ModelInput:
    return ModelInput(tensor.name, tuple(tensor.shape[1:]), str(tensor.dtype), tensor.shape[0])


def _call_for_inference(model: keras.Model) -> Callable[..., Any]:
    return lambda *tensors: model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)


def _built_inputs(name: str, model: keras.Model) -> tuple[ModelInput, ...]:
    """Returns the inputs that a subclassed model was built with."""
    shapes = (model.get_build_config() or {}).get("input_shape") or (model.get_build_config() or {}).get("shapes_dict")
    if isinstance(shapes, dict):
        shapes = list(shapes.values())
    if not shapes:
        raise PreflightError(
            f"--model {name}: it does not say what inputs it takes; write it with model.export('folder'), "
            "which keeps a signature, and give that folder."
        )
    shapes = shapes if isinstance(shapes[0], (list, tuple)) else [shapes]
    return tuple(ModelInput(f"input {number}", tuple(shape[1:]), "float32") for number, shape in enumerate(shapes))
