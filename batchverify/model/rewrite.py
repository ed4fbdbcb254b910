"""Rewrites a Keras config so that Keras can load it in safe mode, as the user's options say."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from typing import Any

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.model import safe_layers
from batchverify.model.config_graph import (
    class_of,
    iterate_layers,
    join_tensors,
    joined_layers,
    name_of,
    renumber_calls,
    split_arguments,
)
from batchverify.model.file import ModelFile, refusing_damage
from batchverify.model.lambdas import lambda_refusal, split_option
from batchverify.model.safe_layers import KINDS, PAIR_KINDS, TENSOR_OPERATIONS
from batchverify.model.shared_encoder import mend_shared_encoder


@dataclasses.dataclass(frozen=True)
class LoadableConfig:
    """A config that Keras may load in safe mode.

    Attributes:
        config: to load with.
        changed: whether it differs from the file's own.
        custom_objects: classes that the user named, for Keras.
        notes: what was decided, one sentence each.
    """

    config: dict[str, Any]
    changed: bool
    custom_objects: dict[str, Any]
    notes: tuple[str, ...]


def prepare_config(
    file: ModelFile, options: ModelConfig, is_known: Callable[[str], bool], operation_module: Callable[[str], str | None]
) -> LoadableConfig:
    """Rewrites the config of `file` so that Keras can load it without running code that the file holds.

    Args:
        file: a `.keras` or HDF5 file.
        options: what the user says of Lambdas and custom classes.
        is_known: whether Keras has a layer or model class of a name.
        operation_module: where Keras has an operation of a name, such as `Absolute`.

    Raises:
        PreflightError: if something in it is not explained by `options`.
    """
    with refusing_damage(file.name, "its config is damaged", "save the model again, with model.save()"):
        config = json.loads(json.dumps(file.config))
        rewriter = _Rewriter(file.name, options, is_known, operation_module)
        rewriter.rewrite(config)
        notes = rewriter.notes + mend_shared_encoder(file.name, config, options.mend_shared_encoder)
        return LoadableConfig(config, config != file.config, rewriter.custom_objects, tuple(notes))


# What the config says, and what it is made to say


class _Rewriter:
    """Walks a config and replaces what Keras could not load in safe mode."""

    def __init__(self, name: str, options: ModelConfig, is_known, operation_module):
        self._name, self._trusted = name, options.trust_model_code
        self._is_known, self._operation_module = is_known, operation_module
        self._lambdas = dict(split_option("lambda", text) for text in options.lambdas)
        self._classes = dict(text.split("=", 1) for text in options.custom_objects)
        self.custom_objects: dict[str, Any] = {}
        self.notes: list[str] = []
        self._used: set[str] = set()

    def rewrite(self, config: dict[str, Any]) -> None:
        layers = list(iterate_layers(config))
        self._refuse_unused(layers)
        for layer in layers:
            self._rewrite_layer(layer)
        for model in [config, *layers]:
            renumber_calls(model)
        if not self._trusted:
            self._refuse_foreign(config)

    def _rewrite_layer(self, layer: dict[str, Any]) -> None:
        kind = layer["class_name"]
        _modernise(layer)
        if _is_operation(layer) and (module := self._operation_module(kind)):
            # HDF5 files of Keras 3 leave the module out, and Keras then looks among its layers.
            layer |= {"module": module, "registered_name": kind}
        if kind == "Lambda":
            self._rewrite_lambda(layer)
        elif kind in ("TFOpLambda", "SlicingOpLambda"):
            self._rewrite_tensor_operation(layer)
        elif (said := self._said_of(layer)) is not None:
            self._rewrite_custom(layer, said)
        elif not self._trusted and not self._knows(layer):
            raise PreflightError(self._unknown(layer))

    def _rewrite_lambda(self, layer: dict[str, Any]) -> None:
        name, joined = name_of(layer), joined_layers(layer)
        default = self._lambdas.get("")
        if default is not None and (default in PAIR_KINDS) != (len(joined) == 2):
            default = None
        kind = self._lambdas.get(name, default)
        if kind is None and self._trusted:
            self.notes.append(f"Lambda layer '{name}' runs code from the model file, as --trust-model-code allows.")
            return
        if kind is None:
            raise PreflightError(lambda_refusal(self._name, layer))
        self._become_comparison(layer, kind)
        self.notes.append(f"Lambda layer '{name}' computes {kind}, as --lambda says; its own code is not run.")

    def _rewrite_custom(self, layer: dict[str, Any], said: str) -> None:
        known_as = class_of(layer)
        if said in KINDS:
            self._become_comparison(layer, said)
            self.notes.append(f"Layer '{name_of(layer)}' of class {known_as} computes {said}, as --custom-object says.")
        elif said == "functional":
            layer["class_name"], layer["module"], layer["registered_name"] = "Functional", "keras.models", "Functional"
        else:
            attribute = _import_attribute(known_as, said)
            names = {known_as, layer["class_name"], layer.get("registered_name") or known_as}
            self.custom_objects |= dict.fromkeys(names, attribute)
            self.notes.append(f"Class {known_as} is {said}, as --custom-object says.")

    def _become_comparison(self, layer: dict[str, Any], kind: str) -> None:
        if kind not in KINDS:
            raise PreflightError(f"--lambda names '{kind}', which is not known; give one of {', '.join(KINDS)}.")
        join_tensors(layer)
        self._replace(layer, "Comparison", {"kind": kind})

    def _rewrite_tensor_operation(self, layer: dict[str, Any]) -> None:
        operation = layer["config"].get("function", "__operators__.getitem")
        if operation.startswith(("tf.", "tensorflow.")):
            operation = operation.split(".", 1)[1]
        if operation not in TENSOR_OPERATIONS:
            raise PreflightError(
                f"--model {self._name}: layer '{name_of(layer)}' calls tf.{operation}, which cannot be translated; "
                "load the model with the TensorFlow that trained it and write it with model.export() as a SavedModel."
            )
        order, constants = split_arguments(layer, operation)
        self._replace(layer, "TensorOperation", {"operation": operation, "constants": constants, "order": order})

    def _replace(self, layer: dict[str, Any], kind: str, settings: dict[str, Any]) -> None:
        name = f"batchverify>{kind}"
        if "module" in layer:
            layer |= {"module": safe_layers.__name__, "class_name": kind, "registered_name": name}
        else:
            layer["class_name"] = name
        layer["config"] = {"name": name_of(layer), **settings}
        layer.pop("build_config", None)

    def _said_of(self, layer: dict[str, Any]) -> str | None:
        for known_as in (class_of(layer), layer["class_name"], class_of(layer).split(">")[-1]):
            if known_as in self._classes:
                self._used.add(known_as)
                return self._classes[known_as]
        return None

    def _knows(self, layer: dict[str, Any]) -> bool:
        if "module" not in layer:
            return self._is_known(layer["class_name"])
        return _is_keras_module(layer["module"])

    def _unknown(self, layer: dict[str, Any]) -> str:
        known_as = class_of(layer)
        if "layers" in layer.get("config", {}) and "input_layers" in layer["config"]:
            hint = f"--custom-object {known_as}=functional, if it only rearranges training,"
        elif len(joined_layers(layer)) == 2:
            hint = f"--custom-object {known_as}=l1 (or {', '.join(list(PAIR_KINDS)[1:6])}, ...), if it compares,"
        else:
            hint = "model.export() where it was trained, to get a SavedModel that brings its computation along,"
        return (
            f"--model {self._name}: layer '{name_of(layer)}' is of class {known_as}, which the file only names; use {hint} "
            f"or say where its code is, --custom-object {known_as}=module:attribute."
        )

    def _refuse_unused(self, layers: list[dict[str, Any]]) -> None:
        lambdas = {name_of(layer) for layer in layers if layer["class_name"] == "Lambda"}
        for name in self._lambdas:
            if name and name not in lambdas:
                found = ", ".join(f"'{one}'" for one in sorted(lambdas)) or "none"
                raise PreflightError(
                    f"--lambda {name}={self._lambdas[name]}: the model has no such Lambda layer; it has {found}."
                )

    def _refuse_foreign(self, node: Any) -> None:
        """Refuses classes and functions of modules that are not Keras', wherever they stand in a config."""
        if isinstance(node, dict):
            module = node.get("module")
            ours = node.get("class_name") in self.custom_objects or node.get("registered_name") in self.custom_objects
            if "class_name" in node and isinstance(module, str) and not _is_keras_module(module) and not ours:
                raise PreflightError(
                    f"--model {self._name}: it names {module}.{node['class_name']}, which is not Keras'; "
                    f"say what it is, --custom-object {node['class_name']}=module:attribute."
                )
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            self._refuse_foreign(child)


