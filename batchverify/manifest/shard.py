"""The parts of a manifest that has been inspected."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from batchverify.manifest.csv_header import CsvHeader
from batchverify.manifest.labels import LabelSpelling


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a manifest that one worker reads.

    Attributes:
        path: The file.
        row_groups: The row groups of a Parquet file; none for a CSV file, which is read whole.
        first_row: The number of the first row, counted from 0 in its file.
        max_rows: The number of rows to read from the first one on; None for all.
        csv_header: The header of a CSV file; None for a Parquet file.
        columns: The columns of the file, with those that its folders state.
    """

    path: str
    row_groups: tuple[int, ...]
    first_row: int
    max_rows: int | None = None
    csv_header: CsvHeader | None = None
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files of a run's manifest after an inspection, which found that they agree.

    Attributes:
        shards: The parts to read.
        schema: The columns of the manifest, with the types that the output has.
        label_column: The column with labels, or None.
        label_spelling: How the labels are written.
        fold_column: The column with folds, or None.
        expected_rows: The number of rows; an estimate if a CSV file is huge.
        expected_bytes: An estimate of the memory that the rows take.
        expected_images: The largest possible number of distinct images; an estimate like `expected_rows`.
        sample: The URIs of some images.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    label_column: str | None
    label_spelling: LabelSpelling
    fold_column: str | None
    expected_rows: int
    expected_bytes: int
    expected_images: int
    sample: tuple[str, ...]

    def without_files(self) -> Manifest:
        """Returns what a worker needs to know of the manifest to read one shard."""
        return dataclasses.replace(self, shards=(), sample=())
