"""The use of a store of embeddings in a run: stored rows are read by bucket, used where images are unchanged, and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.output.embedding_rows import current_rows, has_recent_date, is_unchanged, retained_rows
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import StoredFile
from batchverify.pipeline.buckets import rows_by_bucket
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix, encoded_images
from batchverify.pipeline.network import EmbeddingLookupNetwork
from batchverify.schema import is_score
from batchverify.worker_stats import WorkerStats

# A part is written each half second at first, and later each hundredth of the time that a worker has worked: a kill costs
# one part, and the number of parts stays small.
_FIRST_PART_S, _LAST_PART_S, _PART_SHARE = 0.5, 30.0, 0.01
# The column that tells from which file a stored row comes, as `EmbeddingStoreSession.files` numbers them.
_FILE_NUMBER = "file_number"


def read_stored(
    element: tuple[int, StoredFile], session: EmbeddingStoreSession, buckets: int, stats: WorkerStats
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Yields the rows of one file of a store by bucket, in the form of the requests of `request_images`, with an empty key."""
    number, file = element
    with stats.timed("read"):
        rows = session.read(number, file)
        rows = rows.append_column(_FILE_NUMBER, pa.array(np.full(rows.num_rows, number, np.int32)))
        by_bucket = list(rows_by_bucket(rows["uri"].combine_chunks(), buckets))
    for bucket, positions in by_bucket:
        yield bucket, ("", rows.take(positions))


