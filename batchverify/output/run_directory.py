"""The run directory: scores in Parquet, a summary, a report, and `_SUCCESS` once all are complete."""

from __future__ import annotations

import functools
import glob
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify import shutdown
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io import claimed_directory
from batchverify.io.claimed_directory import ClaimedDirectory
from batchverify.io.filesystem import open_for_reading, sync_files, write_text
from batchverify.io.object_store import abort_uploads

_LOG = logging.getLogger(__name__)
_SUCCESS, _SUMMARY, _REPORT, _SCORES, _RUNNING = "_SUCCESS", "_summary.json", "_report.html", "scores", "_RUNNING"
_REPLACEMENT, _REPLACEMENT_FOLDER = "_REPLACEMENT", "_replacement-"
_FOOTER_THREADS = 16
# The names of the files that a run writes, relative to the directory.
_OWN_NAMES = re.compile(
    rf"{_SUCCESS}|{_RUNNING}|{_REPLACEMENT}|"
    rf"({_REPLACEMENT_FOLDER}[^/]+/)?"
    rf"({re.escape(_SUMMARY)}|{re.escape(_REPORT)}|{_SCORES}-[^/]+\.parquet|beam-temp-{_SCORES}-[^/]+/[^/]+)"
)
# Held while a run is finished and while its files are deleted, so that an interrupted run is never half finished, half deleted.
FINISHING = threading.RLock()


