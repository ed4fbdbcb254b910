"""The labels of pairs: the spellings that are understood, and values that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.schema import BAD_ROW_COLUMN

_UNLABELLED = ("", "nan")


@dataclasses.dataclass(frozen=True)
class LabelSpelling:
    """The words in which a manifest writes its labels; lower-case, without spaces around them.

    Attributes:
        genuine: The words for a genuine pair.
        impostor: The words for an impostor pair.
    """

    genuine: tuple[str, ...]
    impostor: tuple[str, ...]

    def __str__(self) -> str:
        return f"'{self.genuine[0]}' is genuine and '{self.impostor[0]}' is impostor"

    def words(self) -> tuple[str, ...]:
        """Returns all words that a column in this spelling may hold."""
        return (*_UNLABELLED, *self.genuine, *self.impostor)


COMMON_SPELLING = LabelSpelling(("1", "true", "1.0"), ("0", "false", "0.0"))
# A whole column has one of these: -1 beside 0 and 1 could be an impostor or unlabelled.
SPELLINGS = (
    COMMON_SPELLING,
    LabelSpelling(("1", "1.0"), ("-1", "-1.0")),
    LabelSpelling(("yes",), ("no",)),
    LabelSpelling(("y",), ("n",)),
    LabelSpelling(("t",), ("f",)),
    LabelSpelling(("genuine",), ("impostor",)),
)


def parse_labels(column: pa.ChunkedArray, spellings: Iterable[LabelSpelling] = SPELLINGS) -> tuple[np.ndarray, np.ndarray]:
    """Reads labels in any case, or booleans or numbers; null, empty and NaN mean unlabelled.

    Args:
        column: The labels.
        spellings: The spellings that may occur.

    Returns:
        `(labels, bad)`: int8 `(n,)` of 1 (genuine), 0 (impostor) and -1 (unlabelled), and bool `(n,)`.
    """
    meanings = dict.fromkeys(_UNLABELLED, -1)
    for spelling in spellings:
        meanings |= dict.fromkeys(spelling.genuine, 1) | dict.fromkeys(spelling.impostor, 0)
    codes = pc.fill_null(pc.index_in(_words(column), value_set=pa.array(meanings, pa.string())), -1).to_numpy()
    return np.array([*meanings.values(), -1], np.int8)[codes], codes < 0


def narrow_spellings(block: pa.Table, label: str, spellings: Sequence[LabelSpelling]) -> tuple[LabelSpelling, ...]:
    """Returns those of `spellings` in which all labels of a block can be written; the column `label` has the labels."""
    words = set(_words(_well_formed(block)[label]).unique().to_pylist())
    return tuple(spelling for spelling in spellings if words.issubset(spelling.words()))


def closest_spelling(block: pa.Table, label: str, spellings: Sequence[LabelSpelling]) -> LabelSpelling:
    """Returns the spelling in which the labels of a block can be written for the largest number of rows from the first one."""
    return max(spellings, key=lambda spelling: _first_bad_row(block, label, spelling))


def find_bad_label(block: pa.Table, label: str, path: str, first_row: int, spelling: LabelSpelling) -> str | None:
    """Returns a sentence about the first value that is no label, or None if there is none.

    Args:
        block: Rows of the manifest.
        label: The column with labels.
        path: The file that the rows come from.
        first_row: The number of the first of these rows in the file.
        spelling: How the manifest writes its labels.
    """
    row = _first_bad_row(block, label, spelling)
    if row == block.num_rows:
        return None
    remedy = "1 or true for a genuine pair, 0 or false for an impostor"
    if spelling != COMMON_SPELLING:
        remedy = f"{spelling.genuine[0]} for a genuine pair, {spelling.impostor[0]} for an impostor as in the rows before"
    return f"{path}, row {first_row + row}: the label is {block[label][row].as_py()!r:.60}; write {remedy}, or nothing."


def _first_bad_row(block: pa.Table, label: str, spelling: LabelSpelling) -> int:
    """Returns the position of the first label in another spelling, or the number of rows."""
    _, bad = parse_labels(block[label], [spelling])
    if BAD_ROW_COLUMN in block.column_names:  # The label of a misfit row may be the value of another column.
        bad &= block[BAD_ROW_COLUMN].is_null().to_numpy()
    return int(np.argmax(bad)) if bad.any() else block.num_rows


def _well_formed(block: pa.Table) -> pa.Table:
    return block.filter(pc.is_null(block[BAD_ROW_COLUMN])) if BAD_ROW_COLUMN in block.column_names else block


def _words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
