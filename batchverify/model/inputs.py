"""The inputs of a model: their order, their shape, the scale of their pixels."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import keras

from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, UnsuitableModelError
from batchverify.model.loaded import LoadedModel, ModelInput
from batchverify.model.pixel_scale import find_scale_in_graph

_MAX_PIXELS = 2**22
_TRIAL_SIZE = (128, 128)
_LEFT_AND_RIGHT = [
    ("left", "right"), ("anchor", "other"), ("anchor", "validation"), ("input", "validation"), ("query", "reference"),
    ("probe", "reference"), ("first", "second"), ("a", "b"), ("1", "2"), ("0", "1"), ("x1", "x2"),
]  # fmt: skip


def put_channels_last(loaded: LoadedModel) -> LoadedModel:
    """Returns a model that takes images `(height, width, channels)`, where it was built for `(channels, height, width)`."""
    if not all(_has_channels_first(model_input) for model_input in loaded.inputs):
        return loaded
    inputs = tuple(dataclasses.replace(one, shape=(*one.shape[1:], one.shape[0])) for one in loaded.inputs)

    def call(*images: Any) -> Any:
        return loaded.call(*(keras.ops.transpose(image, (0, 3, 1, 2)) for image in images))

    channels, height, width = loaded.inputs[0].shape
    note = f"The network takes images ({channels}, {height}, {width}), with their channels first; each is transposed for it."
    graph = loaded.graph and _transposing(loaded.graph, inputs)
    return dataclasses.replace(loaded, call=call, inputs=inputs, graph=graph, notes=(*loaded.notes, note))


def _has_channels_first(model_input: ModelInput) -> bool:
    shape = model_input.shape
    return len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)


def _transposing(graph: keras.Model, inputs: tuple[ModelInput, ...]) -> keras.Model:
    """Returns a model of the same layers behind inputs with their channels last."""
    images = [keras.Input(batch_shape=(one.batch, *one.shape), dtype=one.dtype, name=one.name) for one in inputs]
    transposed = [keras.layers.Permute((3, 1, 2), dtype=one.dtype)(image) for one, image in zip(inputs, images, strict=True)]
    # A call of the whole model would be one step, which cannot be split between its images.
    outputs = graph._run_through_graph(transposed, operation_fn=lambda operation: operation)
    return keras.Model(images, keras.tree.flatten(outputs)[0])


def order_inputs(loaded: LoadedModel) -> LoadedModel:
    """Returns the model with its left input first, where the names of the inputs tell which one that is."""
    first, second = loaded.inputs
    order = _order_by_name([first.name, second.name])
    if order == (0, 1):
        return loaded
    if order is None:
        note = f"Inputs '{first.name}' and '{second.name}' are taken as left and right by their position."
        return dataclasses.replace(loaded, notes=(*loaded.notes, note))
    note = f"Inputs '{second.name}' and '{first.name}' are taken as left and right by their names."
    return _swap_inputs(dataclasses.replace(loaded, notes=(*loaded.notes, note)))


def _swap_inputs(loaded: LoadedModel) -> LoadedModel:
    def call(left: Any, right: Any) -> Any:
        return loaded.call(right, left)

    first, second = loaded.inputs
    graph = loaded.graph and keras.Model([loaded.graph.inputs[1], loaded.graph.inputs[0]], loaded.graph.outputs[0])
    return dataclasses.replace(loaded, call=call, inputs=(second, first), graph=graph)


def _order_by_name(names: list[str]) -> tuple[int, int] | None:
    """Returns the positions of the left and the right input; None if the names do not tell."""
    parts = [set(re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", name.lower())) for name in names]
    for left, right in _LEFT_AND_RIGHT:
        for order in ((0, 1), (1, 0)):
            first, second = parts[order[0]], parts[order[1]]
            if left in first - second and right in second - first:
                return order
    return None


def decide_image_shape(name: str, inputs: tuple[ModelInput, ...], wanted: tuple[int, int] | None) -> tuple[int, int, int]:
    """Returns height, width and channels of the images that a model takes.

    Args:
        name: The model's name, for messages.
        inputs: The model's inputs.
        wanted: The height and width that the user gave, for inputs that leave them open.

    Raises:
        PreflightError: If the inputs are no images of one shape, or the size is unknown, wrong or too large.
    """
    _refuse_other_than_images(name, inputs)
    height, width, channels = inputs[0].shape
    if wanted and (height or wanted[0], width or wanted[1]) != tuple(wanted):
        raise PreflightError(
            f"--image-size is {wanted[0]}x{wanted[1]}, but --model {name} takes {height}x{width}; leave it out."
        )
    if not wanted and (height is None or width is None):
        problem = f"--model {name}: its input leaves the size of the images open; say it, --image-size 160 or 160x120."
        on_trial = (height or _TRIAL_SIZE[0], width or _TRIAL_SIZE[1])
        raise OpenQuestionError(OpenQuestion(problem, ("--image-size", "HEIGHTxWIDTH"), {"image_size": on_trial}))
    size = wanted or (height, width)
    if not 0 < int(size[0] or 0) * int(size[1] or 0) <= _MAX_PIXELS:
        raise PreflightError(
            f"--model {name}: it says that it takes images of {size[0]}x{size[1]}, which is nothing or more than "
            f"{_MAX_PIXELS:,} pixels; give a model of smaller ones."
        )
    return int(size[0] or 0), int(size[1] or 0), int(channels or 0)


def _refuse_other_than_images(name: str, inputs: tuple[ModelInput, ...]) -> None:
    for model_input in inputs:
        shape = model_input.shape
        if len(shape) != 3 or shape[2] not in (1, 3):
            lengths = ", ".join(str(length) for length in shape)
            raise UnsuitableModelError(
                f"--model {name}: its input '{model_input.name}' has the shape (n, {lengths}), which is no batch of images "
                "with 1 or 3 channels last; give a model that takes images."
            )
    shapes = {model_input.shape for model_input in inputs}
    if len(shapes) != 1:
        raise UnsuitableModelError(
            f"--model {name}: its inputs take images of different shapes, {shapes}; give one whose inputs are alike."
        )


def find_pixel_scale(loaded: LoadedModel) -> tuple[str, str] | None:
    """Returns the pixel scale that the model shows, and where it shows it; None where nothing shows it."""
    if any(model_input.dtype == "uint8" for model_input in loaded.inputs):
        return "0..255", "the input's type uint8 shows"
    return find_scale_in_graph(loaded.graph, loaded.graph.inputs[0]) if loaded.graph is not None else None


def why_scale_hidden(loaded: LoadedModel) -> str:
    """Returns why the model cannot show its pixel scale; empty if its graph can be seen."""
    return "" if loaded.graph is not None else f"{loaded.opaque}, so nothing shows"
