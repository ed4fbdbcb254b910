"""The transforms that write a run: Parquet files, then the closing check of rows."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa

from batchverify.errors import RunError
from batchverify.io.storage_options import PathWithStorageOptions
from batchverify.output.embedding_store import EmbeddingStoreSession, StoredFile
from batchverify.output.run_directory import FINISHING, RunDirectory


class WriteScores(beam.PTransform):
    """Writes tables as `scores-*.parquet` and gives the files' names."""

    def __init__(self, directory: RunDirectory, schema: pa.Schema):
        super().__init__()
        self._directory, self._schema = directory, schema

    def expand(self, tables: beam.PCollection[pa.Table]) -> beam.PCollection[str]:
        return (
            tables
            | "Metadata" >> beam.Map(pa.Table.cast, self._schema).with_output_types(pa.Table)
            | "Parquet"
            >> beam.io.WriteToParquetBatched(
                PathWithStorageOptions(self._directory.scores_prefix()), self._schema, codec="zstd", file_name_suffix=".parquet"
            )
        )


def finish_run(
    _: Any,
    directory: RunDirectory,
    run_id: str,
    summary: dict[str, Any],
    report: str,
    rows_read: int,
    files: Iterable[str],
    session: EmbeddingStoreSession | None = None,
    parts: Iterable[StoredFile] = (),
) -> int:
    """Checks that every row that was read has been written, then finishes the run, and last publishes its embeddings.

    Embeddings are those of a finished run or of none: a crash between the two costs the next run its encoding, and nothing
    else. In this process a stop waits until both are done. A run with a gate that is not met publishes none.

    Args:
        directory: of the run.
        run_id: whose scores count.
        summary: what becomes of `summary.json`.
        report: what becomes of `report.html`.
        rows_read: how many rows there should be.
        files: the names that Beam gives of what it wrote. They are only waited for: where a worker dies and Beam moves
            files into place a second time, it does not name again those that were in place already.

    Raises:
        RunError: if not; there is no `_SUCCESS` then.
    """
    collections.deque(files, maxlen=0)
    rows_written = directory.count_rows(run_id)
    if not rows_read == rows_written == summary["rows"].get("total", 0):
        raise RunError(f"{rows_read} rows were read but {rows_written} written; run again, and report it if it happens again.")
    with FINISHING:
        directory.finish(run_id, summary, report)
        if session is not None and all(gate["met"] for gate in summary["gates"]):
            session.publish(parts, run_id)
    return rows_written
