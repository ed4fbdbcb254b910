"""A model file before Keras opens it: its kind, its config, and whether it is safe to open."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
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

from batchverify.errors import PreflightError, short_reason
from batchverify.model import hdf5_probe
from batchverify.temporary_folder import temporary_copy

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MAX_CONFIG_BYTES = 256 * 2**20
_ALWAYS_ALLOWED_BYTES = 2**30
_MAX_EXPANSION = 100
_PROBE_TIMEOUT_S = 300
# PyTorch writes the weights of an ONNX file into a second file by default.
ONNX_WEIGHTS_SUFFIX = ".data"


class ModelKind(Enum):
    """The way in which a model is stored."""

    KERAS = "a .keras archive"
    HDF5 = "an HDF5 file"
    SAVED_MODEL = "a SavedModel folder"
    ONNX = "an ONNX file"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model file that has been checked and may be opened.

    Attributes:
        name: The path or URI that the user gave, or `embedded`.
        local: The path of the file or folder on this machine.
        kind: The way in which the model is stored.
        config: Keras' config of the architecture; empty for a SavedModel and an ONNX file.
        keras_version: The version of the Keras that wrote it; empty if the file does not say.
        weight_bytes: The number of bytes that the stored weights may have in memory; 0 for a SavedModel and an ONNX file.
        holds_weights_only: Whether the config is not in the file; then only a rewritten copy can be opened.
    """

    name: str
    local: str
    kind: ModelKind
    config: dict[str, Any]
    keras_version: str
    weight_bytes: int = 0
    holds_weights_only: bool = False

    def rewritten(self, config: dict[str, Any], folder: str) -> str:
        """Writes a copy of the file with another config into `folder`, and returns its path.

        Raises:
            PreflightError: If the rest of the file cannot be read, or there is no space for the copy.
        """
        if self.holds_weights_only:
            write = self._complete_hdf5 if self.kind is ModelKind.HDF5 else self._pack_archive
        else:
            write = self._rewrite_hdf5 if self.kind is ModelKind.HDF5 else self._rewrite_archive
        with refusing_damage(self.name, "the file is damaged", "copy it again, whole"), temporary_copy(f"--model {self.name}"):
            return write(config, folder)

    def _rewrite_hdf5(self, config: dict[str, Any], folder: str) -> str:
        path = os.path.join(folder, "model.h5")
        shutil.copyfile(self.local, path)
        os.chmod(path, 0o600)
        with h5py.File(path, "r+") as file:
            del file.attrs["model_config"]
            file.attrs["model_config"] = json.dumps(config).encode()
        return path

    def _complete_hdf5(self, config: dict[str, Any], folder: str) -> str:
        path = os.path.join(folder, "model.h5")
        with h5py.File(self.local, "r") as weights, h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config).encode()
            file.attrs["keras_version"] = self.keras_version.encode()
            group = file.create_group("model_weights")
            for name in weights:
                weights.copy(name, group)
            for name, value in weights.attrs.items():
                group.attrs[name] = value
        return path

    def _pack_archive(self, config: dict[str, Any], folder: str) -> str:
        path = os.path.join(folder, "model.keras")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(_CONFIG, json.dumps(config))
            archive.writestr(_METADATA, json.dumps({"keras_version": self.keras_version}))
            archive.write(self.local, _WEIGHTS)
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


def open_model_file(name: str, local: str, find_architecture: Callable[[], bytes | None] = lambda: None) -> ModelFile:
    """Checks a model file and reads its config.

    Args:
        name: The path or URI that the user gave.
        local: The path of the file or folder on this machine.
        find_architecture: A function that returns the architecture, as JSON, of a file that holds weights alone, or None.

    Raises:
        PreflightError: If it is no model, or one that must not be opened.
    """
    kind = identify_model(name, local)
    if kind in (ModelKind.SAVED_MODEL, ModelKind.ONNX):
        return ModelFile(name, local, kind, {}, "")
    with refusing_damage(name, f"the {'file' if kind is ModelKind.KERAS else 'HDF5 file'} is damaged", "copy it again, whole"):
        is_archive = kind is ModelKind.KERAS
        file = _read_archive(name, local) if is_archive else _read_hdf5(name, local, find_architecture)
    version = file.keras_version
    if version.startswith("1."):
        raise PreflightError(
            f"--model {name}: it was written by Keras {version}, whose format is no longer read; "
            "load it with Keras 2.2 and save it again, with model.save('model.h5')."
        )
    return file


