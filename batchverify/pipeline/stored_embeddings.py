"""The use of a store of embeddings in a run: stored rows are read by bucket, used where images are unchanged, and written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.output.embedding_rows import current_rows, is_unchanged, retained_rows
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import StoredFile
from batchverify.pipeline.buckets import rows_by_bucket
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix, encoded_images
from batchverify.pipeline.network import EmbeddingLookupNetwork
from batchverify.worker_stats import WorkerStats


def read_stored(
    file: StoredFile, session: EmbeddingStoreSession, buckets: int, stats: WorkerStats
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Yields the rows of one file of a store by bucket, in the form of the requests of `request_images`, with an empty key."""
    with stats.timed("read"):
        rows = session.read(file)
        by_bucket = list(rows_by_bucket(rows["uri"].combine_chunks(), buckets))
    for bucket, positions in by_bucket:
        yield bucket, ("", rows.take(positions))


def write_stored(rows: pa.Table, session: EmbeddingStoreSession, stats: WorkerStats) -> list[StoredFile]:
    """Writes rows of the next generation, and returns the files that hold them."""
    with stats.timed("write"):
        return list(session.write(rows))


def encode_changed(uris: pa.Array, stored: pa.Table | None, network: EmbeddingLookupNetwork, stats: WorkerStats) -> pa.Table:
    """Returns what `network.encode` returns and a column `reused`, but encodes only images that are new or have changed.

    Args:
        uris: Distinct URIs.
        stored: Rows of a store whose key is that of this run, or None.
        network: The network that looks images up and encodes them.
        stats: The counts and times of this process.
    """
    if stored is None:
        return _with_reused(network.encode(uris), False)
    positions = pc.index_in(uris, value_set=stored["uri"].combine_chunks())
    stored_uris = uris.filter(positions.is_valid())
    rows, current = stored.take(positions.drop_null()), network.look_up(stored_uris)
    has_failed = current["status"].to_numpy() != OK_CODE
    is_reused = is_unchanged(rows, current) & ~has_failed
    stats.add(images_reused=int(is_reused.sum()), images_failed=int(has_failed.sum()))
    changed = stored_uris.filter(pa.array(~is_reused & ~has_failed))
    to_encode = pa.concat_arrays([uris.filter(positions.is_null()), changed])
    tables = [
        _reused_images(rows.filter(pa.array(is_reused))),
        _failed_images(current.filter(pa.array(has_failed)), rows["embedding"].type.list_size),
        *([_with_reused(network.encode(to_encode), False)] if len(to_encode) else []),
    ]
    images = pa.concat_tables([table.select(tables[0].column_names) for table in tables]).combine_chunks()
    return images.take(pc.index_in(uris, value_set=images["uri"].combine_chunks()))


class NextGeneration:
    """The rows of one bucket for the next generation of a store, made of the images of this run and of retained rows.

    The last rows wait for `finish`, which adds the retained ones, so that both stand in one file.

    Args:
        session: The use of the store in this run.
        stored: The bucket's rows of the generation that is read, or None.
    """

    def __init__(self, session: EmbeddingStoreSession, stored: pa.Table | None):
        self._session, self._stored = session, stored
        self._current_uris: list[pa.Array] = []
        self._waiting: list[pa.Table] = []

    def add(self, images: pa.Table) -> Iterator[pa.Table]:
        """Adds encoded images, and yields the rows that waited."""
        yield from self._release()
        rows = current_rows(images, self._session.today)
        self._waiting = [rows]
        self._current_uris.append(rows["uri"].combine_chunks())

    def finish(self) -> Iterator[pa.Table]:
        """Yields the last rows, among them the stored rows whose images this run did not name or could not read."""
        if self._stored is not None:
            current = pa.chunked_array(self._current_uris, pa.string())
            others = self._stored.filter(pc.invert(pc.is_in(self._stored["uri"], value_set=current)))
            self._waiting.append(retained_rows(others, self._session.today, self._session.days))
        yield from self._release()

    def _release(self) -> Iterator[pa.Table]:
        if any(table.num_rows for table in self._waiting):
            yield pa.concat_tables(self._waiting)
        self._waiting = []


def _with_reused(images: pa.Table, is_reused: bool) -> pa.Table:
    return images.append_column("reused", pa.array(np.full(images.num_rows, is_reused)))


def _reused_images(rows: pa.Table) -> pa.Table:
    """Returns encoded images made of stored rows."""
    images = encoded_images(
        rows["uri"].combine_chunks(),
        np.full(rows.num_rows, OK_CODE, np.int8),
        [None] * rows.num_rows,
        rows["digest"].combine_chunks(),
        rows["identity"].to_numpy(),
        embedding_matrix(rows).reshape(rows.num_rows, rows["embedding"].type.list_size),
        rows["traits"].combine_chunks(),
    )
    return _with_reused(images.append_column("version", rows["version"]), True)


def _failed_images(current: pa.Table, embedding_size: int) -> pa.Table:
    """Returns encoded images, without embeddings, made of the rows of `look_up` whose status is not `ok`."""
    count = current.num_rows
    images = encoded_images(
        current["uri"].combine_chunks(),
        current["status"].to_numpy(),
        current["error"].combine_chunks(),
        [None] * count,
        np.full(count, np.nan),
        np.zeros((count, embedding_size), np.float32),
    )
    return _with_reused(images.append_column("version", pa.nulls(count, pa.string())), False)
