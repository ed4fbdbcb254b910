"""The inputs of a model: their order, their shape, the scale of their pixels."""

from __future__ import annotations

import dataclasses
import re

import keras

from batchverify.errors import PreflightError
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.model.pixel_scale import find_scale_in_graph

_MOST_PIXELS = 2**22


# Inputs

_LEFT_AND_RIGHT = [
    ("left", "right"), ("anchor", "other"), ("anchor", "validation"), ("input", "validation"), ("query", "reference"),
    ("probe", "reference"), ("first", "second"), ("a", "b"), ("1", "2"), ("0", "1"), ("x1", "x2"),
]  # fmt: skip


def order_inputs(loaded: LoadedModel) -> LoadedModel:
    """Puts the left input first, where the names say which one that is."""
    names = [one.name for one in loaded.inputs]
    order = _order_by_name(names)
    if order == (0, 1):
        return loaded
    if order is None:
        note = f"Inputs '{names[0]}' and '{names[1]}' are taken as left and right by their position."
        order = (0, 1)
    else:
        note = f"Inputs '{names[order[0]]}' and '{names[order[1]]}' are taken as left and right by their names."
    call, graph = loaded.call, loaded.graph
    if order == (1, 0):
        original = loaded.call
        call = lambda left, right: original(right, left)  # noqa: E731
        graph = graph and keras.Model([graph.inputs[1], graph.inputs[0]], graph.outputs[0])
    inputs = tuple(loaded.inputs[position] for position in order)
    return dataclasses.replace(loaded, call=call, inputs=inputs, graph=graph, notes=(*loaded.notes, note))


def _order_by_name(names: list[str]) -> tuple[int, int] | None:
    words = [set(re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", name.lower())) for name in names]
    for left, right in _LEFT_AND_RIGHT:
        for order in ((0, 1), (1, 0)):
            first, second = words[order[0]], words[order[1]]
            if left in first - second and right in second - first:
                return order
    return None


def decide_image_shape(name: str, inputs: tuple[ModelInput, ...], wanted: tuple[int, int] | None) -> tuple[int, int, int]:
    shapes = {one.shape for one in inputs}
    for one in inputs:
        if len(one.shape) != 3 or one.shape[2] not in (1, 3):
            lengths = ", ".join(str(length) for length in one.shape)
            raise PreflightError(
                f"--model {name}: its input '{one.name}' has the shape (n, {lengths}), which is no batch of images with 1 or 3 "
                "channels last; give a model that takes images."
            )
    if len(shapes) != 1:
        raise PreflightError(
            f"--model {name}: its inputs take images of different shapes, {shapes}; give one whose inputs are alike."
        )
    height, width, channels = inputs[0].shape
    if wanted and (height or wanted[0], width or wanted[1]) != tuple(wanted):
        raise PreflightError(
            f"--image-size is {wanted[0]}x{wanted[1]}, but --model {name} takes {height}x{width}; leave it out."
        )
    if not wanted and (height is None or width is None):
        raise PreflightError(
            f"--model {name}: its input leaves the size of the images open; say it, --image-size 160 or 160x120."
        )
    size = wanted or (height, width)
    if not 0 < int(size[0] or 0) * int(size[1] or 0) <= _MOST_PIXELS:
        raise PreflightError(
            f"--model {name}: it says that it takes images of {size[0]}x{size[1]}, which is nothing or more than "
            f"{_MOST_PIXELS:,} pixels; give a model of smaller ones."
        )
    return int(size[0] or 0), int(size[1] or 0), int(channels or 0)


def find_pixel_scale(loaded: LoadedModel) -> tuple[str, str] | None:
    if any(one.dtype == "uint8" for one in loaded.inputs):
        return "0..255", "the input's type uint8 shows"
    return find_scale_in_graph(loaded.graph, loaded.graph.inputs[0]) if loaded.graph is not None else None


def why_scale_hidden(loaded: LoadedModel) -> str:
    return "" if loaded.graph is not None else f"{loaded.opaque}, so nothing shows"