@contextlib.contextmanager
def refusing_damage(name: str, fault: str, remedy: str) -> Iterator[None]:
    """Turns every exception of zipfile, h5py, json and of the code here into a refusal of a damaged file.

    An error of the disk passes through, because it is no fault of the file.

    Args:
        name: The model's name, for the message.
        fault: What is wrong with the file.
        remedy: What the user can do.
    """
    try:
        yield
    except PreflightError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise PreflightError(f"--model {name}: {fault} ({short_reason(error)}); {remedy}.") from None


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}


def identify_model(name: str, local: str) -> ModelKind:
    """Returns the way in which a model is stored, as its first bytes say.

    Args:
        name: The path or URI that the user gave.
        local: The path of the file or folder on this machine.

    Raises:
        PreflightError: If it is no model.
    """
    with refusing_damage(name, "the file cannot be read", "copy it again, whole"):
        return _identify(name, local)


def _identify(name: str, local: str) -> ModelKind:
    if os.path.isdir(local):
        if os.path.isfile(os.path.join(local, "saved_model.pb")):
            return ModelKind.SAVED_MODEL
        raise PreflightError(
            f"--model {name}: the folder holds no saved_model.pb, so it is no SavedModel; give a folder that "
            "model.export() wrote, or a .keras or .h5 file."
        )
    with open(local, "rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return ModelKind.HDF5
    if head.startswith(b"PK") and zipfile.is_zipfile(local):
        with zipfile.ZipFile(local) as archive:
            if _CONFIG in archive.namelist():
                return ModelKind.KERAS
        raise PreflightError(f"--model {name}: it is a zip archive without a {_CONFIG}, so no .keras file; {_ADVICE}")
    if _is_onnx(name, head):
        return ModelKind.ONNX
    raise PreflightError(f"--model {name}: {_describe_foreign_file(head)}")


def _is_onnx(name: str, head: bytes) -> bool:
    """Returns whether a file is ONNX's protocol buffer, which begins with the version of the format and has no other mark."""
    return head[:1] == b"\x08" and (name.lower().endswith(".onnx") or head[2:3] in (b"\x12", b"\x3a"))


_ADVICE = "save the model with model.save('model.keras')."


def _describe_foreign_file(head: bytes) -> str:
    """Returns what a file that is no model seems to be, and the remedy."""
    start = head.lstrip().lower()
    if not head:
        return f"the file is empty; copy it again, or {_ADVICE}"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, most likely an error page that was saved instead of the model; download the model again."
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


def _read_archive(name: str, local: str) -> ModelFile:
    with zipfile.ZipFile(local) as archive:
        _check_archive(name, archive, os.path.getsize(local))
        config = json.loads(archive.read(_CONFIG))
        metadata = json.loads(archive.read(_METADATA)) if _METADATA in archive.namelist() else {}
        version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
        weight_bytes = sum(info.file_size for info in archive.infolist())  # Keras also reads model.weights.npz.
        if _WEIGHTS in archive.namelist():
            weights = archive.read(_WEIGHTS)
            _probe_hdf5(name, weights)
            with h5py.File(io.BytesIO(weights), "r") as file:
                weight_bytes = _check_weights(name, file, len(weights))
        return ModelFile(name, local, ModelKind.KERAS, _as_config(name, config), version, weight_bytes)


def _check_archive(name: str, archive: zipfile.ZipFile, packed_bytes: int) -> None:
    names = {info.filename for info in archive.infolist()}
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if (
            not path.parts
            or any(len(part) > 255 for part in path.parts)
            or any(str(parent) in names for parent in path.parents)
        ):
            raise PreflightError(
                f"--model {name}: its entry {info.filename[:100]!r} cannot be unpacked; copy the file again, whole."
            )
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or stat.S_ISLNK(info.external_attr >> 16):
            raise PreflightError(
                f"--model {name}: its entry {info.filename[:100]!r} points outside of the archive; don't trust it."
            )
        if info.filename in (_CONFIG, _METADATA) and info.file_size > _MAX_CONFIG_BYTES:
            raise PreflightError(
                f"--model {name}: its {info.filename} has {info.file_size:,} bytes, more than any architecture needs; "
                "don't trust it."
            )
    _check_size(name, sum(info.file_size for info in archive.infolist()), packed_bytes)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * packed):
        raise PreflightError(
            f"--model {name}: its {packed:,} bytes unpack to {unpacked:,}, so it is a decompression bomb and holds no trained "
            "weights; don't trust it."
        )


