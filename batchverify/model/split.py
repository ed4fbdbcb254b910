"""Splits a two-input model into the encoder of one image and the head that compares two encodings.

The split is found in the graph: at the tensors that depend on one input only and feed an operation that depends on both. So
the names of the layers and their nesting do not matter.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from batchverify.errors import IgnoredInputError, SplitError, short_reason

_TOLERANCE = 1e-5
# How much further apart the parts and the whole may be than two calls of the whole, and at most.
_NOISE_FACTOR, _MAX_NOISE = 4.0, 1e-3


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """A model in two parts; its score is `head([*encode(left_images)[left], *encode(right_images)[right]])`.

    Attributes:
        encoder: The model from images `(n, height, width, channels)` to a list of tensors `(n, …)`.
        left: The tensors that the head takes of the left image, as a slice of that list.
        right: The tensors that the head takes of the right image, as a slice of that list.
        head: The model from the left tensors and then the right ones to scores `(n, 1)`, `(n,)` or `(n, 2)`.
        shared: Whether both inputs go through the same layers, with the same weights.
    """

    encoder: keras.Model
    left: slice
    right: slice
    head: keras.Model
    shared: bool

    def score(self, left: Any, right: Any) -> Any:
        """Returns the whole model's output for two batches of images, computed by the two parts."""
        return self.head([*self.encode(left)[self.left], *self.encode(right)[self.right]], training=False)

    def encode(self, images: Any) -> list[Any]:
        """Returns the encoder's tensors `(n, …)` for images `(n, height, width, channels)`."""
        return list(keras.tree.flatten(self.encoder(images, training=False)))


def split_model(model: keras.Model) -> SplitModel:
    """Splits a functional model with two inputs and one output.

    Raises:
        IgnoredInputError: If the output does not depend on one of the inputs.
        SplitError: If no layer with weights works on one image alone, or Keras cannot make the parts.
    """
    graph = _Graph(model)
    ignored = [tensor.name for side, tensor in enumerate(model.inputs) if side not in graph.origin(model.outputs[0])]
    if ignored:
        raise IgnoredInputError(f"the score does not depend on the input '{ignored[0]}'")
    left, right = graph.frontier()
    if not (graph.have_weights(left) and graph.have_weights(right)):
        raise SplitError("its two images meet before any layer with weights, so there is no encoder of one image")
    matching = graph.match(left, right)
    try:
        return _split_separate_towers(model, left, right) if matching is None else _split_shared_tower(model, left, matching)
    except Exception as error:  # Keras raises any exception on a graph that it cannot cut.
        raise SplitError(f"Keras cannot make an encoder and a head of it ({short_reason(error)})") from None


def _split_shared_tower(model: keras.Model, left: list[Any], right: list[Any]) -> SplitModel:
    """Splits a model whose inputs go through the same layers."""
    encoder = keras.Model(model.inputs[0], left)
    head = keras.Model([*left, *right], model.outputs[0])
    return SplitModel(encoder, slice(None), slice(None), head, shared=True)


def _split_separate_towers(model: keras.Model, left: list[Any], right: list[Any]) -> SplitModel:
    """Splits a model whose inputs go through different layers; its encoder runs both towers on each image."""
    image = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
    towers = [keras.Model(side, ends) for side, ends in zip(model.inputs, (left, right), strict=True)]
    ends = [end for tower in towers for end in keras.tree.flatten(tower(image))]
    head = keras.Model([*left, *right], model.outputs[0])
    return SplitModel(keras.Model(image, ends), slice(len(left)), slice(len(left), None), head, shared=False)


def check_split(split: SplitModel, whole: Callable[[Any, Any], Any], left: Any, right: Any) -> float:
    """Returns the largest difference between the parts' output and the whole model's.

    Args:
        split: The two parts.
        whole: The whole model, a function from two batches of images to its output.
        left: A batch of images, as the model takes them.
        right: Another batch of the same shape.

    Raises:
        SplitError: If the difference exceeds 1e-5, or 1e-5 of the largest output where that exceeds 1, and also what the device
            itself makes of the same images in another order, four times that, up to 1e-3.
    """
    expected, parts = np.asarray(whole(left, right)), np.asarray(split.score(left, right))
    return check_outputs(expected, parts, lambda: np.asarray(whole(left[::-1], right[::-1]))[::-1])


