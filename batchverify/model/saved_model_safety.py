"""Whether a SavedModel may be loaded although nobody trusts it: every operation in it must be one that is allowed.

TensorFlow runs a part of a SavedModel when it loads it, and the rest when it is called. So all operations are looked at before
anything is loaded: those of the graph, those of every function, and those of graphs that are hidden in strings and constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tensorflow.core.framework import function_pb2, graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from batchverify.model.allowed_operations import ALLOWED_OPERATIONS, RESTORING_OPERATION, SAVING_OPERATIONS

# What a string may hide. The smallest message with an operation in it is longer than this.
_HIDING_MESSAGES = (
    graph_pb2.GraphDef, function_pb2.FunctionDef, function_pb2.FunctionDefLibrary, meta_graph_pb2.MetaGraphDef,
    saved_model_pb2.SavedModel,
)  # fmt: skip
_SHORTEST_MESSAGE_BYTES = 6


def find_forbidden_operation(saved: Any) -> str | None:
    """Returns the name of an operation in a `SavedModel` message that nobody allowed; None if there is none."""
    return next((name for meta_graph in saved.meta_graphs for name in _forbidden_operations(meta_graph)), None)


def find_forbidden_in_function(function: Any) -> str | None:
    """Returns the name of an operation in a `FunctionDef` message that nobody allowed; None if there is none.

    The function stands alone, so that a call of another function, or of itself, is no operation that is allowed.
    """
    nodes = [node.op for node in function.node_def if node.op not in ALLOWED_OPERATIONS]
    called = [name for node in function.node_def for name in _function_names(node.attr.values())]
    library = function_pb2.FunctionDefLibrary(function=[function])
    hidden = (name for text in _strings_of_library(library) for name in _hidden_operations(text))
    return next(iter([*nodes, *called]), None) or next(hidden, None)


def _forbidden_operations(meta_graph: Any) -> Iterator[str]:
    graph = meta_graph.graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    saving, restoring = _saver_functions(meta_graph, functions)
    for node in graph.node:
        if not _is_allowed(node.op, functions) and not _restores_at_top(node, meta_graph):
            yield node.op
    for name, function in functions.items():
        yield from _shadowed_operation(name)
        arguments = {argument.name for argument in function.signature.input_arg}
        for node in function.node_def:
            is_saver = (name in saving and node.op in SAVING_OPERATIONS) or (
                # It reads the file that it is told to read, and not one that the model names.
                name in restoring and node.op == RESTORING_OPERATION and node.input[:1] and node.input[0] in arguments
            )
            if not is_saver and not _is_allowed(node.op, functions):
                yield node.op
    for text in _strings_of_graph(graph):
        yield from _hidden_operations(text)


def _is_allowed(operation: str, functions: Mapping[str, Any]) -> bool:
    return operation in ALLOWED_OPERATIONS or operation in functions


def _shadowed_operation(function: str) -> Iterator[str]:
    """Yields the name of a function that is also the name of an operation which is not allowed."""
    if function not in ALLOWED_OPERATIONS and op_def_registry.get(function) is not None:
        yield function


def _saver_functions(meta_graph: Any, functions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Returns the functions that only save, and those that only restore, the model's own variables.

    Whatever else calls such a function, a signature too, could have it write or read any file; then it is neither.
    """
    saver, graph = meta_graph.saver_def, meta_graph.graph_def
    unused = {node.name for node in graph.node} - _used_nodes(meta_graph)
    save = [node for node in graph.node if node.name in unused & {_node_of(saver.save_tensor_name)}]
    restore = [
        node
        for node in graph.node
        if node.name in unused & {_node_of(saver.restore_op_name)}
        and node.input[:1]
        and _is_file_name(node.input[0], meta_graph)
    ]
    saving, restoring = (_called_functions(nodes, functions) for nodes in (save, restore))
    own = {node.name for node in (*save, *restore)}
    others = [node for node in graph.node if node.name not in own]
    others += [node for name, f in functions.items() if name not in saving | restoring for node in f.node_def]
    elsewhere = _called_functions(others, functions) | _called_by_objects(meta_graph, functions)
    return saving - elsewhere - restoring, restoring - elsewhere - saving


