"""Loads SavedModel folders: checks them first, then chooses a signature."""

from __future__ import annotations

import os
import re
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.model.file import ModelFile
from batchverify.model.loaded import LoadedModel, ModelInput

# The operations with side effects that a trained network needs: its variables, its tables, calls of its own functions.
_STATEFUL_AND_HARMLESS = re.compile(
    r"(VarHandleOp|VarIsInitializedOp|ReadVariableOp|AssignVariableOp|Assign(Add|Sub)VariableOp|DestroyResourceOp"
    r"|ResourceGather(Nd)?|(Stateful)?PartitionedCall|RestoreV2|NoOp|DisableCopyOnRead|Placeholder\w*|(Mutable)?HashTable\w*|AnonymousHashTable"
    r"|LookupTable\w+|InitializeTable(V2)?|Random\w+|Stateful\w+|Multinomial|TruncatedNormal|ParameterizedTruncatedNormal"
    r"|Variable(V2)?|While|If|Case|Assert|StatelessWhile|TensorList\w+|RngReadAndSkip|RngSkip)$"
)
_READS_OR_WRITES_FILES = {"ReadFile", "WriteFile", "MatchingFiles", "WholeFileReader", "InitializeTableFromTextFile"}
_CHECKPOINTING = {"SaveV2", "MergeV2Checkpoints", "ShardedFilename"}


def load_saved_model(file: ModelFile, options: ModelConfig, digest: str) -> LoadedModel:
    """Loads a SavedModel folder.

    Args:
        file: The folder.
        options: The user's statements about the model.
        digest: The SHA-256 of the folder's files, in hex.

    Raises:
        PreflightError: If it cannot be loaded, or must not be.
    """
    _check_saved_model(file, options)
    try:
        loaded = tf.saved_model.load(file.local)
    except Exception as error:  # TensorFlow raises any exception on a broken graph.
        raise PreflightError(
            f"--model {file.name}: a SavedModel that TensorFlow {tf.__version__} cannot load ({short_reason(error)}); "
            "copy the folder again, whole, or export it again."
        ) from None
    return _call_signature(file, loaded, _choose_signature(file.name, sorted(loaded.signatures), options.signature), digest)


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


def refuse_layer_options(name: str, options: ModelConfig) -> None:
    """Refuses options about layers, which a SavedModel does not show."""
    layer_options = {
        "--lambda": options.lambdas,
        "--custom-object": options.custom_objects,
        "--mend-shared-encoder": options.mend_shared_encoder,
    }
    for option, value in layer_options.items():
        if value:
            raise PreflightError(
                f"{option} is for .keras and .h5 files, whose layers are named; --model {name} is a SavedModel, leave it out."
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
        raise PreflightError(f"--model {model}: it has the signatures {existing}; choose one with --signature.")
    raise PreflightError(f"--signature is '{wanted}', but --model {model} has {existing}.")


def _check_saved_model(file: ModelFile, options: ModelConfig) -> None:
    """Refuses a graph that could touch files or run Python."""
    saved = saved_model_pb2.SavedModel()
    try:
        with open(os.path.join(file.local, "saved_model.pb"), "rb") as stream:
            saved.ParseFromString(stream.read())
    except Exception as error:  # protobuf has errors of its own.
        raise PreflightError(
            f"--model {file.name}: saved_model.pb is damaged ({short_reason(error)}); copy the folder again."
        ) from None
    if options.trust_model_code:
        return
    for meta_graph in saved.meta_graphs:
        if operation := _harmful_operation(meta_graph):
            raise PreflightError(
                f"--model {file.name}: its graph holds the operation {operation}, which no trained network needs and which can "
                "touch files or run code; add --trust-model-code if you trust whoever made it."
            )


def _harmful_operation(meta_graph: Any) -> str | None:
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    checkpointing = {saver.save_tensor_name.split(":")[0], saver.restore_op_name}
    saving = _called([node for node in graph.node if node.name in checkpointing], functions)
    others = [node for node in graph.node if node.name not in checkpointing]
    others += [node for name, nodes in functions.items() if name not in saving for node in nodes]
    # Functions that write checkpoints are allowed if nothing else calls them.
    saving -= _called(others, functions)
    for nodes, only_saves in [(graph.node, False), *((nodes, name in saving) for name, nodes in functions.items())]:
        for node in nodes:
            if node.op not in functions and not _is_harmless(node.op) and not (only_saves and node.op in _CHECKPOINTING):
                return str(node.op)
    return None


def _called(nodes: Any, functions: dict[str, Any]) -> set[str]:
    """Returns the names of all functions that `nodes` call, directly or through other functions."""
    called: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        named = [attribute.func.name for attribute in node.attr.values() if attribute.HasField("func")]
        named += [function.name for attribute in node.attr.values() for function in attribute.list.func]
        for name in [node.op, *named]:
            if name in functions and name not in called:
                called.add(name)
                pending += functions[name]
    return called


def _is_harmless(operation: str) -> bool:
    if operation in _READS_OR_WRITES_FILES:
        return False
    definition = op_def_registry.get(operation)
    if definition is None or not definition.is_stateful:
        return "PyFunc" not in operation and "File" not in operation
    return bool(_STATEFUL_AND_HARMLESS.match(operation))
