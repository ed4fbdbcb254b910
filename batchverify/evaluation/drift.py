"""How far a run's scores have moved since an earlier run. NumPy alone.

The population stability index is that of Siddiqi, "Credit Risk Scorecards" (2006), the sum over bins of
(now - before) · ln(now / before), where both are shares; it is Jeffreys' symmetric divergence (Kullback, "Information
Theory and Statistics", 1959) of two binned distributions. The Kolmogorov–Smirnov statistic is the largest distance
of the two cumulative distributions.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchverify.evaluation import metrics

_QUANTILES = 10
_SMOOTHING = 0.5
_KINDS = ("unlabelled", "impostor", "genuine")
# What is customary to say of an index, after Siddiqi: below the first little, below the second some, from there on a lot.
_LITTLE, _SOME = 0.1, 0.25


def stability_bins(before: np.ndarray) -> np.ndarray:
    """Returns where the bins of the population stability index begin, but for the first, which begins at 0.

    The bins are the tenths of the earlier scores. A histogram bin that alone holds more than a tenth of them gets a bin
    of its own, so that what moves away from it, to either side, is seen.

    Args:
        before: histogram of the earlier scores, int64 `(n,)`, not empty.

    Returns:
        Positions in the histogram, int64, ascending, each above 0 and below `n`.
    """
    total = before.sum()
    at_most = np.cumsum(before)
    tenths = np.searchsorted(at_most, np.arange(1, _QUANTILES) * total / _QUANTILES) + 1
    heavy = np.flatnonzero(before > total / _QUANTILES)
    starts = np.unique(np.concatenate([tenths, heavy, heavy + 1]))
    return starts[(starts > 0) & (starts < len(before))]


def population_stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the population stability index of two histograms over the bins of `stability_bins`; 0 for equal shares.

    Half a score is added to each bin of either side, as otherwise one empty bin would make the index infinite.

    Args:
        before: histogram of the earlier scores, int64 `(n,)`.
        now: histogram of the later ones, int64 `(n,)`.

    Returns:
        A number from 0; NaN if either histogram is empty.
    """
    if not before.sum() or not now.sum():
        return float("nan")
    starts = np.append(0, stability_bins(before))
    earlier, later = (_smoothed_shares(np.add.reduceat(counts, starts)) for counts in (before, now))
    return float(np.sum((later - earlier) * np.log(later / earlier)))


def kolmogorov_smirnov(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the Kolmogorov–Smirnov statistic of two histograms, int64 `(n,)`, in [0, 1]; NaN if either is empty.

    Exact for scores rounded down to a bin's edge; it differs from that of the scores themselves by at most the share
    that lies in one histogram bin.
    """
    if not before.sum() or not now.sum():
        return float("nan")
    return float(np.max(np.abs(np.cumsum(before) / before.sum() - np.cumsum(now) / now.sum())))


@dataclasses.dataclass(frozen=True)
class RunStatistics:
    """What is compared of one run.

    Attributes:
        run_id: what it is called.
        threshold: of a match.
        model_digest: of its model.
        scored: rows with a score.
        matches: rows that match.
        scores: histogram of all scores, int64 `(metrics.BINS,)`.
        failures: how often each status was met that is not `ok`: of distinct images; `no_uri` of sides, `bad_row` of rows.
        identity: `score_min`, `score_mean`, `score_max` of the identity scores, None without one; how many rows are
            `below_threshold` and `outscored`.
    """

    run_id: str
    threshold: float
    model_digest: str
    scored: int
    matches: int
    scores: np.ndarray
    failures: Mapping[str, int]
    identity: Mapping[str, float | None]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> RunStatistics:
        """Reads what `summary.json` says.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError: if it lacks something or says what cannot be.
        """
        run, rows, identity = summary["run"], summary["rows"], summary["identity"]
        scores = _all_scores(summary["score_histograms"])
        scored, matches = _count(rows.get("scored", 0)), _count(rows.get("matches", 0))
        if scores.sum() != scored or matches > scored:
            raise ValueError(f"its {scored} scored rows, {matches} matches and {scores.sum()} scores do not agree")
        return cls(
            run_id=str(run["run_id"]),
            threshold=_required(run["threshold"]),
            model_digest=str(run["model_digest"]),
            scored=scored,
            matches=matches,
            scores=scores,
            failures=_failures(summary["images"], rows),
            identity={
                **{name: _number(identity[name]) for name in ("score_min", "score_mean", "score_max")},
                **{name: _count(identity.get(name, 0)) for name in ("below_threshold", "outscored")},
            },
        )

    def match_rate(self) -> float | None:
        """Returns the share of scored rows that match."""
        return self.matches / self.scored if self.scored else None

    def score_mean(self) -> float | None:
        """Returns the mean score, each taken for the middle of its histogram bin."""
        middles = (np.arange(len(self.scores)) + 0.5) / len(self.scores)
        return float(self.scores @ middles / self.scored) if self.scored else None


def compare_runs(before: RunStatistics, now: RunStatistics) -> dict[str, Any]:
    """Returns what changed, as `summary.json` has it: pairs are `[before, now]`, None where there is no score."""
    psi, ks = population_stability_index(before.scores, now.scores), kolmogorov_smirnov(before.scores, now.scores)
    statuses = sorted({*before.failures, *now.failures})
    return {
        "run_id": before.run_id,
        "psi": None if np.isnan(psi) else psi,
        "ks": None if np.isnan(ks) else ks,
        "match_rate": [before.match_rate(), now.match_rate()],
        "score_mean": [before.score_mean(), now.score_mean()],
        "failures": {status: [before.failures.get(status, 0), now.failures.get(status, 0)] for status in statuses},
        "identity": {name: [before.identity[name], now.identity[name]] for name in now.identity},
        "model_changed": before.model_digest != now.model_digest,
        "threshold": [before.threshold, now.threshold],
    }


class Shift(enum.StrEnum):
    """How far scores have moved, by the custom for the population stability index (Siddiqi, "Credit Risk Scorecards", 2006)."""

    LITTLE = "have hardly moved"
    SOME = "have moved somewhat"
    LARGE = "have moved a lot"

    @classmethod
    def of(cls, psi: float) -> Shift:
        return cls.LITTLE if psi < _LITTLE else cls.SOME if psi < _SOME else cls.LARGE


def describe_shift(psi: float | None) -> str:
    """Returns what a population stability index means, in a few words."""
    if psi is None:
        return "the scores cannot be compared, as one of the two runs has none"
    return f"the scores {Shift.of(psi)} (PSI {psi:.3f})"


def _smoothed_shares(counts: np.ndarray) -> np.ndarray:
    return (counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))


def _all_scores(histograms: Mapping[str, Any]) -> np.ndarray:
    if histograms["bins"] != metrics.BINS:
        raise ValueError(f"its histograms have {histograms['bins']!r} bins, not {metrics.BINS}")
    scores = np.zeros(metrics.BINS, np.int64)
    for kind in _KINDS:
        for place, count in histograms[kind]:
            if not 0 <= _count(place) < metrics.BINS:
                raise ValueError(f"its histograms have a bin {place}")
            scores[place] += _count(count)
    return scores


def _failures(images: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, int]:
    found = {status: _count(number) for status, number in images.items() if status not in ("total", "ok")}
    found["no_uri"] = _count(rows.get("left.no_uri", 0)) + _count(rows.get("right.no_uri", 0))
    found["bad_row"] = _count(rows.get("left.bad_row", 0))
    return {status: number for status, number in found.items() if number}


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _required(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise ValueError("its threshold is missing")
    return number


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value) if math.isfinite(value) else None
