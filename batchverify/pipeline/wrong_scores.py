"""Outputs of a model that are no scores, as they are not numbers or lie outside [0, 1]: an error of the run, or of a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from batchverify.errors import RunError
from batchverify.schema import is_score

MODEL, CANDIDATE = "the model", "the candidate"
# Why a row has no score though both of its images have been encoded.
_REASONS = pa.array(["the model gave a score that is not a number", "the model gave a score outside [0, 1]"])


def without_wrong_scores(
    outputs: np.ndarray, is_compared: np.ndarray, on_nan: str, name_pair: Callable[[int], str], who: str = MODEL
) -> tuple[np.ndarray, pa.Array]:
    """Returns the scores among the outputs of a model.

    Args:
        outputs: The outputs, float32 `(n,)`, NaN where nothing was compared.
        is_compared: Where something was, bool `(n,)`.
        on_nan: The treatment of an output that is no score, one of `config.ON_NAN`.
        name_pair: The function that returns the names of the images behind the output at a position.
        who: `MODEL` or `CANDIDATE`.

    Returns:
        The scores, float32 `(n,)`, NaN where there is none; and why an output is none, text `(n,)`, else null.

    Raises:
        RunError: If an output is no score, unless `on_nan` is `keep`.
    """
    is_wrong = is_compared & ~is_score(outputs)
    if not is_wrong.any():
        return outputs, pa.nulls(len(outputs), pa.string())
    if on_nan == "fail":
        first = int(np.argmax(is_wrong))
        raise RunError(_describe(who, float(outputs[first]), name_pair(first)))
    reasons = pa.array(np.isfinite(outputs).astype(np.int8), mask=~is_wrong)
    return np.where(is_wrong, np.float32(np.nan), outputs), _REASONS.take(reasons)


def _describe(who: str, output: float, pair: str) -> str:
    keep = "or see --on-nan keep"
    if not np.isfinite(output):
        return f"{who} gave a score that is not a number to {pair}; check its weights, {keep}."
    answer = "with --output-is" if who == MODEL else "with output_is in its sidecar"
    return (
        f"{who} gave the score {output:.7g} to {pair}, and a score lies in [0, 1]; say what its output is {answer} "
        f"(distance, logit or cosine), {keep}."
    )
