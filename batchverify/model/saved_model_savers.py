"""What saves and restores variables in a SavedModel: loading needs no more than restoring, from its own file.

These operations write and read files. A file that TensorFlow 2 wrote is loaded without any of them; in one of TensorFlow 1, the
loader runs those that restore, and says which file they read.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2

_RESTORING_OPERATION = "RestoreV2"
_SAVING_OPERATIONS = frozenset({"MergeV2Checkpoints", "SaveV2", "ShardedFilename"})
_ASSETS = "saved_model_assets"


def without_savers(saved: Any) -> Any:
    """Returns a copy of a `SavedModel` message that is loaded in the same way, and saves nothing.

    What something else than the saver uses stays, and is an operation that is not allowed.
    """
    copy = saved_model_pb2.SavedModel.FromString(saved.SerializeToString())
    has_objects = len(copy.meta_graphs) == 1 and copy.meta_graphs[0].HasField("object_graph_def")  # As TensorFlow decides it.
    for meta_graph in copy.meta_graphs:
        _remove_saver(meta_graph, has_objects)
        if not has_objects:
            _leave_file_name_to_loader(meta_graph)
    return copy


def reads_own_files(node: Any, meta_graph: Any) -> bool:
    """Returns whether a node of the graph restores variables from the file that the loader names, as files of TensorFlow 1 do.

    A placeholder has no value of its own, so that it reads nothing where something else than the loader runs it.
    """
    if node.op != _RESTORING_OPERATION or not node.input[:1] or meta_graph.HasField("object_graph_def"):
        return False
    name = _node_of(meta_graph.saver_def.filename_tensor_name)
    named = [other for other in meta_graph.graph_def.node if other.name == name]
    return bool(named) and _node_of(node.input[0]) == name and all(other.op == "Placeholder" for other in named)


def _remove_saver(meta_graph: Any, with_restoring: bool) -> None:
    """Removes the nodes that only save, or also those that only restore, and the functions that nothing else calls."""
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = _nodes_of_end(saver.save_tensor_name, _SAVING_OPERATIONS, meta_graph, functions)
    if with_restoring:
        nodes |= _nodes_of_end(saver.restore_op_name, frozenset({_RESTORING_OPERATION}), meta_graph, functions)
    called = _called_functions((node for node in graph.node if node.name in nodes), functions)
    kept = [node for node in graph.node if node.name not in nodes]
    others = kept + [node for name, function in functions.items() if name not in called for node in function.node_def]
    unused = called - _called_functions(others, functions) - _called_by_objects(meta_graph, functions)
    _keep(graph.node, kept)
    _keep(graph.library.function, [function for name, function in functions.items() if name not in unused])


def _keep(field: Any, kept: Sequence[Any]) -> None:
    copies = [type(message).FromString(message.SerializeToString()) for message in kept]
    del field[:]
    field.extend(copies)


def _nodes_of_end(end: str, operations: Set[str], meta_graph: Any, functions: Mapping[str, Any]) -> set[str]:
    """Returns the names of the nodes from `operations` to a saver's `end`; none if something else uses one of them."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    inputs = {name: {_node_of(tensor) for tensor in node.input} for name, node in nodes.items()}
    before = _reached({_node_of(end)} & set(nodes), inputs) & set(nodes)
    holders = _holders(operations, functions)
    first = {name for name in before if nodes[name].op in operations or not holders.isdisjoint(_calls(nodes[name]))}
    found = _reached(first, _turned_round(inputs)) & before
    used_by_others = {name for node, names in inputs.items() if node not in found for name in names}
    return found if found.isdisjoint(used_by_others | _named_elsewhere(meta_graph)) else set()


def _holders(operations: Set[str], functions: Mapping[str, Any]) -> set[str]:
    """Returns the names of the functions that hold one of `operations`, or call one that does."""
    first = {name for name, function in functions.items() if any(node.op in operations for node in function.node_def)}
    return _reached(first, _turned_round(_call_graph(functions)))


def _reached(starts: Set[str], leads_to: Mapping[str, Set[str]]) -> set[str]:
    """Returns `starts` and all names that they lead to, directly or not."""
    reached, waiting = set(starts), list(starts)
    while waiting:
        new = leads_to.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def _turned_round(leads_to: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    comes_from: dict[str, set[str]] = collections.defaultdict(set)
    for name, others in leads_to.items():
        for other in others:
            comes_from[other].add(name)
    return comes_from


def _named_elsewhere(meta_graph: Any) -> set[str]:
    """Returns the names of the nodes that signatures and collections (the steps of a start-up among them) name."""
    names: set[str] = set()
    for signature in meta_graph.signature_def.values():
        names |= {_node_of(tensor.name) for tensor in [*signature.inputs.values(), *signature.outputs.values()]}
    for collection in meta_graph.collection_def.values():
        names |= {_node_of(name) for name in collection.node_list.value}
        names |= {_node_of(value.decode(errors="replace")) for value in collection.bytes_list.value}
    return names


def _leave_file_name_to_loader(meta_graph: Any) -> None:
    """Has the file that is restored be the one that the loader says: not one that the model has for it, and no asset."""
    name = _node_of(meta_graph.saver_def.filename_tensor_name)
    for node in meta_graph.graph_def.node:
        if node.name == name and node.op == "PlaceholderWithDefault":
            node.op = "Placeholder"
            del node.input[:]
    meta_graph.ClearField("asset_file_def")
    meta_graph.collection_def.pop(_ASSETS, None)


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
    return _reached({name for node in nodes for name in _calls(node)}, _call_graph(functions)) & set(functions)


def _call_graph(functions: Mapping[str, Any]) -> dict[str, set[str]]:
    return {name: {called for node in function.node_def for called in _calls(node)} for name, function in functions.items()}


def _calls(node: Any) -> set[str]:
    """Returns the names of the functions that a node calls, and that of its operation, which may be a function's too."""
    return {node.op, *function_names(node.attr.values())}


def function_names(attributes: Iterable[Any]) -> Iterator[str]:
    """Yields the names of the functions that attributes of a node hold."""
    for attribute in attributes:
        for function in [attribute.func, *attribute.list.func]:
            yield function.name
            yield from function_names(function.attr.values())
