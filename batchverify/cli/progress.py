"""How far a run is: a bar on a terminal, and elsewhere a line every half a minute."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchverify.pipeline.execution import Watcher
from batchverify.worker_stats import images_done

_LOG = logging.getLogger(__name__)
_LOG_EVERY_S = 30.0


def watcher(stack: ExitStack) -> Watcher:
    """Returns a bar if the terminal can show one, or else lines in the log.

    Args:
        stack: takes the bar down at its end.
    """
    return _Bar(stack) if sys.stderr.isatty() else _Lines()


class _Bar:
    def __init__(self, stack: ExitStack):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[more]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        stack.enter_context(self._progress)
        self._images = self._progress.add_task("Images encoded", total=None, more="")
        self._rows = self._progress.add_task("Rows scored", total=None, more="")
        self._rate = _Rate()

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        done, scored = _done(totals)
        more = f"{self._rate.of(done):,.0f}/s{_reused(totals)}"
        more += f", {totals['images_failed']:,.0f} failed" if totals["images_failed"] else ""
        self._progress.update(self._images, completed=done, total=max(images, done), more=more)
        failed = f"{totals['rows_failed']:,.0f} without a score" if totals["rows_failed"] else ""
        self._progress.update(self._rows, completed=scored, total=max(rows, scored), more=failed)


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + _LOG_EVERY_S
        self._rate = _Rate()

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        done, scored = _done(totals)
        rate = self._rate.of(done)
        if time.monotonic() < self._next:
            return
        self._next += _LOG_EVERY_S
        _LOG.info("%s", format_progress(totals, max(images, done), max(rows, scored), rate))


def format_progress(totals: dict[str, float], images: int, rows: int, rate: float) -> str:
    """Returns how far a run is in one line.

    Args:
        totals: see `Watcher`.
        images: all that there are.
        rows: likewise.
        rate: images a second.
    """
    done, scored = _done(totals)
    left = f", about {duration((images - done) / rate)} left for the images" if rate and done < images else ""
    failed = f"{totals['images_failed']:,.0f} failed"
    return (
        f"Images encoded: {done:,} of {images:,} ({_share(done, images)}){_reused(totals)}, {failed}, {rate:,.0f}/s{left}. "
        f"Rows scored: {scored:,} of {rows:,} ({_share(scored, rows)})."
    )


class _Rate:
    """Images a second since the first one, as the start, with nothing to count, would spoil it."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def of(self, done: int) -> float:
        now = time.monotonic()
        if done and self._first is None:
            self._first = now, done
        if self._first and done > self._first[1]:
            self._last = (done - self._first[1]) / (now - self._first[0])
        return self._last


def _reused(totals: dict[str, float]) -> str:
    return f", {totals['images_reused']:,.0f} from the store" if totals["images_reused"] else ""


def _done(totals: dict[str, float]) -> tuple[int, int]:
    return int(images_done(totals)), int(totals["rows_scored"] + totals["rows_failed"])


def _share(done: int, of: int) -> str:
    return f"{done / of:.0%}" if of else "100%"


def duration(seconds: float) -> str:
    """Returns a time that is still to come, in the unit that says it best."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
