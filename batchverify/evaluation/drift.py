"""Drift: how far a run's scores have moved since an earlier run. This module needs nothing but NumPy.

The population stability index is defined by Siddiqi, "Credit Risk Scorecards" (2006), as the sum over bins of
(now - before) · ln(now / before), where both are shares. It is Jeffreys' symmetric divergence (Kullback, "Information
Theory and Statistics", 1959) between two binned distributions. The Kolmogorov–Smirnov statistic is the largest distance
between the two cumulative distributions.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchverify.evaluation import metrics

_QUANTILES = 10
_SMOOTHING = 0.5
_KINDS = ("unlabelled", "impostor", "genuine")
# Siddiqi's limits: an index below the first shows little shift, an index from the second on shows a large one.
_LITTLE_BELOW, _LARGE_FROM = 0.1, 0.25


def stability_bins(before: np.ndarray) -> np.ndarray:
    """Returns where the bins of the population stability index begin, except the first, which begins at 0.

    Each bin holds a tenth of the earlier scores. A histogram bin that alone holds more than a tenth gets a bin of its
    own, so that the index shows scores that leave it, in either direction.

    Args:
        before: Histogram of the earlier scores, int64 `(n,)`, not empty.

    Returns:
        Positions in the histogram, int64, ascending, each above 0 and below `n`.
    """
    total = before.sum()
    cumulative = np.cumsum(before)
    tenths = np.searchsorted(cumulative, np.arange(1, _QUANTILES) * total / _QUANTILES) + 1
    heavy = np.flatnonzero(before > total / _QUANTILES)
    starts = np.unique(np.concatenate([tenths, heavy, heavy + 1]))
    return starts[(starts > 0) & (starts < len(before))]


def population_stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the population stability index of two histograms over the bins of `stability_bins`; 0 for equal shares.

    Half a score is added to each bin of both histograms, because a single empty bin would make the index infinite.

    Args:
        before: Histogram of the earlier scores, int64 `(n,)`.
        now: Histogram of the later scores, int64 `(n,)`.

    Returns:
        A number of at least 0; NaN if either histogram is empty.
    """
    if not before.sum() or not now.sum():
        return float("nan")
    starts = np.append(0, stability_bins(before))
    earlier, later = (_smoothed_shares(np.add.reduceat(counts, starts)) for counts in (before, now))
    return float(np.sum((later - earlier) * np.log(later / earlier)))


def kolmogorov_smirnov(before: np.ndarray, now: np.ndarray) -> float:
    """Returns the Kolmogorov–Smirnov statistic of two histograms, int64 `(n,)`, in [0, 1]; NaN if either is empty.

    The value is exact for scores rounded down to the edge of their bin. It differs from the value for the exact scores
    by at most the share that lies in one histogram bin.
    """
    if not before.sum() or not now.sum():
        return float("nan")
    return float(np.max(np.abs(np.cumsum(before) / before.sum() - np.cumsum(now) / now.sum())))


@dataclasses.dataclass(frozen=True)
class RunStatistics:
    """The facts of a run that are compared with another run's.

    Attributes:
        run_id: Name of the run.
        threshold: Lowest score that is a match.
        model_digest: Digest of the model.
        scored: Number of rows with a score.
        matches: Number of rows that match.
        scores: Histogram of all scores, int64 `(metrics.BINS,)`.
        failures: Counts by status, without `ok`: distinct images, but for `no_uri` sides of rows, for `bad_row` rows.
        identity: `score_min`, `score_mean` and `score_max` of the identity scores, None where there is no such score;
            numbers of rows that are `below_threshold` and `outscored`.
        strangers: Histogram of the scores of images drawn at random; empty where the run drew none.
        stranger_match_rate: Share of them that match; None where there are none.
    """

    run_id: str
    threshold: float
    model_digest: str
    scored: int
    matches: int
    scores: np.ndarray
    failures: Mapping[str, int]
    identity: Mapping[str, float | None]
    strangers: np.ndarray
    stranger_match_rate: float | None

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> RunStatistics:
        """Returns the statistics that the content of a `_summary.json` gives.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ArithmeticError: if an entry is missing or impossible.
        """
        run, rows, identity = summary["run"], summary["rows"], summary["identity"]
        scores = _histogram(summary["score_histograms"], _KINDS)
        scored, matches = _count(rows.get("scored", 0)), _count(rows.get("matches", 0))
        if scores.sum() != scored or matches > scored:
            raise ValueError(f"its {scored} scored rows, {matches} matches and {scores.sum()} scores do not agree")
        return cls(
            run_id=str(run["run_id"]),
            threshold=_required_number(run["threshold"]),
            model_digest=str(run["model_digest"]),
            scored=scored,
            matches=matches,
            scores=scores,
            failures=_failures(summary["images"], rows),
            identity={
                **{name: _number(identity[name]) for name in ("score_min", "score_mean", "score_max")},
                **{name: _count(identity.get(name, 0)) for name in ("below_threshold", "outscored")},
            },
            strangers=_histogram(summary["score_histograms"], ("strangers",)),
            stranger_match_rate=_number((summary.get("strangers") or {}).get("match_rate")),
        )

    def match_rate(self) -> float | None:
        """Returns the share of scored rows that match."""
        return self.matches / self.scored if self.scored else None

    def score_mean(self) -> float | None:
        """Returns the mean score, where each score counts as the middle of its histogram bin."""
        return float(self.scores @ metrics.bin_centres() / self.scored) if self.scored else None


