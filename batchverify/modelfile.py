"""A model file before Keras sees it: what it is, whether it may be opened, its config read, judged and rewritten.

Nothing here runs anything that a file holds. What a file cannot be trusted with or is not able to say, the user says,
and the config is rewritten to it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import errno
import importlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import h5py

from batchverify import comparisons, hdf5probe
from batchverify.comparisons import KINDS, PAIR_KINDS, SINGLE_KINDS, TENSOR_OPERATIONS
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MOST_CONFIG_BYTES = 256 * 2**20
_UNPACKED_BYTES_ALWAYS_FINE = 2**30
_MOST_EXPANSION = 100
_PROBE_S = 300


class Kind(Enum):
    """How a model is stored."""

    KERAS = "a .keras archive"
    HDF5 = "an HDF5 file"
    SAVED_MODEL = "a SavedModel folder"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model file that has been looked through and may be opened.

    Attributes:
        name: what the user calls it.
        local: where it lies on this machine.
        kind: how it is stored.
        config: Keras' config of the architecture; empty for a SavedModel.
        keras_version: of the Keras that wrote it, as far as it says.
        weight_bytes: that its weights have, as it says; 0 for a SavedModel.
    """

    name: str
    local: str
    kind: Kind
    config: dict[str, Any]
    keras_version: str
    weight_bytes: int = 0

    def rewritten(self, config: dict[str, Any], folder: str) -> str:
        """Writes the file anew with another config, into `folder`, and returns its path.

        Raises:
            PreflightError: if the rest of the file cannot be read.
        """
        write = self._rewrite_hdf5 if self.kind is Kind.HDF5 else self._rewrite_archive
        with _refusing(self.name, "the file is damaged", "copy it again, whole"):
            return write(config, folder)

    def _rewrite_hdf5(self, config: dict[str, Any], folder: str) -> str:
        path = os.path.join(folder, "model.h5")
        shutil.copyfile(self.local, path)
        os.chmod(path, 0o600)
        with h5py.File(path, "r+") as file:
            del file.attrs["model_config"]
            file.attrs["model_config"] = json.dumps(config).encode()
        return path

    def _rewrite_archive(self, config: dict[str, Any], folder: str) -> str:
        path = os.path.join(folder, "model.keras")
        with zipfile.ZipFile(self.local) as old, zipfile.ZipFile(path, "w") as new:
            for info in old.infolist():
                if info.filename == _CONFIG:
                    new.writestr(_CONFIG, json.dumps(config))
                elif not info.is_dir():
                    with old.open(info) as source, new.open(info.filename, "w", force_zip64=True) as copy:
                        shutil.copyfileobj(source, copy, 2**20)
        return path


@dataclasses.dataclass(frozen=True)
class Prepared:
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


def open_model_file(name: str, local: str) -> ModelFile:
    """Looks a model file through.

    Raises:
        PreflightError: if it is no model, or one that must not be opened.
    """
    with _refusing(name, "the file cannot be read", "copy it again, whole"):
        kind = _identify(name, local)
    if kind is Kind.SAVED_MODEL:
        return ModelFile(name, local, kind, {}, "")
    with _refusing(name, f"the {'file' if kind is Kind.KERAS else 'HDF5 file'} is damaged", "copy it again, whole"):
        config, version, weight_bytes = (_read_archive if kind is Kind.KERAS else _read_hdf5)(name, local)
    if version.startswith("1."):
        raise PreflightError(
            f"--model {name}: it was written by Keras {version}, whose format is no longer read; "
            "load it with Keras 2.2 and save it again, with model.save('model.h5')."
        )
    return ModelFile(name, local, kind, config, version, weight_bytes)


def prepare_config(
    file: ModelFile, options: ModelConfig, is_known: Callable[[str], bool], operation_module: Callable[[str], str | None]
) -> Prepared:
    """Rewrites the config of `file` so that Keras can load it without running code that the file holds.

    Args:
        file: a `.keras` or HDF5 file.
        options: what the user says of Lambdas and custom classes.
        is_known: whether Keras has a layer or model class of a name.
        operation_module: where Keras has an operation of a name, such as `Absolute`.

    Raises:
        PreflightError: if something in it is not explained by `options`.
    """
    with _refusing(file.name, "its config is damaged", "save the model again, with model.save()"):
        config = json.loads(json.dumps(file.config))
        rewriter = _Rewriter(file.name, options, is_known, operation_module)
        rewriter.rewrite(config)
        notes = rewriter.notes + _mend(file.name, config, options.mend_shared_encoder)
        return Prepared(config, config != file.config, rewriter.custom_objects, tuple(notes))


