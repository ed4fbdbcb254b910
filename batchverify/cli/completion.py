"""The completion of options in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from batchverify.cli.streams import print_text
from batchverify.cli.subcommands import JOB, SUBCOMMANDS, load_subcommand
from batchverify.errors import PreflightError

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script that completes options in a shell, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print_text(completion_script(values))
        parser.exit()


def completion_script(shell: str) -> str:
    """Returns the script that completes the options of the job and of all subcommands in `shell`.

    Raises:
        PreflightError: if shtab, which makes the script, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise PreflightError("--print-completion needs shtab: pip install 'batchverify[completion]'.") from None
    parser = load_subcommand(JOB).make_parser()
    subparsers = parser.add_subparsers()
    for name, text in SUBCOMMANDS.items():
        subparsers.add_parser(name, help=text, parents=[load_subcommand(name).make_parser()], add_help=False)
    _complete_paths(parser, {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY})
    return str(shtab.complete(parser, shell))


def _complete_paths(parser: argparse.ArgumentParser, completions: dict[str, Any]) -> None:
    """Has the options that name files and folders completed with files and folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _complete_paths(subparser, completions)
        elif action.metavar in completions:
            action.complete = completions[str(action.metavar)]  # type: ignore[attr-defined]
