"""The transforms that write a run: the Parquet files of the scores, then the last step, which checks and finishes the run."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.iobase import Write
from apache_beam.pvalue import PCollection

from batchverify.errors import RunError
from batchverify.io.storage_options import PathWithStorageOptions, with_storage_options
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import StoredFile
from batchverify.output.run_directory import FINISHING, RunDirectory
from batchverify.output.score_sink import ScoreSink
from batchverify.tracing import span


class WriteScores(beam.PTransform[PCollection[pa.Table], PCollection[str]]):
    """Writes tables as `scores-*.parquet` and gives the names of the files.

    Args:
        directory: The directory of the run.
        run_id: The run. Once it does not hold the directory any more, nothing is written there.
        schema: The columns of the files, with the metadata to store in them.
    """

    def __init__(self, directory: RunDirectory, run_id: str, schema: pa.Schema):
        super().__init__()
        self._directory, self._schema = directory, schema
        self._require_held = with_storage_options(functools.partial(directory.require_held_by, run_id))

    def expand(self, tables: PCollection[pa.Table]) -> PCollection[str]:
        prefix = PathWithStorageOptions(self._directory.scores_prefix())
        files: PCollection[str] = (
            tables
            | "Metadata" >> beam.Map(pa.Table.cast, self._schema).with_output_types(pa.Table)
            | "Parquet" >> Write(ScoreSink(prefix, self._schema, self._require_held))
        )
        return files


class FinishRun(beam.DoFn):
    """Checks that every row that was read has been written, finishes the run, and then publishes its embeddings.

    Embeddings are published only after the run has finished. If the process dies between the two steps, the next run finds them
    where this run has written them. A gate that is not met puts scores in doubt, and not embeddings, so they are published.

    Args:
        directory: The directory of the run.
        run_id: The run whose scores count.
        session: What the run does with a store of embeddings, or None without a store.
    """

    def __init__(self, directory: RunDirectory, run_id: str, session: EmbeddingStoreSession | None = None):
        self._run_id, self._session = run_id, session
        self._has_finished = with_storage_options(directory.has_finished)
        self._count_rows = with_storage_options(directory.count_rows)
        self._finish = with_storage_options(directory.finish)

    def process(
        self,
        _: Any,
        summary: dict[str, Any],
        report: str,
        rows_read: int,
        score_files: Iterable[str],
        stored_files: Iterable[StoredFile] = (),
    ) -> None:
        """Finishes the run.

        Args:
            _: The only element; the run is finished once.
            summary: The content of `_summary.json`.
            report: The content of `_report.html`.
            rows_read: The number of rows that the manifest had.
            score_files: The names of the files that Beam wrote. They are only waited for: if a worker dies and Beam moves
                files into place a second time, it does not name the files that were in place already.
            stored_files: The files that were written to the store of embeddings.

        Raises:
            RunError: If the numbers of rows differ; there is no `_SUCCESS` then.
        """
        collections.deque(score_files, maxlen=0)
        if not self._has_finished(self._run_id):  # Otherwise this is another try, and the files are where they belong.
            check_row_counts(rows_read, self._count_rows(self._run_id), summary["rows"].get("total", 0))
        with FINISHING:  # A stop of this process waits until both steps are done.
            with span("finish"):
                self._finish(self._run_id, summary, report)
            if self._session is not None:
                self._session.publish(stored_files, self._run_id)


def check_row_counts(rows_read: int, rows_written: int, rows_summarised: int) -> None:
    """Refuses a run that has lost or doubled a row.

    Raises:
        RunError: If the numbers differ.
    """
    if not rows_read == rows_written == rows_summarised:
        raise RunError(f"{rows_read} rows were read but {rows_written} written; run again, and report it if it happens again.")
