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


class StoreError(Exception):
    """A store gave no object.

    Attributes:
        code: what it answered, as HTTP numbers it; None if it gave no answer.
        words: the same for people.
    """

    def __init__(self, code: int | None, words: str):
        self.code, self.words = code, words
        super().__init__(words)


def short_reason(error: BaseException) -> str:
    """Returns an error's first line, for a sentence; of Beam's wrapping, what is in it."""
    inner = getattr(error, "exception_details", None)
    if isinstance(inner, dict) and inner:
        error = next(iter(inner.values()))
        if not isinstance(error, BaseException):  # Beam may put a number there
            return str(error)
        return short_reason(error)
    text = str(error).strip()
    return printable(text.splitlines()[0][:200]) if text else type(error).__name__
