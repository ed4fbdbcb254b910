"""Has runs share a loaded model while its file stays the same, as loading is most of what a small run costs.

Tests that import `load_model` load their models themselves, and so do processes that a test starts.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from batchverify.config import ModelConfig

_SETTINGS = tuple(field.name for field in dataclasses.fields(ModelConfig))
_KEPT = 8


def pytest_runtest_setup() -> None:
    """Replaces `load_model` once its module has been imported; tests that need no network go on without TensorFlow."""
    module = sys.modules.get("batchverify.model.load")
    if module is not None and not isinstance(module.load_model, _LoadOnce):
        module.load_model = _LoadOnce(module.load_model)  # type: ignore[attr-defined]


class _LoadOnce:
    """Loads a model, or returns the one that was loaded from the same file with the same settings."""

    def __init__(self, load_model: Callable[[ModelConfig, bool], Any]):
        self._load_model = load_model
        self._loaded: dict[tuple[Any, ...], Any] = {}

    def __call__(self, config: ModelConfig, is_candidate: bool = False) -> Any:
        if config.model is not None and not os.path.isfile(config.model):
            return self._load_model(config, is_candidate)
        key = (*(getattr(config, name) for name in _SETTINGS), _version_of(config.model))
        self._loaded[key] = model = self._loaded.pop(key, None) or self._load_model(config, is_candidate)
        if len(self._loaded) > _KEPT:
            del self._loaded[next(iter(self._loaded))]
        return model


def _version_of(path: str | None) -> tuple[int, ...]:
    if path is None:
        return ()
    status = os.stat(path)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
