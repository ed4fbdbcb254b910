"""A model that can be called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: as the model calls it.
        shape: without the batch; None where a length is open.
        dtype: of its tensors.
        batch: how many rows it takes at once, where that is fixed.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    batch: int | None = None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that can be called.

    Attributes:
        name: what the user calls it.
        digest: SHA-256 of the file, or of the folder's files with their names, in hex.
        call: tensors in the order of `inputs` to one tensor.
        inputs: what it takes.
        graph: the functional Keras model, where the layers can be seen; else None.
        opaque: why they can't, where they can't.
        notes: what was decided, one sentence each.
    """

    name: str
    digest: str
    call: Callable[..., Any]
    inputs: tuple[ModelInput, ...]
    graph: keras.Model | None
    opaque: str
    notes: tuple[str, ...]
