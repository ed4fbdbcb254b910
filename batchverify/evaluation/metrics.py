"""Error rates of a comparison, from histograms of scores. NumPy alone.

FMR, FNMR, EER and DET as in ISO/IEC 19795-1: an impostor pair that matches is a false match, a genuine pair that
does not is a false non-match. Pairs without a score (failures to acquire) are in no histogram; `generalised` counts
them. Rates are exact at every threshold that is a multiple of 1/BINS; no other threshold is known.

Intervals are Wilson's (1927) score intervals at 95%. They take pairs for independent, which pairs that share images are not:
where few images make many pairs, the true uncertainty is larger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10_000
FMR_TARGETS = (1e-2, 1e-3, 1e-4)
# As `identity.is_match` compares: scores and threshold are float32.
_EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
_Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of trials, with what it is known from.

    Attributes:
        errors: how many.
        trials: of how many.
    """

    errors: int
    trials: int

    @property
    def value(self) -> float | None:
        """The share, in [0, 1]; None of no trials."""
        return self.errors / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval; None of no trials."""
        return wilson(self.errors, self.trials) if self.trials else None


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold whose FMR is at most a target, and what it costs.

    Attributes:
        target: the FMR asked for.
        threshold: None where no threshold below 1 gives it.
        fmr: found at the threshold.
        fnmr: found at the threshold.
        evidence: `enough`; `rough`: fewer than 30/target impostor pairs, so that by the rule of 30 the FMR may be off
            by more than 30% (at 90% confidence); `too_few`: fewer than 3/target, so that by the rule of 3 even no
            false match at all would not show such an FMR (at 95% confidence).
    """

    target: float
    threshold: float | None
    fmr: Rate
    fnmr: Rate
    evidence: str


@dataclasses.dataclass(frozen=True)
class FoldAccuracy:
    """The accuracy of one fold at the threshold that is best for all the others.

    Attributes:
        threshold: chosen on the other folds.
        correct: how many of this one's pairs are decided correctly.
        pairs: of how many.
    """

    threshold: float
    correct: int
    pairs: int

    @property
    def accuracy(self) -> float:
        """The share that is decided correctly."""
        return self.correct / self.pairs


def histogram(scores: np.ndarray) -> np.ndarray:
    """Counts scores in [0, 1] in `BINS` bins of equal width; int64 `(BINS,)`. The last bin includes 1.

    A score is in bin i or above exactly if it is a match at the threshold i/BINS, rounded to float32 as scores are.
    """
    scores = np.asarray(scores, np.float32)
    bins = np.clip((scores.astype(np.float64) * BINS).astype(np.int64), 0, BINS - 1)
    bins += (scores >= _EDGES[bins + 1]) & (bins < BINS - 1)
    bins -= (scores < _EDGES[bins]) & (bins > 0)
    return np.bincount(bins, minlength=BINS)


def sparse(counts: np.ndarray) -> list[list[int]]:
    """Returns a histogram as `[bin, count]` without the empty bins, as `summary.json` has it."""
    return [[int(place), int(counts[place])] for place in np.flatnonzero(counts)]


