"""Parquet files of scores, written by a thread while the run goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes

from batchverify.schema import MANIFEST_ROW

_CODEC = "zstd"


class ScoreSink(FileBasedSink):
    """Beam's sink of tables into Parquet files.

    Beam's own sink of Parquet encodes a table while the bundle waits, which was a third of the time of a run without images.
    It also looks for repeated values in the column of row numbers, where there are none.

    Args:
        prefix: What the names of the files begin with.
        schema: The columns of the files, with the metadata to store in them.
    """

    def __init__(self, prefix: Any, schema: pa.Schema):
        super().__init__(  # type: ignore[no-untyped-call]
            prefix, coder=None, file_name_suffix=".parquet", compression_type=CompressionTypes.UNCOMPRESSED
        )
        self._schema = schema

    def open(self, temp_path: str) -> _WritingThread:
        """Opens a file for writing."""
        return _WritingThread(super().open(temp_path), self._schema)

    def write_record(self, writer: _WritingThread, table: pa.Table) -> None:
        """Begins to write a table, once the one before it is written."""
        writer.write(table)

    def close(self, writer: _WritingThread) -> None:
        """Finishes a file."""
        writer.close()


class _WritingThread:
    """A thread that writes tables into an open file, one at a time; at most one more waits, so that memory stays bounded.

    Args:
        file: The file, which `close` closes.
        schema: The columns of the tables.
    """

    def __init__(self, file: Any, schema: pa.Schema):
        self._file = file
        dictionary = [path for path in _leaf_paths(schema) if path != MANIFEST_ROW]
        self._writer = pq.ParquetWriter(file, schema, compression=_CODEC, use_dictionary=dictionary)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: Future[None] | None = None

    def write(self, table: pa.Table) -> None:
        """Begins to write a table.

        Raises:
            OSError: If an earlier table could not be written.
        """
        self._wait()
        self._waiting = self._thread.submit(self._writer.write_table, table)

    def close(self) -> None:
        """Waits until all is written, and closes the file.

        Raises:
            OSError: If the file could not be written.
        """
        try:
            self._wait()
            self._writer.close()
            self._file.close()
        finally:
            self._thread.shutdown()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Returns the names that Parquet has for the columns; those of lists and structs are paths."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns))]
