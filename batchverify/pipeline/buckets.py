"""Buckets of images: how many there are, which images a block needs, and the bucket of each of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from batchverify.config import ScoringConfig
from batchverify.manifest.columns import pair_uris, require_columns
from batchverify.manifest.text_hashes import hash_text

_IMAGES_PER_BUCKET = 4096
_MAX_BUCKETS = 4096


def bucket_count(expected_images: int) -> int:
    """Returns the number of buckets for about `expected_images` distinct images."""
    return max(1, min(_MAX_BUCKETS, -(-expected_images // _IMAGES_PER_BUCKET)))


def request_images(
    element: tuple[str, pa.Table], config: ScoringConfig, buckets: int
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Yields the requests of a block for its distinct images: `(bucket, (block key, table of URIs))`."""
    key, block = element
    require_columns(block.column_names, config)
    for bucket, uris in split_by_bucket(distinct_uris(block, config), buckets):
        yield bucket, (key, pa.table({"uri": uris}))


def distinct_uris(block: pa.Table, config: ScoringConfig) -> pa.Array:
    """Returns the distinct URIs of a block's images, without null."""
    left, right = pair_uris(block, config)
    return pa.chunked_array([*left.chunks, *right.chunks], pa.string()).unique().drop_null()


def split_by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Yields `(bucket, URIs)` for each bucket that some of `uris` belong to."""
    for bucket, rows in rows_by_bucket(uris, buckets):
        yield bucket, uris.take(rows)


def rows_by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Yields `(bucket, positions in uris)` for each bucket that some of `uris` belong to."""
    yield from rows_of_hashes(hash_text(uris), buckets)


def rows_of_hashes(hashes: np.ndarray, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Yields what `rows_by_bucket` does, from the hashes of the URIs, uint64 `(n,)`."""
    bucket_of = hashes % np.uint64(buckets)
    order = np.argsort(bucket_of, kind="stable")
    bounds = np.searchsorted(bucket_of[order], np.arange(buckets + 1))
    for bucket in np.unique(bucket_of):
        yield int(bucket), pa.array(order[bounds[bucket] : bounds[bucket + 1]])
