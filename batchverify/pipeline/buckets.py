"""Which distinct images a block needs, and the bucket of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from batchverify.config import ScoringConfig
from batchverify.manifest.columns import pair_uris


def request_images(
    element: tuple[str, pa.Table], config: ScoringConfig, buckets: int
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Asks for the distinct images of a block, each in the bucket that its URI belongs to."""
    key, block = element
    for bucket, uris in split_by_bucket(distinct_uris(block, config), buckets):
        yield bucket, (key, pa.table({"uri": uris}))


def distinct_uris(block: pa.Table, config: ScoringConfig) -> pa.Array:
    left, right = pair_uris(block, config)
    return pa.chunked_array([*left.chunks, *right.chunks], pa.string()).unique().drop_null()


def split_by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Splits distinct URIs by the bucket that each belongs to."""
    for bucket, places in rows_by_bucket(uris, buckets):
        yield bucket, uris.take(places)


def rows_by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Yields buckets, and the places in `uris` of those that belong to each."""
    bucket = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False) % buckets
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    for number in np.unique(bucket):
        yield int(number), pa.array(order[bounds[number] : bounds[number + 1]])
