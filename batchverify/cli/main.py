"""The program: it finds the subcommand, runs it, and turns what it raises into sentences and an exit code."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from batchverify import shutdown
from batchverify.cli.exit_code import ExitCode
from batchverify.cli.logging import quieten_libraries
from batchverify.cli.streams import configure_streams, flush_streams, print_text
from batchverify.cli.subcommands import JOB, SUBCOMMANDS, load_subcommand
from batchverify.errors import ManifestMissingError, OpenQuestion, OpenQuestionError, PreflightError, RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what `argv`, or else the command line of this process, asks for, and returns the exit code."""
    name = JOB
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        _refuse_undecodable(arguments)
        name, arguments = _choose(arguments)
        _refuse_unfit_process()
        quieten_libraries()
        return load_subcommand(name).run(arguments)
    except PreflightError as error:
        for problem in error.problems:
            _print_error(problem)
        if isinstance(error, OpenQuestionError):
            print_text(_completed_commands(name, arguments, error.questions), to_stderr=True)
        is_late = name == JOB and isinstance(error, ManifestMissingError)
        return ExitCode.MANIFEST_MISSING if is_late else ExitCode.REFUSED
    except RunError as error:
        _print_error(f"the run failed: {error}" if name == JOB else str(error))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        _print_error("stopped by SIGINT.")
        return ExitCode.INTERRUPTED


def run_as_process() -> NoReturn:
    """Runs what the command line of this process asks for, and ends the process with the exit code."""
    configure_streams()
    for number in shutdown.stopping_signals()[1:]:  # Python turns SIGINT into KeyboardInterrupt.
        signal.signal(number, _stop)
    code = main()
    flush_streams()
    if code in (ExitCode.FAILED, ExitCode.REFUSED, ExitCode.MANIFEST_MISSING):
        # The runner may have threads that wait for ever for a worker that is gone, and Arrow one that still reads a manifest.
        os._exit(code)
    sys.exit(code)


def _refuse_unfit_process() -> None:
    """Refuses an interpreter or a working directory in which Apache Beam or this package fails with a traceback."""
    if sys.flags.optimize > 1:
        raise PreflightError("python -OO removes docstrings, which Apache Beam reads; start Python without -OO.")
    try:
        os.getcwd().encode()
    except OSError:
        raise PreflightError("the working directory does not exist any more; change to another one.") from None
    except UnicodeEncodeError:
        raise PreflightError(f"the name of the working directory, {os.getcwd()!a}, is not UTF-8; change to another.") from None


def _refuse_undecodable(arguments: Sequence[str]) -> None:
    """Refuses arguments that are not UTF-8; Python stands a surrogate for each such byte, which no output file can hold."""
    if bad := [argument for argument in arguments if argument.encode(errors="replace").decode() != argument]:
        raise PreflightError(
            [f"the argument {argument!a} is not UTF-8; rename the file, or set the locale right." for argument in bad]
        )


def _stop(number: int, _: Any) -> NoReturn:
    """Ends the process while its modules load, before there is anything to clean up; the job has a handler of its own."""
    _print_error(f"stopped by {signal.Signals(number).name}.")
    os._exit(128 + number)


def _choose(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the name of the subcommand, or of the job, and its arguments."""
    if not arguments or arguments[0].startswith("-"):
        return JOB, arguments
    if arguments[0] not in SUBCOMMANDS:
        raise PreflightError(_unknown_subcommand(arguments[0]))
    return arguments[0], arguments[1:]


def _unknown_subcommand(name: str) -> str:
    if near := difflib.get_close_matches(name, SUBCOMMANDS, 1):
        return f"there is no subcommand '{name}'; did you mean {near[0]}?"
    *others, last = SUBCOMMANDS
    return f"there is no subcommand '{name}'; give {', '.join(others)} or {last}, or options, which begin with --."


def _completed_commands(name: str, arguments: Sequence[str], questions: Sequence[OpenQuestion]) -> str:
    from batchverify.cli.completed_command import completed_commands

    return completed_commands(name, arguments, questions)


def _print_error(sentence: str) -> None:
    print_text(f"batchverify: {sentence}", to_stderr=True)
