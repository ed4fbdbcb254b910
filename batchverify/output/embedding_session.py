"""What one run does with a store of embeddings: it reads one generation, writes the next one, and publishes it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import logging
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import RunError, short_reason
from batchverify.io.filesystem import read_bytes, write_bytes
from batchverify.output.embedding_store import REBUILD_REMEDY, EmbeddingStore, Generation, StoredFile

_LOG = logging.getLogger(__name__)
_FILE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class EmbeddingStoreSession:
    """What one run does with a store.

    Attributes:
        path: The directory of the store.
        version: One of `config.EMBEDDING_VERSIONS`: what shows that an image is unchanged.
        key: The key of the embeddings that this run makes.
        stored: The generation to read, or None.
        ignored: The reason why the generation that lies there is not read; None if it is read, or if there is none.
        today: The date of the run.
        days: The number of days after which a row that no run has used is dropped; None to keep all rows.
        generation: The folder of the generation that this run writes.
    """

    path: str
    version: str
    key: dict[str, Any]
    stored: Generation | None
    ignored: str | None
    today: datetime.date
    days: int | None = None
    generation: str = dataclasses.field(default_factory=lambda: f"embeddings-{uuid.uuid4().hex}")

    @property
    def rows(self) -> int:
        """The number of embeddings that are read."""
        return self.stored.rows if self.stored else 0

    def files(self) -> tuple[StoredFile, ...]:
        """Returns the files to read."""
        return self.stored.files if self.stored else ()

    def read(self, file: StoredFile) -> pa.Table:
        """Returns the rows of one file, with the columns of `stored_schema`.

        Raises:
            RunError: If it is not the file that was written.
        """
        data = self._read_bytes(file)
        if len(data) != file.bytes or hashlib.blake2b(data, digest_size=16).hexdigest() != file.digest:
            raise RunError(f"--embeddings {self.path}: {file.name} is damaged; restore it, {REBUILD_REMEDY}.")
        return pq.read_table(io.BytesIO(data))

    def write(self, rows: pa.Table) -> Iterator[StoredFile]:
        """Writes rows of the next generation and yields the files.

        A retried bundle may leave files that nobody lists; only listed files are read.

        Raises:
            RunError: If they cannot be written.
        """
        file_rows = max(1, _FILE_BYTES * max(1, rows.num_rows) // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, file_rows):
            yield self._write_file(rows.slice(start, file_rows))

    def publish(self, files: Iterable[StoredFile], run_id: str) -> None:
        """Makes the new generation the store's own and deletes the one before. A failure is logged, and fails no run."""
        try:
            EmbeddingStore(self.path).publish(self.generation, self.key, tuple(files), run_id)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            _LOG.error(
                "--embeddings %s: the scores are whole, but the new embeddings could not be published (%s); "
                "the store is as it was.", self.path, short_reason(error),
            )  # fmt: skip

    def _write_file(self, rows: pa.Table) -> StoredFile:
        data, name = _to_parquet(rows), f"part-{uuid.uuid4().hex}.parquet"
        try:
            write_bytes(FileSystems.join(self.path, self.generation, name), data)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(f"--embeddings {self.path} cannot be written ({short_reason(error)}); check the path.") from None
        return StoredFile(name, len(data), rows.num_rows, hashlib.blake2b(data, digest_size=16).hexdigest())

    def _read_bytes(self, file: StoredFile) -> bytes:
        assert self.stored is not None
        try:
            return read_bytes(FileSystems.join(self.path, self.stored.name, file.name))
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(
                f"--embeddings {self.path}: {file.name} cannot be read ({short_reason(error)}); "
                f"another run may have replaced it: run again, {REBUILD_REMEDY}."
            ) from None


def _to_parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", use_dictionary=False, use_byte_stream_split=["embedding.list.element"])
    return sink.getvalue()