@contextlib.contextmanager
def _refusing(name: str, fault: str, remedy: str) -> Iterator[None]:
    """Turns whatever a broken file leads zipfile, h5py, json or the code here to into a refusal.

    The disk's own errors are no fault of the file, but for those that a file's wrong offsets lead to.
    """
    try:
        yield
    except PreflightError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        raise PreflightError(f"--model {name}: {fault} ({_brief(error)}); {remedy}.") from None


_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


def lambda_layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what is known of each Lambda in a config: `name`, `joins` (layer names) and `hint` (a kind, or None)."""
    return [
        {"name": _name(layer), "joins": _joined(layer), "hint": _hint(layer)}
        for layer in _layers(config)
        if layer["class_name"] == "Lambda"
    ]


# What a file is


def _identify(name: str, local: str) -> Kind:
    if os.path.isdir(local):
        if os.path.isfile(os.path.join(local, "saved_model.pb")):
            return Kind.SAVED_MODEL
        raise PreflightError(
            f"--model {name}: the folder holds no saved_model.pb, so it is no SavedModel; give a folder that "
            "model.export() wrote, or a .keras or .h5 file."
        )
    with open(local, "rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Kind.HDF5
    if head.startswith(b"PK") and zipfile.is_zipfile(local):
        with zipfile.ZipFile(local) as archive:
            if _CONFIG in archive.namelist():
                return Kind.KERAS
        raise PreflightError(f"--model {name}: it is a zip archive without a {_CONFIG}, so no .keras file; {_ADVICE}")
    raise PreflightError(f"--model {name}: {_looks_like(head)}")


_ADVICE = "save the model with model.save('model.keras')."


def _looks_like(head: bytes) -> str:
    start = head.lstrip().lower()
    if not head:
        return f"the file is empty; copy it again, or {_ADVICE}"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, most likely an error page that was saved in the model's place; download the model again."
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the model itself; fetch the model with git lfs pull."
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return f"it is a pickle, which can run any code when it is opened, and is never read; {_ADVICE}"
    if head.startswith(b"PK"):
        return "it is a truncated zip archive; copy the .keras file again, whole."
    if head.startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")):
        return "it is compressed; unpack it first."
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return f"it is no .keras archive, no HDF5 file and no SavedModel folder; {_ADVICE}"
    return f"it is a text file, not a model; {_ADVICE}"


def _read_archive(name: str, local: str) -> tuple[dict[str, Any], str, int]:
    with zipfile.ZipFile(local) as archive:
        _check_archive(name, archive, os.path.getsize(local))
        config = json.loads(archive.read(_CONFIG))
        metadata = json.loads(archive.read(_METADATA)) if _METADATA in archive.namelist() else {}
        version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
        weight_bytes = sum(info.file_size for info in archive.infolist())  # of model.weights.npz, which Keras also reads
        if _WEIGHTS in archive.namelist():
            weights = archive.read(_WEIGHTS)
            _probe_hdf5(name, weights)
            with h5py.File(io.BytesIO(weights), "r") as file:
                weight_bytes = _check_group(name, file, set())
            _check_size(name, weight_bytes, len(weights))
        return _as_config(name, config), version, weight_bytes


def _check_archive(name: str, archive: zipfile.ZipFile, packed: int) -> None:
    names = {info.filename for info in archive.infolist()}
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if not path.parts or any(len(part) > 255 for part in path.parts) or any(str(one) in names for one in path.parents):
            raise PreflightError(
                f"--model {name}: its entry {info.filename[:100]!r} cannot be unpacked; copy the file again, whole."
            )
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or stat.S_ISLNK(info.external_attr >> 16):
            raise PreflightError(
                f"--model {name}: its entry {info.filename[:100]!r} points outside of the archive; don't trust it."
            )
        if info.filename in (_CONFIG, _METADATA) and info.file_size > _MOST_CONFIG_BYTES:
            raise PreflightError(
                f"--model {name}: its {info.filename} has {info.file_size:,} bytes; no architecture is so long."
            )
    _check_size(name, sum(info.file_size for info in archive.infolist()), packed)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(_UNPACKED_BYTES_ALWAYS_FINE, _MOST_EXPANSION * packed):
        raise PreflightError(
            f"--model {name}: {packed:,} bytes that unpack to {unpacked:,} are no trained weights but a bomb; don't trust it."
        )


def _read_hdf5(name: str, local: str) -> tuple[dict[str, Any], str, int]:
    _probe_hdf5(name, local)
    with h5py.File(local, "r") as file:
        weight_bytes = _check_group(name, file, set())
        _check_size(name, weight_bytes, os.path.getsize(local))
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise PreflightError(
            f"--model {name}: it holds weights without an architecture; save the whole model, with model.save()."
        )
    with _refusing(name, "its model_config is no JSON", "copy the file again"):
        return _as_config(name, json.loads(config)), _as_text(version), weight_bytes


def _probe_hdf5(name: str, file: str | bytes) -> None:
    """Reads an HDF5 file, by its path or its bytes, in a process of its own, as the HDF5 library can crash on a broken one."""
    path, data = (file, None) if isinstance(file, str) else ("-", file)
    try:
        done = subprocess.run(
            [sys.executable, "-I", hdf5probe.__file__, path],
            input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_PROBE_S,
        )  # fmt: skip
        ended = "crashes" if done.returncode else ""
    except subprocess.TimeoutExpired:
        ended = f"is still reading after {_PROBE_S} s"
    if ended:
        raise PreflightError(f"--model {name}: it is damaged such that the HDF5 library {ended}; copy it again, whole.")


def _check_group(name: str, group: h5py.Group, seen: set[int]) -> int:
    """Returns how many bytes the datasets below `group` say that they have; `seen` are the groups that were counted."""
    total = 0
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:  # Groups may be within each other, and in many places.
        return 0
    seen.add(address)
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise PreflightError(f"--model {name}: its entry {group.name}/{key} links elsewhere; don't trust it.")
        item = group[key]
        if isinstance(item, h5py.Group):
            total += _check_group(name, item, seen)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise PreflightError(f"--model {name}: its entry {item.name} reads other files; don't trust it.")
            total += item.size * item.dtype.itemsize if item.size else 0
    return total


def _as_config(name: str, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or "class_name" not in config or not isinstance(config.get("config"), (dict, list)):
        raise PreflightError(f"--model {name}: its config describes no Keras model; save the whole model, with model.save().")
    return config


# What the config says, and what it is made to say


class _Rewriter:
    """Walks a config and replaces what Keras could not load in safe mode."""

    def __init__(self, name: str, options: ModelConfig, is_known, operation_module):
        self._name, self._trusted = name, options.trust_model_code
        self._is_known, self._operation_module = is_known, operation_module
        self._lambdas = dict(_split_option("lambda", text) for text in options.lambdas)
        self._classes = dict(text.split("=", 1) for text in options.custom_objects)
        self.custom_objects: dict[str, Any] = {}
        self.notes: list[str] = []
        self._used: set[str] = set()

    def rewrite(self, config: dict[str, Any]) -> None:
        layers = list(_layers(config))
        self._refuse_unused(layers)
        for layer in layers:
            self._rewrite_layer(layer)
        for model in [config, *layers]:
            _renumber_calls(model)
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
        name, joined = _name(layer), _joined(layer)
        default = self._lambdas.get("")
        if default is not None and (default in PAIR_KINDS) != (len(joined) == 2):
            default = None
        kind = self._lambdas.get(name, default)
        if kind is None and self._trusted:
            self.notes.append(f"Lambda layer '{name}' runs code from the model file, as --trust-model-code allows.")
            return
        if kind is None:
            raise PreflightError(_lambda_refusal(self._name, layer))
        self._become_comparison(layer, kind)
        self.notes.append(f"Lambda layer '{name}' computes {kind}, as --lambda says; its own code is not run.")

    def _rewrite_custom(self, layer: dict[str, Any], said: str) -> None:
        known_as = _class_of(layer)
        if said in KINDS:
            self._become_comparison(layer, said)
            self.notes.append(f"Layer '{_name(layer)}' of class {known_as} computes {said}, as --custom-object says.")
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
        _join_tensors(layer)
        self._replace(layer, "Comparison", {"kind": kind})

    def _rewrite_tensor_operation(self, layer: dict[str, Any]) -> None:
        operation = layer["config"].get("function", "__operators__.getitem")
        if operation.startswith(("tf.", "tensorflow.")):
            operation = operation.split(".", 1)[1]
        if operation not in TENSOR_OPERATIONS:
            raise PreflightError(
                f"--model {self._name}: layer '{_name(layer)}' calls tf.{operation}, which cannot be translated; "
                "load the model with the TensorFlow that trained it and write it with model.export() as a SavedModel."
            )
        order, constants = _tensors_and_constants(layer, operation)
        self._replace(layer, "TensorOperation", {"operation": operation, "constants": constants, "order": order})

    def _replace(self, layer: dict[str, Any], kind: str, settings: dict[str, Any]) -> None:
        name = f"batchverify>{kind}"
        if "module" in layer:
            layer |= {"module": comparisons.__name__, "class_name": kind, "registered_name": name}
        else:
            layer["class_name"] = name
        layer["config"] = {"name": _name(layer), **settings}
        layer.pop("build_config", None)

    def _said_of(self, layer: dict[str, Any]) -> str | None:
        for known_as in (_class_of(layer), layer["class_name"], _class_of(layer).split(">")[-1]):
            if known_as in self._classes:
                self._used.add(known_as)
                return self._classes[known_as]
        return None

    def _knows(self, layer: dict[str, Any]) -> bool:
        if "module" not in layer:
            return self._is_known(layer["class_name"])
        return _is_keras_module(layer["module"])

    def _unknown(self, layer: dict[str, Any]) -> str:
        known_as = _class_of(layer)
        if "layers" in layer.get("config", {}) and "input_layers" in layer["config"]:
            hint = f"--custom-object {known_as}=functional, if it only rearranges training,"
        elif len(_joined(layer)) == 2:
            hint = f"--custom-object {known_as}=l1 (or {', '.join(list(PAIR_KINDS)[1:6])}, ...), if it compares,"
        else:
            hint = "model.export() where it was trained, to get a SavedModel that brings its computation along,"
        return (
            f"--model {self._name}: layer '{_name(layer)}' is of class {known_as}, which the file only names; use {hint} "
            f"or say where its code is, --custom-object {known_as}=module:attribute."
        )

    def _refuse_unused(self, layers: list[dict[str, Any]]) -> None:
        lambdas = {_name(layer) for layer in layers if layer["class_name"] == "Lambda"}
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


def _layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the dictionaries of a model and all layers in it, inner before outer."""
    inner = config.get("config")
    parts = inner if isinstance(inner, list) else inner.get("layers", []) if isinstance(inner, dict) else []
    for part in parts:
        if isinstance(part, dict) and "class_name" in part:
            yield from _layers(part)
    if isinstance(inner, dict) and isinstance(inner.get("layer"), dict) and "class_name" in inner["layer"]:
        yield from _layers(inner["layer"])
    yield config


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


