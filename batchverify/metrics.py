"""Error rates of a comparison, from histograms of scores. NumPy alone.

FMR, FNMR and EER as in ISO/IEC 19795-1: an impostor pair that matches is a false match, a genuine pair that
does not is a false non-match. Pairs without a score (failures to acquire) are in no histogram.
"""

from __future__ import annotations

import numpy as np

BINS = 10_000


def histogram(scores: np.ndarray) -> np.ndarray:
    """Counts scores in [0, 1] in `BINS` bins of equal width; int64 `(BINS,)`. The last bin includes 1."""
    bins = np.clip((np.asarray(scores, np.float64) * BINS).astype(np.int64), 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def false_match_rates(impostor: np.ndarray) -> np.ndarray:
    """Returns FMR at each bin edge 0, 1/BINS, …, 1; float64 `(BINS + 1,)`, NaN if there are no impostor pairs."""
    at_or_above = np.append(np.cumsum(impostor[::-1])[::-1], 0)
    return _share(at_or_above, impostor.sum())


def false_non_match_rates(genuine: np.ndarray) -> np.ndarray:
    """Returns FNMR at each bin edge; float64 `(BINS + 1,)`, NaN if there are no genuine pairs."""
    below = np.append(0, np.cumsum(genuine))
    return _share(below, genuine.sum())


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


def _share(counts: np.ndarray, total: int) -> np.ndarray:
    return counts / total if total else np.full(len(counts), np.nan)
