"""Cuts a two-input model into the encoder that both inputs share and the head that compares.

The cut is found in the graph: tensors that depend on one input alone and feed an operation that depends on
both. So it does not matter what the layers are called or how they are nested.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

_TOLERANCE = 1e-5
_PROOF_IMAGES = 8


class CannotSplit(ValueError):
    """The model is no encoder applied twice and a head; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Siamese:
    """A model in two parts: `head([encoder(left), encoder(right)])` is the score.

    Attributes:
        encoder: images `(n, height, width, channels)` to embeddings `(n, …)`.
        head: a list of two embeddings to scores `(n, 1)` or `(n,)`.
    """

    encoder: keras.Model
    head: keras.Model


def split_siamese(model: keras.Model) -> Siamese:
    """Splits `model` and proves the split on random images.

    Raises:
        CannotSplit: if the towers differ, or the parts do not give the whole model's scores within 1e-5.
    """
    if len(model.inputs) != 2 or len(model.outputs) != 1:
        raise CannotSplit(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "give one with two image inputs and one score."
        )
    left, right = _Cut(model).sides()
    if len(left) != 1 or len(right) != 1:
        raise CannotSplit(
            f"the model's towers meet in {len(left)} and {len(right)} places; give one whose towers each end in one embedding."
        )
    if _recipe(left[0]) != _recipe(right[0]):
        raise CannotSplit("the model's two towers do not share their layers; train it with one encoder for both inputs.")
    siamese = Siamese(keras.Model(model.inputs[0], left[0]), keras.Model([left[0], right[0]], model.outputs[0]))
    _prove(model, siamese)
    return siamese


class _Cut:
    """Finds where two towers meet."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._origins: dict[int, frozenset[int]] = {id(tensor): frozenset([side]) for side, tensor in enumerate(model.inputs)}
        self._sides: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        self._visited: set[int] = set()

    def sides(self) -> tuple[list[Any], list[Any]]:
        """Returns the tensors of the left tower, and of the right, that the head takes."""
        self._visit(self._model.outputs[0])
        left, right = self._sides
        return list(left.values()), list(right.values())

    def _visit(self, tensor: Any) -> None:
        if self._origin(tensor) != {0, 1} or id(tensor) in self._visited:
            return
        self._visited.add(id(tensor))
        for source in _sources(tensor):
            origin = self._origin(source)
            if len(origin) == 1:
                self._sides[next(iter(origin))][id(source)] = source
            self._visit(source)

    def _origin(self, tensor: Any) -> frozenset[int]:
        if id(tensor) not in self._origins:
            self._origins[id(tensor)] = frozenset().union(*(self._origin(source) for source in _sources(tensor)))
        return self._origins[id(tensor)]


def _sources(tensor: Any) -> list[Any]:
    operation, node, _ = tensor._keras_history
    return operation._inbound_nodes[node].input_tensors


def _recipe(tensor: Any) -> tuple:
    """Returns what computes `tensor`, so that two towers with the same layers have the same recipe."""
    operation, _, position = tensor._keras_history
    sources = _sources(tensor)
    if not sources:
        return ("input", tuple(tensor.shape[1:]))
    stateless = not getattr(operation, "variables", None)
    identity = (type(operation).__qualname__, _settings(operation)) if stateless else id(operation)
    return (identity, position, *(_recipe(source) for source in sources))


def _settings(operation: Any) -> str:
    try:
        settings = dict(operation.get_config())
    except NotImplementedError:
        return str(id(operation))
    settings.pop("name", None)
    return repr(sorted(settings.items()))


def _prove(model: keras.Model, siamese: Siamese) -> None:
    rng = np.random.default_rng(0)
    shape = [_PROOF_IMAGES, *model.inputs[0].shape[1:]]
    left, right = (rng.uniform(0, 255, shape).astype(np.float32) for _ in range(2))
    whole = np.asarray(model([left, right], training=False))
    encodings = [siamese.encoder(side, training=False) for side in (left, right)]
    parts = np.asarray(siamese.head(encodings, training=False))
    difference = float(np.max(np.abs(whole - parts)))
    if not difference <= _TOLERANCE:
        raise CannotSplit(
            f"the model's parts give scores that differ from the whole model's by {difference:.2g}, more than {_TOLERANCE:g}; "
            "save the model again from the code that built it."
        )
