"""What Keras 2 wrote into configs and Keras 3 cannot read, or reads as something else."""

from __future__ import annotations

from typing import Any

import keras

from batchverify.model.config_graph import iterate_layers
from batchverify.model.safe_layers import UpSampling2DOfKeras2, hard_sigmoid_of_keras_2

# These settings matter in training only.
_TRAINING_SETTINGS = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "fused")
_MORE_TRAINING_SETTINGS = ("rng_type", "noise_shape", "trainable")
_RECURRENT = ("RNN", "SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_RANDOM = ("RandomFlip", "RandomRotation", "RandomZoom", "RandomContrast", "RandomBrightness", "RandomTranslation")
_UNREADABLE_SETTINGS = {
    "DepthwiseConv1D": ("groups",), "DepthwiseConv2D": ("groups",), "SeparableConv1D": ("groups", *_TRAINING_SETTINGS),
    "SeparableConv2D": ("groups", *_TRAINING_SETTINGS), "Conv1DTranspose": ("groups",), "Conv2DTranspose": ("groups",),
    "BatchNormalization": ("renorm", "virtual_batch_size", "fused", "adjustment"),
    **dict.fromkeys(_RECURRENT, ("time_major",)), **dict.fromkeys(_RANDOM, ("rng_type",)),
    **dict.fromkeys(("SpatialDropout1D", "SpatialDropout2D"), ("noise_shape", "trainable")),
}  # fmt: skip
_MODULES = {"Functional": "keras.src.models.functional", "Model": "keras.models", "Sequential": "keras.models"}
# What Keras 3 computes otherwise under the same name.
_CHANGED_FUNCTIONS = {"hard_sigmoid": hard_sigmoid_of_keras_2}
# `Resizing` gives fractions in TensorFlow's graphs, in which networks are computed here, and rounds elsewhere.
_CHANGED_LAYERS_OF_WHOLE_NUMBERS: dict[str, type] = {"UpSampling2D": UpSampling2DOfKeras2}


def keep_computation(config: dict[str, Any]) -> None:
    """Changes a config of Keras 2, all of whose layers Keras 3 can read, such that Keras 3 computes the same."""
    _keep_functions(config)
    layers = list(iterate_layers(config))
    if any(str(layer["config"].get("dtype")).startswith(("uint", "int")) for layer in layers if _is_input(layer)):
        for layer in layers:
            if layer["class_name"] in _CHANGED_LAYERS_OF_WHOLE_NUMBERS:
                rename_class(layer, _CHANGED_LAYERS_OF_WHOLE_NUMBERS[layer["class_name"]])


def rename_class(layer: dict[str, Any], replacement: type) -> None:
    """Changes the class of a layer in a config to one of this package."""
    registered_name = keras.saving.get_registered_name(replacement)
    if "module" in layer:
        layer |= {
            "module": replacement.__module__,
            "class_name": replacement.__name__,
            "registered_name": registered_name,
        }
    else:
        layer["class_name"] = registered_name


def _is_input(layer: dict[str, Any]) -> bool:
    return layer["class_name"] == "InputLayer" and isinstance(layer.get("config"), dict)


def _keep_functions(config: Any) -> None:
    """Changes activation functions wherever they stand in a config."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ():
        if str(key).endswith("activation") and (function := _CHANGED_FUNCTIONS.get(_function_name(value))):
            config[key] = keras.saving.serialize_keras_object(function)
        else:
            _keep_functions(value)


def _function_name(value: Any) -> str:
    """Returns the name of an activation function, which a config has as text or as an object; empty if it is none."""
    name = value.get("config") if isinstance(value, dict) and value.get("class_name") == "function" else value
    return name if isinstance(name, str) else ""


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
        if name in (*_TRAINING_SETTINGS, *_MORE_TRAINING_SETTINGS) or settings.get(name) in (1, False, None):
            settings.pop(name, None)
