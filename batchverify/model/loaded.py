"""A model that is loaded and can be called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: The input's name in the model.
        shape: The shape of one row, without the batch; None stands for a length that is open.
        dtype: The type of its tensors.
        batch: The number of rows that it takes at once; None where that is open.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    batch: int | None = None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is loaded and can be called.

    Attributes:
        name: The path or URI that the user gave, or `embedded`.
        digest: The SHA-256 of the file, or of the folder's files and their names, in hex.
        call: A function that takes tensors in the order of `inputs` and returns one tensor.
        inputs: The model's inputs.
        graph: The functional Keras model; None where the layers cannot be seen.
        opaque: The reason why the layers cannot be seen; empty where they can.
        notes: The decisions that were made, one sentence each.
        runtime: The package that computes it. What another one than `tensorflow` computes cannot be traced by TensorFlow: it
            takes and gives tensors with values.
    """

    name: str
    digest: str
    call: Callable[..., Any]
    inputs: tuple[ModelInput, ...]
    graph: keras.Model | None
    opaque: str
    notes: tuple[str, ...]
    runtime: str = "tensorflow"
