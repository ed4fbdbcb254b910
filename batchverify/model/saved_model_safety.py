"""Whether a SavedModel may be loaded although nobody trusts it: every operation in it must be one that is allowed.

TensorFlow runs a part of a SavedModel when it loads it, and the rest when it is called. So all operations are looked at before
anything is loaded: those of the graph, those of every function, and those of graphs that are hidden in strings and constants.
What `saved_model_savers` takes out before is never loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tensorflow.core.framework import function_pb2, graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from batchverify.model.allowed_operations import ALLOWED_OPERATIONS
from batchverify.model.saved_model_savers import function_names, reads_own_files

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
    called = [name for node in function.node_def for name in function_names(node.attr.values())]
    library = function_pb2.FunctionDefLibrary(function=[function])
    hidden = (name for text in _strings_of_library(library) for name in _hidden_operations(text))
    return next(iter([*nodes, *called]), None) or next(hidden, None)


def _forbidden_operations(meta_graph: Any) -> Iterator[str]:
    graph = meta_graph.graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    for node in graph.node:
        if not _is_allowed(node.op, functions) and not reads_own_files(node, meta_graph):
            yield node.op
    for name, function in functions.items():
        yield from _shadowed_operation(name)
        yield from (node.op for node in function.node_def if not _is_allowed(node.op, functions))
    for text in _strings_of_graph(graph):
        yield from _hidden_operations(text)


def _is_allowed(operation: str, functions: Mapping[str, Any]) -> bool:
    return operation in ALLOWED_OPERATIONS or operation in functions


def _shadowed_operation(function: str) -> Iterator[str]:
    """Yields the name of a function that is also the name of an operation which is not allowed."""
    if function not in ALLOWED_OPERATIONS and op_def_registry.get(function) is not None:
        yield function


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
