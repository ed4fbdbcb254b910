"""Error rates of a comparison, from histograms of scores. This module needs nothing but NumPy.

FMR, FNMR, EER and DET are defined as in ISO/IEC 19795-1: an impostor pair that matches is a false match, and a genuine
pair that does not match is a false non-match. Pairs without a score (failures to acquire) are in no histogram;
`generalised_rate` includes them. Rates are exact at the thresholds in `EDGES`; histograms know no others.

Intervals are Wilson's (1927) score intervals at 95%. They assume independent pairs, as pairs that share a subject are not;
`clusters` says how many independent pairs such pairs are worth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_EVEN = 10_000
# Below the first and above the last of the even edges a sigmoid's scores are dense, so bins are finer there: eight for each
# power of two from 2^-40 on, and one for each float32. The bits of a float32 above 0, read as a number, rise with it.
_LOW_SHIFT = 20  # Bits that eight bins for each power of two leave out.
_LOWEST = int(np.float32(2.0**-40).view(np.int32)) >> _LOW_SHIFT
_FIRST_EVEN, _LAST_EVEN, _ONE = np.array([1 / _EVEN, 1 - 1 / _EVEN, 1], np.float32)
_LOW = np.arange(_LOWEST, (int(_FIRST_EVEN.view(np.int32)) >> _LOW_SHIFT) + 1, dtype=np.int32) << _LOW_SHIFT
_HIGH = np.arange(_LAST_EVEN.view(np.int32), int(_ONE.view(np.int32)) + 1, dtype=np.int32)
# The lowest scores of the bins, float32; scores and thresholds are compared in float32, as `schema.is_match` does.
_LOWER = np.concatenate(
    [[0], _LOW.view(np.float32), (np.arange(1, _EVEN - 1) / _EVEN).astype(np.float32), _HIGH.view(np.float32)], dtype=np.float32
)
BINS = len(_LOWER)
# The thresholds at which rates are known: float64 `(BINS,)`, ascending from 0 to 1, each the lowest score of its bin.
EDGES = np.array([float(str(edge)) for edge in _LOWER])
FMR_TARGETS = (1e-2, 1e-3, 1e-4)
Z95 = 1.959963984540054  # The 97.5% quantile of the normal distribution.
_EER_OF_CHANCE = 0.5
# What `error_rates.is_reversed` means, and where that comes from.
REVERSED = "genuine pairs score lower than impostor pairs"
WHY_REVERSED = (
    "Either the labels mean the opposite (1 and true mean the same identity; --label-column names their column), or "
    "--output-is is wrong (dissimilarity is for an output that is low where two images are alike)."
)


@dataclasses.dataclass(frozen=True)
class EffectiveSampleSize:
    """How many independent pairs the pairs of a rate are worth: the reverse of Kish's design effect ("Survey Sampling", 1965).

    Attributes:
        share: The number of independent pairs with the variance of the rate, as a share of its pairs; in (0, 1].
        share_alike: The same where all pairs are errors or none is, so that their variance says nothing; in (0, 1].
        quantile: The 97.5% quantile of the rate's distribution, in standard deviations.
    """

    share: float = 1.0
    share_alike: float = 1.0
    quantile: float = Z95

    def interval(self, rate: Rate) -> tuple[float, float] | None:
        """Returns the 95% interval of a rate; None without trials."""
        if not rate.trials:
            return None
        if rate.errors in (0, rate.trials):
            return wilson_interval(rate.errors * self.share_alike, rate.trials * self.share_alike)
        return wilson_interval(rate.errors * self.share, rate.trials * self.share, self.quantile)


INDEPENDENT = EffectiveSampleSize()


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of trials, as the two counts that it is computed from.

    Attributes:
        errors: Number of errors.
        trials: Number of trials.
    """

    errors: int
    trials: int

    @property
    def value(self) -> float | None:
        """The share, in [0, 1]; None without trials."""
        return self.errors / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval; None without trials."""
        return wilson_interval(self.errors, self.trials) if self.trials else None


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold whose FMR is at most a target, and the rates at it.

    Attributes:
        target: The highest FMR that is allowed.
        threshold: The threshold; None where no threshold up to 1 has such an FMR.
        next_lower: The next lower threshold at which rates are known, whose FMR is above the target; the lowest threshold of
            all that keep the target lies above it. None where the threshold is 0 or None.
        fmr_at_next_lower: FMR at the next lower threshold.
        fmr: FMR at the threshold.
        fnmr: FNMR at the threshold.
        evidence: `enough`, `rough` or `too_few`. `rough` means fewer than 30/target impostor pairs: by the rule of 30,
            the FMR may be off by more than 30% (at 90% confidence). `too_few` means fewer than 3/target: by the rule of
            3, even a run without any false match would not show such an FMR (at 95% confidence).
    """

    target: float
    threshold: float | None
    next_lower: float | None
    fmr_at_next_lower: Rate
    fmr: Rate
    fnmr: Rate
    evidence: str


