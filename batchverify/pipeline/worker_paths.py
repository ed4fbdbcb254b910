"""The paths of a run that its workers read or write, and which of them lie on this machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from batchverify.config import VerificationConfig
from batchverify.model.registry import is_registry_name
from batchverify.uris import is_remote

# A baseline and the run of a threshold are no such paths: the launcher reads them, and sends workers what they say.
_FIELDS = ("model", "candidate", "architecture", "image_root", "output", "embeddings")


def worker_paths(config: VerificationConfig) -> Iterator[tuple[str, str]]:
    """Yields each path that workers read or write, after the option that names it."""
    yield from (("--manifest", path) for path in config.manifests)
    for field in _FIELDS:
        if path := getattr(config, field):
            yield f"--{field.replace('_', '-')}", path


def with_absolute_paths(config: VerificationConfig) -> VerificationConfig:
    """Returns the configuration with absolute paths, for workers that run in another folder."""
    changes: dict[str, Any] = {field: _absolute(path) for field in _FIELDS if (path := getattr(config, field))}
    return dataclasses.replace(config, manifests=tuple(map(_absolute, config.manifests)), **changes)


def is_on_this_machine(path: str) -> bool:
    """Returns whether a path, or a URI, names a file on this machine, and none in a store or a registry."""
    return path.startswith("file:") or not (is_remote(path) or is_registry_name(path))


def _absolute(path: str) -> str:
    return path if is_remote(path) or is_registry_name(path) else os.path.abspath(path)
