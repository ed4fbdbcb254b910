"""Parquet files of scores, written by a thread while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes

_CODEC = "zstd"
_LEAST_ROWS = 100


class ScoreSink(FileBasedSink):
    """Beam's sink of tables into Parquet files.

    Beam's own sink of Parquet encodes a table while the bundle waits, which was a third of the time of a run without images.
    It also makes a dictionary of each column, which costs time and space where values hardly repeat, as row numbers do.

    Args:
        prefix: What the names of the files begin with.
        schema: The columns of the files, with the metadata to store in them.
        require_held: A function that raises an error once the run does not hold its directory any more. A thread of a run that
            was interrupted in a notebook goes on, and must not write beside the next run.
    """

    def __init__(self, prefix: Any, schema: pa.Schema, require_held: Callable[[], None]):
        super().__init__(  # type: ignore[no-untyped-call]
            prefix, coder=None, file_name_suffix=".parquet", compression_type=CompressionTypes.UNCOMPRESSED
        )
        self._schema, self._require_held = schema, require_held

    def initialize_write(self) -> str:
        """Makes the folder that files are written to first.

        Raises:
            RunError: If the run does not hold its directory any more.
        """
        self._require_held()
        return str(super().initialize_write())

    def open(self, temp_path: str) -> _WritingThread:
        """Opens a file for writing.

        Raises:
            RunError: If the run does not hold its directory any more.
        """
        self._require_held()
        return _WritingThread(super().open(temp_path), self._schema)

    def write_record(self, writer: _WritingThread, table: pa.Table) -> None:
        """Begins to write a table, once the one before it is written."""
        writer.write(table)

    def close(self, writer: _WritingThread) -> None:
        """Finishes a file."""
        writer.close()

    def pre_finalize(self, init_result: Any, writer_results: Any) -> Any:
        """Deletes files that are in the place of those that were written.

        Raises:
            RunError: If the run does not hold its directory any more.
        """
        self._require_held()
        return super().pre_finalize(init_result, writer_results)  # type: ignore[no-untyped-call]

    def finalize_write(self, init_result: Any, writer_results: Any, pre_finalize_results: Any) -> Iterator[str]:
        """Moves the files to their places, and yields their names.

        Raises:
            RunError: If the run does not hold its directory any more.
        """
        self._require_held()
        yield from super().finalize_write(init_result, writer_results, pre_finalize_results)


class _WritingThread:
    """A thread that writes tables into an open file, one at a time; whoever gives it another one waits: memory stays bounded.

    Args:
        file: The file, which `close` closes.
        schema: The columns of the tables.
    """

    def __init__(self, file: Any, schema: pa.Schema):
        self._file, self._schema = file, schema
        self._writer: pq.ParquetWriter | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: Future[None] | None = None

    def write(self, table: pa.Table) -> None:
        """Begins to write a table.

        Raises:
            OSError: If an earlier table could not be written.
        """
        self._wait()
        self._waiting = self._thread.submit(self._write_now, table)

    def close(self) -> None:
        """Waits until all is written, and closes the file.

        Raises:
            OSError: If the file could not be written.
        """
        try:
            self._wait()
            self._open(self._schema.empty_table()).close()
            self._file.close()
        finally:
            self._thread.shutdown()

    def _write_now(self, table: pa.Table) -> None:
        self._open(table).write_table(table)

    def _open(self, table: pa.Table) -> pq.ParquetWriter:
        """Returns the writer, which the first table decides."""
        if self._writer is None:
            plain = _columns_without_repeats(table)
            columns = [path for path in _leaf_paths(self._schema) if path not in plain]
            self._writer = pq.ParquetWriter(self._file, self._schema, compression=_CODEC, use_dictionary=columns)
        return self._writer

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()


def _columns_without_repeats(table: pa.Table) -> set[str]:
    """Returns the names of those columns most of whose values occur once; none if there are too few rows to know."""
    if table.num_rows < _LEAST_ROWS:
        return set()
    plain = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_plain(kind)]
    return {name for name in plain if 2 * pc.count_distinct(table[name]).as_py() > table.num_rows}


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind))


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Returns the names that Parquet has for the columns; those of lists and structs are paths."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns))]
