"""Everything that a model's file leaves open, asked at once: each question is answered on trial, to find the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError, UnsuitableModelError

Result = TypeVar("Result")


class Interview:
    """Collects the questions of the steps that load a model.

    Args:
        config: The user's statements about the model.
    """

    def __init__(self, config: ModelConfig):
        self._config = config
        self._questions: list[OpenQuestion] = []

    def answer(self, step: Callable[[ModelConfig], Result]) -> Result:
        """Returns the value of `step`, which is repeated with an assumed answer for as long as it asks.

        Raises:
            PreflightError: The refusal of `step`. If there are questions, they are raised instead, because the refusal may come
                from a wrong answer; but not instead of an `UnsuitableModelError`, which no answer would change.
        """
        while True:
            try:
                return step(self._config)
            except OpenQuestionError as error:
                self._assume(error.questions)
            except UnsuitableModelError:
                raise
            except PreflightError:
                self.end()
                raise

    def end(self) -> None:
        """Raises the questions, if there are any.

        Raises:
            OpenQuestionError: With all of them.
        """
        if self._questions:
            raise OpenQuestionError(self._questions)

    def _assume(self, questions: tuple[OpenQuestion, ...]) -> None:
        """Notes questions and assumes their answers; raises all of them where one has no answer to assume."""
        if any(question.is_guess for question in self._questions) and any(question.is_about_output for question in questions):
            self.end()
        is_stuck = any(question in self._questions or not question.assumed for question in questions)
        self._questions += [question for question in questions if question not in self._questions]
        if is_stuck:
            self.end()
        for question in questions:
            self._config = _with_answers(self._config, question)


def _with_answers(config: ModelConfig, question: OpenQuestion) -> ModelConfig:
    answers: dict[str, Any] = {
        field: (*getattr(config, field), *value) if field in ("lambdas", "custom_objects") else value
        for field, value in question.assumed.items()
    }
    return dataclasses.replace(config, **answers)
