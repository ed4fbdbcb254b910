"""The most extreme pairs of a run, a few of each kind, for the report. Merging gives the same pairs in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.evaluation.candidate import GAINED, LOST, decisions
from batchverify.schema import MANIFEST_FILE, MANIFEST_ROW, IdentityCheck, ImageStatus, is_category

PAIRS_PER_KIND = 12
MAX_TEXT_LENGTH = 1000
NOT_A_NUMBER = "not_a_number"
_SCORES = ("score", "identity_left", "identity_right", "score_candidate")
_CUT_MARK = "… (cut)"
_FAULTS = (str(IdentityCheck.BELOW_THRESHOLD), str(IdentityCheck.OUTSCORED))
# The pair with the lowest rank is the most extreme; pairs with equal ranks come in manifest order.
_ORDER = [("rank", "ascending"), (MANIFEST_FILE, "ascending"), (MANIFEST_ROW, "ascending")]


@dataclasses.dataclass(frozen=True)
class Extremes:
    """The most extreme pairs of each kind.

    Attributes:
        kinds: Tables of at most `PAIRS_PER_KIND` rows by kind: `highest_impostors`, `lowest_genuines`,
            `highest_unlabelled`, `lowest_unlabelled`, `identity_faults`, `failed_STATUS` for rows without a score, and with a
            candidate `matches_gained` and `matches_lost`.
    """

    kinds: dict[str, pa.Table] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, parts: Iterable[Extremes]) -> Extremes:
        """Returns the most extreme pairs of all parts."""
        tables: dict[str, list[pa.Table]] = {}
        for part in parts:
            for kind, table in part.kinds.items():
                tables.setdefault(kind, []).append(table)
        return cls({kind: _lowest_ranks(pa.concat_tables(group)) for kind, group in tables.items()})

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the pairs of each kind, the most extreme first."""
        return {
            kind: table.sort_by(_ORDER).drop_columns(["rank"]).to_pylist()
            for kind, table in sorted(self.kinds.items())
            if table.num_rows
        }


def find_extremes(table: pa.Table, labels: np.ndarray, config: ScoringConfig) -> Extremes:
    """Returns the extremes of one table of scored rows.

    Args:
        table: Rows with the columns of the output contract.
        labels: Labels of the rows, int8 `(n,)`: 1 genuine, 0 impostor, -1 unlabelled.
        config: Settings of the run: the columns of the pair and the threshold.
    """
    return Extremes(
        {
            kind: _select_extremes(table, members, rank, labels, config)
            for kind, members, rank in _rank_kinds(table, labels, config.match_threshold())
            if members.any()
        }
    )


def is_cut(text: str) -> bool:
    """Returns whether `text`, from a pair of `Extremes`, is only the beginning of the manifest's text."""
    return text.endswith(_CUT_MARK)


def _rank_kinds(table: pa.Table, labels: np.ndarray, threshold: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields each kind of pair: its name, which rows belong to it, and the rank of every row."""
    scored = table["score"].is_valid().to_numpy(zero_copy_only=False)
    score, left, right = (table[name].to_numpy().astype(np.float64) for name in ("score", "identity_left", "identity_right"))
    yield "highest_impostors", scored & (labels == 0), -score
    yield "lowest_genuines", scored & (labels == 1), score
    yield "highest_unlabelled", scored & (labels == -1), -score
    yield "lowest_unlabelled", scored & (labels == -1), score
    faulty = is_category(table["identity_check"], *_FAULTS)
    # An identity score must reach the threshold and the pair's own score; the rank is how far it falls short.
    shortage = np.minimum(left, right) - np.maximum(score, threshold)
    yield "identity_faults", faulty, np.where(np.isnan(shortage), -np.inf, shortage)  # Without a number it falls short of all.
    if "match_candidate" in table.column_names:
        both, first, second = decisions(table)
        # The pairs whose score the candidate changes most.
        change = -np.abs(table["score_candidate"].to_numpy().astype(np.float64) - score)
        yield GAINED, both & ~first & second, change
        yield LOST, both & first & ~second, change
    if not scored.all():
        statuses = _failure_statuses(table)
        manifest_order = np.zeros(table.num_rows)
        for status in pc.unique(statuses.filter(pa.array(~scored))).to_pylist():
            yield f"failed_{status}", ~scored & pc.equal(statuses, status).to_numpy(zero_copy_only=False), manifest_order


def _failure_statuses(table: pa.Table) -> pa.ChunkedArray:
    """Returns the status of each row's first image that failed; `NOT_A_NUMBER` where both images are ok."""
    left, right = (table[column].cast(pa.string()) for column in ("left_status", "right_status"))
    first = pc.if_else(pc.equal(left, str(ImageStatus.OK)), right, left)
    return pc.if_else(pc.equal(first, str(ImageStatus.OK)), NOT_A_NUMBER, first)


def _select_extremes(
    table: pa.Table, members: np.ndarray, rank: np.ndarray, labels: np.ndarray, config: ScoringConfig
) -> pa.Table:
    rows = np.flatnonzero(members)
    if len(rows) > PAIRS_PER_KIND:
        last_rank = np.partition(rank[rows], PAIRS_PER_KIND - 1)[PAIRS_PER_KIND - 1]
        rows = rows[rank[rows] <= last_rank]
    order = {"rank": pa.array(rank[rows]), **{name: table[name].take(rows) for name in (MANIFEST_FILE, MANIFEST_ROW)}}
    rows = rows[pc.select_k_unstable(pa.table(order), PAIRS_PER_KIND, _ORDER).to_numpy()]
    selected = table.take(rows)
    return pa.table(
        {
            "left": _cut(selected[config.left_column]),
            "right": _cut(selected[config.right_column]),
            MANIFEST_FILE: selected[MANIFEST_FILE],
            MANIFEST_ROW: selected[MANIFEST_ROW],
            **{name: selected[name].cast(pa.float64()) for name in _SCORES if name in selected.column_names},
            "label": pa.array(labels[rows] == 1, mask=labels[rows] < 0),
            "error": _cut(selected["error"]),
            "rank": pa.array(rank[rows]),
        }
    )


def _lowest_ranks(table: pa.Table) -> pa.Table:
    return table.take(pc.select_k_unstable(table, PAIRS_PER_KIND, _ORDER))


def _cut(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = column.cast(pa.string())
    start = pc.utf8_slice_codeunits(text, 0, MAX_TEXT_LENGTH)
    return pc.if_else(pc.equal(start, text), text, pc.binary_join_element_wise(start, _CUT_MARK, ""))
