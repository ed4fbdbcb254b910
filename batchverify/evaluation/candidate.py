"""Champion and challenger: which decisions a second model, the candidate, changes, and whether it is right more often."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.evaluation.metrics import REVERSED
from batchverify.evaluation.steadiness import UNSTEADY
from batchverify.evaluation.strangers import MANY_MATCH, percent
from batchverify.schema import CANDIDATE_FIELDS, IdentityCheck
from batchverify.words import agree, counted, counted_of

GAINED, LOST = "matches_gained", "matches_lost"
# The columns of encoded images that a candidate adds, by the column of its own that each of them is.
IMAGE_COLUMNS = {"status": "status_candidate", "identity": "identity_candidate", "embedding": "embedding_candidate"}
# The exact test adds this many terms at most; the approximation is as good as exact where there are more.
_MOST_TERMS = 1_000_000


def candidate_rows(table: pa.Table) -> pa.Table:
    """Returns scored rows as a run with the candidate alone would have them, but for the identity scores of their images."""
    for field in CANDIDATE_FIELDS:
        column = table[field.name]
        if field.name.startswith("identity_check"):
            column = pc.fill_null(column.cast(pa.string()), str(IdentityCheck.NOT_CHECKED))
        name = field.name.removesuffix("_candidate")
        table = table.set_column(table.column_names.index(name), name, column)
    return table.drop_columns([field.name for field in CANDIDATE_FIELDS])


def candidate_images(images: pa.Table) -> pa.Table:
    """Returns encoded images as the candidate alone has them: its columns take the place of those of the first model.

    A table without a row may lack the candidate's columns.
    """
    replaced = {in_both: name for name, in_both in IMAGE_COLUMNS.items() if in_both in images.column_names}
    images = images.drop_columns([name for name in replaced.values() if name in images.column_names])
    return images.rename_columns([replaced.get(name, name) for name in images.column_names])


def count_flips(table: pa.Table, labels: np.ndarray) -> collections.Counter[str]:
    """Counts the rows that both models score: their matches, and with labels who is right.

    Args:
        table: Scored rows with the columns of a candidate.
        labels: Labels of the rows, int8 `(n,)`: 1 genuine, 0 impostor, -1 unlabelled.
    """
    both, first, second = decisions(table)
    counts = {"compared": both, "both": both & first & second, "gained": both & ~first & second, "lost": both & first & ~second}
    is_labelled, is_genuine = both & (labels >= 0), labels == 1
    right, also_right = first == is_genuine, second == is_genuine
    counts |= {
        "labelled": is_labelled,
        "both_right": is_labelled & right & also_right,
        "only_model_right": is_labelled & right & ~also_right,
        "only_candidate_right": is_labelled & ~right & also_right,
    }
    return collections.Counter({f"flips.{name}": int(np.count_nonzero(rows)) for name, rows in counts.items()})


def decisions(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which rows both models score, and the rows that each of them finds a match; bool `(n,)` each."""
    first, second = table["match"], table["match_candidate"]
    both = pc.and_(first.is_valid(), second.is_valid()).to_numpy()
    return both, pc.fill_null(first, False).to_numpy(), pc.fill_null(second, False).to_numpy()


def describe_flips(counts: Mapping[str, int]) -> dict[str, Any]:
    """Returns the keys `flips` and `mcnemar` of the section `candidate` of `_summary.json`.

    Args:
        counts: The counts of `count_flips`, by their names without `flips.`.
    """
    compared, both, gained, lost = (counts.get(name, 0) for name in ("compared", "both", "gained", "lost"))
    flips = {
        "compared": compared,
        "both_match": both,
        "gained": gained,
        "lost": lost,
        "neither_matches": compared - both - gained - lost,
        "rate": (gained + lost) / compared if compared else None,
    }
    return {"flips": flips, "mcnemar": _describe_test(counts) if counts.get("labelled", 0) else None}


