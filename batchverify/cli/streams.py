"""The standard streams: what is printed to them never decides how the program ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from batchverify.cli import stderr_records

if TYPE_CHECKING:
    import subprocess

_STDERR = 2
# How long the end of the process waits for the records of what was written to stderr; a process that goes on may hold it open.
_LAST_RECORDS_S = 5
# Where records go, if stderr itself leads through a process that makes records of what others write there.
_records: TextIO | None = None
_relay: subprocess.Popen[bytes] | None = None
# Turns a level and a text into a line for stderr, where everything is printed as records; None where text is.
_as_record: Callable[[str, str], str] | None = None


def print_records(as_record: Callable[[str, str], str] | None) -> None:
    """Has `print_text` write records to stderr from now on, which `as_record` makes of a level and a text; None ends that."""
    global _as_record
    _as_record = as_record


def configure_streams() -> None:
    """Has both streams take every text, whatever their encoding and whether they are open.

    A character that a stream cannot encode is written as an escape sequence. A stream that was closed before the program
    began is None in Python, and its text goes nowhere.
    """
    sys.stdout, sys.stderr = (_tolerant(stream) for stream in (sys.stdout, sys.stderr))


def make_records_of_stderr() -> None:
    """Has whatever writes to stderr from now on, libraries and their C++ too, write lines of JSON, through another process.

    Our own records go past it, see `record_stream`. Without a stderr, or where no process can be started, nothing changes.
    """
    global _records, _relay
    import atexit
    import subprocess  # `--help` needs it not.

    if not sys.executable:
        return
    with contextlib.suppress(OSError):
        # Its own session keeps Ctrl-C away from it.
        _relay = subprocess.Popen(
            [sys.executable, "-I", "-S", stderr_records.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert _relay.stdin is not None
        _records = open(os.dup(_STDERR), "w", encoding="ascii", errors="backslashreplace")  # noqa: SIM115  # As long as the process lives.
        os.dup2(_relay.stdin.fileno(), _STDERR)
        _relay.stdin.close()
        atexit.register(_end_records)  # What is registered later, by libraries, is called before it.


def record_stream() -> TextIO:
    """Returns the stream that takes records."""
    return _records or sys.stderr


def flush_streams() -> None:
    """Writes out what the streams hold; a reader that is gone, or a full disk, is no failure of the program.

    What cannot be written is thrown away, so that the interpreter does not try again when it ends.
    """
    for stream in (sys.stdout, sys.stderr):
        _write(stream, "")


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without what Python does at its end, when everything that was said has been written out."""
    flush_streams()
    _end_records()
    os._exit(code)


def print_text(text: str, to_stderr: bool = False) -> None:
    """Prints text to a stream, or nothing where the stream takes nothing any more."""
    if _as_record:
        _write(record_stream(), _as_record("ERROR" if to_stderr else "INFO", text.strip()) + "\n")
    else:
        _write(sys.stderr if to_stderr else sys.stdout, f"{text}\n")


def unfailing(stream: TextIO) -> TextIO:
    """Returns a stream for libraries, which passes text on to `stream`, or nothing where that takes nothing any more."""
    return cast(TextIO, _UnfailingStream(stream))


class _UnfailingStream:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        _write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        _write(self._stream, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write(stream: TextIO, text: str) -> None:
    if stream.closed:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _discard(stream)


def _end_records() -> None:
    """Gives stderr back to this process, and waits until everything that was written to it has become records.

    Where this process is the first one of a container, all others are killed when it ends, and the last lines, which say why,
    would be lost.
    """
    global _relay
    relay, _relay = _relay, None
    if relay is None or _records is None:
        return
    import subprocess

    os.dup2(_records.fileno(), _STDERR)
    try:
        relay.wait(_LAST_RECORDS_S)
    except subprocess.TimeoutExpired:
        relay.returncode = 0  # It goes on for those who still write.


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # It is open as long as the process lives.
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _discard(stream: TextIO) -> None:
    """Leads a stream to nowhere, with all that it holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
