"""What is told of a run's end, whatever the end: the file of `--metrics-file`, and the command of `--notify-command`.

Like `shutdown`, this module keeps what a process must do at its end: a signal may end it at any point.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import threading
import time
from typing import IO, Any

from batchverify.cli.early_options import EarlyOptions
from batchverify.errors import PreflightError, printable, short_reason
from batchverify.uris import is_remote

_LOG = logging.getLogger(__name__)
_NOTIFY_WITHIN_S, _NOTIFY_AFTER_SIGNAL_WITHIN_S = 60.0, 10.0
_LONGEST_VERDICT, _LONGEST_SAYING = 4_000, 500


class _RunEnd:
    """The end of one run.

    Args:
        options: What is told of it.
    """

    def __init__(self, options: EarlyOptions):
        self.options, self.started, self.is_told = options, time.monotonic(), options.check
        self.output, self.summary = options.output, dict[str, Any]()


_end = _RunEnd(EarlyOptions())


def begin(options: EarlyOptions) -> None:
    """Says what is to be told of the run that begins now."""
    global _end
    _end = _RunEnd(options)


def refuse_untellable(is_waited_for: bool) -> None:
    """Refuses a run of whose end nothing could be told.

    Args:
        is_waited_for: Whether this process waits for the end of the run.

    Raises:
        PreflightError: With the remedy.
    """
    options = _end.options
    given = {"--metrics-file": options.metrics_file, "--notify-command": options.notify_command}
    if not is_waited_for:
        problems = [
            f"{name} tells of a run's end, which this process does not wait for; leave it out." for name in given if given[name]
        ]
    else:
        problems = [problem for problem in (_problem_of_metrics_file(options.metrics_file),) if problem]
    if problems:
        raise PreflightError(problems)


def _problem_of_metrics_file(path: str | None) -> str | None:
    if path is None:
        return None
    if is_remote(path):
        return f"--metrics-file {path} lies in a store, and node_exporter reads files of this machine; name one."
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK) or os.path.isdir(path):
        return f"--metrics-file {path} cannot be written; name a file in a folder that exists and in which you may make files."
    try:
        importlib.import_module("prometheus_client")
    except ImportError:
        return "--metrics-file needs prometheus-client: pip install 'batchverify[metrics]'."
    return None


def set_result(output: str, summary: dict[str, Any]) -> None:
    """Keeps what a finished run came to, to be told of at its end."""
    _end.output, _end.summary = output, summary


def tell(code: int, verdict: str = "", by_signal: bool = False) -> None:
    """Tells of the end, once for each run. Nothing that fails here changes how the run ends.

    Args:
        code: The exit code.
        verdict: How the run ended, in a sentence; of a finished run, the summary says it.
        by_signal: Whether a signal ends the process, which must then not take long.
    """
    if _end.is_told:
        return
    _end.is_told = True
    if _end.options.metrics_file:
        _write_metrics(_end.options.metrics_file, code)
    if _end.options.notify_command:
        limit_s = _NOTIFY_AFTER_SIGNAL_WITHIN_S if by_signal else _NOTIFY_WITHIN_S
        _notify(_end.options.notify_command, _environment(code, verdict), limit_s)


def _write_metrics(path: str, code: int) -> None:
    from batchverify.report.prometheus import write_metrics

    try:
        write_metrics(path, code, time.monotonic() - _end.started, _end.summary or None)
    except Exception as error:  # The run has ended; what it came to does not depend on whether it can be told.
        _LOG.warning("--metrics-file %s was not written (%s).", path, short_reason(error))


def _environment(code: int, verdict: str) -> dict[str, str]:
    told = {
        "BATCHVERIFY_EXIT_CODE": str(code),
        "BATCHVERIFY_OUTPUT": _end.output,
        "BATCHVERIFY_SUMMARY": f"{_end.output}/_summary.json" if _end.summary else "",
        "BATCHVERIFY_VERDICT": _verdict_of(_end.summary) if _end.summary else verdict,
    }
    return {**os.environ, **{name: printable(text)[:_LONGEST_VERDICT] for name, text in told.items()}}


def _verdict_of(summary: dict[str, Any]) -> str:
    from batchverify.cli.messages import gate_message
    from batchverify.report.verdict import judge_run

    unmet = [gate_message(gate) for gate in summary["gates"] if not gate["met"]]
    return " ".join([judge_run(summary).headline, *(f"{sentence[0].upper()}{sentence[1:]}" for sentence in unmet)])


def _notify(command: str, environment: dict[str, str], limit_s: float) -> None:
    """Runs a command in a shell, and warns where it fails or takes too long; then it is killed with all that it started."""
    try:
        process = subprocess.Popen(
            command, shell=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        _LOG.warning("--notify-command could not be started (%s).", short_reason(error))
        return
    said = bytearray()
    reader = threading.Thread(target=_read, args=(process.stdout, said), daemon=True)
    reader.start()
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _LOG.warning("--notify-command was stopped after %g seconds.", limit_s)
        return
    if code:
        reader.join(1)  # What the command left running may keep the pipe open.
        words = printable(said.decode(errors="replace").strip()[-_LONGEST_SAYING:])
        _LOG.warning("--notify-command ended with exit code %d%s.", code, f" ({words})" if words else "")


def _read(stream: IO[bytes], said: bytearray) -> None:
    """Keeps the end of what a command says, so that it never waits for somebody to read."""
    while data := stream.read1(8192):  # type: ignore[attr-defined]  # A pipe is buffered.
        said += data
        del said[: -8 * _LONGEST_SAYING]
