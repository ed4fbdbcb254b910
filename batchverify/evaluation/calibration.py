"""Calibration: scores fitted to log-likelihood ratios on labelled pairs, and how good these are.

A log-likelihood ratio (llr) is a natural logarithm. Fits and figures weight all genuine pairs together as much as all impostor
pairs together, so that they do not depend on how many pairs of each kind a manifest has.

Sources: Brümmer and du Preez, "Application-independent evaluation of speaker detection", Computer Speech & Language 20 (2006),
for Cllr and its minimum by isotonic regression (pool adjacent violators, PAV) and for logistic regression; Brümmer and
de Villiers, "The BOSARIS Toolkit" (arXiv:1304.2865), for the pseudo pairs at the ends of an isotonic fit.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchverify.errors import PreflightError
from batchverify.evaluation import metrics
from batchverify.model.calibration import Calibration, logit, posterior, score_settings

# A logistic fit has two parameters; an isotonic one has as many steps as the pairs show.
LEAST_PAIRS = {"logistic": 30, "isotonic": 100}
# Bins of the reliability plot, by predicted probability: they are even in neither probability nor llr, but can be read.
_RELIABILITY_EDGES = (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
_LEAST_PAIRS_IN_BIN = 20
_EVEN_PRIOR = 0.5

Knots = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class LabelledRun:
    """What a calibration needs of a finished run.

    Attributes:
        run_id: The name of the run.
        model: The path or URI of its model, or `embedded`.
        model_digest: The digest of the model.
        working_directory: The folder that relative paths of the run start from.
        options: The options of the run that are not at their defaults.
        genuine: The histogram of the scores of genuine pairs, int64 `(BINS,)`.
        impostor: The histogram of the scores of impostor pairs, int64 `(BINS,)`.
    """

    run_id: str
    model: str
    model_digest: str
    working_directory: str
    options: Mapping[str, Any]
    genuine: np.ndarray
    impostor: np.ndarray

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> LabelledRun:
        """Returns what the content of a `_summary.json` says.

        Raises:
            KeyError: If it lacks a key, as one of an old version does.
            ValueError: If its histograms have other bins than this program's.
        """
        run, histograms = summary["run"], summary["score_histograms"]
        genuine, impostor = (metrics.dense(histograms[kind]) for kind in ("genuine", "impostor"))
        texts = {name: str(run[name]) for name in ("run_id", "model", "model_digest", "working_directory")}
        return cls(**texts, options=dict(run["options"]), genuine=genuine, impostor=impostor)


def require_scikit_learn(wanted_by: str) -> None:
    """Refuses to go on without scikit-learn.

    Args:
        wanted_by: What needs it, as the beginning of a sentence.

    Raises:
        PreflightError: With the extra to install.
    """
    if not has_scikit_learn():
        raise PreflightError(f"{wanted_by} needs scikit-learn, which is not installed; pip install 'batchverify[calibration]'.")


def has_scikit_learn() -> bool:
    """Returns whether scikit-learn, an optional dependency, is installed."""
    return importlib.util.find_spec("sklearn") is not None


def fit_calibration(run: LabelledRun, method: str, name: str = "the run") -> Calibration:
    """Fits scores to log-likelihood ratios on the labelled pairs of a run.

    Args:
        run: The run.
        method: One of `config.CALIBRATION_METHODS`. `logistic` is a straight line from the logit of the score to the llr;
            `isotonic` is any mapping that does not fall.
        name: The name of the run, for messages.

    Raises:
        PreflightError: If there are too few pairs of a kind, genuine pairs do not score higher than impostor pairs, or
            scikit-learn is not installed.
    """
    _refuse_few(run, method, name)
    require_scikit_learn("calibrate")
    fit = {"logistic": _fit_logistic, "isotonic": _fit_isotonic}[method]
    knots = fit(run.genuine, run.impostor)
    if knots is None:
        raise PreflightError(
            f"{name}: genuine pairs do not score higher than impostor pairs, so the scores tell nothing; check its labels, and "
            "the model with batchverify doctor."
        )
    return Calibration(
        method=method,
        knots=knots,
        run_id=run.run_id,
        model_digest=run.model_digest,
        settings=score_settings(run.options),
        genuine=int(run.genuine.sum()),
        impostor=int(run.impostor.sum()),
    )


def cllr(genuine: np.ndarray, impostor: np.ndarray, llrs: np.ndarray) -> float:
    """Returns the cost of log-likelihood ratios in bits: 0 is perfect, and to say always llr = 0 costs 1.

    Cllr = ½ · mean over genuine pairs of log2(1 + e^−llr) + ½ · mean over impostor pairs of log2(1 + e^llr), after Brümmer and
    du Preez (2006).

    Args:
        genuine: The numbers of genuine pairs, `(n,)`.
        impostor: The numbers of impostor pairs, `(n,)`.
        llrs: Their llrs, `(n,)`; those of an empty bin are not looked at.
    """
    costs = (_mean_cost(genuine, -llrs), _mean_cost(impostor, llrs))
    return float(np.mean(costs) / math.log(2))


def cllr_min(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """Returns the lowest Cllr, in bits, that any mapping that does not fall could give these scores (by PAV).

    Args:
        genuine: The histogram of the scores of genuine pairs, `(BINS,)`.
        impostor: The histogram of the scores of impostor pairs, `(BINS,)`.
    """
    filled, shares = _pool(genuine, impostor)
    return cllr(genuine[filled], impostor[filled], logit(shares))


def describe_calibration(calibration: Calibration, genuine: np.ndarray, impostor: np.ndarray) -> dict[str, Any] | None:
    """Returns the section `calibration` of `_summary.json`; None if pairs of a kind are missing.

    Args:
        calibration: The calibration in force.
        genuine: The histogram of the scores of genuine pairs, `(BINS,)`.
        impostor: The histogram of the scores of impostor pairs, `(BINS,)`.
    """
    if not genuine.sum() or not impostor.sum():
        return None
    llrs = calibration.llr(metrics.bin_centres())
    return {
        "cllr": cllr(genuine, impostor, llrs),
        "cllr_min": cllr_min(genuine, impostor) if has_scikit_learn() else None,
        "reliability": reliability(genuine, impostor, llrs),
    }


def reliability(genuine: np.ndarray, impostor: np.ndarray, llrs: np.ndarray) -> list[dict[str, Any]]:
    """Returns predicted and observed shares of genuine pairs at a prior of 50%, by bins of the predicted probability.

    Half of all pairs being genuine, a bin with g of G genuine and i of I impostor pairs has the share (g/G) / (g/G + i/I). The
    interval is Wilson's of g / (g + i), moved to that prior in the same way. Bins of fewer than 20 pairs are left out.

    Args:
        genuine: The numbers of genuine pairs, `(n,)`.
        impostor: The numbers of impostor pairs, `(n,)`.
        llrs: Their llrs, `(n,)`.
    """
    probabilities = posterior(llrs, _EVEN_PRIOR)
    positions = np.searchsorted(_RELIABILITY_EDGES, probabilities, side="right")
    edges, odds = (0.0, *_RELIABILITY_EDGES, 1.0), impostor.sum() / genuine.sum()
    entries = []
    for position in range(len(edges) - 1):
        inside = positions == position
        ours, others = int(genuine[inside].sum()), int(impostor[inside].sum())
        if ours + others < _LEAST_PAIRS_IN_BIN:
            continue
        weights = genuine[inside] * odds + impostor[inside]
        low, high = metrics.wilson_interval(ours, ours + others)
        entries.append(
            {
                "predicted_from": edges[position],
                "predicted_below": edges[position + 1],
                "predicted": float(np.average(probabilities[inside], weights=weights)),
                "observed": _at_even_prior(ours / (ours + others), odds),
                "observed_interval": (_at_even_prior(low, odds), _at_even_prior(high, odds)),
                "genuine": ours,
                "impostor": others,
            }
        )
    return entries


def _at_even_prior(share: float, odds: float) -> float:
    """Returns a share of genuine pairs as it is where half of all pairs are genuine.

    Args:
        share: The share as it was found.
        odds: The number of impostor pairs for each genuine pair.
    """
    return float(share * odds / (share * odds + 1 - share))


def _refuse_few(run: LabelledRun, method: str, name: str) -> None:
    least = LEAST_PAIRS[method]
    for kind, counts in (("genuine", run.genuine), ("impostor", run.impostor)):
        if not (run.genuine.sum() or run.impostor.sum()):
            raise PreflightError(f"{name}: that run has no labels, which say which pairs are genuine; name one with labels.")
        if counts.sum() < least:
            remedy = "label more pairs" + (", or give --method logistic" if least > min(LEAST_PAIRS.values()) else "")
            raise PreflightError(
                f"{name}: it has {counts.sum():,} labelled {kind} pairs with a score, and --method {method} takes {least} at "
                f"least; {remedy}."
            )


def _mean_cost(counts: np.ndarray, negated: np.ndarray) -> float:
    """Returns the mean of log(1 + e^x) over pairs, in natural units."""
    filled = np.flatnonzero(counts)
    return float(np.average(np.logaddexp(0, negated[filled]), weights=counts[filled]))


def _llr_bounds(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the highest llr that so many pairs can show.

    With one pseudo pair of each kind above the highest scores (see `_fit_isotonic`), the highest llr is that of all G genuine
    pairs and the pseudo pair against the one impostor pseudo pair: log(((G + 1) / G) / (1 / I)).
    """
    ours, others = float(genuine.sum()), float(impostor.sum())
    return -math.log(ours * (others + 1) / others), math.log(others * (ours + 1) / ours)


