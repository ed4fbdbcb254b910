"""Rewrites a Keras config, as the user's options say, so that Keras can load it in safe mode."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from typing import Any

from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, short_reason
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
from batchverify.model.file import ModelFile, ModelKind, refusing_damage
from batchverify.model.keras2_config import keep_computation, modernise_layer, rename_class
from batchverify.model.keras_names import is_keras_class, is_keras_module, operation_module
from batchverify.model.lambdas import ask_about_lambda, find_factor, find_guard, guess_kind_by_name, parse_lambda_option
from batchverify.model.safe_layers import KINDS, PAIR_KINDS, SCALED_KINDS, TENSOR_OPERATIONS
from batchverify.model.shared_encoder import mend_shared_encoder


@dataclasses.dataclass(frozen=True)
class LoadableConfig:
    """A config that Keras may load in safe mode.

    Attributes:
        config: The config.
        changed: Whether it differs from the file's own config.
        custom_objects: The classes that the user named, for Keras.
        notes: The decisions that were made, one sentence each.
    """

    config: dict[str, Any]
    changed: bool
    custom_objects: dict[str, Any]
    notes: tuple[str, ...]


def prepare_config(file: ModelFile, options: ModelConfig) -> LoadableConfig:
    """Rewrites the config of `file` so that Keras can load it without running code that the file holds.

    Args:
        file: A `.keras` or HDF5 file.
        options: The user's statements about Lambda layers and custom classes.

    Raises:
        PreflightError: If `options` leave a part of the config unexplained.
    """
    with refusing_damage(file.name, "its config is damaged", "save the model again, with model.save()"):
        config = json.loads(json.dumps(file.config))
        rules = _Rules.from_options(file.name, options)
        changes = list(_rewrite_layers(config, rules))
        if questions := [question for change in changes for question in change.questions]:
            raise OpenQuestionError(questions)
        if file.kind is ModelKind.HDF5:
            _refuse_several_axes(file.name, config)
        if file.keras_version.startswith("2."):
            keep_computation(config)
        custom_objects = {name: value for change in changes for name, value in change.custom_objects.items()}
        if not rules.trusted:
            _refuse_foreign_modules(file.name, config, custom_objects)
        notes = [note for change in changes for note in change.notes]
        notes += mend_shared_encoder(file.name, config, options.mend_shared_encoder)
        return LoadableConfig(config, config != file.config, custom_objects, tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Rules:
    """The user's statements about the layers of a model.

    Attributes:
        model: The model's name, for messages.
        trusted: Whether code in the file may run.
        lambdas: The kinds of Lambda layers by layer name; the empty name stands for all of them.
        classes: The meanings of custom classes by class name: a kind, `functional` or `module:attribute`.
    """

    model: str
    trusted: bool
    lambdas: dict[str, str]
    classes: dict[str, str]

    @classmethod
    def from_options(cls, model: str, options: ModelConfig) -> _Rules:
        lambdas = dict(parse_lambda_option(text) for text in options.lambdas)
        classes = dict(text.split("=", 1) for text in options.custom_objects)
        return cls(model, options.trust_model_code, lambdas, classes)

    def meaning_of(self, layer: dict[str, Any]) -> str | None:
        """Returns the stated meaning of a layer's class, or None."""
        names = (class_of(layer), layer["class_name"], class_of(layer).split(">")[-1])
        return next((self.classes[name] for name in names if name in self.classes), None)

    def kind_of_lambda(self, layer: dict[str, Any]) -> str | None:
        """Returns the stated kind of a Lambda layer, or None. A kind for all layers must fit the number of inputs."""
        default = self.lambdas.get("")
        if default is not None and (default in PAIR_KINDS) != (len(joined_layers(layer)) == 2):
            default = None
        return self.lambdas.get(name_of(layer), default)


@dataclasses.dataclass(frozen=True)
class _Change:
    """The result of rewriting one layer in place.

    Attributes:
        notes: The decisions that were made, one sentence each.
        custom_objects: The imported classes, by the names that the config may call them.
        questions: What the options leave open about the layer.
    """

    notes: tuple[str, ...] = ()
    custom_objects: dict[str, Any] = dataclasses.field(default_factory=dict)
    questions: tuple[OpenQuestion, ...] = ()