_OF_TRAINING_ALONE = ("kernel_initializer", "kernel_regularizer", "kernel_constraint", "fused")
# What Keras 2 wrote of its layers and Keras 3 refuses to read.
_DROPPED_SETTINGS = {
    "DepthwiseConv1D": ("groups",), "DepthwiseConv2D": ("groups",), "SeparableConv1D": ("groups", *_OF_TRAINING_ALONE),
    "SeparableConv2D": ("groups", *_OF_TRAINING_ALONE), "Conv1DTranspose": ("groups",), "Conv2DTranspose": ("groups",),
    "BatchNormalization": ("renorm", "virtual_batch_size", "fused", "adjustment"),
}  # fmt: skip


def _modernise(layer: dict[str, Any]) -> None:
    """Renames the modules of Keras 2's own classes, and writes its one-element axes as numbers."""
    inner = layer.get("config")
    if isinstance(inner, dict) and isinstance(inner.get("axis"), list) and len(inner["axis"]) == 1:
        inner["axis"] = inner["axis"][0]
    if isinstance(inner, dict) and layer["class_name"] in _DROPPED_SETTINGS:
        for setting in _DROPPED_SETTINGS[layer["class_name"]]:
            # A setting that changes what is computed goes only where it has the value that Keras 3 computes.
            if setting in _OF_TRAINING_ALONE or inner.get(setting) in (1, False, None):
                inner.pop(setting, None)
    module = str(layer.get("module"))
    if module.startswith(("tf_keras.", "keras.engine.", "keras.src.engine.")):
        models = {"Functional": "keras.src.models.functional", "Model": "keras.models", "Sequential": "keras.models"}
        layer["module"] = models.get(layer["class_name"], "keras.layers")


def _is_operation(layer: dict[str, Any]) -> bool:
    """Returns whether a layer of a config is one of `keras.ops`: it has no type and nothing to train."""
    inner = layer.get("config")
    return "module" not in layer and isinstance(inner, dict) and not {"trainable", "dtype", "layers"} & set(inner)


def _is_keras_module(module: Any) -> bool:
    return module in (None, "builtins", "keras", safe_layers.__name__) or str(module).startswith("keras.")


def _import_attribute(class_name: str, said: str) -> Any:
    module, _, attribute = said.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PreflightError(
            f"--custom-object {class_name}={said}: it is none of {', '.join(KINDS)}, and cannot be imported "
            f"({short_reason(error)}); give module:attribute, with the module's folder on PYTHONPATH."
        ) from None