def _read_hdf5(name: str, local: str, find_architecture: Callable[[], bytes | None]) -> ModelFile:
    _probe_hdf5(name, local)
    with h5py.File(local, "r") as file:
        weight_bytes = _check_weights(name, file, os.path.getsize(local))
        config, version = file.attrs.get("model_config"), _as_text(file.attrs.get("keras_version", ""))
        kind = ModelKind.HDF5 if config is not None or "layer_names" in file.attrs else ModelKind.KERAS
    is_whole = config is not None
    config = config if is_whole else find_architecture()
    if config is None:
        raise PreflightError(
            f"--model {name}: it holds weights without an architecture; write what model.to_json() returns to a file and give "
            "that as --architecture, or save the whole model, with model.save()."
        )
    with refusing_damage(name, "its architecture is no JSON", "copy the file again"):
        content = _as_config(name, json.loads(config))
    return ModelFile(name, local, kind, content, version or str(content.get("keras_version", "")), weight_bytes, not is_whole)


def _probe_hdf5(name: str, file: str | bytes) -> None:
    """Reads an HDF5 file, given by its path or its bytes, in another process, because a damaged file can crash the library."""
    path, data = (file, None) if isinstance(file, str) else ("-", file)
    try:
        done = subprocess.run(
            [sys.executable, "-I", hdf5_probe.__file__, path, *filter(None, sys.path)],
            input=data, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_PROBE_TIMEOUT_S,
        )  # fmt: skip
        failure = "crashes" if done.returncode < 0 else ""
    except subprocess.TimeoutExpired:
        failure = f"is still reading after {_PROBE_TIMEOUT_S} s"
    if not failure and done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise PreflightError(f"--model {name}: the process that looks through it cannot run ({reason}); install h5py again.")
    if failure:
        raise PreflightError(f"--model {name}: it is damaged such that the HDF5 library {failure}; copy it again, whole.")


def _iterate_datasets(name: str, group: h5py.Group, visited: set[int]) -> Iterator[h5py.Dataset]:
    """Yields the datasets below `group`, once for each of their names; `visited` holds the groups that were yielded before."""
    address = h5py.h5o.get_info(group.id).addr
    if address in visited:  # A group may contain itself, and may stand in many places.
        return
    visited.add(address)
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise PreflightError(f"--model {name}: its entry {group.name}/{key} links elsewhere; don't trust it.")
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _iterate_datasets(name, item, visited)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise PreflightError(f"--model {name}: its entry {item.name} reads other files; don't trust it.")
            yield item


def _check_weights(name: str, file: h5py.File, packed: int) -> int:
    """Returns how many bytes the stored weights may have in memory.

    A dataset may claim parts that were never written, and several names may stand for one dataset. Compressed weights take
    less space than they claim, but at least the part that `_MAX_EXPANSION` says.
    """
    claimed, stored = 0, dict[int, int]()
    for dataset in _iterate_datasets(name, file, set()):
        size = int(dataset.size or 0) * dataset.dtype.itemsize
        claimed += size
        stored[h5py.h5o.get_info(dataset.id).addr] = min(size, _MAX_EXPANSION * dataset.id.get_storage_size())
    _check_size(name, claimed, packed)
    return sum(stored.values())


def _as_config(name: str, config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or "class_name" not in config or not isinstance(config.get("config"), (dict, list)):
        raise PreflightError(f"--model {name}: its config describes no Keras model; save the whole model, with model.save().")
    return config


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