class RunDirectory(ClaimedDirectory):
    """The directory that a run writes to. It holds one finished run, or none, and the files of a run that has not finished.

    A run that replaces a finished one writes to a folder within the directory, which readers of Parquet datasets skip because
    of its underscore. When the new run is complete, its files take the place of the old ones: `_REPLACEMENT` names them, so
    that a step in which the process died is done again by whoever comes next.

    Args:
        path: A directory on any file system that Beam opens.
        replacement: The folder in which a run writes that replaces a finished one; empty for the directory itself.
    """

    OPTION = "--output"

    def __init__(self, path: str, replacement: str = ""):
        super().__init__(path)
        self._replacement = replacement

    def refuse_taken(self, overwrite: bool) -> None:
        """Refuses a directory that cannot be written to, or that another run uses.

        Args:
            overwrite: Whether the directory may hold a finished run.

        Raises:
            PreflightError: With the remedy.
        """
        self.refuse_unwritable()
        self._refuse_held()
        try:
            self._complete_replacement()
            finished = self.is_finished()
            self._refuse_foreign_files()
        except PreflightError:
            raise
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise PreflightError(f"--output {self.path} cannot be looked up ({short_reason(error)}); check the path.") from None
        if finished and not overwrite:
            raise self._finished_error()

    def claimed(self, run_id: str, overwrite: bool = False) -> AbstractContextManager[None]:
        """Holds the directory for one run, and at the end deletes the files of this run if it did not finish.

        A finished run stays until the new one is complete. A second run is refused as long as the first one lives: on this
        machine, and in stores with conditional writes. In other stores the later run takes the directory, and the earlier run
        notices that before it finishes, and fails.

        Args:
            run_id: The run.
            overwrite: Whether the directory may hold a finished run.

        Raises:
            PreflightError: If another run writes there, or a run has finished there that must not be replaced.
            RunError: If the directory cannot be written to.
        """
        return self._claimed(run_id, functools.partial(self._prepare, run_id, overwrite))

    def for_run(self, run_id: str) -> RunDirectory:
        """Returns this directory as a run that has claimed it writes to it: in a folder, if a finished run lies there.

        Raises:
            RunError: If the directory cannot be looked up.
        """
        try:
            return RunDirectory(self.path, f"{_REPLACEMENT_FOLDER}{run_id}") if self.is_finished() else self
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(f"--output {self.path} cannot be looked up ({short_reason(error)}); run again.") from None

    def _prepare(self, run_id: str, overwrite: bool) -> None:
        self._complete_replacement()
        if self.is_finished() and not overwrite:
            raise self._finished_error()
        self._refuse_foreign_files()
        self._delete_unfinished()
        self._write(_RUNNING, run_id)

    def _refuse_foreign_files(self) -> None:
        """Refuses a directory with files that have the names of ours, and that no run has written: a run would delete them.

        Raises:
            PreflightError: With the files and the remedy.
        """
        if self._holds(_RUNNING):
            return  # What a killed run has left, of which some files may not be whole.
        scores = self.scores_paths()
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            foreign = [path for path, is_ours in zip(scores, threads.map(_is_of_a_run, scores), strict=True) if not is_ours]
        # Scores of a run stand for its other files, too: it may have been killed in its last moment, or have lost _SUCCESS.
        if not (self.is_finished() or len(scores) > len(foreign)):
            foreign += [self._join(name) for name in (_SUMMARY, _REPORT) if self._holds(name)]
        if foreign:
            names = ", ".join(map(_name, foreign[:3])) + (", …" if len(foreign) > 3 else "")
            raise PreflightError(
                f"--output {self.path} holds {names}, which no run has written and this run would replace; move that, or name "
                "another directory."
            )

    def discard(self, run_id: str) -> None:
        """Deletes the files of this run if it has not finished; a finished run stays, and so does another run."""
        with FINISHING:
            try:
                self._complete_replacement()
                if self._is_held_by(run_id):
                    self._delete_unfinished()
            except Exception as error:  # Beam wraps whatever the store's client raises; the next run deletes what stays.
                _LOG.warning("--output %s cannot be cleaned up (%s).", self.path, short_reason(error))

    def scores_paths(self) -> list[str]:
        """Returns the paths of the Parquet files with scores."""
        return [match.path for match in self._match(f"{_SCORES}-*.parquet")]

    def scores_prefix(self) -> str:
        """Returns what the paths of all files with scores begin with."""
        return self._join_written(_SCORES)

    def count_rows(self, run_id: str) -> int:
        """Returns how many rows all files with scores have, according to their footers.

        Raises:
            RunError: If another run wrote some of them, or the directory is not the one in which the run began.
        """
        self.require_held_by(run_id)
        paths = self._written_scores()
        # The files may be thousands in a store, and most of the time is waiting for answers.
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            footers = list(threads.map(_read_footer, paths))
        if any((footer.metadata or {}).get(b"batchverify.run_id") != run_id.encode() for footer in footers):
            raise self._taken_error()
        return sum(footer.num_rows for footer in footers)

    def has_finished(self, run_id: str) -> bool:
        """Returns whether a run has finished; a step in which it died while it took the place of another run is done again."""
        with FINISHING:
            self._complete_replacement()
            return self._is_finished_by(run_id)

    def finish(self, run_id: str, summary: dict[str, Any], report: str) -> None:
        """Writes summary and report, then `_SUCCESS`. It may be called again, because bundles are retried.

        Args:
            run_id: The run that wrote the scores.
            summary: The content of `_summary.json`.
            report: The content of `_report.html`.

        Raises:
            RunError: If another run has taken the directory.
        """
        with FINISHING:
            if self.has_finished(run_id):  # A worker died after it had finished the run, and its bundle was tried again.
                self._mark_finished(run_id)
                return
            self.require_held_by(run_id)
            self._delete_temporary()
            write_text(self._join_written(_SUMMARY), _as_json(summary))
            write_text(self._join_written(_REPORT), report)
            sync_files([*self._written_scores(), self._join_written(_SUMMARY), self._join_written(_REPORT)])
            if self._replacement:
                self._write_whole(_REPLACEMENT, json.dumps({"run_id": run_id, "files": self._written_names()}))
                self._complete_replacement()
            else:
                self._mark_finished(run_id)

    def read_summary(self) -> dict[str, Any]:
        """Returns the content of `_summary.json`. It lets the errors of the file system through."""
        return dict(json.loads(self._read(_SUMMARY)))

    def write_report(self, report: str) -> str:
        """Replaces the report of a finished run, and returns its path."""
        self._write_whole(_REPORT, report)
        return self._join(_REPORT)

    def is_finished(self) -> bool:
        """Returns whether the directory holds a finished run."""
        return self._holds(_SUCCESS)

    def _complete_replacement(self) -> None:
        """Moves the files of a complete run to where the run before it has its own, if there is such a run.

        Each step may be done again. `_SUCCESS` is missing as long as files of both runs lie side by side.
        """
        replacement = self._read_replacement()
        if replacement is None:
            return
        run_id, names = replacement
        if self._holds(_SUCCESS) and not self._is_finished_by(run_id):
            FileSystems.delete([self._join(_SUCCESS)])
        moved = [match.path for match in self._match(f"{_REPLACEMENT_FOLDER}{run_id}/*")]
        FileSystems.rename(moved, [self._join(_name(path)) for path in moved])
        scores = self.scores_paths()
        sync_files(path for path in scores if _name(path) in names)
        FileSystems.delete([path for path in scores if _name(path) not in names])
        self._mark_finished(run_id)
        FileSystems.delete([self._join(_REPLACEMENT)])
        self._delete_temporary(f"{_REPLACEMENT_FOLDER}*")

    def _read_replacement(self) -> tuple[str, list[str]] | None:
        """Returns the run that takes the place of another one, and its files; None if there is none.

        `_REPLACEMENT` is written whole. Where it cannot be understood, no file has been moved, and it is deleted with the rest
        of the run that has not finished.
        """
        if not self._holds(_REPLACEMENT):
            return None
        text = self._read(_REPLACEMENT)
        try:
            replacement = json.loads(text)
            return str(replacement["run_id"]), list(map(str, replacement["files"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def _mark_finished(self, run_id: str) -> None:
        """Writes `_SUCCESS`, whole, and only then gives up the directory: a run that dies between the two has finished."""
        if not self._is_finished_by(run_id):
            self._write_whole(_SUCCESS, run_id)
        if self._is_held_by(run_id):
            FileSystems.delete([self._join(_RUNNING)])

    def _finished_error(self) -> PreflightError:
        return PreflightError(f"--output {self.path} holds a finished run; name another directory, or add --overwrite.")

    def _taken_error(self) -> RunError:
        return RunError(f"another run has written to --output {self.path} meanwhile; give each run its own directory.")

    def require_held_by(self, run_id: str) -> None:
        """Refuses to go on in a directory that is no longer this run's.

        Raises:
            RunError: With the cause.
        """
        if self._is_held_by(run_id) or self._is_finished_by(run_id):
            return
        if self._holds(_RUNNING) or self.is_finished():
            raise self._taken_error()
        raise RunError(
            f"--output {self.path} was deleted, emptied or replaced while the run wrote to it, or the run was interrupted; "
            "leave the directory alone during a run, and start the run again."
        )

    def _is_held_by(self, run_id: str) -> bool:
        """Returns whether this run holds the directory and has not finished."""
        # A signal may stop the process while it writes the name of the run, of which the file then holds a part or nothing.
        return self._holds(_RUNNING) and run_id.startswith(self._read(_RUNNING))

    def _is_finished_by(self, run_id: str) -> bool:
        return self._holds(_SUCCESS) and self._read(_SUCCESS) == run_id

    def _holds(self, name: str) -> bool:
        return bool(FileSystems.exists(self._join(name)))

    def _join_written(self, name: str) -> str:
        return self._join(self._replacement, name) if self._replacement else self._join(name)

    def _match_written(self, pattern: str) -> list[FileMetadata]:
        return self._match(f"{self._replacement}/{pattern}" if self._replacement else pattern)

    def _written_names(self) -> list[str]:
        return sorted(_name(match.path) for match in self._match_written("*"))

    def _written_scores(self) -> list[str]:
        return [match.path for match in self._match_written(f"{_SCORES}-*.parquet")]

    def _delete_unfinished(self) -> None:
        """Deletes the files of a run that has not finished; those of a finished run stay."""
        own = () if self.is_finished() else (_SUMMARY, _REPORT)
        for name in (_RUNNING, _REPLACEMENT, *own):
            if self._holds(name):
                FileSystems.delete([self._join(name)])
        if own:
            FileSystems.delete(self.scores_paths())
        self._delete_temporary(f"{_REPLACEMENT_FOLDER}*")

    def _delete_temporary(self, *others: str) -> None:
        """Deletes what was not finished: folders that Beam writes to first, files of `write_whole`; and folders `others`."""
        # Beam's file systems list only files, which is all that a store has; on this machine an empty folder may remain.
        for pattern in (f"beam-temp-{_SCORES}-*", f"{_REPLACEMENT_FOLDER}*/beam-temp-{_SCORES}-*", *others):
            FileSystems.delete([match.path for match in self._match(f"{pattern}/*")])
            self._delete_local(pattern)
        for name in (_SUCCESS, _REPLACEMENT, _REPORT):
            self._delete_local(f".{name}.*")
        abort_uploads(self.path, _OWN_NAMES)

    def _delete_local(self, pattern: str) -> None:
        """Deletes the files and folders on this machine that a pattern matches."""
        FileSystems.delete([self._join(name) for name in sorted(glob.glob(pattern, root_dir=self.path))])


def discard_unfinished() -> None:
    """Deletes the files of all unfinished runs of this process; no run can be finished after this call."""
    FINISHING.acquire()
    claimed_directory.discard_all_claims()


shutdown.register_clean_up(discard_unfinished)


def _read_footer(path: str) -> pq.FileMetaData:
    with open_for_reading(path) as file:
        return pq.read_metadata(file)


def _is_of_a_run(path: str) -> bool:
    """Returns whether a file with scores was written by a run."""
    try:
        return b"batchverify.run_id" in (_read_footer(path).metadata or {})
    except (pa.ArrowException, OSError):  # It is no Parquet file.
        return False


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _as_json(summary: dict[str, Any]) -> str:
    """Returns `summary` as indented JSON, with pairs of numbers, such as the bins of histograms, on one line each."""
    return re.sub(r"\[\n\s+([-+.\de]+),\n\s+([-+.\de]+)\n\s+\]", r"[\1, \2]", json.dumps(summary, indent=2)) + "\n"
