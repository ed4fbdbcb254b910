"""The groups of a manifest's rows and images: the values of the columns that a run computes error rates for."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.manifest.names import column_names

# The group of rows without a value, and that of pairs whose two images have different ones. No value of a manifest is either.
NO_VALUE, MIXED = "", None
NO_GROUPS = (NO_VALUE, MIXED)
# A longer text is no name of a group.
MAX_LENGTH = 1000


def count_values(values: Collection[str | None]) -> int:
    """Returns how many of distinct groups are values of the manifest, and none of our own."""
    return len(values) - sum(group in values for group in NO_GROUPS)


def group_columns(config: ScoringConfig) -> dict[str, tuple[str, str]]:
    """Returns the columns with the group of the left and of the right images, by the name of the grouping.

    Both are the same column where a column holds the group of the pair.
    """
    of_pairs = {column: (column, column) for column in config.group_columns}
    return of_pairs | {f"{left} / {right}": (left, right) for left, right in config.group_column_pairs}


def image_groups(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the group of each image, or `NO_VALUE`."""
    return pc.fill_null(column_names(column), NO_VALUE)


def pair_groups(table: pa.Table, left: str, right: str) -> pa.ChunkedArray:
    """Returns the group of each pair: that of its two images, or `MIXED` where they have different ones."""
    of_left = image_groups(table[left])
    if left == right:
        return of_left
    of_right = image_groups(table[right])
    is_unknown = pc.or_(pc.equal(of_left, NO_VALUE), pc.equal(of_right, NO_VALUE))
    return pc.if_else(is_unknown, NO_VALUE, pc.if_else(pc.equal(of_left, of_right), of_left, MIXED))
