"""From a model file to something that can be called: a Keras model, or a SavedModel's signature.

Code inside of a model file runs only where the user trusts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from keras.src.backend.common import global_state
from keras.src.legacy.saving.saving_utils import model_from_config
from keras.src.saving.serialization_lib import SafeModeScope
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.modelfile import Kind, ModelFile, Prepared, open_model_file, prepare_config

_LOG = logging.getLogger(__name__)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_WEIGHTS_ALWAYS_FINE = 2**22
_SUFFIX = {Kind.KERAS: "model.keras", Kind.HDF5: "model.h5"}


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: as the model calls it.
        shape: without the batch; None where a length is open.
        dtype: of its tensors.
        batch: how many rows it takes at once, where that is fixed.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    batch: int | None = None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can be called.

    Attributes:
        name: what the user calls it.
        digest: SHA-256 of the file, or of the folder's files with their names, in hex.
        call: tensors in the order of `inputs` to one tensor.
        inputs: what it takes.
        graph: the functional Keras model, where the layers can be seen; else None.
        opaque: why they can't, where they can't.
        notes: what was decided, one sentence each.
    """

    name: str
    digest: str
    call: Callable[..., Any]
    inputs: tuple[ModelInput, ...]
    graph: keras.Model | None
    opaque: str
    notes: tuple[str, ...]


def load_file(options: ModelConfig) -> LoadedModel:
    """Loads the model that `options` name, or the embedded one.

    Raises:
        PreflightError: if it can't be, or must not be; in one sentence, with the remedy.
    """
    with local_model(options.model) as local:
        name = options.model or "embedded"
        file = open_model_file(name, local)
        try:
            digest = _digest(local)
        except OSError as error:
            raise PreflightError(f"--model {name}: it cannot be read ({error.strerror}); copy it again, whole.") from None
        if options.trust_model_code:
            _LOG.warning("--trust-model-code: whatever code %s holds runs with your rights on every worker.", name)
        if file.kind is Kind.SAVED_MODEL:
            _refuse_useless(name, options)
            return _load_saved_model(file, options, digest)
        return _load_keras(file, options, digest)


@contextlib.contextmanager
def local_model(path: str | None) -> Iterator[str]:
    """Gives a local path of the model, wherever it is stored."""
    if path is None:
        with importlib.resources.as_file(importlib.resources.files("batchverify.demo") / "sane.keras") as local:
            yield str(local)
    elif "://" not in path:
        if not os.path.exists(path):
            raise PreflightError(f"--model {path}: there is no such file; check the path.")
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise PreflightError(f"--model {path}: it is neither a file nor a folder; give a model file.")
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="batchverify-") as folder:
            yield _download(path.rstrip("/"), os.path.join(folder, "model"))


def _download(uri: str, local: str) -> str:
    try:
        # Of a folder, a store knows only the files in it.
        found = [file.path for match in FileSystems.match([f"{uri}/**"]) for file in match.metadata_list]
        for path in found or [uri]:
            target = os.path.normpath(local + path.removeprefix(uri))
            if target != local and not target.startswith(local + os.sep):
                raise PreflightError(f"--model {uri}: the name {path} points outside of the folder; don't trust it.")
            _copy(path, target)
    except PreflightError:
        raise
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(
            f"--model {uri}: it cannot be fetched ({short_reason(error)}); check the URI and your access."
        ) from None
    return local


def _copy(uri: str, local: str) -> None:
    os.makedirs(os.path.dirname(local), exist_ok=True)
    with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as source, open(local, "wb") as copy:
        while data := source.read(2**20):
            copy.write(data)


