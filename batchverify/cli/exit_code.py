"""The exit codes of the program."""

from __future__ import annotations

import enum

from batchverify.errors import ManifestMissingError, PreflightError


class ExitCode(enum.IntEnum):
    """What the end of the process says. A process that a signal stopped ends with 128 and the signal's number."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    GATE_NOT_MET = 3
    NOT_SANE = 3
    MANIFEST_MISSING = 75  # EX_TEMPFAIL of sysexits.h: try again later.
    INTERRUPTED = 130


def exit_code_of(error: BaseException, is_job: bool) -> ExitCode:
    """Returns the exit code of a program that ends with an error."""
    if is_job and isinstance(error, ManifestMissingError):
        return ExitCode.MANIFEST_MISSING
    if isinstance(error, PreflightError):
        return ExitCode.REFUSED
    return ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.FAILED
