"""The graph in a Keras config: layers, their calls, and the references from one to another.

A reference is a list `[layer name, call, tensor]`; old configs add a dictionary of keyword arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def iterate_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the dictionaries of a model and of all layers in it, inner ones before outer ones."""
    settings = config.get("config")
    layers = settings if isinstance(settings, list) else settings.get("layers", []) if isinstance(settings, dict) else []
    for layer in layers:
        if isinstance(layer, dict) and "class_name" in layer:
            yield from iterate_layers(layer)
    if isinstance(settings, dict) and isinstance(settings.get("layer"), dict) and "class_name" in settings["layer"]:
        yield from iterate_layers(settings["layer"])
    yield config


def class_of(layer: dict[str, Any]) -> str:
    """Returns the registered name of a layer's class, or else the class name."""
    name: str = layer.get("registered_name") or layer["class_name"]
    return name


def name_of(layer: dict[str, Any]) -> str:
    """Returns a layer's name."""
    settings = layer.get("config")
    return str(layer.get("name") or (settings.get("name") if isinstance(settings, dict) else None) or layer["class_name"])


def joined_layers(layer: dict[str, Any]) -> list[str]:
    """Returns the names of the layers whose tensors a layer's first call takes."""
    nodes = layer.get("inbound_nodes") or []
    return [reference[0] for reference in iterate_references(nodes[0])] if nodes else []


def iterate_references(node: Any) -> Iterator[list[Any]]:
    """Yields all references in a part of a config; they may be changed in place."""
    if isinstance(node, dict) and node.get("class_name") == "__keras_tensor__":
        yield node["config"]["keras_history"]
    elif isinstance(node, dict):
        for child in node.values():
            yield from iterate_references(child)
    elif _is_reference(node):
        yield node
        if len(node) == 4:
            yield from iterate_references(node[3])
    elif isinstance(node, list):
        for child in node:
            yield from iterate_references(child)


def _is_reference(node: Any) -> bool:
    return (
        isinstance(node, list) and len(node) in (3, 4)
        and isinstance(node[0], str) and all(isinstance(part, int) for part in node[1:3])
    )  # fmt: skip


def join_tensors(layer: dict[str, Any]) -> None:
    """Turns every call of an old layer into one list of tensors, including tensors that were passed by name."""
    for number, node in enumerate(layer.get("inbound_nodes") or []):
        if isinstance(node, list):
            layer["inbound_nodes"][number] = [[*reference[:3], {}] for reference in iterate_references(node)]


def split_arguments(layer: dict[str, Any]) -> tuple[list[str | None], dict[str, Any]]:
    """Rewrites the call of a tf.keras TFOpLambda so that it takes tensors only.

    Returns:
        The names of the arguments that are tensors, as `TensorOperation` takes them, and the values of the others by name.
    """
    node = (layer.get("inbound_nodes") or [[]])[0]
    is_list = bool(node) and isinstance(node[0], list)
    first = node[0] if is_list else node
    keywords = dict(first[3]) if len(first) > 3 and isinstance(first[3], dict) else {}
    keywords.pop("name", None)
    order: list[str | None] = ["*"] if is_list and len(node) > 1 else [None]
    tensors = [reference[:3] for reference in (node if is_list else [node])]
    constants: dict[str, Any] = {}
    if first and first[0] == "_CONSTANT_VALUE":
        constants["x"], order, tensors = first[2], [], []
    for name, value in keywords.items():
        if _is_reference(value):
            order.append(name)
            tensors.append(value[:3])
        else:
            constants[name] = value
    layer["inbound_nodes"] = [[[*tensor, {}] for tensor in tensors]]
    return order, constants


def renumber_calls(model: dict[str, Any]) -> None:
    """Counts the calls of nested models from 0: tf.keras counted the construction of the model itself as call 0."""
    settings = model.get("config")
    if not isinstance(settings, dict) or "layers" not in settings:
        return
    references = list(iterate_references([layer.get("inbound_nodes", []) for layer in settings["layers"]]))
    references += list(iterate_references([settings.get("output_layers", [])]))
    for layer in settings["layers"]:
        calls = len(layer.get("inbound_nodes") or [])
        to_layer = [reference for reference in references if reference[0] == name_of(layer)]
        numbers = [reference[1] for reference in to_layer]
        if numbers and calls and max(numbers) == calls and min(numbers) >= 1:
            for reference in to_layer:
                reference[1] -= 1


def reachable_layers(config: dict[str, Any], references: list[list[Any]]) -> set[str]:
    """Returns the names of all layers that the referenced tensors are computed from."""
    nodes = {name_of(layer): layer.get("inbound_nodes") or [] for layer in config["config"]["layers"]}
    pending = [(reference[0], reference[1]) for reference in references]
    visited: set[tuple[str, int]] = set()
    while pending:
        name, number = call = pending.pop()
        if call not in visited and name in nodes:
            visited.add(call)
            if number < len(nodes[name]):
                pending += [(reference[0], reference[1]) for reference in iterate_references(nodes[name][number])]
    return {name for name, _ in visited}
