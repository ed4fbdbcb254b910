"""What the workers of one machine have done so far, and how long each kind of work took them."""

from __future__ import annotations

import collections
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchverify import shutdown

COUNTS = ("images_encoded", "images_reused", "images_failed", "rows_scored", "rows_failed")
# Seconds, of all threads together: reading the manifest and stored embeddings; fetching or looking up images, and decoding
# them; waiting for all that is done to images; comparing, with the identity check; summarising and writing. Of the encoder
# those in which it was at work, once for however many threads.
SECONDS = ("read", "fetch", "decode", "wait", "encode", "compare", "write")
_FIELDS = COUNTS + SECONDS
_RECORD = struct.Struct(f"{len(_FIELDS)}d")


class WorkerStats:
    """Counts in a file of its own, which the launcher reads while the run goes on.

    It travels to workers as the name of a folder. Where there is no such folder, on another machine, nothing is kept;
    Beam's counters are for that.

    Args:
        folder: made by `stats_folder`, or None to keep nothing.
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
        """Adds to what has been counted, and shows it; names are those of `COUNTS` and `SECONDS`."""
        if self.folder is not None:
            with self._lock:
                for name, amount in amounts.items():
                    self._amounts[name] += amount
                self._show()

    def collect(self, name: str, seconds: float) -> None:
        """Adds seconds without showing them yet: for what happens thousands of times a second, in many threads."""
        with self._lock:
            self._amounts[name] += seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds that its block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - started})

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Adds the seconds that its block takes to `encode`, those in which other threads are in it too only once."""
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

    def _show(self) -> None:
        if self._file is None:
            self._open()
        if self._file is not None:
            os.pwrite(self._file, _RECORD.pack(*self._amounts.values()), 0)

    def _open(self) -> None:
        assert self.folder is not None
        try:
            self._file = tempfile.mkstemp(dir=self.folder)[0]
        except FileNotFoundError:
            self.folder = None

    def __del__(self) -> None:
        if (file := getattr(self, "_file", None)) is not None:
            os.close(file)


def read_totals(folder: str) -> dict[str, float]:
    """Returns what all tallies of a folder have come to, by name."""
    totals: collections.Counter[str] = collections.Counter(dict.fromkeys(_FIELDS, 0.0))
    for path in Path(folder).iterdir():
        record = path.read_bytes()
        if len(record) == _RECORD.size:  # not just made
            totals.update(dict(zip(_FIELDS, _RECORD.unpack(record), strict=True)))
    return dict(totals)


def images_done(totals: dict[str, float]) -> float:
    """Returns how many images `totals` counts, encoded or not."""
    return totals["images_encoded"] + totals["images_reused"] + totals["images_failed"]


def profile_run(folder: str, seconds: float, in_process: bool) -> dict[str, object]:
    """Returns where a run's time went, for `summary.json`.

    Args:
        folder: of the tallies.
        seconds: since the run began.
        in_process: whether all work was done in one process; only then is what remains of its time the shuffle's.
    """
    totals = read_totals(folder)
    spent = {name: totals[name] for name in SECONDS}
    if in_process:
        alone = sum(spent[name] for name in ("read", "wait", "compare", "write"))
        spent["shuffle"] = max(0.0, seconds - alone)
    images, rows = images_done(totals), totals["rows_scored"] + totals["rows_failed"]
    return {
        "wall_seconds": round(seconds, 3),
        "seconds": {name: round(value, 3) for name, value in spent.items()},
        "images_per_second": round(images / seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "device_idle_share": round(max(0.0, 1 - spent["encode"] / seconds), 4) if in_process else None,
    }


_FOLDERS: set[str] = set()


@contextmanager
def stats_folder() -> Iterator[str]:
    """Gives a folder for the tallies of one run, and deletes it."""
    with tempfile.TemporaryDirectory(prefix="batchverify-stats-") as folder:
        _FOLDERS.add(folder)
        try:
            yield folder
        finally:
            _FOLDERS.discard(folder)


def delete_stats_folders() -> None:
    """Deletes the folders of runs that are under way, as the process is about to end at once."""
    for folder in _FOLDERS:
        for path in Path(folder).iterdir():
            path.unlink(missing_ok=True)
        Path(folder).rmdir()


shutdown.register_clean_up(delete_stats_folders)