def _class_of(layer: dict[str, Any]) -> str:
    return layer.get("registered_name") or layer["class_name"]


def _name(layer: dict[str, Any]) -> str:
    inner = layer.get("config")
    return str(layer.get("name") or (inner.get("name") if isinstance(inner, dict) else None) or layer["class_name"])


def _is_keras_module(module: Any) -> bool:
    return module in (None, "builtins", "keras", comparisons.__name__) or str(module).startswith("keras.")


def _split_option(option: str, text: str) -> tuple[str, str]:
    """Returns name and kind of `NAME=KIND`, or an empty name for `KIND`."""
    name, _, kind = text.rpartition("=")
    if kind not in KINDS:
        raise PreflightError(f"--{option} names '{kind}', which is not known; give one of {', '.join(KINDS)}.")
    return name, kind


def _import_attribute(class_name: str, said: str) -> Any:
    module, _, attribute = said.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PreflightError(
            f"--custom-object {class_name}={said}: it is none of {', '.join(KINDS)}, and cannot be imported "
            f"({_brief(error)}); give module:attribute, with the module's folder on PYTHONPATH."
        ) from None


def _lambda_refusal(name: str, layer: dict[str, Any]) -> str:
    joined, own = _joined(layer), _name(layer)
    sources = " and ".join(f"'{one}'" for one in joined) or "the layer before it"
    joins = f"joins {sources}" if len(joined) > 1 else f"follows {sources}"
    kinds = list(PAIR_KINDS if len(joined) > 1 else SINGLE_KINDS)
    hint = _hint(layer)
    choices = f"--lambda {own}=KIND, KIND being one of {', '.join(kinds)},"
    if hint in kinds:
        others = ", ".join(kind for kind in kinds if kind != hint)
        choices = f"--lambda {own}={hint}, as its code seems to do (or {others}),"
    return (
        f"--model {name}: layer '{own}' is a Lambda that {joins}; it is code inside the model file, and is not run. "
        f"Say what it computes, {choices} "
        "or add --trust-model-code if you trust whoever made the file."
    )


