"""How far a run is, as a notebook or a terminal shows it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

from batchverify.pipeline.execution import Watcher
from batchverify.worker_stats import images_done

# What is over sooner needs no bar.
_DELAY_S = 1.0


@contextlib.contextmanager
def progress_bar(show: bool | None) -> Iterator[Watcher | None]:
    """Yields what shows the progress of a run, and removes it at the end.

    Args:
        show: Whether to show it; None shows it in a notebook and on a terminal.
    """
    if not (_has_reader() if show is None else show):
        yield None
        return
    bar = _TqdmBar() if importlib.util.find_spec("tqdm") else _Line()
    try:
        yield bar
    finally:
        bar.close()


def _has_reader() -> bool:
    return is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


class _TqdmBar:
    """A bar of tqdm's, which has one for notebooks and one for terminals."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # It warns where ipywidgets are missing, and then shows its bar as text.
            warnings.simplefilter("ignore")
            tqdm = importlib.import_module("tqdm.auto").tqdm
        self._bar: Any = tqdm(desc="Images encoded", unit=" images", leave=False, delay=_DELAY_S)

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        done = int(images_done(totals))
        self._bar.total = max(images, done)
        self._bar.set_postfix_str(_rows(totals, rows), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Line:
    """A line of text that replaces itself."""

    def __init__(self) -> None:
        self._shown, self._started = "", time.monotonic()

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        if time.monotonic() >= self._started + _DELAY_S:
            done = int(images_done(totals))
            self._show(f"Images encoded: {done:,} of {max(images, done):,}, {_rows(totals, rows)}")

    def close(self) -> None:
        if self._shown:
            self._show("")

    def _show(self, text: str) -> None:
        print(f"\r{text:<{len(self._shown)}}", end="" if text else "\r", file=sys.stderr, flush=True)
        self._shown = text


def _rows(totals: dict[str, float], rows: int) -> str:
    scored = int(totals["rows_scored"] + totals["rows_failed"])
    return f"{scored:,} of {max(rows, scored):,} rows scored"
