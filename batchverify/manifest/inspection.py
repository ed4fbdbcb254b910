"""Inspects one manifest file before a run: its columns, its mistakes, and how many rows and images it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pyarrow as pa

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.io.filesystem import file_size
from batchverify.manifest.columns import column_problems, find_bad_label, find_label_column, pair_uris
from batchverify.manifest.csv import compression_of, read_csv_schema
from batchverify.manifest.parquet import ParquetFooter, read_footer
from batchverify.manifest.read import first_rows, read_batches
from batchverify.manifest.shard import Shard

# The number of a row and the index of its file's name.
_PROVENANCE_BYTES = 9


class InspectionBudget:
    """How much may still be read of the files of one manifest; `inspect_file` reduces it.

    Once the bytes are spent, only the columns of a file are read: to scan the start of each of thousands of files would take as
    long as to read them all. The footer of a Parquet file states its rows. Those of a CSV file are estimated from its size and
    from the files that were scanned.

    Attributes:
        bytes_left: The number of bytes that may still be read, as they stand in memory.
        rows_left: The number of rows that the run still wants; None for all rows.
    """

    def __init__(self, bytes_left: int, rows_left: int | None):
        self.bytes_left, self.rows_left = bytes_left, rows_left
        self._csv_totals: dict[str | None, tuple[int, int]] = {}  # Rows and bytes of the scanned CSV files, by compression.

    def add_csv(self, compression: str | None, rows: int, size: int) -> None:
        """Records the rows and the size of a scanned CSV file."""
        total_rows, total_bytes = self._csv_totals.get(compression, (0, 0))
        self._csv_totals[compression] = total_rows + rows, total_bytes + size

    def estimate_rows(self, compression: str | None, size: int) -> int | None:
        """Returns about how many rows a CSV file has that need not be scanned; None if it must be scanned."""
        total_rows, total_bytes = self._csv_totals.get(compression, (0, 0))
        if self.bytes_left > 0 or self.rows_left is not None or not total_rows:
            return None
        return round(total_rows * size / total_bytes)


@dataclasses.dataclass(frozen=True)
class FileInspection:
    """What an inspection has shown about one manifest file.

    Attributes:
        path: The file.
        schema: Its columns.
        footer: The footer of a Parquet file; None for a CSV file.
        max_rows: The number of rows, from the first one, that the run wants; None for all rows.
        problems: One sentence for each mistake.
        expected_rows: The number of wanted rows; an estimate for a CSV file that was not read to its end.
        expected_bytes: An estimate of the memory that these rows take.
        rows_sampled: The number of rows whose images are in `images`.
        images: The URIs of images, distinct within each array.
    """

    path: str
    schema: pa.Schema
    footer: ParquetFooter | None
    max_rows: int | None
    problems: tuple[str, ...] = ()
    expected_rows: int = 0
    expected_bytes: int = 0
    rows_sampled: int = 0
    images: tuple[pa.Array, ...] = ()

    def shards(self, block_rows: int) -> Iterator[Shard]:
        """Yields the parts that workers read: a whole CSV file, or row groups with about `block_rows` rows together."""
        if self.max_rows == 0:
            return
        if self.footer is None:
            yield Shard(self.path, None, 0, self.max_rows)
            return
        groups: list[int] = []
        first, rows = 0, 0
        for group in self.row_groups():
            groups.append(group)
            rows += self.footer.row_group(group).num_rows
            if rows >= block_rows:
                yield Shard(self.path, tuple(groups), first, self._max_rows_from(first))
                groups, first, rows = [], first + rows, 0
        if groups:
            yield Shard(self.path, tuple(groups), first, self._max_rows_from(first))

    def row_groups(self) -> Iterator[int]:
        """Yields the row groups of a Parquet file that hold wanted rows."""
        assert self.footer is not None
        first = 0
        for group in range(self.footer.num_row_groups):
            if self.max_rows is None or first < self.max_rows:
                yield group
            first += self.footer.row_group(group).num_rows

    def _max_rows_from(self, first: int) -> int | None:
        return None if self.max_rows is None else self.max_rows - first


def inspect_file(path: str, config: VerificationConfig, budget: InspectionBudget) -> FileInspection:
    """Reads the columns of a manifest file, and as many of its rows as the budget allows.

    Raises:
        PreflightError: If the file cannot be opened or its columns cannot be read.
    """
    footer = read_footer(path)
    schema = footer.schema_arrow.remove_metadata() if footer else read_csv_schema(path, config)
    file = FileInspection(path, schema, footer, budget.rows_left, tuple(column_problems(path, schema, config)))
    if file.problems or file.max_rows == 0:
        return file
    file = _inspect_parquet(file, footer, config, budget) if footer else _inspect_csv(file, config, budget)
    if budget.rows_left is not None:
        budget.rows_left -= file.expected_rows
    return file


@dataclasses.dataclass(frozen=True)
class _Scan:
    """The result of reading some rows of a file.

    Attributes:
        rows: The number of rows that were read.
        bytes: The memory that they took.
        is_complete: Whether no further row is wanted.
        rows_sampled: As in `FileInspection`.
        images: As in `FileInspection`.
        problems: As in `FileInspection`.
    """

    rows: int = 0
    bytes: int = 0
    is_complete: bool = False
    rows_sampled: int = 0
    images: tuple[pa.Array, ...] = ()
    problems: tuple[str, ...] = ()

    def estimate_rows(self, file_size: int) -> int:
        """Returns about how many rows a CSV file of this size has."""
        if self.is_complete or not self.bytes:
            return self.rows
        return max(self.rows, int(self.rows * file_size / self.bytes))


def _inspect_parquet(
    file: FileInspection, footer: ParquetFooter, config: VerificationConfig, budget: InspectionBudget
) -> FileInspection:
    scan = _scan(file, config, budget) if budget.bytes_left > 0 else _Scan()
    rows = footer.num_rows if file.max_rows is None else min(footer.num_rows, file.max_rows)
    stored_bytes = sum(footer.row_group(group).total_byte_size for group in file.row_groups())
    return _complete(file, scan, rows, stored_bytes)


def _inspect_csv(file: FileInspection, config: VerificationConfig, budget: InspectionBudget) -> FileInspection:
    compression, size = compression_of(file.path), file_size(file.path)
    stored_bytes = size if file.max_rows is None else 0
    if (estimate := budget.estimate_rows(compression, size)) is not None:
        return _complete(file, _Scan(), estimate, stored_bytes)
    scan = _scan(file, config, budget)
    rows = scan.estimate_rows(size)
    budget.add_csv(compression, rows, size)
    return _complete(file, scan, rows, stored_bytes)


def _complete(file: FileInspection, scan: _Scan, rows: int, stored_bytes: int) -> FileInspection:
    """Returns `file` with what a scan has shown.

    In memory the rows take as much as in the file, or more if the file is compressed; the scanned rows show how much more.
    """
    return dataclasses.replace(
        file,
        problems=scan.problems,
        expected_rows=rows,
        expected_bytes=max(stored_bytes, scan.bytes * rows // max(1, scan.rows)) + _PROVENANCE_BYTES * rows,
        rows_sampled=scan.rows_sampled,
        images=scan.images,
    )


def _scan(file: FileInspection, config: VerificationConfig, budget: InspectionBudget) -> _Scan:
    """Reads rows to look for bad labels and undecodable bytes, and to count rows and images."""
    label = find_label_column(file.schema.names, config)
    columns = [config.left_column, config.right_column, *([label] if label else [])]
    shard = Shard(file.path, tuple(file.row_groups()) if file.footer else None, 0)
    rows = rows_sampled = 0
    bytes_before, is_complete = budget.bytes_left, True
    images: list[pa.Array] = []
    problems: list[str] = []
    try:
        for batch in first_rows(read_batches(shard, columns, config.bad_rows == "keep"), file.max_rows):
            if label and (problem := find_bad_label(batch, label, file.path, rows)):
                problems.append(problem)
                break
            rows += batch.num_rows
            if budget.bytes_left > 0:
                rows_sampled += batch.num_rows
                images += [uris.combine_chunks().unique() for uris in pair_uris(batch, config)]
            budget.bytes_left -= batch.nbytes
            # To know how many rows of a limit remain for later files, the rows of a CSV file must be counted to its end.
            if budget.bytes_left <= 0 and (file.footer or file.max_rows is None):
                is_complete = False
                break
    except PreflightError as error:
        problems += error.problems
    return _Scan(rows, bytes_before - budget.bytes_left, is_complete, rows_sampled, tuple(images), tuple(problems))
