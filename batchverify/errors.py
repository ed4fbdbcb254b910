"""The exceptions of this package: one tree, whose root is `BatchverifyError`."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str, keep: str = "") -> str:
    """Returns `text` with all that is not printed written out, but what is in `keep`.

    Names in manifests and models come from strangers; they may hold line breaks, and what drives a terminal.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class BatchverifyError(Exception):
    """Any error that this package raises on purpose; its message is one sentence for each problem."""


class PreflightError(BatchverifyError, ValueError):
    """The user asked for something that cannot be done; nothing was read or written.

    Attributes:
        problems: one sentence each, with the value and the remedy.
    """

    def __init__(self, problems: Sequence[str] | str):
        self.problems = [printable(problem) for problem in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


class RunError(BatchverifyError, RuntimeError):
    """The run began and could not be finished; the output has no `_SUCCESS`."""

    def __init__(self, problem: str):
        super().__init__(printable(problem))


# Beam's words for a worker process that is gone.
WORKER_DIED = "Channel closed prematurely"
