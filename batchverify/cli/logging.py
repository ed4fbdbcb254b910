"""Logs, and the messages of libraries."""

from __future__ import annotations

import logging
import os
import re
import warnings

from batchverify.errors import WORKER_DIED, PreflightError, RunError, printable

# How the traceback of a failure ends that the program reports in a sentence of its own: a failure of ours, of the operating
# system's, of a service's, or the death of a worker.
_REPORTED_FAILURE = re.compile(
    rf"^({RunError.__module__}\.{RunError.__name__}: |\w+Error: \[Errno |\w+Error: {WORKER_DIED}|grpc\.\S+Error: )", re.M
)


def quieten_libraries() -> None:
    """Keeps the messages of libraries off the terminal, except errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.basicConfig(level=logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_unreported)
        handler.setFormatter(_PrintableFormatter())
    logging.getLogger("batchverify").setLevel(logging.INFO)


def _is_unreported(record: logging.LogRecord) -> bool:
    """Returns False for a traceback that Beam logs for a failure which the program reports in a sentence of its own."""
    if record.module == "portable_runner":  # The messages of a job service, such as traces of Java; the last one is reported.
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (RunError, PreflightError, OSError)) and not _REPORTED_FAILURE.search(record.getMessage())


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")
