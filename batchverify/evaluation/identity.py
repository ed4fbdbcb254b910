"""The identity check: whether a row's score is believable, given the scores of its images against themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchverify.schema import VERDICTS, IdentityCheck, is_match

# Identity scores that lie no farther apart are one score, whatever the image shows.
_ONE_SCORE = 1e-3
# Why identity scores are too low, or lower than those of pairs, and what to do; by what the head computes.
_NEVER_SHOWN = "Ordinary training never shows it such a pair"
_CAUSES = {
    "distance": (
        "two equal images have the distance zero, and the head turns zero into sigmoid(bias), whatever the image shows. "
        f"{_NEVER_SHOWN}, so the bias is free; positive head weights then let pairs that differ a little score above pairs "
        "that don’t differ.",
        "Retrain its head with weights that can’t be positive and with identity pairs.",
    ),
    "cosine": (
        "two equal images have the cosine one, and the head turns one into sigmoid(bias + weight), whatever the image shows. "
        f"{_NEVER_SHOWN}, so bias and weight are free; a negative weight then lets pairs that differ score above pairs that "
        "don’t differ.",
        "Retrain its head with a weight that can’t be negative and with identity pairs.",
    ),
    "other": (
        "this network’s score of an image with itself depends on the image. Nothing in the network makes an image most like "
        f"itself. {_NEVER_SHOWN}.",
        "Retrain it with identity pairs, or give it a head that compares embeddings by a distance, with weights that can’t be "
        "positive.",
    ),
}
_CODE = {verdict: code for code, verdict in enumerate(VERDICTS)}


def check_identity(scores: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float, tolerance: float) -> np.ndarray:
    """Checks scores against the identity scores of their images.

    Args:
        scores: Scores of the pairs, float32 `(n,)`, NaN where there is none.
        left: Identity scores f(x, x) of the left images, float32 `(n,)`.
        right: Identity scores of the right images, float32 `(n,)`.
        threshold: The lowest score that is a match.
        tolerance: The amount by which a score may exceed an identity score.

    Returns:
        Positions in `schema.VERDICTS`, int8 `(n,)`. A row with both faults gets `below_threshold`, the graver one.
    """
    lower = np.minimum(left, right)
    verdicts = np.full(len(scores), _CODE[IdentityCheck.SANE], np.int8)
    verdicts[scores > lower + np.float32(tolerance)] = _CODE[IdentityCheck.OUTSCORED]
    verdicts[~is_match(lower, threshold)] = _CODE[IdentityCheck.BELOW_THRESHOLD]
    verdicts[np.isnan(scores)] = _CODE[IdentityCheck.NOT_CHECKED]
    return verdicts


def explain_fault(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Returns in words why a model fails the identity check, and what to do.

    Args:
        summary: The content of `_summary.json`, of a run with identity scores.
    """
    identity, certificate = summary["identity"], summary["run"].get("certificate") or {}
    if identity["score_max"] - identity["score_min"] > _ONE_SCORE:
        return _CAUSES["other"]
    return _CAUSES["cosine" if certificate.get("comparison") == "cosine" else "distance"]