def _rewrite_layers(config: dict[str, Any], rules: _Rules) -> Iterator[_Change]:
    """Rewrites all layers of `config` in place."""
    layers = list(iterate_layers(config))
    _refuse_unknown_lambdas(layers, rules)
    for layer in layers:
        yield _rewrite_layer(layer, rules)
    for model in [config, *layers]:
        renumber_calls(model)


def _rewrite_layer(layer: dict[str, Any], rules: _Rules) -> _Change:
    class_name = layer["class_name"]
    modernise_layer(layer)
    if _is_operation(layer) and (module := operation_module(class_name)):
        # HDF5 files of Keras 3 leave the module out, and Keras then searches its layers only.
        layer |= {"module": module, "registered_name": class_name}
    if class_name == "Lambda":
        return _rewrite_lambda(layer, rules)
    if class_name in ("TFOpLambda", "SlicingOpLambda"):
        return _rewrite_tensor_operation(layer, rules)
    if (meaning := rules.meaning_of(layer)) is not None:
        return _rewrite_custom_layer(layer, meaning)
    if not rules.trusted and not _is_known(layer):
        return _Change(questions=(_ask_about_class(layer, rules),))
    return _Change()


def _rewrite_lambda(layer: dict[str, Any], rules: _Rules) -> _Change:
    name, kind = name_of(layer), rules.kind_of_lambda(layer)
    if kind is not None:
        details = _lambda_details(layer, kind, rules)
        _replace_with_comparison(layer, kind, **details)
        words = "".join(f", {word} {value}" for word, value in details.items())
        return _Change((f"Lambda layer '{name}' computes {kind}{words}, as --lambda says; its own code is not run.",))
    if rules.trusted:
        return _Change((f"Lambda layer '{name}' runs code from the model file, as --trust-model-code allows.",))
    return _Change(questions=(ask_about_lambda(rules.model, layer),))


def _lambda_details(layer: dict[str, Any], kind: str, rules: _Rules) -> dict[str, Any]:
    """Returns the numbers that a Lambda layer states and its kind needs; they are read as data."""
    if kind == "euclidean":
        return {"guard": guard} if (guard := find_guard(layer)) else {}
    if kind not in SCALED_KINDS:
        return {}
    factor = find_factor(layer)
    if factor is None:
        raise PreflightError(
            f"--lambda {name_of(layer)}={kind}: that layer of {rules.model} states no factor among its arguments; choose "
            "another kind."
        )
    return {"factor": factor}


def _rewrite_tensor_operation(layer: dict[str, Any], rules: _Rules) -> _Change:
    operation = layer["config"].get("function", "__operators__.getitem")
    if operation.startswith(("tf.", "tensorflow.")):
        operation = operation.split(".", 1)[1]
    if operation not in TENSOR_OPERATIONS:
        raise PreflightError(
            f"--model {rules.model}: layer '{name_of(layer)}' calls tf.{operation}, which cannot be translated; "
            "load the model with the TensorFlow that trained it and write it with model.export() as a SavedModel."
        )
    order, constants = split_arguments(layer)
    settings = {"operation": operation, "constants": constants, "order": order}
    _replace_layer(layer, safe_layers.TensorOperation, settings)
    return _Change()


def _rewrite_custom_layer(layer: dict[str, Any], meaning: str) -> _Change:
    name = class_of(layer)
    if meaning in KINDS:
        _replace_with_comparison(layer, meaning)
        return _Change((f"Layer '{name_of(layer)}' of class {name} computes {meaning}, as --custom-object says.",))
    if meaning == "functional":
        layer |= {"class_name": "Functional", "module": "keras.models", "registered_name": "Functional"}
        return _Change()
    names = {name, layer["class_name"], layer.get("registered_name") or name}
    note = f"Class {name} is {meaning}, as --custom-object says."
    return _Change((note,), dict.fromkeys(names, _import_attribute(name, meaning)))


def _replace_with_comparison(layer: dict[str, Any], kind: str, **details: Any) -> None:
    join_tensors(layer)
    _replace_layer(layer, safe_layers.Comparison, {"kind": kind, **details})


