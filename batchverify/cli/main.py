"""The program: it finds the subcommand, runs it, and turns what it raises into sentences and an exit code."""

from __future__ import annotations

import atexit
import difflib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from batchverify import garbage_collector, shutdown
from batchverify.cli import run_end
from batchverify.cli.early_options import EarlyOptions, read_early_options
from batchverify.cli.exit_code import ExitCode, exit_code_of
from batchverify.cli.logging import log_crash, quieten_libraries, set_log_format
from batchverify.cli.streams import configure_streams, exit_at_once, flush_streams, make_records_of_stderr, print_text
from batchverify.cli.subcommands import JOB, SUBCOMMANDS, load_subcommand
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, RunError, short_reason
from batchverify.model.start_tensorflow import leave_out_unused
from batchverify.run_id import set_run_id


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what `argv`, or else the command line of this process, asks for, and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    early = _read_early_options(arguments)
    set_run_id("")
    set_log_format(early.log_format)
    run_end.begin(early)
    try:
        code, verdict = _run(arguments)
    except Exception as error:
        run_end.tell(ExitCode.FAILED, f"the program failed: {type(error).__name__}: {short_reason(error)}")
        if early.log_format != "json":
            raise
        log_crash(error)
        return ExitCode.FAILED
    if _is_job(arguments):
        run_end.tell(code, verdict)
    return code


def _is_job(arguments: Sequence[str]) -> bool:
    return not arguments or arguments[0].startswith("-")


def _read_early_options(arguments: Sequence[str]) -> EarlyOptions:
    return read_early_options(arguments) if _is_job(arguments) else EarlyOptions()


def _run(arguments: list[str]) -> tuple[int, str]:
    """Runs what the arguments ask for, prints why it failed where it does, and returns the exit code and that reason."""
    name = JOB
    try:
        _refuse_undecodable(arguments)
        name, arguments = _choose(arguments)
        _refuse_unfit_process()
        quieten_libraries()
        if name != JOB:  # The job resumes it when everything is imported.
            garbage_collector.resume()
        return load_subcommand(name).run(arguments), ""
    except (PreflightError, RunError, KeyboardInterrupt) as error:
        problems = _problems(error, name)
        for problem in problems:
            _print_error(problem)
        if isinstance(error, OpenQuestionError):
            print_text(_completed_commands(name, arguments, error.questions), to_stderr=True)
        return exit_code_of(error, name == JOB), " ".join(problems)


def _problems(error: BaseException, name: str) -> list[str]:
    if isinstance(error, PreflightError):
        return error.problems
    if isinstance(error, KeyboardInterrupt):
        return ["stopped by SIGINT."]
    return [f"the run failed: {error}" if name == JOB else str(error)]


def run_as_process() -> NoReturn:
    """Runs what the command line of this process asks for, and ends the process with the exit code."""
    configure_streams()
    if _read_early_options(sys.argv[1:]).log_format == "json":
        make_records_of_stderr()
    for number in shutdown.stopping_signals()[1:]:  # Python turns SIGINT into KeyboardInterrupt.
        signal.signal(number, _stop)
    leave_out_unused()
    garbage_collector.pause()
    code = main()
    flush_streams()
    if code in (ExitCode.FAILED, ExitCode.REFUSED, ExitCode.MANIFEST_MISSING):
        # The runner may have threads that wait for ever for a worker that is gone, and Arrow one that still reads a manifest.
        exit_at_once(code)
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Ends the process as Python does, but leaves it to the system to free the memory.

    Python would first take apart every object of TensorFlow and Beam, one by one, which lasts 1 to 2 seconds and does nothing
    for anybody. What libraries have registered for the end of the process is called.
    """
    if _is_still_used():
        sys.exit(code)
    atexit._run_exitfuncs()
    if _has_children():
        sys.exit(code)
    exit_at_once(code)


def _is_still_used() -> bool:
    """Returns whether anything in this process needs the interpreter after the program: a thread, a profiler, a prompt."""
    threads = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    return bool(threads or sys.getprofile() or sys.gettrace() or sys.flags.inspect)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


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
    stopped = f"stopped by {signal.Signals(number).name}."
    _print_error(stopped)
    run_end.tell(128 + number, stopped, by_signal=True)
    exit_at_once(128 + number)


def _choose(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the name of the subcommand, or of the job, and its arguments."""
    if _is_job(arguments):
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
