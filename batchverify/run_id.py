"""The name of the run that this process works on, for whoever tells of it: logs, and what is told of its end."""

from __future__ import annotations

_current = ""


def set_run_id(run_id: str) -> None:
    """Says that this process works on a run from now on."""
    global _current
    _current = run_id


def current_run_id() -> str:
    """Returns the name of the run; empty as long as none has been planned."""
    return _current
