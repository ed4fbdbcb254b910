"""The classes and modules that Keras has."""

from __future__ import annotations

from typing import Any

import keras

from batchverify.model import safe_layers

_MODELS = ("Functional", "Model", "Sequential", "InputLayer")


def is_keras_class(name: str) -> bool:
    """Returns whether Keras has a layer or model class of this name."""
    return hasattr(keras.layers, name) or name in _MODELS


def is_keras_module(name: Any) -> bool:
    """Returns whether a module named in a config is Keras' or holds this package's own layers."""
    return name in (None, "builtins", "keras", safe_layers.__name__) or str(name).startswith("keras.")


def operation_module(name: str) -> str | None:
    """Returns the module in which Keras has the class of an operation, such as `Absolute`; None if it has no such class."""
    for module in (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.math, keras.src.ops.core, keras.src.ops.linalg):
        if isinstance(getattr(module, name, None), type):
            return str(module.__name__)
    return None
