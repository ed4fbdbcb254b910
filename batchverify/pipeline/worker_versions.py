"""The versions that a launcher and its workers must share: a worker with others fails in a sentence instead of oddly."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping

from batchverify.errors import RunError
from batchverify.version import VERSION


def current_versions() -> dict[str, str]:
    """Returns the versions of this process, by name: those of batchverify, Beam and Python (without its last number)."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"batchverify": VERSION, "apache-beam": importlib.metadata.version("apache-beam"), "Python": python}


def require_versions(launcher: Mapping[str, str]) -> None:
    """Fails the bundle of a worker that has other versions than the launcher.

    Args:
        launcher: The versions of the launcher, by name.

    Raises:
        RunError: With both versions and the remedy.
    """
    here = current_versions()
    if different := [name for name in launcher if here[name] != launcher[name]]:
        theirs, ours = (", ".join(f"{name} {versions[name]}" for name in different) for versions in (here, launcher))
        raise RunError(f"a worker has {theirs}, but the launcher {ours}; install the launcher's versions for the workers.")