def _hint(layer: dict[str, Any]) -> str | None:
    """Guesses a kind from the names that a Lambda's code mentions; nothing is unmarshalled."""
    inner = layer.get("config")
    text = json.dumps(inner.get("function")).lower() if isinstance(inner, dict) else ""
    code = text.encode() + _decoded(inner.get("function") if isinstance(inner, dict) else None)
    marks = {"l2_normalize": "l2_normalize", "normalize": "l2_normalize", "cosine": "cosine", "euclid": "euclidean",
             "sqrt": "euclidean", "abs": "l1", "l1": "l1", "square": "squared"}  # fmt: skip
    return next((kind for mark, kind in marks.items() if mark.encode() in code), None)


def _decoded(function: Any) -> bytes:
    if isinstance(function, dict):
        function = function.get("config", function)
        function = function.get("code", "") if isinstance(function, dict) else function
    if isinstance(function, list) and function:
        function = function[0]
    try:
        return base64.b64decode(function, validate=False).lower() if isinstance(function, str) else b""
    except (binascii.Error, ValueError):
        return b""


# The graph in a config. A reference is a list [layer name, call, tensor], in old configs with a dictionary behind it.


def _joined(layer: dict[str, Any]) -> list[str]:
    nodes = layer.get("inbound_nodes") or []
    return [reference[0] for reference in _references(nodes[0])] if nodes else []


