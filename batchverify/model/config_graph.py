"""The graph in a Keras config: layers, calls and the references between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def iterate_layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the dictionaries of a model and all layers in it, inner before outer."""
    inner = config.get("config")
    parts = inner if isinstance(inner, list) else inner.get("layers", []) if isinstance(inner, dict) else []
    for part in parts:
        if isinstance(part, dict) and "class_name" in part:
            yield from iterate_layers(part)
    if isinstance(inner, dict) and isinstance(inner.get("layer"), dict) and "class_name" in inner["layer"]:
        yield from iterate_layers(inner["layer"])
    yield config


def class_of(layer: dict[str, Any]) -> str:
    return layer.get("registered_name") or layer["class_name"]


def name_of(layer: dict[str, Any]) -> str:
    inner = layer.get("config")
    return str(layer.get("name") or (inner.get("name") if isinstance(inner, dict) else None) or layer["class_name"])


# The graph in a config. A reference is a list [layer name, call, tensor], in old configs with a dictionary behind it.


def joined_layers(layer: dict[str, Any]) -> list[str]:
    nodes = layer.get("inbound_nodes") or []
    return [reference[0] for reference in iterate_references(nodes[0])] if nodes else []


def _is_reference(node: Any) -> bool:
    return (
        isinstance(node, list) and len(node) in (3, 4)
        and isinstance(node[0], str) and all(isinstance(part, int) for part in node[1:3])
    )  # fmt: skip


def iterate_references(node: Any) -> Iterator[list[Any]]:
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


def join_tensors(layer: dict[str, Any]) -> None:
    """Makes every old call of a layer one list of tensors, also those that were passed by name."""
    for number, node in enumerate(layer.get("inbound_nodes") or []):
        if isinstance(node, list):
            layer["inbound_nodes"][number] = [[*reference[:3], {}] for reference in iterate_references(node)]


def split_arguments(layer: dict[str, Any], operation: str) -> tuple[list[str | None], dict[str, Any]]:
    """Rewrites the call of a tf.keras TFOpLambda; returns which arguments are tensors, and the others' values."""
    node = (layer.get("inbound_nodes") or [[]])[0]
    several = bool(node) and isinstance(node[0], list)
    first = node[0] if several else node
    keywords = dict(first[3]) if len(first) > 3 and isinstance(first[3], dict) else {}
    keywords.pop("name", None)
    order: list[str | None] = ["*"] if several and len(node) > 1 else [None]
    tensors = [reference[:3] for reference in (node if several else [node])]
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
    """Counts the calls of nested models from 0: tf.keras counted the model's own construction as call 0."""
    inner = model.get("config")
    if not isinstance(inner, dict) or "layers" not in inner:
        return
    references = list(iterate_references([layer.get("inbound_nodes", []) for layer in inner["layers"]]))
    references += list(iterate_references([inner.get("output_layers", [])]))
    for layer in inner["layers"]:
        calls = len(layer.get("inbound_nodes") or [])
        mine = [reference for reference in references if reference[0] == name_of(layer)]
        if mine and calls and max(reference[1] for reference in mine) == calls and min(reference[1] for reference in mine) >= 1:
            for reference in mine:
                reference[1] -= 1


def reachable_layers(config: dict[str, Any], references: list[list[Any]]) -> set[str]:
    """Returns the names of all layers that the referenced tensors are computed from."""
    nodes = {name_of(layer): layer.get("inbound_nodes") or [] for layer in config["config"]["layers"]}
    waiting, seen = [(reference[0], reference[1]) for reference in references], set()
    while waiting:
        call = waiting.pop()
        if call not in seen and call[0] in nodes:
            seen.add(call)
            calls = nodes[call[0]]
            if call[1] < len(calls):
                waiting += [(reference[0], reference[1]) for reference in iterate_references(calls[call[1]])]
    return {name for name, _ in seen}
