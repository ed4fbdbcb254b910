"""A calibration: what turns the scores of one model into log-likelihood ratios. It needs nothing but NumPy."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchverify.config import CALIBRATION_METHODS, ModelConfig

# The version of the form in which a sidecar holds a calibration.
_VERSION = 1
_MAX_KNOTS = 20_000
_NAME = re.compile(r"[A-Za-z0-9:._-]{1,200}")
# Settings that decide what a score means, beside the model's bytes. A calibration is for scores of the same meaning.
_SCORE_SETTINGS = (
    "pixels", "color", "loader", "resize", "orientation", "alpha", "preprocess", "fit", "image_size", "lambdas",
    "custom_objects", "mend_shared_encoder", "signature", "compare", "output_is", "match_column",
)  # fmt: skip
# To state one of these changes nothing.
_STATED_DEFAULTS = {"loader": "tf", "fit": "stretch", "output_is": "score"}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A mapping from scores to log-likelihood ratios, and what it was fitted on. The mapping is finite, and never falls.

    A log-likelihood ratio (llr) is the natural logarithm of how many times as probable a score is for a genuine pair as for an
    impostor pair. It does not depend on how many genuine pairs there are.

    Attributes:
        method: The method of the fit, one of `config.CALIBRATION_METHODS`.
        knots: Scores in (0, 1), rising, and their llrs, which do not fall. Between two knots the llr is linear in the logit of
            the score, log(s / (1 − s)); beyond the first and the last it stays what it is there.
        run_id: The name of the run whose labelled pairs it was fitted on.
        model_digest: The digest of that run's model, as `_summary.json` has it.
        settings: The settings, not at their defaults, that decide what a score means, as JSON values.
        genuine: The number of genuine pairs that it was fitted on.
        impostor: The number of impostor pairs that it was fitted on.
    """

    method: str
    knots: tuple[tuple[float, float], ...]
    run_id: str
    model_digest: str
    settings: Mapping[str, Any]
    genuine: int
    impostor: int

    def llr(self, scores: np.ndarray) -> np.ndarray:
        """Returns the llrs of `scores`, float64 `(n,)`; NaN where a score is NaN."""
        knot_scores, knot_llrs = np.array(self.knots, np.float64).T
        llrs: np.ndarray = np.interp(logit(scores), logit(knot_scores), knot_llrs)
        return llrs

    def why_unfit(self, model_digest: str, settings: Mapping[str, Any]) -> str | None:
        """Returns why this calibration does not fit the scores of a run; None if it fits.

        Args:
            model_digest: The digest of the run's model, as `_summary.json` has it.
            settings: The result of `score_settings` for the run.
        """
        if reason := why_other_scores(self.model_digest, self.settings, model_digest, settings):
            return f"it was fitted for another {reason}"
        return None

    def __str__(self) -> str:
        pairs = f"{self.genuine:,} genuine and {self.impostor:,} impostor pairs"
        return f"{self.method}, fitted on {pairs} of run {self.run_id:.40}"

    def to_json(self) -> dict[str, Any]:
        """Returns the value of the key `calibration` of a sidecar."""
        return {"version": _VERSION, **dataclasses.asdict(self), "knots": [list(knot) for knot in self.knots]}


def logit(scores: np.ndarray) -> np.ndarray:
    """Returns log(s / (1 − s)) of scores in [0, 1], float64 `(n,)`; infinite at 0 and 1."""
    scores = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        difference: np.ndarray = np.log(scores) - np.log1p(-scores)
    return difference


def posterior(llrs: np.ndarray, prior: float) -> np.ndarray:
    """Returns the probability that a pair is genuine, float64 `(n,)`, by Bayes' rule; NaN where an llr is NaN.

    Args:
        llrs: The log-likelihood ratios, natural logarithms, `(n,)`.
        prior: The share of genuine pairs among all pairs, in (0, 1).
    """
    log_odds = np.asarray(llrs, np.float64) + math.log(prior) - math.log1p(-prior)
    with np.errstate(invalid="ignore"):
        probabilities: np.ndarray = np.exp(-np.logaddexp(0, -log_odds))
    return probabilities


def score_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide what a score means and are not at their defaults, as JSON values.

    Args:
        settings: The fields of a configuration, or the key `run.options` of a summary.
    """
    given = {name: settings[name] for name in _SCORE_SETTINGS if name in settings}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: value for name, value in plain.items() if not _is_default(name, value)}


def why_other_scores(digest: str, settings: Mapping[str, Any], digest_now: str, settings_now: Mapping[str, Any]) -> str | None:
    """Returns what makes the scores of an earlier run other scores than a run's, as the end of "another"; None for the same.

    Args:
        digest: The digest of the earlier run's model.
        settings: The result of `score_settings` for the earlier run.
        digest_now: The digest of the run's model.
        settings_now: The result of `score_settings` for the run.
    """
    if digest != digest_now:
        return f"model, {digest:.23}…, and this one is {digest_now:.23}…"
    names = {name for name in {*settings, *settings_now} if settings.get(name) != settings_now.get(name)}
    return f"{', '.join(sorted(names)).replace('_', ' ')}, so for scores of another meaning" if names else None


def _is_default(name: str, value: Any) -> bool:
    return value is None or value is False or value == [] or value == _STATED_DEFAULTS.get(name)


def config_settings(config: ModelConfig) -> dict[str, Any]:
    """Returns the `score_settings` of a configuration that the model's sidecar has completed."""
    return score_settings({name: getattr(config, name) for name in _SCORE_SETTINGS})


def find_calibration_problem(value: Any) -> str | None:
    """Returns why a JSON value is no calibration, as the end of a sentence; None if it is one."""
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version > _VERSION:
        return f"'calibration' has version {version}, and this program reads {_VERSION}; update batchverify, or calibrate again"
    if version != _VERSION or not _is_calibration(value):
        return "'calibration' is not one that batchverify calibrate wrote; calibrate again, or remove it"
    return None


def parse_calibration(value: dict[str, Any]) -> Calibration:
    """Returns the calibration that a JSON value holds in which `find_calibration_problem` finds none."""
    fields = {field.name: value[field.name] for field in dataclasses.fields(Calibration)}
    return Calibration(**fields | {"knots": tuple((float(score), float(llr)) for score, llr in value["knots"])})


def _is_calibration(value: dict[str, Any]) -> bool:
    return (
        value.get("method") in CALIBRATION_METHODS
        and all(_is_name(value.get(name)) for name in ("run_id", "model_digest"))
        and all(type(value.get(name)) is int and 0 < value[name] < 2**63 for name in ("genuine", "impostor"))
        and isinstance(value.get("settings"), dict)
        and value["settings"].keys() <= set(_SCORE_SETTINGS)
        and isinstance(value.get("knots"), list)
        and _are_knots(value["knots"])
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _are_knots(knots: list[Any]) -> bool:
    if not 2 <= len(knots) <= _MAX_KNOTS or not all(isinstance(knot, list) and len(knot) == 2 for knot in knots):
        return False
    if not all(_is_number(number) for knot in knots for number in knot):
        return False
    rises = all(low[0] < high[0] and low[1] <= high[1] for low, high in itertools.pairwise(knots))
    return rises and knots[0][0] > 0 and knots[-1][0] < 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