def _used_nodes(meta_graph: Any) -> set[str]:
    """Returns the names of the nodes that other nodes, signatures and collections (the steps of a start-up among them) name."""
    used = {_node_of(tensor) for node in meta_graph.graph_def.node for tensor in node.input}
    for signature in meta_graph.signature_def.values():
        used |= {_node_of(tensor.name) for tensor in [*signature.inputs.values(), *signature.outputs.values()]}
    for collection in meta_graph.collection_def.values():
        used |= {_node_of(name) for name in collection.node_list.value}
        used |= {_node_of(value.decode(errors="replace")) for value in collection.bytes_list.value}
    return used


def _restores_at_top(node: Any, meta_graph: Any) -> bool:
    """Returns whether a node of the graph itself restores variables from the model's own files, as files of TensorFlow 1 do."""
    return bool(node.op == RESTORING_OPERATION and node.input[:1] and _is_file_name(node.input[0], meta_graph))


def _is_file_name(tensor: str, meta_graph: Any) -> bool:
    """Returns whether a tensor is the one by which the loader says where the model's own variables lie."""
    name = _node_of(meta_graph.saver_def.filename_tensor_name)
    named = [node for node in meta_graph.graph_def.node if node.name == name]
    return bool(name) and _node_of(tensor) == name and all(node.op.startswith("Placeholder") for node in named)


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _called_by_objects(meta_graph: Any, functions: Mapping[str, Any]) -> set[str]:
    """Returns the functions of a SavedModel's objects: signatures, methods, initialisers, savers of their own."""
    objects = meta_graph.object_graph_def
    roots = set(objects.concrete_functions)
    for node in objects.nodes:
        roots |= set(node.function.concrete_functions) | {node.bare_concrete_function.concrete_function_name}
    roots &= set(functions)
    return roots | _called_functions((node for name in roots for node in functions[name].node_def), functions)


def _called_functions(nodes: Iterable[Any], functions: Mapping[str, Any]) -> set[str]:
    """Returns the names of all functions that `nodes` call, directly or not."""
    called: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        for name in {node.op, *_function_names(node.attr.values())} & set(functions) - called:
            called.add(name)
            waiting += functions[name].node_def
    return called


def _function_names(attributes: Iterable[Any]) -> Iterator[str]:
    for attribute in attributes:
        for function in [attribute.func, *attribute.list.func]:
            yield function.name
            yield from _function_names(function.attr.values())


def _strings_of_graph(graph: Any) -> Iterator[bytes]:
    """Yields every string and every constant's bytes in a graph and its functions."""
    for node in graph.node:
        yield from _strings(node.attr.values())
    yield from _strings_of_library(graph.library)


def _strings_of_library(library: Any) -> Iterator[bytes]:
    for function in library.function:
        yield from _strings(function.attr.values())
        for node in function.node_def:
            yield from _strings(node.attr.values())


def _strings(attributes: Iterable[Any]) -> Iterator[bytes]:
    for attribute in attributes:
        yield attribute.s
        yield from attribute.list.s
        for tensor in [attribute.tensor, *attribute.list.tensor]:
            yield tensor.tensor_content
            yield from tensor.string_val
        for function in [attribute.func, *attribute.list.func]:
            yield from _strings(function.attr.values())


def _hidden_operations(text: bytes) -> Iterator[str]:
    """Yields the operations which are not allowed of a graph that is hidden in a string, and in the strings of that graph."""
    waiting = [text]
    while waiting:
        data = waiting.pop()
        if len(data) < _SHORTEST_MESSAGE_BYTES:
            continue
        for graph in _hidden_graphs(data):
            nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
            yield from (node.op for node in nodes if node.op not in ALLOWED_OPERATIONS and op_def_registry.get(node.op))
            waiting += [inner for inner in _strings_of_graph(graph) if len(inner) < len(data)]


def _hidden_graphs(data: bytes) -> Iterator[Any]:
    """Yields the graphs that `data` parses as; most strings parse as none, and some text parses as one without operations."""
    for kind in _HIDING_MESSAGES:
        try:
            message = kind.FromString(data)
        except Exception:  # protobuf's own errors: it is no such message
            continue
        if kind is graph_pb2.GraphDef:
            yield message
        elif kind is function_pb2.FunctionDef:
            yield graph_pb2.GraphDef(library=function_pb2.FunctionDefLibrary(function=[message]))
        elif kind is function_pb2.FunctionDefLibrary:
            yield graph_pb2.GraphDef(library=message)
        elif kind is meta_graph_pb2.MetaGraphDef:
            yield message.graph_def
        else:
            yield from (meta_graph.graph_def for meta_graph in message.meta_graphs)
