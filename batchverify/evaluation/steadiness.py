"""Steadiness: whether images still match themselves after a small change that people would not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchverify.images.variants import CHANGES, JUDGED_CHANGES
from batchverify.schema import is_match, is_score
from batchverify.words import agree, counted_of

STEADY, UNSTEADY = "steady", "unsteady"


def describe_steadiness(scores: Mapping[str, np.ndarray], threshold: float) -> dict[str, Any]:
    """Returns the section `steadiness` of `_summary.json`.

    Args:
        scores: For each of `CHANGES`, the scores of images against their changed selves, float32 `(n,)`.
        threshold: The lowest score that is a match.
    """
    changes = {name: _describe_change(scores[name], threshold) for name in CHANGES}
    judged = [changes[name]["rejected"] for name in JUDGED_CHANGES]
    images = len(scores["jpeg"])
    return {
        "images": images,
        "changes": changes,
        "verdict": None if not images else UNSTEADY if any(judged) else STEADY,
    }


def _describe_change(scores: np.ndarray, threshold: float) -> dict[str, Any]:
    if not len(scores):
        return {"rejected": 0, "score_min": None, "score_mean": None}
    # What is not a number, or not in [0, 1], is no score, and so no match.
    scores = np.where(is_score(scores), scores, np.nan)
    rejected = int(np.count_nonzero(~is_match(scores, threshold)))
    lowest, mean = (None if np.isnan(value) else float(value) for value in (np.min(scores), np.mean(scores, dtype=np.float64)))
    return {"rejected": rejected, "score_min": lowest, "score_mean": mean}


def describe_rejections(section: Mapping[str, Any]) -> str:
    """Returns in words how many images the model rejects as themselves after each change."""
    (first, change), *others = section["changes"].items()
    rejected, images = change["rejected"], section["images"]
    verb = agree(rejected, "is rejected as itself", "are rejected as themselves", images)
    counts = [f"{counted_of(rejected, images, 'image')} {verb} when {CHANGES[first]}"]
    counts += [f"{change['rejected']:,} when {CHANGES[name]}" for name, change in others]
    return f"{', '.join(counts)} (not judged)"
