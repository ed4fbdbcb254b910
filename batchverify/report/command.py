"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from typing import Any

_OPTIONS = {"manifests": "manifest", "lambdas": "lambda", "custom_objects": "custom-object",
            "group_columns": "group-column", "group_column_pairs": "group-columns"}  # fmt: skip


def format_command(run: dict[str, Any]) -> str:
    """Returns the shell command that repeats a run.

    Args:
        run: The section `run` of `_summary.json`.
    """
    arguments = ["batchverify"]
    for name, value in run["options"].items():
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif name in ("subject_columns", "review"):
            arguments.append(shlex.join([option, *map(str, value)]))
        elif name == "group_column_pairs":
            arguments += [shlex.join([option, *names]) for names in value]
        elif name == "image_size":
            arguments.append(f"{option} {value[0]}x{value[1]}")
        else:
            # Without "=", a value that begins with a dash would be read as an option.
            values = value if isinstance(value, list) else [value]
            arguments += [shlex.quote(f"{option}={each}") for each in values]
    return f"cd {shlex.quote(run['working_directory'])}\n" + " \\\n    ".join(arguments)
