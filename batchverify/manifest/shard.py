"""The parts of a manifest that has been inspected."""

from __future__ import annotations

import dataclasses

import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a manifest that one worker reads.

    Attributes:
        path: The file.
        row_groups: The row groups of a Parquet file; None for a whole CSV file.
        first_row: The number of the first row, counted from 0 in its file.
        max_rows: The number of rows to read from the first one on; None for all.
    """

    path: str
    row_groups: tuple[int, ...] | None
    first_row: int
    max_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files of a run's manifest after an inspection, which found that they agree.

    Attributes:
        shards: The parts to read.
        schema: The columns of the manifest, with the types that the output has.
        label_column: The column with labels, or None.
        fold_column: The column with folds, or None.
        expected_rows: The number of rows; an estimate if a CSV file is huge.
        expected_bytes: An estimate of the memory that the rows take.
        expected_images: The largest possible number of distinct images; an estimate like `expected_rows`.
        sample: The URIs of some images.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    label_column: str | None
    fold_column: str | None
    expected_rows: int
    expected_bytes: int
    expected_images: int
    sample: tuple[str, ...]
