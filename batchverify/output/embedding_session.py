"""What one run does with a store of embeddings: it reads what is there, writes what is new at once, and publishes it."""

from __future__ import annotations

import dataclasses
import datetime
import io
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import RunError, short_reason
from batchverify.io.filesystem import read_bytes, write_whole
from batchverify.output.embedding_rows import stored_schema
from batchverify.output.embedding_store import REBUILD_REMEDY, EmbeddingStore, Published, StoredFile, file_name, new_folder

_LOG = logging.getLogger(__name__)
_FILE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class EmbeddingStoreSession:
    """What one run does with a store.

    Attributes:
        path: The directory of the store.
        version: One of `config.EMBEDDING_VERSIONS`: what shows that an image is unchanged.
        key: The key of the embeddings that this run makes.
        published: What is published and is read, or None.
        ignored: The reason why what is published is not read; None if it is read, or if there is nothing.
        today: The date of the run.
        days: The number of days after which a row that no run has used is dropped; None to keep all rows.
        unfinished: The files with the same key that runs left which did not finish.
        is_rebuild: Whether nothing is read, and the store is replaced.
        folder: The folder that this run writes to; by default a new one.
    """

    path: str
    version: str
    key: dict[str, Any]
    published: Published | None
    ignored: str | None
    today: datetime.date
    days: int | None = None
    unfinished: tuple[StoredFile, ...] = ()
    is_rebuild: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.folder:
            object.__setattr__(self, "folder", new_folder(self.key))

    @property
    def rows(self) -> int:
        """The number of embeddings that are read; an image that several unfinished runs have encoded counts for each."""
        return (self.published.rows if self.published else 0) + self.unfinished_rows

    @property
    def unfinished_rows(self) -> int:
        """The number of embeddings that are read of runs which did not finish."""
        return 0 if self.is_rebuild else sum(file.rows for file in self.unfinished)

    @property
    def published_files(self) -> int:
        """The number of files that are published and read."""
        return len(self.published.files) if self.published else 0

    @property
    def writes_all(self) -> bool:
        """Whether this run writes the whole store anew, instead of adding to it."""
        return self.published is None or self.published.is_due(self.today)

    def files(self) -> list[tuple[int, StoredFile]]:
        """Returns the files to read, numbered from older ones to newer ones; those from `published_files` on are unfinished."""
        unfinished = () if self.is_rebuild else self.unfinished
        return list(enumerate((*(self.published.files if self.published else ()), *unfinished)))

    def read(self, number: int, file: StoredFile) -> pa.Table:
        """Returns the rows of one file, with the columns of `stored_schema`; none of an unfinished file that is torn.

        Args:
            number: The file's number among `files`.
            file: The file.

        Raises:
            RunError: If it is published, and is not the file that was written.
        """
        try:
            return pq.read_table(io.BytesIO(self._read_whole(file)))
        except RunError as error:
            if number < self.published_files:
                raise
            _LOG.warning("%s It is of a run that did not finish, and is left out.", error)
            return _no_rows(self.key)

    def write(self, rows: pa.Table, replaced: int = 0) -> Iterator[StoredFile]:
        """Writes rows and yields the files.

        The same rows always make the same files. A retried bundle may leave files that nobody lists; only listed files count.

        Args:
            rows: Rows with the columns of `stored_schema`.
            replaced: The number of published rows that do not count any more because of them.

        Raises:
            RunError: If they cannot be written.
        """
        file_rows = max(1, _FILE_BYTES * max(1, rows.num_rows) // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, file_rows):
            yield self._write_file(rows.slice(start, file_rows), replaced if start == 0 else 0)

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes files of this run that others have taken the place of; those that stay are deleted at the end of the run."""
        try:
            FileSystems.delete([FileSystems.join(self.path, path) for path in paths])
        except Exception as error:  # Beam wraps whatever the store's client raises.
            _LOG.info("--embeddings %s: some files stay until the end of the run (%s).", self.path, short_reason(error))

    def publish(self, files: Iterable[StoredFile], run_id: str) -> None:
        """Makes the files that this run has written count, and deletes those that do not any more.

        A failure is logged, and fails no run: the next run uses what this one has encoded.
        """
        own = tuple(dict.fromkeys(files))
        if not self.writes_all and not own and not self.unfinished:
            return
        try:
            EmbeddingStore(self.path).publish(self._next(own), self._before(), self.unfinished, run_id)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            _LOG.error(
                "--embeddings %s: the scores are whole, but the new embeddings could not be published (%s); "
                "the store is as it was.", self.path, short_reason(error),
            )  # fmt: skip

    def _next(self, own: tuple[StoredFile, ...]) -> Published:
        """Returns what is published from the end of this run on."""
        if self.published is None or self.writes_all:
            return Published(self.folder, self.folder, self.today, self.key, own)
        return dataclasses.replace(self.published, folder=self.folder, files=(*self.published.files, *own))

    def _before(self) -> str | None:
        return self.published.folder if self.published else None

    def _write_file(self, rows: pa.Table, replaced: int) -> StoredFile:
        data = _to_parquet(rows)
        file = StoredFile(self.folder, file_name(data), len(data), rows.num_rows, replaced)
        try:
            write_whole(FileSystems.join(self.path, file.folder, file.name), data)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(f"--embeddings {self.path} cannot be written ({short_reason(error)}); check the path.") from None
        return file

    def _read_whole(self, file: StoredFile) -> bytes:
        try:
            data = read_bytes(FileSystems.join(self.path, file.folder, file.name))
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(
                f"--embeddings {self.path}: {file.name} cannot be read ({short_reason(error)}); "
                f"another run may have replaced it: run again, {REBUILD_REMEDY}."
            ) from None
        if file_name(data) != file.name:
            raise RunError(f"--embeddings {self.path}: {file.name} is damaged; restore it, {REBUILD_REMEDY}.")
        return data


def _to_parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", use_dictionary=False, use_byte_stream_split=["embedding.list.element"])
    return sink.getvalue()


def _no_rows(key: dict[str, Any]) -> pa.Table:
    return stored_schema(int(key["embedding_size"])).empty_table()