def compare_runs(before: RunStatistics, now: RunStatistics) -> dict[str, Any]:
    """Returns the section `baseline` of `_summary.json`, without its path. Lists are `[before, now]`; None means no score."""
    psi, ks = population_stability_index(before.scores, now.scores), kolmogorov_smirnov(before.scores, now.scores)
    strangers_psi = population_stability_index(before.strangers, now.strangers)
    statuses = sorted({*before.failures, *now.failures})
    return {
        "run_id": before.run_id,
        "psi": None if np.isnan(psi) else psi,
        "ks": None if np.isnan(ks) else ks,
        "match_rate": [before.match_rate(), now.match_rate()],
        "strangers_psi": None if np.isnan(strangers_psi) else strangers_psi,
        "strangers_match_rate": [before.stranger_match_rate, now.stranger_match_rate],
        "score_mean": [before.score_mean(), now.score_mean()],
        "failures": {status: [before.failures.get(status, 0), now.failures.get(status, 0)] for status in statuses},
        "identity": {name: [before.identity[name], now.identity[name]] for name in now.identity},
        "model_changed": before.model_digest != now.model_digest,
        "threshold": [before.threshold, now.threshold],
    }


class Shift(enum.StrEnum):
    """How far scores have moved, by Siddiqi's limits for the population stability index ("Credit Risk Scorecards", 2006)."""

    LITTLE = "have hardly moved"
    SOME = "have moved somewhat"
    LARGE = "have moved a lot"

    @classmethod
    def from_psi(cls, psi: float) -> Shift:
        if psi < _LITTLE_BELOW:
            return cls.LITTLE
        return cls.LARGE if psi >= _LARGE_FROM else cls.SOME


def describe_shift(psi: float | None) -> str:
    """Returns the meaning of a population stability index in words."""
    if psi is None:
        return "the scores cannot be compared, as one of the two runs has none"
    return f"the scores {Shift.from_psi(psi)} (PSI {psi:.3f})"


def _smoothed_shares(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = (counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))
    return shares


def _histogram(histograms: Mapping[str, Any], kinds: Sequence[str]) -> np.ndarray:
    """Returns the sum of the histograms of some kinds of scores."""
    scores = np.zeros(metrics.BINS, np.int64)
    for kind in kinds:
        scores += metrics.dense(_checked_entries(histograms[kind]))
    return scores


def _checked_entries(entries: Sequence[Sequence[Any]]) -> Sequence[Sequence[float]]:
    """Returns entries that are all a number and a count; most are, which is seen at once.

    Raises:
        ValueError: With the first that is not.
    """
    if all(type(edge) is float and type(count) is int and 0 <= count < 2**53 for edge, count in entries):
        return entries
    return [(_required_number(edge), _count(count)) for edge, count in entries]


def _failures(images: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, int]:
    failures = {status: _count(number) for status, number in images.items() if status not in ("total", "ok")}
    failures["no_uri"] = _count(rows.get("left.no_uri", 0)) + _count(rows.get("right.no_uri", 0))
    failures["bad_row"] = _count(rows.get("left.bad_row", 0))
    return {status: number for status, number in failures.items() if number}


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def _required_number(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise ValueError("a number is missing")
    return number


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value) if math.isfinite(value) else None
