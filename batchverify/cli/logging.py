"""Logs and the libraries' chatter."""

from __future__ import annotations

import logging
import os
import re
import warnings

from batchverify.errors import WORKER_DIED, PreflightError, RunError, printable

# How the traceback ends of a failure of ours, of the operating system's, of a worker's death, or of a service's.
_TOLD_ELSEWHERE = re.compile(
    rf"^({RunError.__module__}\.{RunError.__name__}: |\w+Error: \[Errno |\w+Error: {WORKER_DIED}|grpc\.\S+Error: )", re.M
)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for the traceback that Beam logs of a failure which `main` tells in a sentence."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (RunError, PreflightError, OSError)) and not _TOLD_ELSEWHERE.search(record.getMessage())


def quieten_libraries() -> None:
    """Keeps the libraries' chatter off the terminal; their errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.basicConfig(level=logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
        handler.setFormatter(_PrintableFormatter())
    logging.getLogger("batchverify").setLevel(logging.INFO)
