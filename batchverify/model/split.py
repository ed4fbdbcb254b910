"""Cuts a two-input model into the encoder of one image and the head that compares.

The cut is found in the graph: tensors that depend on one input alone and feed an operation that depends on
both. So it does not matter what the layers are called or how they are nested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from batchverify.errors import IgnoredInputError, SplitError

_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """A model in two parts: `head(encode(left)[left part] + encode(right)[right part])` is the score.

    Attributes:
        encoder: images `(n, height, width, channels)` to a list of tensors `(n, …)`.
        left: which of these tensors the head takes of the left image.
        right: which it takes of the right image.
        head: the left tensors and then the right ones to scores `(n, 1)`, `(n,)` or `(n, 2)`.
        shared: whether both inputs go through the same layers, with the same weights.
    """

    encoder: keras.Model
    left: slice
    right: slice
    head: keras.Model
    shared: bool

    def score(self, left: Any, right: Any) -> Any:
        """Returns the whole model's output for two batches of images, by way of the parts."""
        return self.head([*self.encode(left)[self.left], *self.encode(right)[self.right]], training=False)

    def encode(self, images: Any) -> list[Any]:
        """Returns the encoder's tensors."""
        return keras.tree.flatten(self.encoder(images, training=False))


def split_model(model: keras.Model) -> SplitModel:
    """Splits a functional model with two inputs and one output.

    Raises:
        IgnoredInputError: if an input does not reach the output.
        SplitError: if no layer with weights works on one image alone.
    """
    graph = _Graph(model)
    ignored = [tensor.name for side, tensor in enumerate(model.inputs) if side not in graph.origin(model.outputs[0])]
    if ignored:
        raise IgnoredInputError(f"the score does not depend on the input '{ignored[0]}'")
    left, right = graph.frontier()
    if not (graph.learned(left) and graph.learned(right)):
        raise SplitError("its two images meet before any layer with weights, so there is no encoder of one image")
    order = graph.matching(left, right)
    if order is not None:
        encoder = keras.Model(model.inputs[0], left)
        head = keras.Model([*left, *order], model.outputs[0])
        return SplitModel(encoder, slice(None), slice(None), head, shared=True)
    image = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    towers = [keras.Model(side, ends) for side, ends in zip(model.inputs, (left, right), strict=True)]
    ends = [end for tower in towers for end in keras.tree.flatten(tower(image))]
    head = keras.Model([*left, *right], model.outputs[0])
    return SplitModel(keras.Model(image, ends), slice(len(left)), slice(len(left), None), head, shared=False)


def check_split(siamese: SplitModel, whole: Callable[[Any, Any], Any], left: Any, right: Any) -> float:
    """Returns by how much the parts' output differs from the whole model's, at most.

    Raises:
        SplitError: if it is more than 1e-5 of the output's own size.
    """
    expected, parts = np.asarray(whole(left, right)), np.asarray(siamese.score(left, right))
    # A model may give no number for an image; its parts must then give none either.
    both_odd = np.isnan(expected) & np.isnan(parts)
    difference = float(np.max(np.where(both_odd, 0.0, np.abs(expected - parts))))
    if not difference <= _TOLERANCE * max(1.0, float(np.max(np.where(both_odd, 0.0, np.abs(expected))))):
        raise SplitError(
            f"its parts give scores that differ from the whole model's by {difference:.2g}, more than {_TOLERANCE:g}"
        )
    return difference


class _Graph:
    """The tensors of a functional model, what they come from, and where its two sides meet."""

    def __init__(self, model: keras.Model):
        self._tensors = _sorted(model.outputs[0])
        self._origins: dict[int, frozenset[int]] = {}
        self._recipes: dict[int, int] = {}
        self._learned: dict[int, bool] = {}
        self._output = model.outputs[0]
        known: dict[tuple, int] = {}
        sides = {id(tensor): frozenset([side]) for side, tensor in enumerate(model.inputs)}
        for tensor in self._tensors:
            sources = _sources(tensor)
            self._origins[id(tensor)] = sides.get(id(tensor)) or frozenset().union(
                *(self._origins[id(source)] for source in sources)
            )
            recipe = (*_step(tensor), *(self._recipes[id(source)] for source in sources))
            self._recipes[id(tensor)] = known.setdefault(recipe, len(known))
            self._learned[id(tensor)] = bool(getattr(tensor._keras_history.operation, "weights", None)) or any(
                self._learned[id(source)] for source in sources
            )

    def origin(self, tensor: Any) -> frozenset[int]:
        """Returns which inputs, 0 and 1, a tensor depends on."""
        return self._origins[id(tensor)]

    def learned(self, tensors: list[Any]) -> bool:
        """Returns whether weights have worked on every one of `tensors`."""
        return all(self._learned[id(tensor)] for tensor in tensors)

    def frontier(self) -> tuple[list[Any], list[Any]]:
        """Returns the tensors of the left side, and of the right, that operations on both sides take."""
        sides: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        for tensor in self._tensors:
            if len(self.origin(tensor)) == 2:
                for source in _sources(tensor):
                    if len(self.origin(source)) == 1:
                        sides[next(iter(self.origin(source)))][id(source)] = source
        return list(sides[0].values()), list(sides[1].values())

    def matching(self, left: list[Any], right: list[Any]) -> list[Any] | None:
        """Returns the tensors of `right` in the order in which `left` has those computed alike; None if they are not."""
        by_recipe = {self._recipes[id(tensor)]: tensor for tensor in right}
        if {self._recipes[id(tensor)] for tensor in left} != set(by_recipe) or len(left) != len(right):
            return None
        return [by_recipe[self._recipes[id(tensor)]] for tensor in left]


def _sorted(output: Any) -> list[Any]:
    """Returns all tensors that `output` is computed from, and itself, each after its sources."""
    done: dict[int, Any] = {}
    waiting = [(output, False)]
    while waiting:
        tensor, ready = waiting.pop()
        if ready:
            done[id(tensor)] = tensor
        elif id(tensor) not in done:
            waiting.append((tensor, True))
            waiting += [(source, False) for source in _sources(tensor)]
    return list(done.values())


def _sources(tensor: Any) -> list[Any]:
    operation, node, _ = tensor._keras_history
    return operation._inbound_nodes[node].input_tensors


def _step(tensor: Any) -> tuple:
    """Returns what the last operation does, so that two towers with the same layers have the same steps."""
    operation, number, position = tensor._keras_history
    node = operation._inbound_nodes[number]
    if not node.input_tensors:
        return ("input", tuple(tensor.shape[1:]))
    if getattr(operation, "weights", None) or hasattr(operation, "layers"):
        return (id(operation), position)
    return (type(operation).__qualname__, _settings(operation), _constants(node), position)


def _settings(operation: Any) -> str:
    try:
        settings = dict(operation.get_config())
    except (NotImplementedError, TypeError):
        return repr(
            sorted((key, repr(value)) for key, value in vars(operation).items() if key.isidentifier() and key[0] != "_")
        )
    settings.pop("name", None)
    return repr(sorted(settings.items(), key=lambda item: item[0]))


def _constants(node: Any) -> str:
    """Returns what stands beside the tensors in a call: of `x / 255`, the 255."""
    flat = keras.tree.flatten([node.arguments.args, node.arguments.kwargs])
    return repr(["tensor" if isinstance(part, keras.KerasTensor) else repr(part) for part in flat])
