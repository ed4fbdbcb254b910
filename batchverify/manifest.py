"""Manifests: CSV and Parquet files that list pairs, read as Arrow blocks.

`plan_manifest` looks at every file before a run begins and tells all that is wrong at once;
`read_blocks` reads one shard; `ReadManifest` lifts it into a pipeline.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io import arrow_coder  # noqa: F401  registers the coder of pa.Table
from batchverify.io.storage_options import with_storage_options
from batchverify.schema import BAD_ROW_COLUMN, MANIFEST_FILE, MANIFEST_ROW, RESERVED_COLUMNS, is_text
from batchverify.worker_stats import WorkerStats

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_CSV_BLOCK_BYTES = 64 * 2**20
_BLOCK_BYTES = 64 * 2**20
# What is read before a run to find mistakes: all of most manifests, and a few seconds' worth of a huge one.
_VALIDATION_BYTES = 64 * 2**20
# A row's number and the place of its file's name.
_PROVENANCE_BYTES = 9
# Of one block of a Parquet file, at most.
PARQUET_ROWS = 262_144
_PROBLEMS_TOLD = 20
DEFAULT_LABEL, DEFAULT_FOLD = "genuine", "fold"


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


class ReadManifest(beam.PTransform):
    """Reads a manifest: `(block key, pa.Table)` with the manifest's columns, its file and its row number."""

    def __init__(self, manifest: Manifest, config: VerificationConfig, tally: WorkerStats | None = None):
        super().__init__()
        self._manifest, self._config, self._tally = manifest, config, tally or WorkerStats()

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, pa.Table]]:
        return (
            begin
            | "List" >> beam.Create(self._manifest.shards, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.FlatMap(
                with_storage_options(_read_timed), self._tally, self._manifest.schema, self._manifest.label_column, self._config
            ).with_output_types(tuple[str, pa.Table])
        )


def plan_manifest(config: VerificationConfig, sample: int = 12) -> Manifest:
    """Looks through every manifest file of `config`, and keeps about `sample` URIs.

    With `config.limit`, files and row groups beyond it are only looked at for their columns.

    Raises:
        PreflightError: with all that is wrong, one sentence each.
    """
    paths, problems = _match(config.manifests)
    budget = _Budget(_VALIDATION_BYTES, config.limit)
    seen = []
    for path in paths:
        try:
            seen.append(_Inspection(path, config, budget))
        except PreflightError as refused:
            problems += refused.problems
    problems += [problem for inspection in seen for problem in inspection.problems]
    schema, disagreements = _unify(seen)
    problems += disagreements
    if problems:
        raise PreflightError(problems)
    rows = sum(inspection.expected_rows for inspection in seen)
    distinct = _distinct(seen)
    looked_at, images = sum(inspection.rows_sampled for inspection in seen), len(distinct)
    return Manifest(
        shards=tuple(shard for inspection in seen for shard in inspection.shards(config.block_rows)),
        schema=schema,
        label_column=_label_column(schema.names, config),
        fold_column=_fold_column(schema.names, config),
        expected_rows=rows,
        expected_bytes=sum(inspection.expected_bytes() for inspection in seen),
        expected_images=images if looked_at >= rows else int(np.ceil(images * rows / max(1, looked_at))),
        sample=_sample(seen, config, sample),
    )


def read_blocks(shard: Shard, schema: pa.Schema, config: VerificationConfig) -> Iterator[pa.Table]:
    """Reads one shard as tables of at most `config.block_rows` rows, cast to `schema`, with file and row columns.

    Raises:
        RunError: at a mistake that was beyond the part of the file that `plan_manifest` looks at.
    """
    row = shard.first_row
    try:
        for batch in _first_rows(_batches(shard, keep=config.bad_rows == "keep"), shard.most_rows):
            rows = _rows_in_block(batch, config.block_rows)
            for start in range(0, batch.num_rows, rows):
                block = batch.slice(start, rows)
                yield _with_provenance(_cast(block, schema), shard.path, row)
                row += block.num_rows
    except PreflightError as refused:
        raise RunError(str(refused)) from None


def parse_labels(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Reads labels: 0 and 1, true and false in any case, or booleans; null and empty mean unlabelled.

    Returns:
        `(labels, bad)`: int8 `(n,)` of 1 (genuine), 0 (impostor) and -1 (unlabelled), and bool `(n,)`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
    known = pa.array(["", "0", "1", "false", "true", "0.0", "1.0"])
    codes = pc.fill_null(pc.index_in(text, value_set=known), -1).to_numpy()
    meaning = np.array([-1, 0, 1, 0, 1, 0, 1, -1], np.int8)
    return meaning[codes], codes < 0


def pair_uris(block: pa.Table, config) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Returns the absolute URIs of a block's left and right images; null where a row names none.

    A relative path starts from `config.image_root`, or else from the folder of the block's manifest file.
    """
    base = config.image_root
    if base is None and MANIFEST_FILE in block.column_names and block.num_rows:
        base = _folder(block[MANIFEST_FILE][0].as_py())
    uris = (_resolve(block[column], base) for column in (config.left_column, config.right_column))
    if BAD_ROW_COLUMN not in block.column_names:
        return tuple(uris)
    return tuple(pc.if_else(pc.is_valid(block[BAD_ROW_COLUMN]), None, column) for column in uris)


def _resolve(column: pa.ChunkedArray, base: str | None) -> pa.ChunkedArray:
    uris = column.cast(pa.string())
    uris = pc.if_else(pc.equal(uris, ""), None, uris)
    uris = pc.replace_substring_regex(uris, "^file://", "")
    if base is None:
        return uris
    absolute = pc.match_substring_regex(uris, r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)")
    return pc.if_else(absolute, uris, pc.binary_join_element_wise(base.rstrip("/"), uris, "/"))


def _folder(path: str) -> str:
    return path.rsplit("/", 1)[0] if "://" in path else os.path.dirname(os.path.abspath(path))


def _read_timed(
    shard: Shard, tally: WorkerStats, schema: pa.Schema, label: str | None, config: VerificationConfig
) -> Iterator[tuple[str, pa.Table]]:
    blocks = read_keyed(shard, schema, label, config)
    while True:
        with tally.timed("read"):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def read_keyed(
    shard: Shard, schema: pa.Schema, label: str | None, config: VerificationConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Yields the blocks of `read_blocks`, each with its key and its labels checked.

    Raises:
        RunError: as `read_blocks`, and at a label that is none.
    """
    for block in read_blocks(shard, schema, config):
        if label is not None and (wrong := _bad_label(block, label, shard.path, block[MANIFEST_ROW][0].as_py())):
            raise RunError(wrong)
        yield f"{shard.path}#{block[MANIFEST_ROW][0].as_py()}", block


def _rows_in_block(batch: pa.Table, most: int) -> int:
    """Returns how many rows fit a block: rows that carry much beside the pair travel fewer at a time."""
    return max(1, min(most, batch.num_rows * _BLOCK_BYTES // max(1, batch.nbytes)))


def _with_provenance(block: pa.Table, path: str, row: int) -> pa.Table:
    # As a dictionary of one while it travels; the output has it as text.
    files = pa.DictionaryArray.from_arrays(np.zeros(block.num_rows, np.int8), [path])
    return block.append_column(MANIFEST_FILE, files).append_column(MANIFEST_ROW, pa.array(np.arange(row, row + block.num_rows)))


# Looking through a file before the run.


class _Budget:
    """How many more bytes may be read for validation, and how many more rows are wanted at all; None for every row.

    Once it is spent, a file is only opened for its columns: of thousands of files, a look into each would be a reading of them
    all. Its rows are known from its footer, or estimated from its size and the density of the CSV files that were looked at.
    """

    def __init__(self, left: int, rows_left: int | None):
        self.left, self.rows_left = left, rows_left
        self._seen: dict[str | None, tuple[int, int]] = {}  # rows and bytes of CSV files, by compression

    def add_csv(self, kind: str | None, rows: int, size: int) -> None:
        """Takes in how dense a CSV file is."""
        seen = self._seen.get(kind, (0, 0))
        self._seen[kind] = seen[0] + rows, seen[1] + size

    def estimate_rows(self, kind: str | None, size: int) -> int | None:
        """Returns about how many rows a CSV file has that need not be looked at; None if it must be."""
        rows, of_bytes = self._seen.get(kind, (0, 0))
        if self.left > 0 or self.rows_left is not None or not rows:
            return None
        return round(rows * size / of_bytes)


class _Inspection:
    """One manifest file, looked through as far as the budget goes."""

    def __init__(self, path: str, config: VerificationConfig, budget: _Budget):
        self.path = path
        self.problems: list[str] = []
        self.parquet = _parquet_footer(path)
        self.schema = self.parquet.schema_arrow.remove_metadata() if self.parquet else _csv_schema(path, config)
        self.problems += _column_problems(path, self.schema, config)
        self.rows_seen, self.rows_sampled, self.expected_rows = 0, 0, 0
        self._bytes_seen = 0
        self.images: list[pa.Array] = []
        self._most_rows = budget.rows_left
        if not self.problems and budget.rows_left != 0:
            self._inspect(config, budget)
        if budget.rows_left is not None:
            budget.rows_left -= self.expected_rows

    def shards(self, block_rows: int) -> Iterator[Shard]:
        if self._most_rows == 0:
            return
        if self.parquet is None:
            yield Shard(self.path, None, 0, self._most_rows)
            return
        groups: list[int] = []
        first, rows = 0, 0
        for group in self._wanted_groups():
            groups.append(group)
            rows += self.parquet.row_group(group).num_rows
            if rows >= block_rows:
                yield Shard(self.path, tuple(groups), first, self._most_rows_from(first))
                groups, first, rows = [], first + rows, 0
        if groups:
            yield Shard(self.path, tuple(groups), first, self._most_rows_from(first))

    def _wanted_groups(self) -> Iterator[int]:
        """Yields the row groups of a Parquet file that hold wanted rows."""
        assert self.parquet is not None
        first = 0
        for group in range(self.parquet.num_row_groups):
            if self._most_rows is None or first < self._most_rows:
                yield group
            first += self.parquet.row_group(group).num_rows

    def _most_rows_from(self, first: int) -> int | None:
        return None if self._most_rows is None else self._most_rows - first

    def _inspect(self, config: VerificationConfig, budget: _Budget) -> None:
        if self.parquet:
            if budget.left > 0:
                self._look_through(config, budget)
            self.expected_rows = self._expect_rows(False, 0)
            return
        kind = _compression(self.path)
        if (estimate := budget.estimate_rows(kind, self._size)) is not None:
            self.expected_rows = estimate
            return
        self._look_through(config, budget)
        budget.add_csv(kind, self.expected_rows, self._size)

    @functools.cached_property
    def _size(self) -> int:
        return FileSystems.match([self.path])[0].metadata_list[0].size_in_bytes

    def _look_through(self, config: VerificationConfig, budget: _Budget) -> None:
        """Reads rows for bad labels and undecodable bytes, and to count rows and images."""
        label = _label_column(self.schema.names, config)
        needed = [config.left_column, config.right_column, *([label] if label else [])]
        started_with, finished = budget.left, True
        try:
            shard = Shard(self.path, tuple(self._wanted_groups()) if self.parquet else None, 0)
            for batch in _first_rows(_batches(shard, needed, config.bad_rows == "keep"), self._most_rows):
                if label and (wrong := _bad_label(batch, label, self.path, self.rows_seen)):
                    self.problems.append(wrong)
                    break
                self.rows_seen += batch.num_rows
                if budget.left > 0:
                    self.rows_sampled += batch.num_rows
                    self.images += [image.combine_chunks().unique() for image in pair_uris(batch, config)]
                budget.left -= batch.nbytes
                # To know how many rows of a limit are left to later files, those of a CSV file must be counted.
                if budget.left <= 0 and (self.parquet or self._most_rows is None):
                    finished = False
                    break
        except PreflightError as refused:
            self.problems += refused.problems
        self._bytes_seen = started_with - budget.left
        self.expected_rows = self._expect_rows(finished, self._bytes_seen)

    def expected_bytes(self) -> int:
        """Returns about what the rows take in memory, which is what they take in the file, or more where that is compressed."""
        if self.parquet:
            stored = sum(self.parquet.row_group(group).total_byte_size for group in self._wanted_groups())
        else:
            stored = self._size if self._most_rows is None else 0
        pairs = self._bytes_seen * self.expected_rows // max(1, self.rows_seen)
        return max(stored, pairs) + _PROVENANCE_BYTES * self.expected_rows

    def _expect_rows(self, finished: bool, bytes_seen: int) -> int:
        if self.parquet:
            return self.parquet.num_rows if self._most_rows is None else min(self.parquet.num_rows, self._most_rows)
        if finished or not bytes_seen:
            return self.rows_seen
        return max(self.rows_seen, int(self.rows_seen * self._size / bytes_seen))


def _distinct(seen: list[_Inspection]) -> pa.Array:
    found = [array for inspection in seen for array in inspection.images]
    return pa.chunked_array(found, pa.string()).unique().drop_null() if found else pa.array([], pa.string())


def _sample(seen: list[_Inspection], config: VerificationConfig, count: int) -> tuple[str, ...]:
    """Returns a few URIs of the first file, absolute."""
    first = next((inspection for inspection in seen if inspection.images), None)
    if first is None:
        return ()
    base = config.image_root if config.image_root is not None else _folder(first.path)
    uris = _resolve(pa.chunked_array(first.images, pa.string()), base).unique().drop_null()
    return tuple(uris[:count].to_pylist())


def _match(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    paths: dict[str, None] = {}
    problems = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            problems.append(f"--manifest {pattern} is a folder; name its files, for instance {pattern.rstrip('/')}/*.csv.")
            continue
        try:
            found = FileSystems.match([pattern])[0].metadata_list
        except Exception as error:  # Beam wraps whatever the store's client raises.
            problems.append(
                f"--manifest {pattern} cannot be looked up ({short_reason(error)}); check the path and your access."
            )
            continue
        if not found:
            problems.append(f"--manifest {pattern}: there is no such file; check the path.")
        paths.update(dict.fromkeys(sorted(metadata.path for metadata in found)))
    return list(paths), problems


def _column_problems(path: str, schema: pa.Schema, config: VerificationConfig) -> Iterator[str]:
    names = schema.names
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path}: column '{name}' occurs {names.count(name)} times; rename all but one."
    for name in sorted(RESERVED_COLUMNS.intersection(names)):
        yield f"{path}: column '{name}' is one that the output adds; rename it in the manifest."
    wanted = [("--left-column", config.left_column), ("--right-column", config.right_column)]
    if config.label_column:
        wanted.append(("--label-column", config.label_column))
    if config.fold_column:
        wanted.append(("--fold-column", config.fold_column))
    for option, name in wanted:
        if name not in names:
            yield f"{path}: there is no column '{name}', only {_list(names)}; name the right one with {option}."
        elif option in ("--left-column", "--right-column") and not _holds_uris(schema.field(name).type):
            yield f"{path}: column '{name}' holds {schema.field(name).type}, not text; give paths or URIs."
    for what, column in (("label", _label_column(names, config)), ("fold", _fold_column(names, config))):
        if column in names and not _holds_labels(schema.field(column).type):
            yield (
                f"{path}: column '{column}' holds {schema.field(column).type}, not {what}s; "
                f"name another with --{what}-column, or none with --{what}-column ''."
            )


def _holds_uris(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_null(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numeric or is_text(kind) or pa.types.is_null(kind)


def _label_column(names: list[str], config: VerificationConfig) -> str | None:
    if config.label_column is None:
        return DEFAULT_LABEL if DEFAULT_LABEL in names else None
    return config.label_column or None


def _fold_column(names: list[str], config: VerificationConfig) -> str | None:
    if config.fold_column is None:
        return DEFAULT_FOLD if DEFAULT_FOLD in names else None
    return config.fold_column or None


def _bad_label(block: pa.Table, label: str, path: str, first_row: int) -> str | None:
    column = block[label]
    _, bad = parse_labels(column)
    if BAD_ROW_COLUMN in block.column_names:  # whose label may be another field
        bad &= block[BAD_ROW_COLUMN].is_null().to_numpy()
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    return (
        f"{path}, row {first_row + row}: the label is {column[row].as_py()!r}; "
        "write 1 or true for a genuine pair, 0 or false for an impostor, or nothing."
    )


def _unify(seen: list[_Inspection]) -> tuple[pa.Schema, list[str]]:
    """Returns one schema for all files, and a sentence for each file that cannot have it."""
    if not seen:
        return pa.schema([]), []
    first, problems = seen[0], []
    fields = {field.name: field.with_nullable(True) for field in first.schema}
    for other in seen[1:]:
        if set(other.schema.names) != set(first.schema.names):
            difference = sorted(set(other.schema.names) ^ set(first.schema.names))
            problems.append(
                f"{other.path} and {first.path} disagree on columns ({_list(difference)}); "
                "give the files of one run the same columns."
            )
            continue
        for field in other.schema:
            kind = _common_type(fields[field.name].type, field.type)
            if kind is None:
                problems.append(
                    f"{other.path} and {first.path} disagree on column '{field.name}' "
                    f"({field.type} and {fields[field.name].type}); store it as one type."
                )
            else:
                fields[field.name] = pa.field(field.name, kind)
    return pa.schema(list(fields.values())), problems


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.string() if is_text(one) and is_text(other) else None


# Reading files.


def _batches(shard: Shard, columns: list[str] | None = None, keep: bool = False) -> Iterator[pa.Table]:
    if shard.row_groups is None:
        yield from _csv_batches(shard.path, columns, keep)
    else:
        yield from _parquet_batches(shard, columns)


def _first_rows(batches: Iterator[pa.Table], most: int | None) -> Iterator[pa.Table]:
    """Yields the first `most` rows, and reads no further batch than they need; all rows, if it is None."""
    left = most
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None and (left := left - batch.num_rows) <= 0:
            return


def _cast(block: pa.Table, schema: pa.Schema) -> pa.Table:
    if BAD_ROW_COLUMN in block.column_names:
        schema = schema.append(pa.field(BAD_ROW_COLUMN, pa.string()))
    block = block.select(schema.names)
    return block if block.schema.equals(schema) else block.cast(schema)


def _open(path: str) -> Any:
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be opened ({short_reason(error)}); check the path and your access.") from None


def _parquet_footer(path: str) -> pq.FileMetaData | None:
    """Returns the footer of a Parquet file, or None for any other file."""
    with _open(path) as file:
        if file.read(4) != b"PAR1":
            if path.endswith((".parquet", ".pq")):
                raise PreflightError(f"{path}: it is no Parquet file in spite of its name; write it again or rename it.")
            return None
        file.seek(0)
        try:
            return _WithSchema(pq.ParquetFile(file))
        except (pa.ArrowException, OSError) as error:
            raise PreflightError(f"{path}: the Parquet file is damaged ({short_reason(error)}); write it again.") from None


class _WithSchema:
    """A Parquet footer and the Arrow schema it stands for, without the open file."""

    def __init__(self, file: pq.ParquetFile):
        self.schema_arrow, self._metadata = file.schema_arrow, file.metadata
        self.num_rows, self.num_row_groups = file.metadata.num_rows, file.metadata.num_row_groups

    def row_group(self, number: int) -> pq.RowGroupMetaData:
        return self._metadata.row_group(number)


def _parquet_batches(shard: Shard, columns: list[str] | None) -> Iterator[pa.Table]:
    with _open(shard.path) as file:
        try:
            reader = pq.ParquetFile(file)
            for batch in reader.iter_batches(PARQUET_ROWS, row_groups=list(shard.row_groups or ()), columns=columns):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)
                yield table
        except (pa.ArrowException, OSError) as error:
            raise PreflightError(
                f"{shard.path}: the Parquet file is damaged ({short_reason(error)}); write it again."
            ) from None


def _csv_schema(path: str, config: VerificationConfig) -> pa.Schema:
    names = _csv_header(path)
    if names is None:  # A file of no bytes has no rows; it agrees with whatever the others say.
        names = [config.left_column, config.right_column]
    return pa.schema([(name, pa.string()) for name in names])


def _csv_header(path: str) -> list[str] | None:
    with _open(path) as file:
        text = io.TextIOWrapper(
            io.BufferedReader(_Decompressed(path, file)), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        try:
            names = next(csv.reader(text), None)
            # Only here, because the text is decoded past the header, where a mistake has a row number to tell.
            "".join(names or []).encode("utf-8")
            return names
        except UnicodeEncodeError:
            raise PreflightError(f"{path}, header: it is not UTF-8; save the file as UTF-8.") from None
        except (csv.Error, OSError) as error:
            raise PreflightError(f"{path}, header: it cannot be read ({short_reason(error)}); save the file again.") from None


def _csv_batches(path: str, columns: list[str] | None, keep: bool) -> Iterator[pa.Table]:
    """Reads a CSV file with every column as text, just as it stands in the file.

    Rows that don't fit the header or are not UTF-8 are refused, or kept, with what is wrong in `BAD_ROW_COLUMN`.
    """
    names = _csv_header(path)
    if names is None:
        return
    aside = _SetAside(columns or names, names)
    with _open(path) as file:
        stream = _Decompressed(path, file)
        row = 0
        try:
            reader = pa.csv.open_csv(
                pa.PythonFile(stream, mode="r"),
                # One thread, because only then does the reader know row numbers; workers read several files.
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
                parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=aside),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.binary()), null_values=[], strings_can_be_null=False,
                    include_columns=columns or names,
                ),
            )  # fmt: skip
            for batch in reader:
                if aside.rows and not keep:
                    break
                found = pa.Table.from_batches([batch])
                found = aside.put_back(_text_or_bad(found), row) if keep else _as_text(found, path, row)
                yield found
                row += found.num_rows
        except (pa.ArrowException, OSError) as error:
            if not _is_header_only(error):
                raise PreflightError(f"{path}: {_why_unreadable(error)}.") from None
    if aside.rows and not keep:
        raise PreflightError([_misfit(path, found) for found in list(aside.rows)[:_PROBLEMS_TOLD]])
    if stream.quotes % 2:
        raise PreflightError(f"{path}: a quote is opened and never closed; close it, or double quotes inside a field.")
    if aside.rows:
        yield aside.put_back(aside.nothing(), row)


class _SetAside:
    """Rows whose fields are too few or too many: set aside by Arrow's reader, and put back where they stood.

    Args:
        columns: that are read.
        names: that the header names.
    """

    def __init__(self, columns: list[str], names: list[str]):
        self._columns, self._names = columns, names
        self.rows: collections.deque[Any] = collections.deque()

    def __call__(self, row: Any) -> str:
        self.rows.append(row)
        return "skip"

    def nothing(self) -> pa.Table:
        """Returns a table of no rows."""
        return pa.table({name: pa.array([], pa.string()) for name in (*self._columns, BAD_ROW_COLUMN)})

    def put_back(self, rows: pa.Table, first_row: int) -> pa.Table:
        """Returns `rows`, of which the first is row `first_row` of the file, and among them those that were set aside."""
        due: list[Any] = []
        # Each one that is put back moves the end of this batch by a row; the last batch, of no rows, takes all.
        while self.rows and (not rows.num_rows or _row_of(self.rows[0]) < first_row + rows.num_rows + len(due)):
            due.append(self.rows.popleft())
        if not due:
            return rows
        bad = np.zeros(rows.num_rows + len(due), bool)
        bad[[_row_of(misfit) - first_row for misfit in due]] = True
        place = np.empty(len(bad), np.int64)
        place[~bad], place[bad] = np.arange(rows.num_rows), rows.num_rows + np.arange(len(due))
        return pa.concat_tables([rows, self._as_table(due)]).take(place)

    def _as_table(self, misfits: list[Any]) -> pa.Table:
        fields = [dict(zip(self._names, next(csv.reader([misfit.text]), []), strict=False)) for misfit in misfits]
        columns: dict[str, list[str]] = {name: [row.get(name, "") for row in fields] for name in self._columns}
        columns[BAD_ROW_COLUMN] = [_field_count(misfit) for misfit in misfits]
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _row_of(misfit: Any) -> int:
    """Returns the row's number, counted from 0 below the header; Arrow counts from 1, the header too."""
    return misfit.number - 2


def _field_count(misfit: Any) -> str:
    return f"there are {misfit.actual_columns} fields where the header has {misfit.expected_columns}"


def _misfit(path: str, found: Any) -> str:
    row = f", row {_row_of(found)}" if found.number else ""
    return f"{path}{row}: {_field_count(found)}; quote fields that hold commas."


def _is_header_only(error: Exception) -> bool:
    return "Empty CSV file" in str(error)


def _why_unreadable(error: Exception) -> str:
    if "straddling object" in str(error):
        most = _CSV_BLOCK_BYTES // 2**20
        return f"a row is longer than {most} MiB, or a quote is opened and never closed; shorten it, or close the quote"
    return f"it cannot be read ({short_reason(error)}); save the file again"


def _text_or_bad(batch: pa.Table) -> pa.Table:
    """Returns the batch as text; rows that are not UTF-8 have their wrong bytes replaced, and are bad."""
    text = pa.schema([(name, pa.string()) for name in batch.column_names])
    wrong: list[str | None] = [None] * batch.num_rows
    try:
        batch = batch.cast(text)
    except pa.ArrowInvalid:
        columns = {name: [value.decode("utf-8", "replace") for value in batch[name].to_pylist()] for name in text.names}
        for name in text.names:
            for row, (value, found) in enumerate(zip(batch[name].to_pylist(), columns[name], strict=True)):
                if value != found.encode():
                    wrong[row] = f"column '{name}' is not UTF-8"
        batch = pa.table(columns, text)
    return batch.append_column(BAD_ROW_COLUMN, pa.array(wrong, pa.string()))


def _as_text(batch: pa.Table, path: str, first_row: int) -> pa.Table:
    try:
        return batch.cast(pa.schema([(name, pa.string()) for name in batch.column_names]))
    except pa.ArrowInvalid:
        raise PreflightError(_undecodable(batch, path, first_row)) from None


def _undecodable(batch: pa.Table, path: str, first_row: int) -> str:
    for row, values in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True)):
        for name, value in zip(batch.column_names, values, strict=True):
            try:
                value.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}, row {first_row + row}: column '{name}' is not UTF-8 ({value[:40]!r}); save the file as UTF-8."
    return f"{path}: it is not UTF-8; save the file as UTF-8."


def _compression(path: str) -> str | None:
    return next((kind for ending, kind in _COMPRESSIONS.items() if path.endswith(ending)), None)


class _Decompressed(io.RawIOBase):
    """The bytes of a CSV file, decompressed by its name's ending; counts the quotes that pass."""

    def __init__(self, path: str, file: Any):
        super().__init__()
        kind = _compression(path)
        # Arrow's decompressors report a truncated file; those of Beam's file systems end without a word.
        self._source = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind) if kind else file
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.quotes += data.count(b'"')
        return data


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
