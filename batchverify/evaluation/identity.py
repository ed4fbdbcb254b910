"""The identity check: is a row's score believable, given what its images score against themselves?"""

from __future__ import annotations

import numpy as np

from batchverify.schema import VERDICTS, IdentityCheck

_CODE = {verdict: code for code, verdict in enumerate(VERDICTS)}


def is_match(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Returns bool `(n,)`: which float32 `scores` are matches. The one place that says what a match is."""
    return scores >= np.float32(threshold)


def check_identity(scores: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float, tolerance: float) -> np.ndarray:
    """Judges scores by the identity scores of their images.

    Args:
        scores: float32 `(n,)`, NaN where there is none.
        left: float32 `(n,)`, f(x, x) of the left images.
        right: float32 `(n,)`, of the right images.
        threshold: of a match.
        tolerance: by how much a score may exceed an identity score.

    Returns:
        int8 `(n,)`, positions in `schema.VERDICTS`. An image that is not accepted as itself
        (`below_threshold`) is the graver fault and hides an `outscored` one.
    """
    lower = np.minimum(left, right)
    verdicts = np.full(len(scores), _CODE[IdentityCheck.SANE], np.int8)
    verdicts[scores > lower + np.float32(tolerance)] = _CODE[IdentityCheck.OUTSCORED]
    verdicts[~is_match(lower, threshold)] = _CODE[IdentityCheck.BELOW_THRESHOLD]
    verdicts[np.isnan(scores)] = _CODE[IdentityCheck.NOT_CHECKED]
    return verdicts
