"""What a process does when a signal stops it: it first cancels the jobs that run elsewhere, and then cleans up.

A module that starts something which must not outlive the process registers a function that ends it. The program handles the
signals that stop it and calls `cancel_jobs` and `clean_up`; it need not import the modules that registered.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

_cancellations: list[Callable[[], list[str]]] = []
_clean_ups: list[Callable[[], None]] = []


def stopping_signals() -> list[signal.Signals]:
    """Returns the signals that stop a run; SIGHUP, which a closed terminal sends, only where nohup has not turned it off."""
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def register_cancellation(cancel: Callable[[], list[str]]) -> None:
    """Registers a function that cancels jobs and returns the links of those that could not be cancelled."""
    _cancellations.append(cancel)


def register_clean_up(clean_up: Callable[[], None]) -> None:
    """Registers a function that deletes what this process began and did not finish."""
    _clean_ups.append(clean_up)


def cancel_jobs() -> list[str]:
    """Calls all registered cancellations, the latest first, and returns the links of jobs that may still run.

    A job is cancelled before the server that it was submitted to is stopped: what submits jobs imports what starts servers.
    """
    return [link for cancel in reversed(_cancellations) for link in cancel()]


def clean_up() -> None:
    """Calls all registered clean-ups, in the order of their registration."""
    for function in _clean_ups:
        function()
