"""Passes stderr on while TensorFlow starts, and holds back what TensorFlow logs: `python stderr_relay.py MARK`.

It runs as a process of its own, so that nothing is lost if the process that imports TensorFlow crashes. It reads the stderr of
that process from stdin. Lines of TensorFlow's log are held back, and all other text is passed on to stderr at once. When MARK
arrives, what was held back goes to stdout, for the other process to judge, and from then on everything is passed on. If the
input ends without MARK, the other process has crashed, and what was held back goes to stderr.
"""

from __future__ import annotations

import os
import re
import sys

# A line of the log before and after it is set up. Lines that begin with F, fatal errors, are never held back.
_BEFORE, _AFTER = rb"[IWE]\d{4} \d\d:\d\d:\d+\.\d+ ", rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
_PLAIN = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
    b"Skipping registering GPU devices...\n",
)
_LOG_LINE = re.compile(rb"(%s|%s)" % (_BEFORE, _AFTER))
# The beginning of a line, of which more is to come.
_LOG_LINE_BEGINS = re.compile(rb"[IWE](\d{0,4}|\d{4} [\d:.]*)$|\d{1,4}(-[-\d]*( [\d:.]*( [IWE]?)?)?)?$")


class Relay:
    """Tells lines of TensorFlow's log from other text.

    Attributes:
        held: The lines that were held back.
    """

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Takes text, and returns what is to be passed on at once."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        passed_on = b"".join(self._pass_on(line + b"\n") for line in lines)
        if not self._may_be_held():
            passed_on, self._rest = passed_on + self._rest, b""
        return passed_on

    def end(self) -> bytes:
        """Returns what is still to be passed on when no more text is judged."""
        rest, self._rest = self._rest, b""
        return self._pass_on(rest)

    def _pass_on(self, line: bytes) -> bytes:
        if not _LOG_LINE.match(line) and line not in _PLAIN:
            return line
        self.held.append(line)
        return b""

    def _may_be_held(self) -> bool:
        rest = self._rest
        is_log = _LOG_LINE.match(rest) or _LOG_LINE_BEGINS.match(rest)
        return bool(is_log) or any(line.startswith(rest) for line in _PLAIN)


def relay(mark: bytes) -> None:
    """Relays stdin to stderr until stdin ends."""
    judge, data = Relay(), b""
    while mark not in data:
        if not (more := os.read(0, 65536)):
            _write(2, judge.feed(data) + judge.end() + b"".join(judge.held))
            return
        data += more
        # A mark may arrive in two parts, so its length is kept back; it is far shorter than any line of the log.
        if mark not in data and (kept := _overlap(data, mark)) < len(data):
            _write(2, judge.feed(data[: len(data) - kept]))
            data = data[len(data) - kept :]
    before, _, after = data.partition(mark)
    _write(2, judge.feed(before) + judge.end())
    _write(1, b"".join(judge.held))
    os.close(1)
    _write(2, after)
    while data := os.read(0, 65536):
        _write(2, data)


def _overlap(data: bytes, mark: bytes) -> int:
    """Returns how many of the last bytes of `data` are the first of `mark`."""
    return next((size for size in range(min(len(mark), len(data)), 0, -1) if data.endswith(mark[:size])), 0)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    relay(sys.argv[1].encode())
