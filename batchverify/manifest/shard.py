"""What a manifest consists of, once it has been looked through."""

from __future__ import annotations

import dataclasses

import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a manifest that one worker reads.

    Attributes:
        path: the file.
        row_groups: which of a Parquet file's row groups; None for the whole of a CSV file.
        first_row: the number of the first row, counted from 0 in its file.
        most_rows: only so many rows are read, the first ones; None for all.
    """

    path: str
    row_groups: tuple[int, ...] | None
    first_row: int
    most_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All files of a run's manifest, looked through and found to agree.

    Attributes:
        shards: the parts to read.
        schema: the columns that pass through, as they will be written.
        label_column: the column with labels, or None.
        fold_column: the column with folds, or None.
        expected_rows: how many rows there are; an estimate where a CSV file is huge.
        expected_bytes: what the rows take in memory; an estimate.
        expected_images: how many distinct images there are at most; an estimate likewise.
        sample: some of their URIs.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    label_column: str | None
    fold_column: str | None
    expected_rows: int
    expected_bytes: int
    expected_images: int
    sample: tuple[str, ...]
