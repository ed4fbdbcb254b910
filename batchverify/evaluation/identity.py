"""The identity check: whether a row's score is believable, given the scores of its images against themselves."""

from __future__ import annotations

import numpy as np

from batchverify.schema import VERDICTS, IdentityCheck, is_match

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
