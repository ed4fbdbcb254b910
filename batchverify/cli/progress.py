"""How far a run is: a terminal shows a bar, and a log gets a line every half a minute."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from batchverify.cli.streams import unfailing
from batchverify.pipeline.execution import Watcher
from batchverify.worker_stats import images_done

_LOG = logging.getLogger(__name__)
_LOG_EVERY_S = 30.0


def watcher(stack: ExitStack, log_format: str = "text") -> Watcher:
    """Returns a bar if stderr is a terminal that people read, or else lines in the log.

    Args:
        stack: The stack whose end removes the bar.
        log_format: One of `options.LOG_FORMATS`.
    """
    return _Bar(stack) if log_format == "text" and sys.stderr.isatty() else _LogLines()


class _Bar:
    def __init__(self, stack: ExitStack):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[more]}"),
            TimeRemainingColumn(),
            console=Console(file=unfailing(sys.stderr)),
            transient=True,
        )
        stack.enter_context(self._progress)
        self._images = self._progress.add_task("Images encoded", total=None, more="")
        self._rows = self._progress.add_task("Rows scored", total=None, more="")
        self._rate = _Rate()

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        encoded, scored = _progress_counts(totals)
        more = f"{self._rate.update(encoded):,.0f}/s{_format_reused(totals)}"
        more += f", {totals['images_failed']:,.0f} failed" if totals["images_failed"] else ""
        self._progress.update(self._images, completed=encoded, total=max(images, encoded), more=more)
        failed = f"{totals['rows_failed']:,.0f} without a score" if totals["rows_failed"] else ""
        self._progress.update(self._rows, completed=scored, total=max(rows, scored), more=failed)


class _LogLines:
    def __init__(self) -> None:
        self._next = time.monotonic() + _LOG_EVERY_S
        self._rate = _Rate()

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        encoded, scored = _progress_counts(totals)
        rate = self._rate.update(encoded)
        if time.monotonic() < self._next or not encoded + scored:  # Workers elsewhere count nothing here.
            return
        self._next += _LOG_EVERY_S
        _LOG.info("%s", format_progress(totals, max(images, encoded), max(rows, scored), rate))


def format_progress(totals: dict[str, float], images: int, rows: int, rate: float) -> str:
    """Returns how far a run is in one line.

    Args:
        totals: The totals of the workers, see `Watcher`.
        images: The number of all images of the run.
        rows: The number of all rows of the run.
        rate: Images a second.
    """
    encoded, scored = _progress_counts(totals)
    left = f", about {format_duration((images - encoded) / rate)} left for the images" if rate and encoded < images else ""
    failed = f"{totals['images_failed']:,.0f} failed"
    share = _format_share(encoded, images)
    return (
        f"Images encoded: {encoded:,} of {images:,} ({share}){_format_reused(totals)}, {failed}, {rate:,.0f}/s{left}. "
        f"Rows scored: {scored:,} of {rows:,} ({_format_share(scored, rows)})."
    )


class _Rate:
    """Images a second since the first image. The time before it is not counted, because nothing is encoded at the start."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def update(self, encoded: int) -> float:
        now = time.monotonic()
        if encoded and self._first is None:
            self._first = now, encoded
        if self._first and encoded > self._first[1]:
            self._last = (encoded - self._first[1]) / (now - self._first[0])
        return self._last


def _format_reused(totals: dict[str, float]) -> str:
    return f", {totals['images_reused']:,.0f} from the store" if totals["images_reused"] else ""


def _progress_counts(totals: dict[str, float]) -> tuple[int, int]:
    """Returns the number of images and the number of rows that are done."""
    return int(images_done(totals)), int(totals["rows_scored"] + totals["rows_failed"])


def _format_share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "100%"


def format_duration(seconds: float) -> str:
    """Returns a time that is still to come, in the unit that suits it."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
