"""The run directory: scores in Parquet, a summary, and `_SUCCESS` once both are whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.config import Refused, RunFailed

_SUCCESS, _SUMMARY, _SCORES = "_SUCCESS", "summary.json", "scores"


class RunDirectory:
    """Where a run writes. It holds one run's files, or none.

    Args:
        path: a directory on any file system that Beam opens.
    """

    def __init__(self, path: str):
        self.path = path.rstrip("/") or "/"

    def refuse_finished(self, overwrite: bool) -> None:
        """Refuses a directory with a finished run in it, unless it may be overwritten; changes nothing.

        Raises:
            Refused: with the remedy.
        """
        try:
            if not overwrite and FileSystems.exists(self._join(_SUCCESS)):
                raise Refused(f"--output {self.path} holds a finished run; name another directory, or add --overwrite.")
        except Refused:
            raise
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise Refused(f"--output {self.path} cannot be looked up ({_brief(error)}); check the path.") from None

    def prepare(self) -> None:
        """Makes the directory and sweeps whatever an earlier run left, `_SUCCESS` first.

        Raises:
            RunFailed: if the directory cannot be written to.
        """
        try:
            FileSystems.mkdirs(self.path) if not FileSystems.exists(self.path) else None
            if FileSystems.exists(self._join(_SUCCESS)):
                FileSystems.delete([self._join(_SUCCESS)])
            leftovers = [self._join(_SUMMARY)] if FileSystems.exists(self._join(_SUMMARY)) else []
            leftovers += [found.path for found in self._match(f"{_SCORES}-*.parquet")]
            leftovers += [found.path for found in self._match(f"beam-temp-{_SCORES}-*")]
            leftovers += sorted({found.path.rsplit("/", 1)[0] for found in self._match(f"beam-temp-{_SCORES}-*/*")})
            FileSystems.delete(sorted(set(leftovers)))
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunFailed(f"--output {self.path} cannot be written ({_brief(error)}); check the path.") from None

    def scores_prefix(self) -> str:
        return self._join(_SCORES)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary, then `_SUCCESS`."""
        self._write(_SUMMARY, json.dumps(summary, indent=2) + "\n")
        self._write(_SUCCESS, "")

    def read_summary(self) -> dict[str, Any]:
        with FileSystems.open(self._join(_SUMMARY)) as file:
            return json.loads(file.read())

    def is_finished(self) -> bool:
        return FileSystems.exists(self._join(_SUCCESS))

    def _join(self, name: str) -> str:
        return FileSystems.join(self.path, name)

    def _match(self, pattern: str) -> list[FileMetadata]:
        return FileSystems.match([self._join(pattern)])[0].metadata_list

    def _write(self, name: str, text: str) -> None:
        with FileSystems.create(self._join(name), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(text.encode())


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
                self._directory.scores_prefix(), self._schema, codec="zstd", file_name_suffix=".parquet"
            )
        )


def count_written_rows(path: str) -> int:
    """Returns how many rows a finished Parquet file holds, by its footer."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return pq.read_metadata(file).num_rows


def finish_run(_, directory: RunDirectory, summary: dict[str, Any], rows_read: int, files: Iterable[str]) -> int:
    """Checks that every row that was read has been written, then finishes the run.

    Raises:
        RunFailed: if not; there is no `_SUCCESS` then.
    """
    rows_written = sum(count_written_rows(path) for path in files)
    if not rows_read == rows_written == summary["rows"].get("total", 0):
        raise RunFailed(f"{rows_read} rows were read but {rows_written} written; run again, and report it if it happens again.")
    directory.finish(summary)
    return rows_written


def _brief(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