def _fit_logistic(genuine: np.ndarray, impostor: np.ndarray) -> Knots | None:
    """Fits a line from the logit of the score to the llr, by logistic regression; returns its two knots.

    The classes have equal weights, so the log-odds are llrs. Scikit-learn's ridge (C = 1) keeps the slope finite where scores
    of the two kinds do not overlap. The line ends at the outermost scores, and at the llrs that so many pairs can show.
    """
    from sklearn.linear_model import LogisticRegression

    x = logit(metrics.bin_centres())
    filled = np.flatnonzero(genuine + impostor)
    features, labels = np.tile(x[filled], 2)[:, None], np.repeat([1, 0], len(filled))
    half = (genuine.sum() + impostor.sum()) / 2
    weights = np.concatenate([genuine[filled] * (half / genuine.sum()), impostor[filled] * (half / impostor.sum())])
    model = LogisticRegression(tol=1e-8, max_iter=1000).fit(features, labels, sample_weight=weights)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        return None
    lowest, highest = ((bound - intercept) / slope for bound in _llr_bounds(genuine, impostor))
    ends = max(lowest, x[filled[0]]), min(highest, x[filled[-1]])
    knots = tuple((float(posterior(np.array(end), _EVEN_PRIOR)), intercept + slope * float(end)) for end in ends)
    return knots if knots[0][0] < knots[1][0] else None


