"""Counts what the workers of one machine have done so far, and the time that each kind of work took."""

from __future__ import annotations

import collections
import contextlib
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

COUNTS = ("images_encoded", "images_reused", "images_failed", "rows_scored", "rows_failed")
# Kinds of work whose seconds are summed over all threads. `read`: the manifest and stored embeddings. `fetch`: images, or only
# their versions. `decode`: images. `wait`: for images to be fetched, decoded and encoded. `compare`: pairs, with the identity
# check. `examine`: strangers and steadiness. `write`: scores and the summary. `encode`: seconds in which at least one thread
# used the encoder.
SECONDS = ("read", "fetch", "decode", "wait", "encode", "compare", "examine", "write")
# What people read for the kinds of work. `shuffle` is what no other kind takes: Beam plans the steps, groups the blocks and
# hands them on.
WORK_NAMES = {
    **{name: name for name in SECONDS}, "read": "reading the manifest", "wait": "waiting for images", "compare": "comparing",
    "examine": "strangers and steadiness", "write": "writing", "shuffle": "Beam itself",
}  # fmt: skip
_FIELDS = COUNTS + SECONDS
_RECORD = struct.Struct(f"{len(_FIELDS)}d")


class WorkerStats:
    """Counts work and stores the counts in a file, which the launcher reads during the run.

    Only the name of the folder is sent to workers. On another machine, where there is no such folder, nothing is stored;
    there Beam's counters serve instead.

    Args:
        folder: A folder that `temporary_folder` made, or None to store nothing.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._lock = threading.Lock()
        self._amounts = dict.fromkeys(_FIELDS, 0.0)
        self._encoding, self._encoding_since = 0, 0.0
        self._file: int | None = None

    def __reduce__(self) -> tuple[type[WorkerStats], tuple[str | None]]:
        return WorkerStats, (self.folder,)

    def add(self, **amounts: float) -> None:
        """Adds to counts, and stores them; the names are those of `COUNTS` and `SECONDS`."""
        if self.folder is not None:
            with self._lock:
                for name, amount in amounts.items():
                    self._amounts[name] += amount
                self._store()

    def collect(self, name: str, seconds: float) -> None:
        """Adds seconds that the next `add` stores; for work that happens thousands of times a second, in many threads."""
        with self._lock:
            self._amounts[name] += seconds

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that its block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - started})

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Adds the seconds that its block takes to `encode`; threads that are in such a block at once count once."""
        with self._lock:
            if self._encoding == 0:
                self._encoding_since = time.perf_counter()
            self._encoding += 1
        try:
            yield
        finally:
            with self._lock:
                self._encoding -= 1
                ended = time.perf_counter()
                self._amounts["encode"] += ended - self._encoding_since
                self._encoding_since = ended

    def _store(self) -> None:
        if self._file is None:
            self._open()
        if self._file is not None:
            with contextlib.suppress(OSError):  # The disk is full.
                os.pwrite(self._file, _RECORD.pack(*self._amounts.values()), 0)

    def _open(self) -> None:
        assert self.folder is not None
        try:
            self._file = tempfile.mkstemp(dir=self.folder)[0]
            weakref.finalize(self, os.close, self._file)
        except OSError:  # The folder was deleted with the process that made it, or the disk is full; a run needs no statistics.
            self.folder = None


def read_totals(folder: str) -> dict[str, float]:
    """Returns the sums of the counts in all files of a folder, by name."""
    totals: collections.Counter[str] = collections.Counter(dict.fromkeys(_FIELDS, 0.0))
    for path in Path(folder).iterdir():
        record = path.read_bytes()
        if len(record) == _RECORD.size:  # A file that was just made is still empty.
            totals.update(dict(zip(_FIELDS, _RECORD.unpack(record), strict=True)))
    return dict(totals)


def images_done(totals: dict[str, float]) -> float:
    """Returns the number of images in `totals`, encoded, reused or failed."""
    return totals["images_encoded"] + totals["images_reused"] + totals["images_failed"]


def profile_run(folder: str, seconds: float, in_process: bool) -> dict[str, object]:
    """Returns where a run's time went, for `_summary.json`.

    Args:
        folder: The folder of the counts.
        seconds: The time since the run began.
        in_process: Whether one process did all the work; only then is the rest of its time that of the shuffle.
    """
    totals = read_totals(folder)
    spent = {name: totals[name] for name in SECONDS}
    if in_process:
        alone = sum(spent[name] for name in ("read", "wait", "compare", "examine", "write"))
        spent["shuffle"] = max(0.0, seconds - alone)
    images, rows = images_done(totals), totals["rows_scored"] + totals["rows_failed"]
    return {
        "wall_seconds": round(seconds, 3),
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "images_per_second": round(images / seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "device_idle_share": round(max(0.0, 1 - spent["encode"] / seconds), 4) if in_process else None,
    }
