"""The command line that answers every question which a model's file leaves open, to be copied."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence

from batchverify.cli.doctor import make_parser, names_code
from batchverify.cli.subcommands import JOB
from batchverify.errors import OpenQuestion
from batchverify.model.registry import is_registry_name
from batchverify.model.sidecar import sidecar_path
from batchverify.uris import is_remote

_UNKNOWN = re.compile(r"\b(?:SCALE|KIND|NAME|MEANING|COLUMN|HEIGHTxWIDTH|SECRET|module:attribute)\b")
# What is printed ends in logs, so the values of such options of Beam's are left out.
_SECRET_OPTION = re.compile(r"--[^=]*(secret|password|token|access[-_]key)[^=]*", re.IGNORECASE)


def completed_commands(name: str, arguments: Sequence[str], questions: Sequence[OpenQuestion]) -> str:
    """Returns a command line with the answers, and one that keeps the answers in the model's sidecar.

    Args:
        name: The name of the subcommand, or of the job.
        arguments: The arguments that were given.
        questions: What was left open.
    """
    answers = [argument for question in questions for argument in question.option]
    arguments = _without_secrets(arguments)
    unknown = dict.fromkeys(word for argument in [*arguments, *answers] for word in _UNKNOWN.findall(argument))
    rest = f", with your own in place of {' and '.join(unknown)}" if unknown else ""
    subcommand = [] if name == JOB else [name]
    lines = [f"batchverify: the whole command{rest}:", _format([*subcommand, *arguments, *answers])]
    if doctor := _sidecar_command(arguments, answers):
        lines += ["batchverify: or say it once, in a file beside the model that every run reads:", _format(doctor)]
    return "\n".join(lines)


def _sidecar_command(arguments: Sequence[str], answers: list[str]) -> list[str]:
    """Returns the arguments of a doctor that writes the sidecar; empty if the command does so already, or it cannot answer."""
    parser = make_parser()
    own, _ = parser.parse_known_args([*arguments, *answers])
    if (
        own.write_sidecar
        or names_code(own)
        or own.model is None
        or is_remote(own.model)
        or is_registry_name(own.model)
        or os.path.exists(sidecar_path(own.model))
    ):
        return []
    return ["doctor", *parser.own_arguments(arguments, but=("--manifest", "--images", "--json")), *answers, "--write-sidecar"]


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with SECRET in the place of keys and tokens."""
    shown: list[str] = []
    for argument in arguments:
        option = _SECRET_OPTION.match(argument)
        if option and option.end() < len(argument):
            argument = f"{option[0]}=SECRET"
        elif shown and _SECRET_OPTION.fullmatch(shown[-1]):
            argument = "SECRET"
        shown.append(argument)
    return shown


def _format(arguments: list[str]) -> str:
    program = ["python", "-m", "batchverify"] if os.path.basename(sys.argv[0]) == "__main__.py" else ["batchverify"]
    return f"  {shlex.join([*program, *arguments])}"
