"""Inspects one manifest file before a run: its columns, its mistakes, and how many rows and images it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.io.filesystem import file_size
from batchverify.manifest.columns import column_problems, find_label_column, pair_uris, parent_folder, plain_type
from batchverify.manifest.csv_header import CsvHeader, read_header
from batchverify.manifest.decompress import compression_of, measure_expansion
from batchverify.manifest.group_values import MAX_LENGTH, count_values, group_columns, image_groups
from batchverify.manifest.labels import SPELLINGS, LabelSpelling, closest_spelling, find_bad_label, narrow_spellings
from batchverify.manifest.memory import refuse_absurd_expansion
from batchverify.manifest.parquet import ParquetFooter, read_footer
from batchverify.manifest.parquet_schema import MAX_COLUMNS, too_many_columns
from batchverify.manifest.partitions import partition_values
from batchverify.manifest.read import read_batches
from batchverify.manifest.shard import Shard
from batchverify.schema import MAX_GROUPS

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
        csv_header: The header of a CSV file; None for a Parquet file, and for a file without a byte.
        max_rows: The number of rows, from the first one, that the run wants; None for all rows.
        problems: One sentence for each mistake.
        expected_rows: The number of wanted rows; an estimate for a CSV file that was not read to its end.
        expected_bytes: An estimate of the memory that these rows take.
        rows_sampled: The number of rows whose images are in `images`.
        images: The URIs of images as the run opens them, distinct within each array.
        spellings: The spellings in which the labels may be written, the commonest first.
    """

    path: str
    schema: pa.Schema
    footer: ParquetFooter | None
    csv_header: CsvHeader | None
    max_rows: int | None
    problems: tuple[str, ...] = ()
    expected_rows: int = 0
    expected_bytes: int = 0
    rows_sampled: int = 0
    images: tuple[pa.Array, ...] = ()
    spellings: tuple[LabelSpelling, ...] = SPELLINGS

    def shards(self, block_rows: int) -> Iterator[Shard]:
        """Yields the parts that workers read: a whole CSV file, or row groups with about `block_rows` rows together."""
        if self.max_rows == 0:
            return
        if self.footer is None:
            if self.csv_header is not None:
                yield self._shard((), 0)
            return
        groups: list[int] = []
        first, rows = 0, 0
        for group in self.row_groups():
            groups.append(group)
            rows += self.footer.row_group(group).num_rows
            if rows >= block_rows:
                yield self._shard(groups, first)
                groups, first, rows = [], first + rows, 0
        if groups:
            yield self._shard(groups, first)

    def row_groups(self) -> Iterator[int]:
        """Yields the row groups of a Parquet file that hold wanted rows."""
        assert self.footer is not None
        first = 0
        for group in range(self.footer.num_row_groups):
            if self.max_rows is None or first < self.max_rows:
                yield group
            first += self.footer.row_group(group).num_rows

    def _shard(self, groups: Sequence[int], first_row: int) -> Shard:
        max_rows = None if self.max_rows is None else self.max_rows - first_row
        return Shard(self.path, tuple(groups), first_row, max_rows, self.csv_header, tuple(self.schema.names))


def inspect_file(path: str, config: VerificationConfig, budget: InspectionBudget) -> FileInspection:
    """Reads the columns of a manifest file, and as many of its rows as the budget allows.

    Raises:
        PreflightError: If the file cannot be opened or its columns cannot be read.
    """
    footer = read_footer(path)
    header = None if footer else read_header(path, config)
    if header and len(header.names) > MAX_COLUMNS:
        raise PreflightError(f"{path}: it has {too_many_columns()}; leave out what the run does not need.")
    schema = _with_partitions(path, _stored_columns(footer, header, config))
    file = FileInspection(path, schema, footer, header, budget.rows_left, tuple(column_problems(path, schema, config)))
    if file.problems or file.max_rows == 0:
        return file
    file = _inspect_parquet(file, footer, config, budget) if footer else _inspect_csv(file, config, budget)
    if budget.rows_left is not None:
        budget.rows_left -= file.expected_rows
    return file


def _stored_columns(footer: ParquetFooter | None, header: CsvHeader | None, config: VerificationConfig) -> pa.Schema:
    if footer is not None:
        return pa.schema([field.with_type(plain_type(field.type)).remove_metadata() for field in footer.schema_arrow])
    # An empty file has no rows, so its columns cannot disagree with those of other files.
    names = [config.left_column, config.right_column] if header is None else header.names
    return pa.schema([(name, pa.string()) for name in names])


def _with_partitions(path: str, schema: pa.Schema) -> pa.Schema:
    own = {name.casefold() for name in schema.names}
    for name in partition_values(path):
        if name.casefold() not in own:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