def check_outputs(expected: np.ndarray, parts: np.ndarray, repeat: Callable[[], np.ndarray]) -> float:
    """Returns the largest difference between the parts' output and the whole model's.

    Args:
        expected: The output of the whole model.
        parts: The output of its parts.
        repeat: A function that returns the output of the whole model for the same images, computed in another order.

    Raises:
        SplitError: If they differ; see `check_split`.
    """
    difference = largest_difference(expected, parts)
    tolerance = _TOLERANCE * max(1.0, float(np.max(np.abs(expected), where=~np.isnan(expected), initial=0.0)))
    if not difference <= tolerance:
        # GPUs add up in another order from call to call, so the same images may get other scores.
        tolerance = max(tolerance, min(_MAX_NOISE, _NOISE_FACTOR * largest_difference(expected, repeat())))
    if not difference <= tolerance:
        raise SplitError(
            f"its parts give scores that differ from the whole model's by {difference:.2g}, more than {tolerance:.2g}"
        )
    return difference


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the largest difference of two outputs; it is infinite where only one of them gives no number."""
    with np.errstate(invalid="ignore"):
        difference = np.where((first == second) | (np.isnan(first) & np.isnan(second)), 0.0, np.abs(first - second))
    return float(np.max(np.where(np.isnan(difference), np.inf, difference)))


class _Graph:
    """The tensors of a functional model with two inputs: what each is computed from, and where the two sides meet."""

    def __init__(self, model: keras.Model):
        self._tensors = _sort_topologically(model.outputs[0])
        self._origins: dict[int, frozenset[int]] = {}
        # Two tensors have the same computation if the same steps make them from their inputs.
        self._computations: dict[int, int] = {}
        self._has_weights: dict[int, bool] = {}
        numbers: dict[tuple[Any, ...], int] = {}
        sides = {id(tensor): frozenset([side]) for side, tensor in enumerate(model.inputs)}
        for tensor in self._tensors:
            sources = [id(source) for source in _sources(tensor)]
            inherited = frozenset[int]().union(*(self._origins[source] for source in sources))
            self._origins[id(tensor)] = sides.get(id(tensor)) or inherited
            computation = (*_step(tensor), *(self._computations[source] for source in sources))
            self._computations[id(tensor)] = numbers.setdefault(computation, len(numbers))
            own_weights = bool(getattr(tensor._keras_history.operation, "weights", None))
            self._has_weights[id(tensor)] = own_weights or any(self._has_weights[source] for source in sources)

    def origin(self, tensor: Any) -> frozenset[int]:
        """Returns the numbers, 0 and 1, of the inputs that a tensor depends on."""
        return self._origins[id(tensor)]

    def have_weights(self, tensors: list[Any]) -> bool:
        """Returns whether all of `tensors` are computed with weights."""
        return all(self._has_weights[id(tensor)] for tensor in tensors)

    def frontier(self) -> tuple[list[Any], list[Any]]:
        """Returns the tensors of the left side, and those of the right side, that feed operations on both sides."""
        sides: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        for tensor in self._tensors:
            if len(self.origin(tensor)) == 2:
                for source in _sources(tensor):
                    if len(self.origin(source)) == 1:
                        sides[next(iter(self.origin(source)))][id(source)] = source
        return list(sides[0].values()), list(sides[1].values())

    def match(self, left: list[Any], right: list[Any]) -> list[Any] | None:
        """Returns the tensors of `right`, each in the place of the one in `left` that has the same computation.

        Returns None if there is no such order, because the two sides go through different layers.
        """
        wanted, found = ([self._computations[id(tensor)] for tensor in side] for side in (left, right))
        if collections.Counter(wanted) != collections.Counter(found):
            return None
        # Layers that are called on one image twice make two tensors that have the same computation.
        unused = collections.defaultdict[int, list[Any]](list)
        for computation, tensor in zip(found, right, strict=True):
            unused[computation].append(tensor)
        return [unused[computation].pop(0) for computation in wanted]


def _sort_topologically(output: Any) -> list[Any]:
    """Returns `output` and all tensors that it is computed from, each after its sources."""
    sorted_tensors: dict[int, Any] = {}
    pending = [(output, False)]
    while pending:
        tensor, sources_are_sorted = pending.pop()
        if sources_are_sorted:
            sorted_tensors[id(tensor)] = tensor
        elif id(tensor) not in sorted_tensors:
            pending.append((tensor, True))
            pending += [(source, False) for source in _sources(tensor)]
    return list(sorted_tensors.values())


def _sources(tensor: Any) -> list[Any]:
    operation, node, _ = tensor._keras_history
    return list(operation._inbound_nodes[node].input_tensors)


def _step(tensor: Any) -> tuple[Any, ...]:
    """Returns a description of the operation that makes `tensor`; two towers with the same layers have the same steps."""
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
    """Returns the arguments of a call that are no tensors, such as the 255 in `x / 255`."""
    flat = keras.tree.flatten([node.arguments.args, node.arguments.kwargs])
    return repr(["tensor" if isinstance(part, keras.KerasTensor) else repr(part) for part in flat])
