"""The options that count before the command line is parsed as a whole, because a refusal of it is told as they say, too."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from batchverify.cli.options import add_monitoring_options
from batchverify.cli.parser import Parser, path_option
from batchverify.errors import PreflightError


@dataclasses.dataclass(frozen=True)
class EarlyOptions:
    """What is told of a job, and how.

    Attributes:
        log_format: One of `options.LOG_FORMATS`.
        metrics_file: The file of `--metrics-file`; None without.
        notify_command: The command of `--notify-command`; None without.
        output: The run directory, as it was given.
        check: Whether the job only checks, so that there is no run to tell of.
    """

    log_format: str = "text"
    metrics_file: str | None = None
    notify_command: str | None = None
    output: str = ""
    check: bool = False


def read_early_options(arguments: Sequence[str]) -> EarlyOptions:
    """Returns the early options of a job's command line; an option that cannot be understood has its default."""
    parser = Parser(add_help=False)
    add_monitoring_options(parser)
    parser.add_argument("--output", type=path_option, default="")
    parser.add_argument("--check", action="store_true")
    read: dict[str, Any] = {}
    for option in parser._actions:
        read |= _read_alone(option, arguments)
    return EarlyOptions(**read)


def _read_alone(option: argparse.Action, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns what a command line says of one option, whatever is wrong with the others."""
    parser = Parser(add_help=False)
    parser._add_action(option)
    try:
        options, _ = parser.parse_known_args(arguments)
    except PreflightError:  # The whole command line is parsed next, and refused with the reason.
        return {}
    return dict(vars(options))