@dataclasses.dataclass(frozen=True)
class _Scan:
    """The result of reading some rows of a file.

    Attributes:
        rows: The number of rows that were read.
        bytes: The memory that they took.
        text_bytes: About how many bytes of a CSV file they took, once it is decompressed.
        is_complete: Whether no further row is wanted.
        rows_sampled: As in `FileInspection`.
        images: As in `FileInspection`.
        problems: As in `FileInspection`.
        spellings: As in `FileInspection`.
    """

    rows: int = 0
    bytes: int = 0
    text_bytes: int = 0
    is_complete: bool = False
    rows_sampled: int = 0
    images: tuple[pa.Array, ...] = ()
    problems: tuple[str, ...] = ()
    spellings: tuple[LabelSpelling, ...] = SPELLINGS

    def estimate_rows(self, text_bytes: float) -> int:
        """Returns about how many rows a CSV file has that is so large when it is decompressed."""
        if self.is_complete or not self.text_bytes:
            return self.rows
        return max(self.rows, int(self.rows * text_bytes / self.text_bytes))


def _inspect_parquet(
    file: FileInspection, footer: ParquetFooter, config: VerificationConfig, budget: InspectionBudget
) -> FileInspection:
    scan = _scan(file, config, budget) if budget.bytes_left > 0 else _Scan()
    rows = footer.num_rows if file.max_rows is None else min(footer.num_rows, file.max_rows)
    stored_bytes = sum(footer.row_group(group).total_byte_size for group in file.row_groups())
    refuse_absurd_expansion(file.path, file_size(file.path), max(stored_bytes, scan.bytes * rows // max(1, scan.rows)))
    return _complete(file, scan, rows, stored_bytes)


def _inspect_csv(file: FileInspection, config: VerificationConfig, budget: InspectionBudget) -> FileInspection:
    compression, size = compression_of(file.path), file_size(file.path)
    stored_bytes = size if file.max_rows is None else 0
    if (estimate := budget.estimate_rows(compression, size)) is not None:
        return _complete(file, _Scan(), estimate, stored_bytes)
    text_bytes = size * measure_expansion(file.path)
    refuse_absurd_expansion(file.path, size, text_bytes)
    scan = _scan(file, config, budget)
    rows = scan.estimate_rows(text_bytes)
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
        spellings=scan.spellings,
    )


def _scan(file: FileInspection, config: VerificationConfig, budget: InspectionBudget) -> _Scan:
    """Reads rows to look for bad labels and undecodable bytes, and to count rows and images."""
    label = find_label_column(file.schema.names, config)
    shard = Shard(file.path, tuple(file.row_groups()) if file.footer else (), 0, file.max_rows, file.csv_header)
    batches = read_batches(shard, config.bad_rows == "keep") if file.footer or file.csv_header else iter(())
    rows = rows_sampled = text_bytes = 0
    bytes_before, is_complete = budget.bytes_left, True
    images: list[pa.Array] = []
    problems: list[str] = []
    spellings: tuple[LabelSpelling, ...] = SPELLINGS
    placed = config if config.image_root is not None else dataclasses.replace(config, image_root=parent_folder(file.path))
    groupings = group_columns(config)
    groups: dict[str, set[str]] = {name: set() for name in groupings}
    try:
        for batch in batches:
            if label:
                before, spellings = spellings, narrow_spellings(batch, label, spellings)
                if not spellings:
                    closest = closest_spelling(batch, label, before)
                    problems += filter(None, [find_bad_label(batch, label, file.path, rows, closest)])
                    break
            for name, columns in groupings.items():
                for column in dict.fromkeys(columns):
                    groups[name].update(image_groups(batch[column]).unique().to_pylist())
            rows += batch.num_rows
            if budget.bytes_left > 0:
                rows_sampled += batch.num_rows
                images += [uris.combine_chunks().unique() for uris in pair_uris(batch, placed)]
            budget.bytes_left -= batch.nbytes
            text_bytes += _text_bytes(batch, file.csv_header)
            # To know how many rows of a limit remain for later files, the rows of a CSV file must be counted to its end.
            if budget.bytes_left <= 0 and (file.footer or file.max_rows is None):
                is_complete = False
                break
    except PreflightError as error:
        problems += error.problems
    problems += [
        f"{file.path}: column '{column}' has {count_values(values):,} values in {rows:,} rows, and {MAX_GROUPS:,} groups are "
        "the most; name a column with fewer with --group-column."
        for column, values in groups.items()
        if count_values(values) > MAX_GROUPS
    ]
    problems += [
        f"{file.path}: column '{column}' has a value of {max(map(len, values)):,} characters, and groups have names of "
        f"{MAX_LENGTH:,} at most; name another column with --group-column."
        for column, values in groups.items()
        if max(map(len, values), default=0) > MAX_LENGTH
    ]
    return _Scan(
        rows, bytes_before - budget.bytes_left, text_bytes, is_complete, rows_sampled, tuple(images), tuple(problems), spellings
    )


def _text_bytes(batch: pa.Table, header: CsvHeader | None) -> int:
    """Returns how many bytes rows take in a CSV file without quotes: each field, and one character behind it."""
    if header is None:
        return 0
    return sum((pc.sum(pc.binary_length(batch[name])).as_py() or 0) + batch.num_rows for name in header.names)
