"""Loads Keras' own formats: `.keras` archives and HDF5 files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.legacy.saving.saving_utils import model_from_config
from keras.src.saving.serialization_lib import SafeModeScope

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, UnsuitableModelError, short_reason
from batchverify.model.file import ModelFile, ModelKind
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.model.rewrite import LoadableConfig, prepare_config
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
    _refuse_more_weights_than_stored(file, loadable, options)
    with temporary_folder() as folder:
        if loadable.changed or file.holds_weights_only:
            path = file.rewritten(loadable.config, folder)
        else:  # Keras tells the format from the suffix of the name.
            path = os.path.join(folder, _FILE_NAMES[file.kind])
            os.symlink(os.path.abspath(file.local), path)
        model = _load_with_keras(file, path, loadable.custom_objects, options)
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


def _refuse_more_weights_than_stored(file: ModelFile, loadable: LoadableConfig, options: ModelConfig) -> None:
    """Builds the model without memory for its weights, to count them, because a short config may ask for terabytes."""
    build = model_from_config if file.kind is ModelKind.HDF5 else keras.saving.deserialize_keras_object
    without_memory, as_trusted = keras.StatelessScope(initialize_variables=False), SafeModeScope(not options.trust_model_code)
    with without_memory, as_trusted, contextlib.suppress(Exception):  # Loading reports what is wrong.
        build(json.loads(json.dumps(loadable.config)), custom_objects=loadable.custom_objects)
    variables = global_state.get_global_attribute("uninitialized_variables") or []
    numbers = sum(math.prod(variable.shape) for variable in variables)
    global_state.set_global_attribute("uninitialized_variables", [])
    if numbers > _ALLOWED_WEIGHTS_PER_BYTE * file.weight_bytes + _ALWAYS_ALLOWED_WEIGHTS:
        raise PreflightError(
            f"--model {file.name}: its config asks for {numbers:,} weights, but it has {file.weight_bytes:,} bytes of them, so "
            "it is either damaged or made to exhaust memory; don't trust it."
        )


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
