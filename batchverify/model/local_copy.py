"""A copy of a model on this machine, wherever the model is stored."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import os
from collections.abc import Iterator

from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import list_folder, open_for_reading
from batchverify.model.registry import fetch_model, is_registry_name
from batchverify.temporary_folder import temporary_copy, temporary_folder
from batchverify.uris import is_remote

_MAX_ENTRIES = 10_000


@contextlib.contextmanager
def local_model(path: str | None) -> Iterator[str]:
    """Yields a path of the model on this machine; a model in a store is copied for as long as the context lasts.

    Args:
        path: The model's path or URI; None means the embedded model.

    Raises:
        PreflightError: If there is no such model, or it cannot be fetched.
    """
    if path is None:
        with importlib.resources.as_file(importlib.resources.files("batchverify.demo") / "sane.keras") as local:
            yield str(local)
    elif is_registry_name(path):
        with temporary_folder() as folder:
            yield fetch_model(path, folder)
    elif not is_remote(path):
        if not os.path.exists(path):
            raise PreflightError(f"--model {path}: there is no such file; check the path.")
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise PreflightError(f"--model {path}: it is neither a file nor a folder; give a model file.")
        yield path
    else:
        with temporary_folder() as folder:
            yield _download(path.rstrip("/"), os.path.join(folder, "model"))


def _download(uri: str, local: str) -> str:
    try:
        # A store has no folders, only files whose names begin alike.
        for path in [file.path for file in list_folder(uri, "**")] or [uri]:
            target = os.path.normpath(local + path.removeprefix(uri))
            if target != local and not target.startswith(local + os.sep):
                raise PreflightError(f"--model {uri}: the name {path} points outside of the folder; don't trust it.")
            _copy(path, target)
    except PreflightError:
        raise
    except Exception as error:  # Beam wraps every exception of the store's client.
        raise PreflightError(
            f"--model {uri}: it cannot be fetched ({short_reason(error)}); check the URI and your access."
        ) from None
    return local


def _copy(uri: str, local: str) -> None:
    os.makedirs(os.path.dirname(local), exist_ok=True)
    with open_for_reading(uri) as source, open(local, "wb", buffering=0) as copy:
        while data := source.read(2**20):
            with temporary_copy(f"--model {uri}"):
                copy.write(data)


def digest_model(path: str) -> str:
    """Returns the SHA-256 of a file, or of a folder's files and their names, in hex.

    Raises:
        OSError: If a file cannot be read.
        PreflightError: See `list_files`.
    """
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    combined = hashlib.sha256()
    for name in list_files(path):
        with open(os.path.join(path, name), "rb") as file:
            combined.update(os.fsencode(name) + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return combined.hexdigest()


def list_files(path: str) -> list[str]:
    """Returns the paths of all files in a folder, from there on, in an order that is always the same; links are followed.

    Raises:
        PreflightError: If the folder holds something that is neither a file nor a folder, or more than a SavedModel does.
    """
    found, entries = [], 0
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        entries += len(folders) + len(names)
        if entries > _MAX_ENTRIES:  # A link may lead to the folder itself, or to all of a disk.
            raise PreflightError(f"--model {path}: it holds more than {_MAX_ENTRIES:,} files; give the folder of a SavedModel.")
        for name in sorted(names):
            file_path = os.path.join(folder, name)
            if not os.path.isfile(file_path):
                raise PreflightError(f"--model {path}: {file_path} is no file; copy the folder again, whole.")
            found.append(os.path.relpath(file_path, path))
    return found
