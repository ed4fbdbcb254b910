"""What Keras 2 wrote into configs and Keras 3 cannot read."""

from __future__ import annotations

from typing import Any

# These settings matter in training only.
_TRAINING_SETTINGS = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "fused")
_UNREADABLE_SETTINGS = {
    "DepthwiseConv1D": ("groups",), "DepthwiseConv2D": ("groups",), "SeparableConv1D": ("groups", *_TRAINING_SETTINGS),
    "SeparableConv2D": ("groups", *_TRAINING_SETTINGS), "Conv1DTranspose": ("groups",), "Conv2DTranspose": ("groups",),
    "BatchNormalization": ("renorm", "virtual_batch_size", "fused", "adjustment"),
}  # fmt: skip
_MODULES = {"Functional": "keras.src.models.functional", "Model": "keras.models", "Sequential": "keras.models"}


def modernise_layer(layer: dict[str, Any]) -> None:
    """Changes the config of a layer that Keras 2 wrote to one that Keras 3 reads."""
    settings = layer.get("config")
    if isinstance(settings, dict):
        if isinstance(settings.get("axis"), list) and len(settings["axis"]) == 1:
            settings["axis"] = settings["axis"][0]
        _drop_unreadable_settings(layer["class_name"], settings)
    if str(layer.get("module")).startswith(("tf_keras.", "keras.engine.", "keras.src.engine.")):
        layer["module"] = _MODULES.get(layer["class_name"], "keras.layers")


def _drop_unreadable_settings(class_name: str, settings: dict[str, Any]) -> None:
    for name in _UNREADABLE_SETTINGS.get(class_name, ()):
        # A setting that changes what is computed is dropped only where its value is the one that Keras 3 computes with.
        if name in _TRAINING_SETTINGS or settings.get(name) in (1, False, None):
            settings.pop(name, None)
