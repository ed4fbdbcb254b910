"""The candidate: a second model that scores the same pairs. Its settings come from its own sidecar alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError
from batchverify.model.sidecar import Sidecar, apply_sidecar, is_setting, read_sidecar, sidecar_path

# How a model is run is a matter of the machine; it is the same for both.
_SHARED = ("batch_size", "runtime", "precision")
_OWN = {field.name for field in dataclasses.fields(ModelConfig)} - set(_SHARED)
_NOT_PASSED_ON = {*_OWN, "candidate", "candidate_threshold"}

Config = TypeVar("Config", bound=ScoringConfig)


def read_candidate_sidecar(config: ScoringConfig) -> Sidecar:
    """Reads the sidecar of the candidate that `config` names; an empty one without a candidate.

    Raises:
        PreflightError: If it cannot be read, or states what it may not.
    """
    return Sidecar() if config.candidate is None else read_sidecar(config.candidate)


def apply_candidate_sidecar(config: Config, sidecar: Sidecar) -> Config:
    """Returns `config` with the candidate's threshold: the given one, its sidecar's, or else that of the first model.

    Args:
        config: The configuration, completed by the sidecar of the first model.
        sidecar: The content of the candidate's sidecar.
    """
    if config.candidate is None or config.candidate_threshold is not None:
        return config
    return dataclasses.replace(config, candidate_threshold=float(sidecar.settings.get("threshold", config.match_threshold())))


def candidate_config(config: ScoringConfig, sidecar: Sidecar) -> ScoringConfig:
    """Returns the configuration that the candidate has as a model of its own.

    The options about the model and its pixels are those of the first model, so that nothing of them is passed on.

    Args:
        config: The configuration of the run, which names a candidate.
        sidecar: The content of the candidate's sidecar.

    Raises:
        PreflightError: If the sidecar states what cannot be; the sentence names the candidate.
    """
    assert config.candidate is not None
    names = {field.name for field in dataclasses.fields(ScoringConfig)} - _NOT_PASSED_ON
    shared = {name: getattr(config, name) for name in names}
    with naming_the_candidate(config.candidate):
        return apply_sidecar(ScoringConfig(model=config.candidate, threshold=config.candidate_threshold, **shared), sidecar)


@contextlib.contextmanager
def naming_the_candidate(path: str) -> Iterator[None]:
    """Has refusals of its block say that they are about the candidate, and where it is answered for."""
    try:
        yield
    except OpenQuestionError as error:
        answers = _answers_in_sidecar(error.questions)
        problems = [_about_candidate(problem, path) for problem in error.problems]
        if answers:
            problems.append(
                f"--candidate {path}: options such as --pixels are about --model; answer for the candidate in its sidecar, "
                f"{sidecar_path(path)}: {json.dumps(answers)}."
            )
        raise PreflightError(problems) from None
    except PreflightError as error:
        raise PreflightError([_about_candidate(problem, path) for problem in error.problems]) from None


def _about_candidate(problem: str, path: str) -> str:
    named = problem.replace("--model ", "--candidate ")
    return named if f"--candidate {path}" in named else f"--candidate {path}: {named}"


def _answers_in_sidecar(questions: tuple[OpenQuestion, ...]) -> dict[str, Any]:
    """Returns the keys of a sidecar that answer questions, with words in capitals for what only the user can know."""
    answers: dict[str, Any] = {}
    for question in questions:
        key, *values = question.option
        key = key[2:].replace("-", "_")
        if not is_setting(key):
            continue
        value = values[0] if values else True
        if key in ("lambda", "custom_object"):
            answers.setdefault(key, []).append(value)
        else:
            answers[key] = int(value) if isinstance(value, str) and value.isdigit() else value
    return answers