def dense(pairs: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the histogram, int64 `(BINS,)`, that `sparse` made `pairs` of."""
    counts = np.zeros(BINS, np.int64)
    for place, count in pairs:
        counts[place] = count
    return counts


def false_match_rates(impostor: np.ndarray) -> np.ndarray:
    """Returns FMR at each bin edge 0, 1/BINS, …, 1; float64 `(BINS + 1,)`, NaN if there are no impostor pairs.

    The last edge stands for a threshold above all scores: those of exactly 1 share a bin with the ones just below.
    """
    return _share(_at_or_above(impostor), impostor.sum())


def false_non_match_rates(genuine: np.ndarray) -> np.ndarray:
    """Returns FNMR at each bin edge; float64 `(BINS + 1,)`, NaN if there are no genuine pairs."""
    return _share(_below(genuine), genuine.sum())


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """Returns the EER and the threshold that gives it; NaN twice where one kind of pair is missing.

    Between bins no threshold is known better than 1/BINS, so this is the mean of FMR and FNMR at the edge
    where they are nearest to each other.
    """
    if not genuine.sum() or not impostor.sum():
        return float("nan"), float("nan")
    fmr, fnmr = false_match_rates(impostor), false_non_match_rates(genuine)
    edge = int(np.argmin(np.abs(fmr - fnmr)))
    return float((fmr[edge] + fnmr[edge]) / 2), edge / BINS


def det_points(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct points of the DET curve: thresholds, FMR and FNMR, float64 `(n,)` each, by rising threshold.

    The ROC curve has the same points: FMR against 1 − FNMR.
    """
    fmr, fnmr = false_match_rates(impostor), false_non_match_rates(genuine)
    new = np.append(True, (np.diff(fmr) != 0) | (np.diff(fnmr) != 0))
    return np.flatnonzero(new) / BINS, fmr[new], fnmr[new]


def rates_at(genuine: np.ndarray, impostor: np.ndarray, edge: int) -> tuple[Rate, Rate]:
    """Returns FMR and FNMR at the threshold edge/BINS."""
    return (
        Rate(int(impostor[edge:].sum()), int(impostor.sum())),
        Rate(int(genuine[:edge].sum()), int(genuine.sum())),
    )


def operating_point(genuine: np.ndarray, impostor: np.ndarray, target: float) -> OperatingPoint:
    """Returns the lowest threshold below 1 whose FMR is at most `target`; that of no impostor pairs is not known."""
    within = false_match_rates(impostor)[:BINS] <= target
    trials = int(impostor.sum())
    evidence = "too_few" if trials < 3 / target else "rough" if trials < 30 / target else "enough"
    if not within.any():
        return OperatingPoint(target, None, Rate(0, 0), Rate(0, 0), evidence)
    edge = int(np.argmax(within))
    return OperatingPoint(target, edge / BINS, *rates_at(genuine, impostor, edge), evidence)


def fold_accuracies(folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[FoldAccuracy]:
    """Returns each fold's accuracy at the threshold that is best on all others, as LFW's protocol asks.

    Huang et al., "Labeled Faces in the Wild" (2007), section 4; mean and standard error are `mean_and_error`'s. Of
    thresholds that are equally good on the others the middle one is taken.

    Args:
        folds: histograms of the genuine and of the impostor pairs of each fold, two folds or more.
    """
    genuine, impostor = (np.sum([fold[kind] for fold in folds], axis=0) for kind in (0, 1))
    found = []
    for hits, misses in folds:
        correct = _correct(genuine - hits, impostor - misses)[:BINS]
        best = np.flatnonzero(correct == correct.max())
        edge = int(best[len(best) // 2])
        found.append(FoldAccuracy(edge / BINS, int(_correct(hits, misses)[edge]), int(hits.sum() + misses.sum())))
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and its standard error: the standard deviation (n − 1 in its denominator) over √n."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def wilson(errors: int, trials: int) -> tuple[float, float]:
    """Returns Wilson's 95% score interval of a share."""
    share, z2 = errors / trials, _Z95 * _Z95
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = _Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return (0.0 if errors == 0 else middle - reach), (1.0 if errors == trials else middle + reach)


def generalised(rate: Rate, failed: int, are_errors: bool) -> Rate:
    """Returns a rate with the pairs counted that have no score (generalised FMR and FNMR of ISO/IEC 19795-1).

    Args:
        rate: of the pairs with a score.
        failed: how many have none.
        are_errors: a genuine pair that failed is a false non-match; an impostor pair that failed is no match, so no error.
    """
    return Rate(rate.errors + failed * are_errors, rate.trials + failed)


def describe(
    genuine: np.ndarray, impostor: np.ndarray, threshold: float, matches: tuple[int, int], failed: tuple[int, int]
) -> dict[str, Any]:
    """Returns all that `summary.json` says under `error_rates`, but the folds.

    Args:
        genuine: histogram.
        impostor: histogram.
        threshold: in force, which need not be a bin's edge.
        matches: how many genuine and how many impostor pairs match at it.
        failed: how many genuine and how many impostor pairs have no score.
    """
    hits, misses = int(genuine.sum()), int(impostor.sum())
    fmr, fnmr = Rate(matches[1], misses), Rate(hits - matches[0], hits)
    accuracy = Rate(matches[0] + misses - matches[1], hits + misses)
    all_fmr, all_fnmr = generalised(fmr, failed[1], False), generalised(fnmr, failed[0], True)
    return {
        "threshold": threshold,
        "genuine": hits,
        "impostor": misses,
        "genuine_failed": failed[0],
        "impostor_failed": failed[1],
        "fmr": fmr.value,
        "fmr_interval": fmr.interval,
        "fnmr": fnmr.value,
        "fnmr_interval": fnmr.interval,
        "accuracy": accuracy.value,
        "accuracy_interval": accuracy.interval,
        "generalised_fmr": all_fmr.value,
        "generalised_fmr_interval": all_fmr.interval,
        "generalised_fnmr": all_fnmr.value,
        "generalised_fnmr_interval": all_fnmr.interval,
        **_describe_eer(genuine, impostor),
        "at_fmr": [_describe_point(operating_point(genuine, impostor, target)) for target in FMR_TARGETS] if misses else [],
    }


def describe_folds(folds: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any] | None:
    """Returns what `summary.json` says under `error_rates.folds`; None of fewer than two folds with pairs.

    Args:
        folds: histograms of genuine and impostor pairs, by the fold's name.
    """
    filled = {name: pair for name, pair in sorted(folds.items()) if pair[0].sum() + pair[1].sum()}
    if len(filled) < 2:
        return None
    found = fold_accuracies(list(filled.values()))
    mean, error = mean_and_error([fold.accuracy for fold in found])
    return {
        "accuracy_mean": mean,
        "accuracy_standard_error": error,
        "each": [
            {"fold": name, "pairs": fold.pairs, "threshold": fold.threshold, "accuracy": fold.accuracy}
            for name, fold in zip(filled, found, strict=True)
        ],
    }


def _describe_eer(genuine: np.ndarray, impostor: np.ndarray) -> dict[str, Any]:
    """The EER is the mean of two rates; its interval is the mean of their intervals, which is wide enough for both."""
    eer, at = equal_error_rate(genuine, impostor)
    if math.isnan(eer):
        return {"eer": None, "eer_interval": None, "eer_threshold": None}
    bounds = [wilson(rate.errors, rate.trials) for rate in rates_at(genuine, impostor, round(at * BINS))]
    return {"eer": eer, "eer_interval": tuple(float(bound) for bound in np.mean(bounds, axis=0)), "eer_threshold": at}


def _describe_point(point: OperatingPoint) -> dict[str, Any]:
    return {
        "target": point.target,
        "threshold": point.threshold,
        "fmr": point.fmr.value,
        "fmr_interval": point.fmr.interval,
        "fnmr": point.fnmr.value,
        "fnmr_interval": point.fnmr.interval,
        "evidence": point.evidence,
    }


def _correct(genuine: np.ndarray, impostor: np.ndarray) -> np.ndarray:
    """Returns how many pairs are decided correctly at each bin edge; int64 `(BINS + 1,)`."""
    return _at_or_above(genuine) + _below(impostor)


def _at_or_above(counts: np.ndarray) -> np.ndarray:
    return np.append(np.cumsum(counts[::-1])[::-1], 0)


def _below(counts: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(counts))


def _share(counts: np.ndarray, total: int) -> np.ndarray:
    return counts / total if total else np.full(len(counts), np.nan)
