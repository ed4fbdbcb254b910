"""The run directory: scores in Parquet, a summary, a report, and `_SUCCESS` once all are complete."""

from __future__ import annotations

import functools
import glob
import json
import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from batchverify import shutdown
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io import claimed_directory
from batchverify.io.claimed_directory import ClaimedDirectory
from batchverify.io.filesystem import open_for_reading
from batchverify.io.object_store import abort_uploads

_LOG = logging.getLogger(__name__)
_SUCCESS, _SUMMARY, _REPORT, _SCORES, _RUNNING = "_SUCCESS", "summary.json", "report.html", "scores", "_RUNNING"
_FOOTER_THREADS = 16
# Held while a run is finished and while its files are deleted, so that an interrupted run is never half finished, half deleted.
FINISHING = threading.RLock()


class RunDirectory(ClaimedDirectory):
    """The directory that a run writes to. It holds the files of one run, or none.

    Args:
        path: A directory on any file system that Beam opens.
    """

    OPTION = "--output"

    def refuse_taken(self, overwrite: bool) -> None:
        """Refuses a directory that cannot be written to, or that another run uses; changes nothing.

        Args:
            overwrite: Whether the directory may hold a finished run.

        Raises:
            PreflightError: With the remedy.
        """
        try:
            finished = FileSystems.exists(self._join(_SUCCESS))
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise PreflightError(f"--output {self.path} cannot be looked up ({short_reason(error)}); check the path.") from None
        if finished and not overwrite:
            raise PreflightError(f"--output {self.path} holds a finished run; name another directory, or add --overwrite.")
        self.refuse_unwritable()
        if os.path.isdir(self.path):
            os.close(self._lock())

    def claimed(self, run_id: str) -> AbstractContextManager[None]:
        """Holds the directory for one run; deletes the files of an earlier run, and at the end its own if it did not finish.

        On this machine a second run is refused as long as the first one lives. An object store has no locks: there the
        later run takes the directory, and the earlier run notices that before it finishes, and fails.

        Raises:
            PreflightError: If another run writes there.
            RunError: If the directory cannot be written to.
        """
        return self._claimed(run_id, functools.partial(self._prepare, run_id))

    def _prepare(self, run_id: str) -> None:
        self._clean_up()
        self._write(_RUNNING, run_id)

    def discard(self, run_id: str) -> None:
        """Deletes the files of this run if it has not finished; a finished run stays, and so does another run."""
        with FINISHING:
            try:
                if self._is_held_by(run_id):
                    self._clean_up()
            except Exception as error:  # Beam wraps whatever the store's client raises; the next run deletes what stays.
                _LOG.warning("--output %s cannot be cleaned up (%s).", self.path, short_reason(error))

    def scores_prefix(self) -> str:
        """Returns what the paths of all files with scores begin with."""
        return self._join(_SCORES)

    def count_rows(self, run_id: str) -> int:
        """Returns how many rows all files with scores have, according to their footers.

        Raises:
            RunError: If another run wrote some of them.
        """
        paths = [match.path for match in self._match(f"{_SCORES}-*.parquet")]
        # The files may be thousands in a store, and most of the time is waiting for answers.
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            footers = list(threads.map(_read_footer, paths))
        if any((footer.metadata or {}).get(b"batchverify.run_id") != run_id.encode() for footer in footers):
            raise self._taken_error()
        return sum(footer.num_rows for footer in footers)

    def finish(self, run_id: str, summary: dict[str, Any], report: str) -> None:
        """Writes summary and report, then `_SUCCESS`. It may be called again, because bundles are retried.

        Args:
            run_id: The run that wrote the scores.
            summary: The content of `summary.json`.
            report: The content of `report.html`.

        Raises:
            RunError: If another run has taken the directory.
        """
        with FINISHING:
            if self.is_finished() and self._read(_SUCCESS) == run_id:
                return  # A worker died after it had finished the run, and its bundle was tried again.
            if not self._is_held_by(run_id):
                raise self._taken_error()
            self._delete_temporary()
            self._write(_SUMMARY, _as_json(summary))
            self._write(_REPORT, report)
            FileSystems.delete([self._join(_RUNNING)])
            self._write(_SUCCESS, run_id)

    def read_summary(self) -> dict[str, Any]:
        """Returns the content of `summary.json`."""
        return dict(json.loads(self._read(_SUMMARY)))

    def write_report(self, report: str) -> str:
        """Replaces the report of a finished run, and returns its path."""
        self._write(_REPORT, report)
        return self._join(_REPORT)

    def is_finished(self) -> bool:
        """Returns whether the directory holds a finished run."""
        return bool(FileSystems.exists(self._join(_SUCCESS)))

    def _taken_error(self) -> RunError:
        return RunError(f"another run has written to --output {self.path} meanwhile; give each run its own directory.")

    def _is_held_by(self, run_id: str) -> bool:
        """Returns whether this run holds the directory and has not finished."""
        return FileSystems.exists(self._join(_RUNNING)) and self._read(_RUNNING) == run_id

    def _clean_up(self) -> None:
        """Deletes a run's files, `_SUCCESS` first."""
        for name in (_SUCCESS, _RUNNING, _SUMMARY, _REPORT):
            if FileSystems.exists(self._join(name)):
                FileSystems.delete([self._join(name)])
        FileSystems.delete([match.path for match in self._match(f"{_SCORES}-*.parquet")])
        self._delete_temporary()

    def _delete_temporary(self) -> None:
        """Deletes the folders that Beam writes to first; failed attempts leave theirs behind."""
        # Beam's file systems list only files, which is all that a store has; on this machine an empty folder may remain.
        FileSystems.delete([match.path for match in self._match(f"beam-temp-{_SCORES}-*/*")])
        FileSystems.delete(sorted(glob.glob(self._join(f"beam-temp-{_SCORES}-*"))))
        abort_uploads(self.path)


def discard_unfinished() -> None:
    """Deletes the files of all unfinished runs of this process; no run can be finished after this call."""
    FINISHING.acquire()
    claimed_directory.discard_all_claims()


shutdown.register_clean_up(discard_unfinished)


def _read_footer(path: str) -> pq.FileMetaData:
    with open_for_reading(path) as file:
        return pq.read_metadata(file)


def _as_json(summary: dict[str, Any]) -> str:
    """Returns `summary` as indented JSON, the bins of histograms on one line each."""
    return re.sub(r"\[\n\s+(\d+),\n\s+(\d+)\n\s+\]", r"[\1, \2]", json.dumps(summary, indent=2)) + "\n"