def _replace_layer(layer: dict[str, Any], replacement: type, settings: dict[str, Any]) -> None:
    rename_class(layer, replacement)
    layer["config"] = {"name": name_of(layer), **settings}
    layer.pop("build_config", None)


def _is_known(layer: dict[str, Any]) -> bool:
    if layer.get("module") is None:  # Keras 3 writes null for classes of a notebook or a script.
        return is_keras_class(layer["class_name"])
    return is_keras_module(layer["module"])


def _is_operation(layer: dict[str, Any]) -> bool:
    """Returns whether a layer of a config is one of `keras.ops`: it has no dtype and nothing to train."""
    settings = layer.get("config")
    return "module" not in layer and isinstance(settings, dict) and not {"trainable", "dtype", "layers"} & set(settings)


def _ask_about_class(layer: dict[str, Any], rules: _Rules) -> OpenQuestion:
    name = class_of(layer)
    shown, assumed = "module:attribute", "identity"
    if "layers" in layer.get("config", {}) and "input_layers" in layer["config"]:
        shown = assumed = "functional"
        hint = f"--custom-object {name}=functional, if it only changes how the model is trained,"
    elif len(joined_layers(layer)) == 2:
        shown = assumed = kind = guess_kind_by_name(name)
        others = [other for other in ("l1", "squared", "euclidean", "cosine", "cosine_distance", "dot") if other != kind]
        hint = f"--custom-object {name}={kind} (or {', '.join(others)}, ...), if it compares,"
    else:
        hint = "model.export() where it was trained, to get a SavedModel that contains its computation,"
    problem = (
        f"--model {rules.model}: layer '{name_of(layer)}' is of class {name}, which the file only names; use {hint} "
        f"or say where its code is, --custom-object {name}=module:attribute."
    )
    option = ("--custom-object", f"{name}={shown}")
    return OpenQuestion(problem, option, {"custom_objects": (f"{name}={assumed}",)}, is_guess=assumed == "identity")


def _refuse_unknown_lambdas(layers: list[dict[str, Any]], rules: _Rules) -> None:
    lambdas = {name_of(layer) for layer in layers if layer["class_name"] == "Lambda"}
    for name, kind in rules.lambdas.items():
        if name and name not in lambdas:
            existing = ", ".join(f"'{existing}'" for existing in sorted(lambdas)) or "none"
            raise PreflightError(f"--lambda {name}={kind}: the model has no such Lambda layer; it has {existing}.")


def _refuse_several_axes(model: str, config: dict[str, Any]) -> None:
    """Refuses layers of an HDF5 file that work on several axes at once: Keras 3 reads such a list from .keras files only."""
    for layer in iterate_layers(config):
        axes = layer["config"].get("axis") if isinstance(layer.get("config"), dict) else None
        if isinstance(axes, list):
            raise PreflightError(
                f"--model {model}: its layer '{name_of(layer)}' works on the axes {axes}, which Keras 3 does not read from an "
                "HDF5 file; load it where it was trained, and save it with model.save('model.keras')."
            )


def _refuse_foreign_modules(model: str, node: Any, custom_objects: dict[str, Any]) -> None:
    """Refuses classes and functions of modules that are not Keras', wherever they stand in a config."""
    if isinstance(node, dict):
        module = node.get("module")
        is_named_by_user = node.get("class_name") in custom_objects or node.get("registered_name") in custom_objects
        if "class_name" in node and isinstance(module, str) and not is_keras_module(module) and not is_named_by_user:
            problem = (
                f"--model {model}: it names {module}.{node['class_name']}, which is not Keras'; "
                f"say what it is, --custom-object {node['class_name']}=module:attribute."
            )
            raise OpenQuestionError(OpenQuestion(problem, ("--custom-object", f"{node['class_name']}=module:attribute")))
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _refuse_foreign_modules(model, child, custom_objects)


def _import_attribute(class_name: str, meaning: str) -> Any:
    module, _, attribute = meaning.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PreflightError(
            f"--custom-object {class_name}={meaning}: it is none of {', '.join(KINDS)}, and cannot be imported "
            f"({short_reason(error)}); give module:attribute, with the module's folder on PYTHONPATH."
        ) from None