def _fit_isotonic(genuine: np.ndarray, impostor: np.ndarray) -> Knots | None:
    """Fits a mapping that does not fall, by isotonic regression; returns a knot for both ends of each of its steps.

    Where all pairs above some score are genuine, the plain fit is infinite. As in the BOSARIS toolkit, after Laplace's rule of
    succession, one pseudo pair of each kind is added below the lowest scores, and another above the highest.
    """
    with_genuine, with_impostor = (np.concatenate([[1], counts, [1]]) for counts in (genuine, impostor))
    filled, shares = _pool(with_genuine, with_impostor, weigh_as=(genuine.sum(), impostor.sum()))
    llrs, scores = logit(shares[1:-1]), metrics.bin_centres()[filled[1:-1] - 1]
    is_step = np.diff(llrs) != 0
    is_knot = np.append(True, is_step) | np.append(is_step, True)
    return tuple(zip(scores[is_knot].tolist(), llrs[is_knot].tolist(), strict=True)) if is_step.any() else None


def _pool(
    genuine: np.ndarray, impostor: np.ndarray, weigh_as: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pools adjacent bins until the share of genuine pairs does not fall from bin to bin.

    Args:
        genuine: The numbers of genuine pairs by rising score, `(n,)`.
        impostor: The numbers of impostor pairs, `(n,)`.
        weigh_as: The numbers of genuine and of impostor pairs that weigh the same; by default all that there are.

    Returns:
        The positions of the bins with pairs, int64 `(m,)`, and the share of genuine pairs in each, float64 `(m,)`.
    """
    from sklearn.isotonic import isotonic_regression

    filled = np.flatnonzero(genuine + impostor)
    all_genuine, all_impostor = weigh_as or (genuine.sum(), impostor.sum())
    ours, others = genuine[filled] / all_genuine, impostor[filled] / all_impostor
    return filled, isotonic_regression(ours / (ours + others), sample_weight=ours + others)
