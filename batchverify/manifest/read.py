"""Reads the shards of a manifest as blocks, in a process or in a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PBegin, PCollection

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io import arrow_coder  # noqa: F401  registers the coder of pa.Table
from batchverify.io.storage_options import with_storage_options
from batchverify.manifest.columns import changed_in_run, columns_changed
from batchverify.manifest.csv import read_csv_batches
from batchverify.manifest.labels import find_bad_label
from batchverify.manifest.parquet import read_parquet_batches
from batchverify.manifest.partitions import add_partitions
from batchverify.manifest.shard import Manifest, Shard
from batchverify.schema import BAD_ROW_COLUMN, MANIFEST_FILE, MANIFEST_ROW
from batchverify.worker_stats import WorkerStats

_BLOCK_BYTES = 64 * 2**20


class ReadManifest(beam.PTransform[PBegin, PCollection[tuple[str, pa.Table]]]):
    """Reads a manifest as blocks: `(block key, pa.Table)` with the manifest's columns, the file and the row number.

    Args:
        manifest: The manifest after its inspection.
        config: The configuration of the run.
        stats: Where the reading time is counted, or None.
    """

    def __init__(self, manifest: Manifest, config: VerificationConfig, stats: WorkerStats | None = None):
        super().__init__()
        self._manifest, self._config, self._stats = manifest, config, stats or WorkerStats()

    def expand(self, begin: PBegin) -> PCollection[tuple[str, pa.Table]]:
        blocks: PCollection[tuple[str, pa.Table]] = (
            begin
            | "List" >> beam.Create(self._manifest.shards, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.FlatMap(
                with_storage_options(read_keyed_timed), self._stats, self._manifest.without_files(), self._config
            ).with_output_types(tuple[str, pa.Table])
        )
        return blocks


def read_blocks(shard: Shard, schema: pa.Schema, config: VerificationConfig) -> Iterator[pa.Table]:
    """Reads one shard as tables of at most `config.block_rows` rows, cast to `schema`, with file and row columns.

    Raises:
        RunError: If there is a mistake beyond the rows that `plan_manifest` inspects.
    """
    row = shard.first_row
    try:
        for batch in _joined(read_batches(shard, config.bad_rows == "keep"), config.block_rows):
            rows = _rows_in_block(batch, config.block_rows)
            for start in range(0, batch.num_rows, rows):
                block = batch.slice(start, rows)
                yield _with_provenance(_cast(block, schema, shard), shard.path, row)
                row += block.num_rows
    except PreflightError as error:
        raise RunError(str(error)) from None


def read_keyed_timed(
    shard: Shard, stats: WorkerStats, manifest: Manifest, config: VerificationConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Yields the blocks of `read_keyed`, and counts the time that reading takes."""
    blocks = read_keyed(shard, manifest, config)
    while True:
        with stats.timed("read"):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def read_keyed(shard: Shard, manifest: Manifest, config: VerificationConfig) -> Iterator[tuple[str, pa.Table]]:
    """Yields the blocks of `read_blocks`, each with its key and its labels checked.

    Raises:
        RunError: As `read_blocks`, and for a value that is no label.
    """
    label, spelling = manifest.label_column, manifest.label_spelling
    for block in read_blocks(shard, manifest.schema, config):
        first_row = block[MANIFEST_ROW][0].as_py()
        if label is not None and (problem := find_bad_label(block, label, shard.path, first_row, spelling)):
            raise RunError(problem)
        yield block_key(block, shard), block


def block_key(block: pa.Table, shard: Shard) -> str:
    """Returns the key of a block of a shard: no other block of the manifest has it."""
    return f"{shard.path}#{block[MANIFEST_ROW][0].as_py()}"


def _joined(batches: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Joins batches to whole blocks, or until they have the bytes of one: fewer blocks are sent fewer copies of an image.

    Rows beyond whole blocks wait for the next batch.
    """
    waiting: list[pa.Table] = []
    rows_waiting = bytes_waiting = 0
    for batch in batches:
        waiting.append(batch)
        rows_waiting, bytes_waiting = rows_waiting + batch.num_rows, bytes_waiting + batch.nbytes
        if rows_waiting < rows and bytes_waiting < _BLOCK_BYTES:
            continue
        joined = _join(waiting)
        rest = joined.num_rows % rows if joined.num_rows > rows else 0
        yield joined.slice(0, joined.num_rows - rest)
        waiting = [joined.slice(joined.num_rows - rest)] if rest else []
        rows_waiting, bytes_waiting = rest, sum(part.nbytes for part in waiting)
    if waiting:
        yield _join(waiting)


def _join(batches: list[pa.Table]) -> pa.Table:
    return batches[0] if len(batches) == 1 else pa.concat_tables(batches).combine_chunks()


def _rows_in_block(batch: pa.Table, max_rows: int) -> int:
    """Returns how many rows a block has: at most `max_rows`, and fewer if they take much memory."""
    return max(1, min(max_rows, int(batch.num_rows) * _BLOCK_BYTES // max(1, int(batch.nbytes))))


def _with_provenance(block: pa.Table, path: str, row: int) -> pa.Table:
    # Between workers the file's name is a dictionary with one value; in the output it is text.
    files = pa.DictionaryArray.from_arrays(np.zeros(block.num_rows, np.int8), [path])
    return block.append_column(MANIFEST_FILE, files).append_column(MANIFEST_ROW, pa.array(np.arange(row, row + block.num_rows)))


# Reading files.


def read_batches(shard: Shard, keep: bool = False) -> Iterator[pa.Table]:
    """Yields the wanted rows of a shard as tables, with the columns that the folders of its file state.

    Args:
        shard: The shard.
        keep: As in `read_csv_batches`.
    """
    header = shard.csv_header
    batches = read_parquet_batches(shard) if header is None else read_csv_batches(shard.path, header, keep, shard.max_rows)
    for batch in _first_rows(batches, shard.max_rows):
        yield add_partitions(batch, shard.path)


def _first_rows(batches: Iterator[pa.Table], max_rows: int | None) -> Iterator[pa.Table]:
    """Yields the first `max_rows` rows and reads no batch beyond them; yields all rows if it is None."""
    left = max_rows
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None and (left := left - batch.num_rows) <= 0:
            return


def _cast(block: pa.Table, schema: pa.Schema, shard: Shard) -> pa.Table:
    if {*block.column_names, BAD_ROW_COLUMN} != {*shard.columns, BAD_ROW_COLUMN}:
        raise RunError(f"{shard.path}: {columns_changed(block.column_names, shard.columns)}.")
    if BAD_ROW_COLUMN in block.column_names:
        schema = schema.append(pa.field(BAD_ROW_COLUMN, pa.string()))
    for name in set(schema.names) - set(block.column_names):  # A column that only the folders of other files state.
        block = block.append_column(name, pa.nulls(block.num_rows))
    block = block.select(schema.names)
    try:
        return block if block.schema.equals(schema) else block.cast(schema)
    except pa.ArrowException as error:
        raise RunError(f"{shard.path}: {changed_in_run(short_reason(error))}.") from None
