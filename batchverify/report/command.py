"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from typing import Any

_OPTIONS = {"manifests": "manifest", "lambdas": "lambda", "custom_objects": "custom-object"}


def command_of(run: dict[str, Any]) -> str:
    """Returns the shell command that does this run again; empty where the summary is too old to say."""
    words = []
    for name, value in run.get("options", {}).items():
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(option)
        elif name == "image_size":
            words.append(f"{option} {value[0]}x{value[1]}")
        else:
            # With "=", so that a value that begins with a dash is none of the options.
            words += [shlex.quote(f"{option}={each}") for each in (value if isinstance(value, list) else [value])]
    if not words:
        return ""
    return f"cd {shlex.quote(run['working_directory'])}\n" + " \\\n    ".join(["batchverify", *words])