def _is_reference(node: Any) -> bool:
    return (
        isinstance(node, list) and len(node) in (3, 4)
        and isinstance(node[0], str) and all(isinstance(part, int) for part in node[1:3])
    )  # fmt: skip


def _references(node: Any) -> Iterator[list[Any]]:
    if isinstance(node, dict) and node.get("class_name") == "__keras_tensor__":
        yield node["config"]["keras_history"]
    elif isinstance(node, dict):
        for child in node.values():
            yield from _references(child)
    elif _is_reference(node):
        yield node
        if len(node) == 4:
            yield from _references(node[3])
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)


def _join_tensors(layer: dict[str, Any]) -> None:
    """Makes every old call of a layer one list of tensors, also those that were passed by name."""
    for number, node in enumerate(layer.get("inbound_nodes") or []):
        if isinstance(node, list):
            layer["inbound_nodes"][number] = [[*reference[:3], {}] for reference in _references(node)]


def _tensors_and_constants(layer: dict[str, Any], operation: str) -> tuple[list[str | None], dict[str, Any]]:
    """Rewrites the call of a tf.keras TFOpLambda; returns which arguments are tensors, and the others' values."""
    node = (layer.get("inbound_nodes") or [[]])[0]
    several = bool(node) and isinstance(node[0], list)
    first = node[0] if several else node
    keywords = dict(first[3]) if len(first) > 3 and isinstance(first[3], dict) else {}
    keywords.pop("name", None)
    order: list[str | None] = ["*"] if several and len(node) > 1 else [None]
    tensors = [reference[:3] for reference in (node if several else [node])]
    constants: dict[str, Any] = {}
    if first and first[0] == "_CONSTANT_VALUE":
        constants["x"], order, tensors = first[2], [], []
    for name, value in keywords.items():
        if _is_reference(value):
            order.append(name)
            tensors.append(value[:3])
        else:
            constants[name] = value
    layer["inbound_nodes"] = [[[*tensor, {}] for tensor in tensors]]
    return order, constants