@dataclasses.dataclass(frozen=True)
class FoldAccuracy:
    """The accuracy of one fold at the threshold that is best for all other folds.

    Attributes:
        threshold: The threshold that is best for the other folds.
        correct: Number of this fold's pairs that are decided correctly.
        pairs: Number of this fold's pairs.
    """

    threshold: float
    correct: int
    pairs: int

    @property
    def accuracy(self) -> float:
        """The share of pairs that are decided correctly."""
        return self.correct / self.pairs


def histogram(scores: np.ndarray) -> np.ndarray:
    """Counts scores in bins; int64 `(BINS,)`.

    Raises:
        ValueError: If a score is none, so that it is in no bin.
    """
    return np.bincount(bin_numbers(scores), minlength=BINS)


def bin_numbers(scores: np.ndarray) -> np.ndarray:
    """Returns the number of the bin of each score in [0, 1], int64 `(n,)`.

    A score is in bin i or a higher one exactly if it is a match at the threshold `EDGES[i]`.

    Raises:
        ValueError: If a score is not a number in [0, 1]. Whoever calls leaves such scores out, or has them fail the run.
    """
    scores = np.asarray(scores, np.float32)
    if not (is_right := (scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"{scores[~is_right][0]} is no score, which is a number in [0, 1], and is in no bin of a histogram")
    scores = np.abs(scores)  # Minus zero becomes zero.
    bits = scores.view(np.int32)
    even = np.clip((scores.astype(np.float64) * _EVEN).astype(np.int64), 1, _EVEN - 2) + len(_LOW)
    even += (scores >= _LOWER[even + 1]).astype(np.int64) - (scores < _LOWER[even])
    low, high = np.maximum(bits >> _LOW_SHIFT, _LOWEST - 1) - (_LOWEST - 1), bits - _HIGH[0] + (BINS - len(_HIGH))
    numbers: np.ndarray = np.where(scores < _FIRST_EVEN, low, np.where(scores < _LAST_EVEN, even, high))
    return numbers


def sparse(counts: np.ndarray) -> list[list[float]]:
    """Returns a histogram as a list of `[lowest score, count]` without the empty bins, the form that `_summary.json` has."""
    return [[float(EDGES[position]), int(counts[position])] for position in np.flatnonzero(counts)]


def dense(entries: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns the histogram, int64 `(BINS,)`, whose sparse form is `entries`.

    Raises:
        ValueError: If no bin begins at a score, or a count is none.
    """
    counts = np.zeros(BINS, np.int64)
    edges, numbers = np.array(entries, np.float64).reshape(-1, 2).T
    positions = np.minimum(np.searchsorted(EDGES, edges), BINS - 1)
    if (wrong := np.flatnonzero(EDGES[positions] != edges)).size:
        raise ValueError(f"its histograms have a bin at {entries[wrong[0]][0]!r:.40}, where this program has none")
    if not (numbers >= 0).all():
        raise ValueError("its histograms have a count that is none")
    counts[positions] = numbers  # Counts are below 2^53, and so exact.
    return counts


def bin_centres() -> np.ndarray:
    """Returns a score in (0, 1) for each bin, float64 `(BINS,)`: the middle of the bin, or the only float32 in it.

    The last bin holds the score 1 alone. What rounds to 1 lies above 1 − 2^−25, so 1 − 2^−26 stands for it.
    """
    lower = _LOWER.astype(np.float64)
    centres: np.ndarray = (lower + np.append(lower[1:], 1)) / 2
    centres[-len(_HIGH) : -1], centres[-1] = lower[-len(_HIGH) : -1], 1 - 2.0**-26
    return centres


def even_bins(counts: np.ndarray, bins: int) -> np.ndarray:
    """Returns a histogram in bins of equal width, int64 `(bins,)`.

    Args:
        counts: A histogram, int64 `(BINS,)`.
        bins: The number of bins, a divisor of 10,000.
    """
    starts = np.searchsorted(EDGES, np.round(np.arange(bins) / bins, 4))
    even: np.ndarray = np.add.reduceat(counts, starts)
    return even


def format_threshold(threshold: float) -> str:
    """Returns a threshold with four digits, or with as many as tell it from its neighbours."""
    return f"{threshold:.4f}" if threshold == round(threshold, 4) else f"{threshold:.9g}"


def false_match_rates(impostor: np.ndarray) -> np.ndarray:
    """Returns FMR at each of `EDGES`, and above all scores; float64 `(BINS + 1,)`, NaN if there are no impostor pairs."""
    return _shares(_at_or_above(impostor), impostor.sum())


def false_non_match_rates(genuine: np.ndarray) -> np.ndarray:
    """Returns FNMR at each of `EDGES`, and above all scores; float64 `(BINS + 1,)`, NaN if there are no genuine pairs."""
    return _shares(_below(genuine), genuine.sum())


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """Returns the EER and its threshold; NaN for both where one kind of pair is missing.

    The histograms know no threshold between bin edges, so the EER is the mean of FMR and FNMR at the edge where they
    are nearest to each other.
    """
    if not genuine.sum() or not impostor.sum():
        return float("nan"), float("nan")
    fmr, fnmr = false_match_rates(impostor), false_non_match_rates(genuine)
    edge = int(np.argmin(np.abs(fmr - fnmr)[:BINS]))
    return float((fmr[edge] + fnmr[edge]) / 2), float(EDGES[edge])


def det_points(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct points of the DET curve: thresholds, FMR and FNMR, float64 `(n,)` each, by rising threshold.

    The last threshold is infinite: above all scores. The ROC curve has the same points: FMR against 1 − FNMR.
    """
    fmr, fnmr = false_match_rates(impostor), false_non_match_rates(genuine)
    distinct = np.append(True, (np.diff(fmr) != 0) | (np.diff(fnmr) != 0))
    return np.append(EDGES, np.inf)[distinct], fmr[distinct], fnmr[distinct]


def rates_at(genuine: np.ndarray, impostor: np.ndarray, edge: int) -> tuple[Rate, Rate]:
    """Returns FMR and FNMR at the threshold `EDGES[edge]`."""
    return (
        Rate(int(impostor[edge:].sum()), int(impostor.sum())),
        Rate(int(genuine[:edge].sum()), int(genuine.sum())),
    )


def operating_point(genuine: np.ndarray, impostor: np.ndarray, target: float) -> OperatingPoint:
    """Returns the lowest threshold up to 1 whose FMR is at most `target`. Without impostor pairs there is none."""
    within = false_match_rates(impostor)[:BINS] <= target
    trials = int(impostor.sum())
    evidence = "too_few" if trials < 3 / target else "rough" if trials < 30 / target else "enough"
    if not within.any():
        return OperatingPoint(target, None, None, Rate(0, 0), Rate(0, 0), Rate(0, 0), evidence)
    edge = int(np.argmax(within))
    next_lower, above = (float(EDGES[edge - 1]), rates_at(genuine, impostor, edge - 1)[0]) if edge else (None, Rate(0, 0))
    return OperatingPoint(target, float(EDGES[edge]), next_lower, above, *rates_at(genuine, impostor, edge), evidence)


def fold_accuracies(folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[FoldAccuracy]:
    """Returns each fold's accuracy at the threshold that is best for all other folds, after LFW's protocol.

    The protocol is defined by Huang et al., "Labeled Faces in the Wild" (2007), section 4; `mean_and_error` computes
    its mean and standard error. Where several thresholds are equally good for the other folds, the middle one is used.

    Args:
        folds: Histograms of genuine and of impostor pairs of each fold; at least two folds.
    """
    all_genuine, all_impostor = (np.sum([fold[kind] for fold in folds], axis=0) for kind in (0, 1))
    accuracies = []
    for genuine, impostor in folds:
        correct = _correct_decisions(all_genuine - genuine, all_impostor - impostor)[:BINS]
        best = np.flatnonzero(correct == correct.max())
        edge = int(best[len(best) // 2])
        own_correct = int(_correct_decisions(genuine, impostor)[edge])
        accuracies.append(FoldAccuracy(float(EDGES[edge]), own_correct, int(genuine.sum() + impostor.sum())))
    return accuracies


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error: the standard deviation (with n − 1 in its denominator) over √n."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def t_quantile(degrees_of_freedom: float) -> float:
    """Returns the 97.5% quantile of Student's t, by its expansion in Abramowitz and Stegun (1964), 26.7.5.

    Fewer than three degrees of freedom count as three. The result is within 0.003 of the exact one.
    """
    n, z = max(3.0, degrees_of_freedom), Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


def wilson_interval(errors: float, trials: float, quantile: float = Z95) -> tuple[float, float]:
    """Returns Wilson's 95% score interval of a share; effective numbers of errors and trials need not be whole."""
    share, z2 = errors / trials, quantile * quantile
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = quantile / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return (0.0 if errors == 0 else middle - reach), (1.0 if errors == trials else middle + reach)


def generalised_rate(rate: Rate, failed: int, failures_are_errors: bool) -> Rate:
    """Returns a rate that includes the pairs without a score (generalised FMR and FNMR of ISO/IEC 19795-1).

    Args:
        rate: The rate of the pairs with a score.
        failed: The number of pairs without a score.
        failures_are_errors: True for genuine pairs, where a failure is a false non-match; False for impostor pairs, where a
            failure is not a match and so not an error.
    """
    return Rate(rate.errors + failed * failures_are_errors, rate.trials + failed)


def describe_error_rates(
    genuine: np.ndarray,
    impostor: np.ndarray,
    threshold: float,
    matches: tuple[int, int],
    failed: tuple[int, int],
    more_targets: Sequence[float] = (),
    sizes: Mapping[str, EffectiveSampleSize] | None = None,
) -> dict[str, Any]:
    """Returns the section `error_rates` of `_summary.json`, without its folds.

    Args:
        genuine: Histogram of the scores of genuine pairs.
        impostor: Histogram of the scores of impostor pairs.
        threshold: The threshold in force, which need not be a bin's edge.
        matches: Numbers of genuine and of impostor pairs that match at this threshold.
        failed: Numbers of genuine and of impostor pairs without a score.
        more_targets: False match rates beside `FMR_TARGETS` to name a threshold for.
        sizes: What the pairs of `fmr`, `fnmr` and `accuracy` at this threshold are worth, where it is known that they share
            subjects. The intervals of rates at other thresholds take the same.
    """
    genuine_pairs, impostor_pairs = int(genuine.sum()), int(impostor.sum())
    genuine_matches, impostor_matches = matches
    genuine_failed, impostor_failed = failed
    fmr, fnmr = Rate(impostor_matches, impostor_pairs), Rate(genuine_pairs - genuine_matches, genuine_pairs)
    accuracy = Rate(genuine_matches + impostor_pairs - impostor_matches, genuine_pairs + impostor_pairs)
    targets = sorted({*FMR_TARGETS, *more_targets}, reverse=True) if impostor_pairs else []
    of = {name: (sizes or {}).get(name, INDEPENDENT) for name in ("fmr", "fnmr", "accuracy")}
    return {
        "threshold": threshold,
        "genuine": genuine_pairs,
        "impostor": impostor_pairs,
        "genuine_failed": genuine_failed,
        "impostor_failed": impostor_failed,
        "intervals_by": "subjects" if sizes else "pairs",
        **_describe_rate("fmr", fmr, of["fmr"]),
        **_describe_rate("fnmr", fnmr, of["fnmr"]),
        **_describe_rate("accuracy", accuracy, of["accuracy"]),
        **_describe_rate("generalised_fmr", generalised_rate(fmr, impostor_failed, failures_are_errors=False), of["fmr"]),
        **_describe_rate("generalised_fnmr", generalised_rate(fnmr, genuine_failed, failures_are_errors=True), of["fnmr"]),
        **_describe_eer(genuine, impostor, of),
        "at_fmr": [_describe_point(operating_point(genuine, impostor, target), of) for target in targets],
    }


def describe_folds(folds: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any] | None:
    """Returns the section `error_rates.folds` of `_summary.json`; None if fewer than two folds have pairs.

    Args:
        folds: Histograms of genuine and of impostor pairs, by the fold's name.
    """
    filled = {
        name: (genuine, impostor) for name, (genuine, impostor) in sorted(folds.items()) if genuine.sum() + impostor.sum()
    }
    if len(filled) < 2:
        return None
    accuracies = fold_accuracies(list(filled.values()))
    mean, error = mean_and_error([fold.accuracy for fold in accuracies])
    return {
        "accuracy_mean": mean,
        "accuracy_standard_error": error,
        "each": [
            {"fold": name, "pairs": fold.pairs, "threshold": fold.threshold, "accuracy": fold.accuracy}
            for name, fold in zip(filled, accuracies, strict=True)
        ],
    }


def _describe_rate(name: str, rate: Rate, size: EffectiveSampleSize) -> dict[str, Any]:
    return {name: rate.value, f"{name}_interval": size.interval(rate)}


def _describe_eer(genuine: np.ndarray, impostor: np.ndarray, of: Mapping[str, EffectiveSampleSize]) -> dict[str, Any]:
    """Describes the EER. As it is the mean of two rates, its interval is the mean of their two intervals."""
    eer, threshold = equal_error_rate(genuine, impostor)
    if math.isnan(eer):
        return {"eer": None, "eer_interval": None, "eer_threshold": None, "is_reversed": False}
    edge = int(np.searchsorted(EDGES, threshold))
    fmr, fnmr = rates_at(genuine, impostor, edge)
    bounds = [of["fmr"].interval(fmr) or (0, 1), of["fnmr"].interval(fnmr) or (0, 1)]
    low, high = (float(bound) for bound in np.mean(bounds, axis=0))
    # Scores that tell nothing have an EER of 50%.
    return {"eer": eer, "eer_interval": (low, high), "eer_threshold": threshold, "is_reversed": low > _EER_OF_CHANCE}


def _describe_point(point: OperatingPoint, of: Mapping[str, EffectiveSampleSize]) -> dict[str, Any]:
    return {
        "target": point.target,
        "threshold": point.threshold,
        "next_lower_threshold": point.next_lower,
        "fmr_at_next_lower": point.fmr_at_next_lower.value,
        **_describe_rate("fmr", point.fmr, of["fmr"]),
        **_describe_rate("fnmr", point.fnmr, of["fnmr"]),
        "evidence": point.evidence,
    }


def _correct_decisions(genuine: np.ndarray, impostor: np.ndarray) -> np.ndarray:
    """Returns the number of pairs that are decided correctly at each bin edge; int64 `(BINS + 1,)`."""
    correct: np.ndarray = _at_or_above(genuine) + _below(impostor)
    return correct


def _at_or_above(counts: np.ndarray) -> np.ndarray:
    return np.append(np.cumsum(counts[::-1])[::-1], 0)


def _below(counts: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(counts))


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    shares: np.ndarray = counts / total if total else np.full(len(counts), np.nan)
    return shares
