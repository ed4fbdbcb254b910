"""The subcommands by name. The modules are imported only when they are needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from batchverify.cli.parser import Parser

JOB = "job"  # the program without a subcommand
SUBCOMMANDS = {
    "doctor": "examine a trained model: can its scores be believed?",
    "report": "make the report of a finished run again",
    "nights": "make one page of many runs, night by night",
    "calibrate": "turn a model's scores into log-likelihood ratios, fitted on a labelled run",
    "convert": "turn lists of pairs into manifests, and scores into files for other tools",
    "train": "train a network whose identity check is sane",
}


class Subcommand(Protocol):
    """What each module of a subcommand offers."""

    def make_parser(self) -> Parser:
        """Returns the parser of the subcommand's options."""

    def parse(self, argv: Sequence[str]) -> object:
        """Returns the arguments of the subcommand, checked; it raises `PreflightError` at a mistake."""

    def run(self, argv: Sequence[str]) -> int:
        """Does the work and returns the exit code; it raises `PreflightError` or `RunError` where it cannot."""


def load_subcommand(name: str) -> Subcommand:
    """Returns the module of a subcommand, or of the job."""
    return cast(Subcommand, importlib.import_module(f"batchverify.cli.{name}"))