class PartClock:
    """Tells when the images that a worker has encoded are to be written as a part."""

    def __init__(self) -> None:
        self._started = self._written = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether a part is due, and counts the time to the next one from now if it is."""
        now = time.monotonic()
        pause_s = min(_LAST_PART_S, max(_FIRST_PART_S, _PART_SHARE * (now - self._started)))
        if now - self._written < pause_s:
            return False
        self._written = now
        return True


class StoredBucket:
    """One bucket of a store: its rows that are read, and those that a run adds.

    What is encoded is written in parts, so that a run that is killed loses no more than the last one. When the bucket is done,
    one file takes the place of the parts. If the run writes the whole store anew, it has all rows of the bucket; else it has
    those that no published file has.

    The last rows wait for `finish`, which adds the retained ones, so that both stand in one file.

    Args:
        session: The use of the store in this run.
        stored: The bucket's rows that were read, or None.
        clock: Tells when a part is due.
        stats: The counts and times of this process.
    """

    def __init__(self, session: EmbeddingStoreSession, stored: pa.Table | None, clock: PartClock, stats: WorkerStats):
        self._session, self._clock, self._stats = session, clock, stats
        self._stored = None if stored is None else _newest(stored)
        self._published_uris = self._settled_uris = pa.array([], pa.string())
        if stored is not None and self._stored is not None:
            self._published_uris = stored["uri"].filter(self._is_published(stored)).combine_chunks()
            is_settled = pc.and_(self._is_published(self._stored), has_recent_date(self._stored, session.today))
            self._settled_uris = self._stored["uri"].filter(is_settled).combine_chunks()
        self._current_uris: list[pa.Array] = []
        self._waiting: list[pa.Table] = []
        self._parts: set[str] = set()
        self._kept: set[str] = set()

    def encode(self, uris: pa.Array, network: EmbeddingLookupNetwork) -> pa.Table:
        """Returns what `network.encode` returns and a column `reused`, but encodes only images that are new or have changed.

        Args:
            uris: Distinct URIs of the bucket.
            network: The network that looks images up and encodes them.
        """
        return encode_changed(uris, self._stored, network, self._stats, self._encode_in_parts)

    def add(self, images: pa.Table) -> Iterator[StoredFile]:
        """Adds encoded images, and yields the files with the rows that waited."""
        yield from self._release()
        is_kept = pc.equal(images["status"], OK_CODE)
        self._current_uris.append(images["uri"].filter(is_kept).combine_chunks())
        if not self._session.writes_all:
            is_settled = pc.and_(images["reused"], pc.is_in(images["uri"], value_set=self._settled_uris))
            is_kept = pc.and_not(is_kept, is_settled)
        self._waiting = [current_rows(images.filter(is_kept), self._session.today)]

    def finish(self) -> Iterator[StoredFile]:
        """Yields the files with the last rows, among them stored rows whose images this run did not name or could not read."""
        if self._stored is not None:
            current = pa.chunked_array(self._current_uris, pa.string())
            others = self._stored.filter(pc.invert(pc.is_in(self._stored["uri"], value_set=current)))
            if not self._session.writes_all:
                others = others.filter(pc.invert(self._is_published(others)))
            others = others.drop_columns([_FILE_NUMBER])
            self._waiting.append(retained_rows(others, self._session.today, self._session.days))
        files = list(self._release())
        # A part that has all that could be read is equal to the file that takes its place.
        if doomed := self._parts - self._kept:
            self._session.delete(doomed)
        yield from files

    def _is_published(self, stored: pa.Table) -> pa.ChunkedArray:
        return pc.less(stored[_FILE_NUMBER], self._session.published_files)

    def _encode_in_parts(self, uris: pa.Array, network: EmbeddingLookupNetwork) -> pa.Table:
        """Encodes images, and writes those that are ready whenever a part is due. The last ones are soon written anyway."""
        tables: list[pa.Table] = []
        for images in network.encode_parts(uris, self._clock.is_due):
            tables.append(images)
            if sum(map(len, tables)) < len(uris):
                self._write_part(images)
        return pa.concat_tables(tables).combine_chunks()

    def _write_part(self, images: pa.Table) -> None:
        # With what is no score, --on-nan may fail the run: the next one must not find it here.
        rows = current_rows(images.filter(pa.array(is_score(images["identity"].to_numpy()))), self._session.today)
        with self._stats.timed("write"):
            self._parts |= {file.path for file in self._session.write(rows)}

    def _release(self) -> Iterator[StoredFile]:
        if any(table.num_rows for table in self._waiting):
            rows = pa.concat_tables(self._waiting)
            is_replacing = pc.is_in(rows["uri"], value_set=self._published_uris)
            replaced = 0 if self._session.writes_all else pc.sum(is_replacing).as_py()
            with self._stats.timed("write"):
                files = list(self._session.write(rows, replaced))
            self._kept |= {file.path for file in files}
            yield from files
        self._waiting = []


def encode_changed(
    uris: pa.Array,
    stored: pa.Table | None,
    network: EmbeddingLookupNetwork,
    stats: WorkerStats,
    encode: Callable[[pa.Array, EmbeddingLookupNetwork], pa.Table],
) -> pa.Table:
    """Returns what `network.encode` returns and a column `reused`, but encodes only images that are new or have changed.

    Args:
        uris: Distinct URIs.
        stored: Rows of a store whose key is that of this run, one for an image, or None.
        network: The network that looks images up and encodes them.
        stats: The counts and times of this process.
        encode: Returns what `network.encode` returns.
    """
    if stored is None:
        return _with_reused(encode(uris, network), False)
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
        *([_with_reused(encode(to_encode, network), False)] if len(to_encode) else []),
    ]
    images = pa.concat_tables([table.select(tables[0].column_names) for table in tables]).combine_chunks()
    return images.take(pc.index_in(uris, value_set=images["uri"].combine_chunks()))


def _newest(stored: pa.Table) -> pa.Table:
    """Returns the rows of the newest files only, one for each image."""
    if pc.count_distinct(stored["uri"]).as_py() == stored.num_rows:
        return stored
    order = np.argsort(stored[_FILE_NUMBER].to_numpy(), kind="stable")
    is_older = pd.Index(stored["uri"].take(pa.array(order)).to_pandas()).duplicated(keep="last")
    return stored.take(pa.array(order[~is_older])).combine_chunks()


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