def _digest(path: str) -> str:
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    together = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file_path = os.path.join(folder, name)
            if not os.path.isfile(file_path):
                raise PreflightError(f"--model {path}: {file_path} is no file; copy the folder again, whole.")
            with open(file_path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            together.update(os.fsencode(os.path.relpath(file_path, path)) + b"\0" + digest)
    return together.hexdigest()


# Keras' own formats


def _load_keras(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    prepared = prepare_config(file, options, _is_known, _operation_module)
    _refuse_more_weights_than_stored(file, prepared, options)
    with tempfile.TemporaryDirectory(prefix="batchverify-") as folder:
        if prepared.changed:
            path = file.rewritten(prepared.config, folder)
        else:  # Keras goes by the name's ending.
            path = os.path.join(folder, _SUFFIX[file.kind])
            os.symlink(os.path.abspath(file.local), path)
        model = _keras_load(file, path, prepared.custom_objects, options)
    if getattr(model, "inputs", None) and getattr(model, "outputs", None):
        graph = getattr(model, "_functional", None) or model
        if len(graph.outputs) != 1:
            raise PreflightError(f"--model {file.name}: it has {len(graph.outputs)} outputs; give a model with one.")
        inputs = tuple(_keras_input(tensor) for tensor in graph.inputs)
        return LoadedModel(file.name, digest, _keras_call(graph), inputs, graph, "", prepared.notes)
    return LoadedModel(
        file.name, digest, _keras_call(model), _built_inputs(file.name, model), None,
        f"it is a subclassed model ({type(model).__name__}), whose layers can't be told apart", prepared.notes,
    )  # fmt: skip


def _refuse_more_weights_than_stored(file: ModelFile, prepared: Prepared, options: ModelConfig) -> None:
    """Builds the model without any memory for its weights, to count them: a short config may ask for terabytes."""
    build = model_from_config if file.kind is Kind.HDF5 else keras.saving.deserialize_keras_object
    without_memory, as_trusted = keras.StatelessScope(initialize_variables=False), SafeModeScope(not options.trust_model_code)
    with without_memory, as_trusted, contextlib.suppress(Exception):  # What is wrong, loading will say.
        build(json.loads(json.dumps(prepared.config)), custom_objects=prepared.custom_objects)
    waiting = global_state.get_global_attribute("uninitialized_variables") or []
    numbers = sum(math.prod(variable.shape) for variable in waiting)
    global_state.set_global_attribute("uninitialized_variables", [])
    if numbers > 8 * file.weight_bytes + _WEIGHTS_ALWAYS_FINE:
        raise PreflightError(
            f"--model {file.name}: its config asks for {numbers:,} weights, but it has {file.weight_bytes:,} bytes of them, so "
            "it is a bomb or not whole; don't trust it."
        )


def _keras_load(file: ModelFile, path: str, custom_objects: dict[str, Any], options: ModelConfig) -> keras.Model:
    try:
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=not options.trust_model_code
        )
    except RecursionError:
        words = "its layers are nested too deeply"
    except Exception as error:  # Keras raises whatever its layers do.
        words = _brief(error)
    if options.trust_model_code and "marshal" in words:
        remedy = "a Lambda in it was written by another Python; say what it computes instead, with --lambda"
    else:
        remedy = "load it where it was trained, and save it again with model.save('model.keras') or model.export('folder')"
    wrote = f", written by Keras {file.keras_version}," if file.keras_version else ""
    raise PreflightError(
        f"--model {file.name}: {file.kind.value}{wrote} that Keras {keras.__version__} cannot load ({words}); {remedy}."
    )


def _is_known(class_name: str) -> bool:
    return hasattr(keras.layers, class_name) or class_name in ("Functional", "Model", "Sequential", "InputLayer")


def _operation_module(class_name: str) -> str | None:
    for module in (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.math, keras.src.ops.core, keras.src.ops.linalg):
        if isinstance(getattr(module, class_name, None), type):
            return module.__name__
    return None


def _keras_input(tensor: Any) -> ModelInput:
    return ModelInput(tensor.name, tuple(tensor.shape[1:]), str(tensor.dtype), tensor.shape[0])


def _keras_call(model: keras.Model) -> Callable[..., Any]:
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


# SavedModels

# Operations with side effects that a trained network needs: its variables, its tables, calls of its own functions.
_STATEFUL_AND_HARMLESS = re.compile(
    r"(VarHandleOp|VarIsInitializedOp|ReadVariableOp|AssignVariableOp|Assign(Add|Sub)VariableOp|DestroyResourceOp"
    r"|ResourceGather(Nd)?|(Stateful)?PartitionedCall|RestoreV2|NoOp|DisableCopyOnRead|Placeholder\w*|(Mutable)?HashTable\w*|AnonymousHashTable"
    r"|LookupTable\w+|InitializeTable(V2)?|Random\w+|Stateful\w+|Multinomial|TruncatedNormal|ParameterizedTruncatedNormal"
    r"|Variable(V2)?|While|If|Case|Assert|StatelessWhile|TensorList\w+|RngReadAndSkip|RngSkip)$"
)
_READS_OR_WRITES_FILES = {"ReadFile", "WriteFile", "MatchingFiles", "WholeFileReader", "InitializeTableFromTextFile"}
_CHECKPOINTING = {"SaveV2", "MergeV2Checkpoints", "ShardedFilename"}


def _load_saved_model(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    _check_saved_model(file, options)
    try:
        loaded = tf.saved_model.load(file.local)
    except Exception as error:  # TensorFlow raises whatever the graph leads it to.
        raise PreflightError(
            f"--model {file.name}: a SavedModel that TensorFlow {tf.__version__} cannot load ({_brief(error)}); "
            "copy the folder again, whole, or export it again."
        ) from None
    key = _signature_name(file.name, sorted(loaded.signatures), options.signature)
    function = loaded.signatures[key]
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    if len(outputs) != 1:
        found = ", ".join(sorted(outputs)) or "none"
        raise PreflightError(f"--model {file.name}: its signature '{key}' has the outputs {found}; give a signature with one.")
    names, output = list(inputs), next(iter(outputs))

    def call(*tensors: Any) -> Any:
        assert loaded is not None  # The variables live as long as it does.
        return function(**dict(zip(names, tensors, strict=True)))[output]

    specs = tuple(_saved_input(file.name, name, spec) for name, spec in inputs.items())
    note = f"Calls the signature '{key}' of the SavedModel."
    return LoadedModel(file.name, digest, call, specs, None, "a SavedModel does not show its layers", (note,))


def _refuse_useless(name: str, options: ModelConfig) -> None:
    given = {
        "--lambda": options.lambdas,
        "--custom-object": options.custom_objects,
        "--mend-shared-encoder": options.mend_shared_encoder,
    }
    for option, value in given.items():
        if value:
            raise PreflightError(
                f"{option} is for .keras and .h5 files, whose layers are named; --model {name} is a SavedModel, leave it out."
            )


def _saved_input(model: str, name: str, spec: Any) -> ModelInput:
    if spec.shape.rank is None:
        raise PreflightError(
            f"--model {model}: its input '{name}' has no shape; export it with an input signature that has one."
        )
    return ModelInput(name, tuple(spec.shape[1:]), spec.dtype.name, spec.shape[0])


def _signature_name(model: str, keys: list[str], wanted: str | None) -> str:
    if wanted is None and "serving_default" in keys:
        return "serving_default"
    if wanted is None and len(keys) == 1:
        return keys[0]
    if wanted in keys:
        return str(wanted)
    found = ", ".join(f"'{key}'" for key in keys)
    if not keys:
        raise PreflightError(f"--model {model}: the SavedModel has no signature; export it again, with model.export('folder').")
    if wanted is None:
        raise PreflightError(f"--model {model}: it has the signatures {found}; choose one with --signature.")
    raise PreflightError(f"--signature is '{wanted}', but --model {model} has {found}.")


def _check_saved_model(file: ModelFile, options: ModelConfig) -> None:
    """Refuses a graph that could touch files or run Python."""
    saved = saved_model_pb2.SavedModel()
    try:
        with open(os.path.join(file.local, "saved_model.pb"), "rb") as stream:
            saved.ParseFromString(stream.read())
    except Exception as error:  # protobuf's own errors
        raise PreflightError(
            f"--model {file.name}: saved_model.pb is damaged ({_brief(error)}); copy the folder again."
        ) from None
    if options.trust_model_code:
        return
    for meta_graph in saved.meta_graphs:
        if found := _harmful_operation(meta_graph):
            raise PreflightError(
                f"--model {file.name}: its graph holds the operation {found}, which no trained network needs and which can "
                "touch files or run code; add --trust-model-code if you trust whoever made it."
            )


def _harmful_operation(meta_graph: Any) -> str | None:
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    checkpointing = {saver.save_tensor_name.split(":")[0], saver.restore_op_name}
    saving = _called([node for node in graph.node if node.name in checkpointing], functions)
    others = [node for node in graph.node if node.name not in checkpointing]
    others += [node for name, nodes in functions.items() if name not in saving for node in nodes]
    # What writes checkpoints may be there, but only where nothing else calls it.
    saving -= _called(others, functions)
    for nodes, only_saves in [(graph.node, False), *((nodes, name in saving) for name, nodes in functions.items())]:
        for node in nodes:
            if node.op not in functions and not _is_harmless(node.op) and not (only_saves and node.op in _CHECKPOINTING):
                return node.op
    return None


def _called(nodes: Any, functions: dict[str, Any]) -> set[str]:
    """Returns the names of all functions that `nodes` call, directly or not."""
    seen: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        named = [attribute.func.name for attribute in node.attr.values() if attribute.HasField("func")]
        named += [function.name for attribute in node.attr.values() for function in attribute.list.func]
        for name in [node.op, *named]:
            if name in functions and name not in seen:
                seen.add(name)
                waiting += functions[name]
    return seen


def _is_harmless(operation: str) -> bool:
    if operation in _READS_OR_WRITES_FILES:
        return False
    definition = op_def_registry.get(operation)
    if definition is None or not definition.is_stateful:
        return "PyFunc" not in operation and "File" not in operation
    return bool(_STATEFUL_AND_HARMLESS.match(operation))


def _brief(error: BaseException) -> str:
    """Returns the first line that says something."""
    lines = [_ANSI.sub("", line).strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when calling")] or lines
    lines = [
        line.removeprefix("Exception encountered: ") for line in lines if line.startswith("Exception encountered: ")
    ] or lines
    return lines[0][:200] if lines else type(error).__name__
