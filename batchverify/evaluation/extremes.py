"""The most telling pairs of a run, a few of each kind, for the report. Mergeable: the same ones in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.schema import MANIFEST_FILE, MANIFEST_ROW, IdentityCheck, ImageStatus

PAIRS_OF_A_KIND = 12
LONGEST_TEXT = 1000
NOT_A_NUMBER = "not_a_number"
_CUT = "… (cut)"
_FAULTS = pa.array([str(IdentityCheck.BELOW_THRESHOLD), str(IdentityCheck.OUTSCORED)])
# The lowest rank is the most telling; pairs of one rank come in manifest order.
_ORDER = [("rank", "ascending"), (MANIFEST_FILE, "ascending"), (MANIFEST_ROW, "ascending")]


@dataclasses.dataclass(frozen=True)
class Extremes:
    """Some pairs of each kind.

    Attributes:
        kinds: tables of at most `PAIRS_OF_A_KIND` rows, by what they show: `highest_impostors`, `lowest_genuines`,
            `highest_unlabelled`, `lowest_unlabelled`, `identity_faults`, and for rows without a score `failed_STATUS`.
    """

    kinds: dict[str, pa.Table] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, parts: Iterable[Extremes]) -> Extremes:
        """Keeps the most telling of all."""
        tables: dict[str, list[pa.Table]] = {}
        for part in parts:
            for kind, table in part.kinds.items():
                tables.setdefault(kind, []).append(table)
        return cls({kind: _most_telling(pa.concat_tables(found)) for kind, found in tables.items()})

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the pairs of each kind, the most telling first."""
        return {
            kind: table.sort_by(_ORDER).drop_columns(["rank"]).to_pylist()
            for kind, table in sorted(self.kinds.items())
            if table.num_rows
        }


def find_extremes(table: pa.Table, labels: np.ndarray, config: ScoringConfig) -> Extremes:
    """Returns the extremes of one table of scored rows.

    Args:
        table: with the columns of the output contract.
        labels: int8 `(n,)`: 1 genuine, 0 impostor, -1 unlabelled.
        config: names the columns of the pair, and the threshold.
    """
    rank = np.zeros(table.num_rows)
    return Extremes(
        {
            kind: _select_extremes(table, chosen, values if values is not None else rank, labels, config)
            for kind, chosen, values in _ranked(table, labels, config.match_threshold())
            if chosen.any()
        }
    )


def is_cut(text: str) -> bool:
    """Returns whether a text of the sample is only the beginning of what the manifest has."""
    return text.endswith(_CUT)


def _ranked(table: pa.Table, labels: np.ndarray, threshold: float) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Yields kinds of pairs: name, which rows are of it, and their rank (None: in manifest order)."""
    scored = table["score"].is_valid().to_numpy(zero_copy_only=False)
    score, left, right = (table[name].to_numpy().astype(np.float64) for name in ("score", "identity_left", "identity_right"))
    yield "highest_impostors", scored & (labels == 0), -score
    yield "lowest_genuines", scored & (labels == 1), score
    yield "highest_unlabelled", scored & (labels == -1), -score
    yield "lowest_unlabelled", scored & (labels == -1), score
    faulty = pc.is_in(table["identity_check"].cast(pa.string()), _FAULTS).to_numpy(zero_copy_only=False)
    # By how much an identity score falls short of what it must reach: the threshold, and the pair's own score.
    yield "identity_faults", faulty, np.minimum(left, right) - np.maximum(score, threshold)
    if not scored.all():
        status = _failure(table)
        for word in pc.unique(status.filter(pa.array(~scored))).to_pylist():
            yield f"failed_{word}", ~scored & pc.equal(status, word).to_numpy(zero_copy_only=False), None


def _failure(table: pa.Table) -> pa.ChunkedArray:
    """Returns the status of the first image that failed; of rows where both are ok, what else leaves them without a score."""
    left, right = (table[column].cast(pa.string()) for column in ("left_status", "right_status"))
    first = pc.if_else(pc.equal(left, str(ImageStatus.OK)), right, left)
    return pc.if_else(pc.equal(first, str(ImageStatus.OK)), NOT_A_NUMBER, first)


def _select_extremes(
    table: pa.Table, chosen: np.ndarray, rank: np.ndarray, labels: np.ndarray, config: ScoringConfig
) -> pa.Table:
    rows = np.flatnonzero(chosen)
    if len(rows) > PAIRS_OF_A_KIND:
        least = np.partition(rank[rows], PAIRS_OF_A_KIND - 1)[PAIRS_OF_A_KIND - 1]
        rows = rows[rank[rows] <= least]
    order = {"rank": pa.array(rank[rows]), **{name: table[name].take(rows) for name in (MANIFEST_FILE, MANIFEST_ROW)}}
    rows = rows[pc.select_k_unstable(pa.table(order), PAIRS_OF_A_KIND, _ORDER).to_numpy()]
    found = table.take(rows)
    return pa.table(
        {
            "left": _capped(found[config.left_column]),
            "right": _capped(found[config.right_column]),
            MANIFEST_FILE: found[MANIFEST_FILE],
            MANIFEST_ROW: found[MANIFEST_ROW],
            **{name: found[name].cast(pa.float64()) for name in ("score", "identity_left", "identity_right")},
            "label": pa.array(labels[rows] == 1, mask=labels[rows] < 0),
            "error": _capped(found["error"]),
            "rank": pa.array(rank[rows]),
        }
    )


def _most_telling(table: pa.Table) -> pa.Table:
    return table.take(pc.select_k_unstable(table, PAIRS_OF_A_KIND, _ORDER))


def _capped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = column.cast(pa.string())
    start = pc.utf8_slice_codeunits(text, 0, LONGEST_TEXT)
    return pc.if_else(pc.equal(start, text), text, pc.binary_join_element_wise(start, _CUT, ""))