def _renumber_calls(model: dict[str, Any]) -> None:
    """Counts the calls of nested models from 0: tf.keras counted the model's own construction as call 0."""
    inner = model.get("config")
    if not isinstance(inner, dict) or "layers" not in inner:
        return
    references = list(_references([layer.get("inbound_nodes", []) for layer in inner["layers"]]))
    references += list(_references([inner.get("output_layers", [])]))
    for layer in inner["layers"]:
        calls = len(layer.get("inbound_nodes") or [])
        mine = [reference for reference in references if reference[0] == _name(layer)]
        if mine and calls and max(reference[1] for reference in mine) == calls and min(reference[1] for reference in mine) >= 1:
            for reference in mine:
                reference[1] -= 1


# Keras 3.2.1's broken shared encoders


def _mend(name: str, config: dict[str, Any], allowed: bool) -> list[str]:
    """Finds an input that the output does not depend on; rewires the comparison to the encoder's unused call."""
    ignored = _ignored_input(config)
    if ignored is None:
        return []
    fault = f"the score does not depend on the input '{ignored}': in the file, both branches use the other input's embedding"
    found = _unused_call(config, ignored)
    if found is None:
        raise PreflightError(
            f"--model {name}: {fault}; build the network anew from its code, load its weights and save it again."
        )
    encoder, call = found
    if not allowed:
        raise PreflightError(
            f"--model {name}: {fault}, while a second call of '{encoder}' is used by nothing (Keras 3.2.1 wrote such files); "
            "add --mend-shared-encoder to rewire the comparison to it."
        )
    for layer in config["config"]["layers"]:
        for node in layer.get("inbound_nodes") or []:
            uses = [reference for reference in _references(node) if reference[0] == encoder]
            if len(uses) > 1:
                uses[1][1] = call
    if _ignored_input(config) is not None:
        raise PreflightError(f"--model {name}: {fault}; it cannot be mended, so save it again with a current Keras.")
    return [f"Mended: the comparison took one call of '{encoder}' twice and now takes both, as --mend-shared-encoder allows."]


def _ignored_input(config: dict[str, Any]) -> str | None:
    inner = config["config"]
    if not isinstance(inner, dict) or "input_layers" not in inner or "output_layers" not in inner:
        return None
    inputs = [reference[0] for reference in _references([inner["input_layers"]])]
    outputs = list(_references([inner["output_layers"]]))
    if len(inputs) != 2 or not outputs:
        return None
    reached = _reached(config, outputs)
    return next((name for name in inputs if name not in reached), None)


def _reached(config: dict[str, Any], references: list[list[Any]]) -> set[str]:
    """Returns the names of all layers that the referenced tensors are computed from."""
    nodes = {_name(layer): layer.get("inbound_nodes") or [] for layer in config["config"]["layers"]}
    waiting, seen = [(reference[0], reference[1]) for reference in references], set()
    while waiting:
        call = waiting.pop()
        if call not in seen and call[0] in nodes:
            seen.add(call)
            calls = nodes[call[0]]
            if call[1] < len(calls):
                waiting += [(reference[0], reference[1]) for reference in _references(calls[call[1]])]
    return {name for name, _ in seen}


def _unused_call(config: dict[str, Any], ignored: str) -> tuple[str, int] | None:
    """Returns the layer and the number of its call that depends on the ignored input and that nothing uses."""
    layers = config["config"]["layers"]
    used = {(reference[0], reference[1]) for reference in _references([layer.get("inbound_nodes", []) for layer in layers])}
    for layer in layers:
        for number, node in enumerate(layer.get("inbound_nodes") or []):
            if number and (_name(layer), number) not in used and ignored in _reached(config, list(_references(node))):
                return _name(layer), number
    return None


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _brief(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
