"""Logs, and the messages of libraries."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import threading
import warnings

from batchverify.cli.streams import print_records, record_stream
from batchverify.errors import WORKER_DIED, PreflightError, RunError, printable
from batchverify.run_id import current_run_id

# How the traceback of a failure ends that the program reports in a sentence of its own: a failure of ours, of the operating
# system's, of a service's, or the death of a worker.
_REPORTED_FAILURE = re.compile(
    rf"^({RunError.__module__}\.{RunError.__name__}: |\w+Error: \[Errno |\w+Error: {WORKER_DIED}|grpc\.\S+Error: )", re.M
)


def set_log_format(log_format: str) -> None:
    """Has this process say everything as text, or as lines of JSON on stderr: logs, warnings, and what people read."""
    is_json = log_format == "json"
    print_records(_record_of_text if is_json else None)
    logging.basicConfig(level=logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_JsonFormatter() if is_json else _PrintableFormatter())
        if is_json and type(handler) is logging.StreamHandler:
            handler.setStream(record_stream())
    logging.captureWarnings(is_json)
    logging.getLogger("py.warnings").setLevel(logging.WARNING)
    threading.excepthook = _log_failed_thread if is_json else threading.__excepthook__


def quieten_libraries() -> None:
    """Keeps the messages of libraries off the terminal, except errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_unreported)
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


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        exception = self.formatException(record.exc_info) if record.exc_info else record.exc_text or ""
        return _as_json(record.created, record.levelname, record.name, record.getMessage(), exception)


def _as_json(seconds: float, level: str, logger: str, message: str, exception: str = "") -> str:
    """Returns one line, in ASCII, so that no terminal takes names of files for commands.

    Args:
        seconds: The time, in seconds since 1970.
        level: The level, by its name.
        logger: The name of the logger.
        message: The message, of one or more lines.
        exception: The traceback of an exception; empty without.
    """
    time = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": time, "level": level, "logger": logger, "message": message}
    return json.dumps(fields | {name: text for name, text in (("run_id", current_run_id()), ("exception", exception)) if text})


def _record_of_text(level: str, text: str) -> str:
    return _as_json(datetime.datetime.now(datetime.UTC).timestamp(), level, "batchverify", text.removeprefix("batchverify: "))


def log_crash(error: BaseException) -> None:
    """Logs an exception that nobody expected, where text would have a traceback."""
    logging.getLogger("batchverify").critical("the program failed: %s", type(error).__name__, exc_info=error)


def _log_failed_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "unknown"
    logging.getLogger("batchverify").error("the thread %s failed", name, exc_info=args.exc_value)