def _describe_test(counts: Mapping[str, int]) -> dict[str, Any]:
    both, only_model, only_candidate = (counts[f"{name}_right"] for name in ("both", "only_model", "only_candidate"))
    p_value, method = mcnemar(only_model, only_candidate)
    return {
        "pairs": counts["labelled"],
        "both_right": both,
        "only_model_right": only_model,
        "only_candidate_right": only_candidate,
        "neither_right": counts["labelled"] - both - only_model - only_candidate,
        "p_value": p_value,
        "method": method,
    }


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """Tests whether two models are right equally often on the same pairs.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages" (Psychometrika,
    1947): pairs on which both are right, or both wrong, say nothing. Among the others each model is right with probability 1/2
    if they are equally good. The exact test is the two-sided binomial one. For more than a million pairs it is approximated by
    chi-square with one degree of freedom and Edwards' (1948) continuity correction.

    Args:
        only_first: The number of pairs that only the first model decides correctly.
        only_second: The number of pairs that only the second one decides correctly.

    Returns:
        The p-value, and `exact` or `chi_square`.
    """
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    if fewer > _MOST_TERMS:
        statistic = (abs(only_first - only_second) - 1) ** 2 / pairs
        return math.erfc(math.sqrt(max(0.0, statistic) / 2)), "chi_square"
    if 2 * fewer == pairs:
        return 1.0, "exact"
    # Logarithms of the binomial coefficients of 0, 1, … `fewer` of `pairs`.
    places = np.arange(1, fewer + 1, dtype=np.float64)
    terms = np.concatenate([[0.0], np.cumsum(np.log(pairs + 1 - places) - np.log(places))])
    tail = terms.max() + math.log(float(np.exp(terms - terms.max()).sum()))
    return min(1.0, 2 * math.exp(tail - pairs * math.log(2))), "exact"


def describe_changes(section: Mapping[str, Any]) -> str:
    """Returns in words which decisions a candidate changes, and with labels whether it is right more often.

    Args:
        section: The section `candidate` of `_summary.json`.
    """
    flips, test = section["flips"], section["mcnemar"]
    if not flips["compared"]:
        return "no row has a score of both models"
    changed, compared = flips["gained"] + flips["lost"], flips["compared"]
    verb = agree(changed, "is", "are", compared)
    gained = f"{flips['gained']:,} match{'' if flips['gained'] == 1 else 'es'} gained"
    counts = f"{counted_of(changed, compared, 'row')} {verb} decided in another way ({gained}, {flips['lost']:,} lost)"
    return counts if test is None else f"{counts}; {describe_test(test)}"


def describe_faults(section: Mapping[str, Any]) -> str:
    """Returns a sentence about what makes the candidate's own scores untrustworthy; empty where nothing was found."""
    identity, strangers, steadiness = section["identity"], section["strangers"] or {}, section["steadiness"] or {}
    faults = []
    if below := identity["images_below_threshold"]:
        faults.append(
            f"{counted(below, 'image')}, compared with {agree(below, 'itself, falls', 'themselves, fall')} below its threshold"
        )
    if outscored := identity["outscored"]:
        faults.append(f"{counted(outscored, 'pair')} {agree(outscored, 'scores', 'score')} higher than an image against itself")
    if strangers.get("verdict") == MANY_MATCH:
        faults.append(f"{percent(strangers['match_rate'])} of strangers match")
    if (section["error_rates"] or {}).get("is_reversed"):
        faults.append(f"its {REVERSED}")
    if steadiness.get("verdict") == UNSTEADY:
        faults.append("small changes make it reject images as themselves")
    return f"Don’t trust the candidate as it is: {', '.join(faults)}." if faults else ""


def describe_test(test: Mapping[str, Any]) -> str:
    """Returns the result of McNemar's test in words."""
    ours, theirs = test["only_model_right"], test["only_candidate_right"]
    result = f"only the candidate is right on {counted(theirs, 'labelled pair')}, only the model on {ours:,}"
    return f"{result} (McNemar's test: p {_format_p(test['p_value'])})"


def _format_p(p_value: float) -> str:
    return "< 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"
