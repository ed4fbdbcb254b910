"""The exceptions of this package: one tree, whose root is `BatchverifyError`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any


def printable(text: str, keep: str = "") -> str:
    """Returns `text` with unprintable characters as escape sequences, except those in `keep`.

    Names in manifests and models come from strangers; they may hold line breaks and control sequences of terminals.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class BatchverifyError(Exception):
    """Any error that this package raises on purpose; its message is one sentence for each problem."""


class PreflightError(BatchverifyError, ValueError):
    """The user asked for something that cannot be done; nothing was read or written.

    Attributes:
        problems: One sentence for each problem, with the value and the remedy.
    """

    def __init__(self, problems: Sequence[str] | str):
        self.problems = [printable(problem) for problem in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


class ManifestMissingError(PreflightError):
    """A manifest is not there, and nothing else is wrong; where others write it, it may be late."""


class UnsuitableModelError(PreflightError):
    """The model is none of image pairs, whatever the user may say about it."""


@dataclasses.dataclass(frozen=True)
class OpenQuestion:
    """Something that a model's file leaves open, and that the user has to say.

    Attributes:
        problem: One sentence, with the remedy.
        option: The arguments that answer it, such as `("--lambda", "distance=l1")`. What the file shows is filled in; a word in
            capitals stands for what only the user can know.
        assumed: Fields of `ModelConfig` that answer it for a trial, to find out what else is open; empty where nothing can be
            assumed.
        is_guess: Whether nothing in the file supports `assumed`, which replaces a layer, so that the output on trial means
            nothing.
        is_about_output: Whether the output on trial raised it.
    """

    problem: str
    option: tuple[str, ...]
    assumed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_guess: bool = False
    is_about_output: bool = False


class OpenQuestionError(PreflightError):
    """A model's file leaves something open.

    Attributes:
        questions: Everything that is open.
    """

    def __init__(self, questions: Sequence[OpenQuestion] | OpenQuestion):
        self.questions = (questions,) if isinstance(questions, OpenQuestion) else tuple(questions)
        super().__init__([question.problem for question in self.questions])


class RunError(BatchverifyError, RuntimeError):
    """The run began and could not be finished; the output has no `_SUCCESS`."""

    def __init__(self, problem: str):
        super().__init__(printable(problem))


# The message of Beam's error for a worker process that has died.
WORKER_DIED = "Channel closed prematurely"


class StoreError(BatchverifyError):
    """An object store did not return an object.

    Attributes:
        code: The HTTP status of its answer; None if it gave no answer.
        description: The answer or the error in words.
    """

    def __init__(self, code: int | None, description: str):
        self.code, self.description = code, description
        super().__init__(description)


# Colour sequences of terminals, and the lines in which Keras wraps the error of a layer.
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_WRAPPER, _KERAS_CAUSE = "Exception encountered when calling", "Exception encountered: "


def short_reason(error: BaseException) -> str:
    """Returns the first informative line of an error, without what Beam and Keras wrap it in, for use in a sentence."""
    inner = getattr(error, "exception_details", None)
    if isinstance(inner, dict) and inner:
        error = next(iter(inner.values()))
        if not isinstance(error, BaseException):  # Beam may put a number there.
            return str(error)
        return short_reason(error)
    lines = [_ANSI.sub("", line).strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_KERAS_WRAPPER)] or lines
    causes = [line.removeprefix(_KERAS_CAUSE) for line in lines if line.startswith(_KERAS_CAUSE)] or lines
    return printable(causes[0][:200]) if causes else type(error).__name__


class SplitError(BatchverifyError, ValueError):
    """The model cannot be split into an encoder and a head; the message says why."""


class IgnoredInputError(BatchverifyError, ValueError):
    """The score does not depend on one of the inputs."""


class JobDetachedError(RunError):
    """The connection to a service's job was lost; the job may still run, and may finish."""
