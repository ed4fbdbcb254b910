"""Each distinct image encoded once, by bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from batchverify.config import ScoringConfig
from batchverify.errors import RunError
from batchverify.output.embedding_store import EmbeddingStoreSession, StoredFile, current_rows, is_unchanged, retained_rows
from batchverify.pipeline.buckets import rows_by_bucket
from batchverify.pipeline.compare import IMAGES, NOT_A_NUMBER, RETAINED
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE
from batchverify.pipeline.network import (
    OK_CODE,
    EmbeddingLookupNetwork,
    NetworkLoader,
    embedding_matrix,
    encoded_images,
    no_images,
)
from batchverify.worker_stats import WorkerStats

# Columns of encoded images that no block is sent.
_NOT_SENT = ["version", "reused"]


class EncodeImages(beam.DoFn):
    """`(bucket, [(block key, table of URIs), …])` to `(block key, encoded images)` for every block that asked.

    A bucket whose embeddings are too many to hold is encoded and answered in parts, each image in one of them. A second
    output, `images`, has each distinct image once, without its embedding. Where embeddings are kept, some of the tables are
    stored rows instead, of no block; a third output, `kept`, has the rows of the next generation.

    Args:
        loader: of the network.
        config: what becomes of scores that are no numbers.
        table: where the images are put instead of into the answers, which are empty then.
        session: what the run does with a store of embeddings, or None.
        stats: is told how far it is.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader | None = None,
        session: EmbeddingStoreSession | None = None,
        stats: WorkerStats | None = None,
    ):
        self._loader, self._on_nan, self._table_loader = loader, config.on_nan, table
        self._session, self._stats = session, stats or WorkerStats()
        self._encoded = Metrics.counter("batchverify", "images_encoded")
        self._reused = Metrics.counter("batchverify", "images_reused")
        self._failed = Metrics.counter("batchverify", "images_failed")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, request: tuple[int, Iterable[tuple[str, pa.Table]]]) -> Iterator[Any]:
        bucket, found = request
        asked, stored = _apart(found)
        keys, uris, places = _distinct_requests(asked)
        parts, named = [], []
        kept: list[pa.Table] = []
        most = max(1, EMBEDDING_BYTES_AT_ONCE // self._network.embedding_bytes)
        for first in range(0, len(uris), most):
            images = self._images(uris.slice(first, most), stored)
            yield beam.pvalue.TaggedOutput(IMAGES, images.drop_columns(["embedding"]))
            if self._session is not None:
                yield from _retained(kept)  # The last rows wait for those that are carried over: one file, not two.
                kept = [current_rows(images, self._session.today)]
                named.append(kept[0]["uri"].combine_chunks())
            images = images.drop_columns([name for name in _NOT_SENT if name in images.column_names])
            if self._table is None:
                yield from _answers(keys, places, images, first)
            else:
                parts.append(images)
        if self._table is not None and keys:
            self._table.put(bucket, parts)
            yield from ((key, no_images()) for key in keys)
        if self._session is not None and stored is not None:
            others = stored.filter(pc.invert(pc.is_in(stored["uri"], value_set=pa.chunked_array(named, pa.string()))))
            kept.append(retained_rows(others, self._session.today, self._session.days))
        yield from _retained(kept)

    def _images(self, uris: pa.Array, stored: pa.Table | None) -> pa.Table:
        if self._session is None:
            images = self._network.encode(uris)
            reused = 0
        else:
            images = encode_new(uris, stored, cast(EmbeddingLookupNetwork, self._network), self._stats)
            reused = pc.sum(images["reused"]).as_py() or 0
        if self._on_nan == "fail":
            _require_finite(images)
        ok = int(np.count_nonzero(images["status"].to_numpy() == OK_CODE))
        self._encoded.inc(ok - reused)
        self._reused.inc(reused)
        self._failed.inc(len(uris) - ok)
        self._encodings.inc((ok - reused) * self._network.encodings_per_image)
        return images


def _retained(tables: list[pa.Table]) -> Iterator[Any]:
    if any(table.num_rows for table in tables):
        yield beam.pvalue.TaggedOutput(RETAINED, pa.concat_tables(tables))


def _distinct_requests(asked: Sequence[tuple[str, pa.Table]]) -> tuple[list[str], pa.Array, list[np.ndarray]]:
    """Returns the keys of blocks, the distinct URIs that they ask for, and where among these each block's are, in order.

    One pass for all blocks: looking up each block's URIs by themselves would hash all of the bucket's for each block.
    """
    if not asked:
        return [], pa.array([], pa.string()), []
    keys, tables = zip(*asked, strict=True)
    named = pa.chunked_array([table["uri"].combine_chunks() for table in tables], pa.string())
    coded = named.dictionary_encode().unify_dictionaries().chunks
    return list(keys), coded[0].dictionary, [np.sort(theirs.indices.to_numpy()) for theirs in coded]


def _answers(keys: list[str], places: list[np.ndarray], images: pa.Table, first: int) -> Iterator[tuple[str, pa.Table]]:
    """Yields for each block those of its images that are among `images`, the first of which has the place `first`."""
    for key, theirs in zip(keys, places, strict=True):
        low, high = np.searchsorted(theirs, (first, first + images.num_rows))
        if high > low:
            yield key, images.take(pa.array(theirs[low:high] - first))


def _apart(found: Iterable[tuple[str, pa.Table]]) -> tuple[list[tuple[str, pa.Table]], pa.Table | None]:
    """Returns what blocks ask for, and the stored rows of a bucket, None if there are none."""
    asked, stored = [], []
    for key, table in found:
        if "embedding" in table.column_names:
            stored.append(table)
        else:
            asked.append((key, table))
    return asked, pa.concat_tables(stored).combine_chunks() if stored else None


def encode_new(uris: pa.Array, stored: pa.Table | None, network: EmbeddingLookupNetwork, stats: WorkerStats) -> pa.Table:
    """Returns what `network.encode` would, with a column `reused`; only what is not stored or has changed is encoded.

    Args:
        uris: distinct ones.
        stored: rows of a store with the key of this run, or None.
        network: looks images up, and encodes them.
        stats: is told of images that need no encoding.
    """
    if stored is None:
        return _with_reused(network.encode(uris), False)
    place = pc.index_in(uris, value_set=stored["uri"].combine_chunks())
    known = uris.filter(place.is_valid())
    rows, now = stored.take(place.drop_null()), network.look_up(known)
    gone = now["status"].to_numpy() != OK_CODE
    same = is_unchanged(rows, now) & ~gone
    rest = pa.concat_arrays([uris.filter(place.is_null()), known.filter(pa.array(~same & ~gone))])
    stats.add(images_reused=int(same.sum()), images_failed=int(gone.sum()))
    parts = [_of_stored(rows.filter(pa.array(same))), _of_failed(now.filter(pa.array(gone)), rows["embedding"].type)]
    if len(rest):
        parts.append(_with_reused(network.encode(rest), False))
    images = pa.concat_tables([part.select(parts[0].column_names) for part in parts]).combine_chunks()
    return images.take(pc.index_in(uris, value_set=images["uri"].combine_chunks()))


def _with_reused(images: pa.Table, reused: bool) -> pa.Table:
    return images.append_column("reused", pa.array(np.full(images.num_rows, reused)))


def _of_stored(rows: pa.Table) -> pa.Table:
    embeddings = embedding_matrix(rows).reshape(rows.num_rows, rows["embedding"].type.list_size)
    images = encoded_images(
        rows["uri"].combine_chunks(),
        np.full(rows.num_rows, OK_CODE, np.int8),
        [None] * rows.num_rows,
        rows["digest"].combine_chunks(),
        rows["identity"].to_numpy(),
        embeddings,
    )
    return _with_reused(images.append_column("version", rows["version"]), True)


def _of_failed(now: pa.Table, embedding: pa.FixedSizeListType) -> pa.Table:
    count = now.num_rows
    images = encoded_images(
        now["uri"].combine_chunks(),
        now["status"].to_numpy(),
        now["error"].combine_chunks(),
        [None] * count,
        np.full(count, np.nan),
        np.zeros((count, embedding.list_size), np.float32),
    )
    return _with_reused(images.append_column("version", pa.nulls(count, pa.string())), False)


def read_stored(
    part: StoredFile, session: EmbeddingStoreSession, buckets: int, stats: WorkerStats
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Reads one file of a store, each of its rows in the bucket that its URI belongs to, beside what blocks ask for there."""
    with stats.timed("read"):
        rows = session.read(part)
        by_bucket = list(rows_by_bucket(rows["uri"].combine_chunks(), buckets))
    for bucket, places in by_bucket:
        yield bucket, ("", rows.take(places))


def write_retained(rows: pa.Table, session: EmbeddingStoreSession, stats: WorkerStats) -> list[StoredFile]:
    """Writes rows of the next generation, and returns the files that hold them."""
    with stats.timed("write"):
        return list(session.write(rows))


def _require_finite(images: pa.Table) -> None:
    ok = images["status"].to_numpy() == OK_CODE
    wrong = ok & ~np.isfinite(images["identity"].to_numpy())
    if wrong.any():
        uri = images["uri"][int(np.argmax(wrong))].as_py()
        raise RunError(f"{NOT_A_NUMBER} to {uri} against itself; check its weights, or see --on-nan keep.")
