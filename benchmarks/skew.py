"""Skewed manifests: one image or one bucket has all the work, or one block has almost none.

Each function returns the files of a manifest as tables with the columns `left` and `right`. They have `pairs` rows in all, and
at most `images` distinct images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from batchverify.config import ScoringConfig
from batchverify.pipeline.buckets import bucket_count, request_images

HOT = "/images/hot.jpg"


def names(images: int) -> pa.Array:
    """Returns the URIs of `images` images."""
    return pa.array([f"/images/{number:08d}.jpg" for number in range(images)])


def names_in_one_bucket(images: int, buckets: int) -> pa.Array:
    """Returns the URIs of `images` images that all belong to the first of `buckets` buckets."""
    candidates = names(images * (buckets + 1) + 1000)
    table = pa.table({"left": candidates, "right": candidates})
    for bucket, (_, requested) in request_images(("all", table), ScoringConfig(), buckets):
        if bucket == 0 and requested.num_rows >= images:
            return requested["uri"].combine_chunks().slice(0, images)
    raise ValueError(f"fewer than {images} of {len(candidates)} names belong to the first of {buckets} buckets")


def uniform(pairs: int, images: int) -> list[pa.Table]:
    """Returns random pairs."""
    return [_random(pairs, names(images))]


def hot_image(pairs: int, images: int) -> list[pa.Table]:
    """Returns pairs that all have the same left image."""
    table = _random(pairs, names(images))
    return [table.set_column(0, "left", _repeated(HOT, pairs))]


def one_image(pairs: int, images: int) -> list[pa.Table]:
    """Returns pairs of which the first half compares one image with itself."""
    half = pairs // 2
    same = pa.table({"left": _repeated(HOT, half), "right": _repeated(HOT, half)})
    return [same, _random(pairs - half, names(images))]


def hot_bucket(pairs: int, images: int) -> list[pa.Table]:
    """Returns pairs whose images all belong to one of the buckets that a run with `images` images has."""
    return [_random(pairs, names_in_one_bucket(images, bucket_count(images)))]


def short_block(pairs: int, images: int) -> list[pa.Table]:
    """Returns pairs in two files, of which the first has one row and so makes a block of one row."""
    table = _random(pairs, names(images))
    return [table.slice(0, 1), table.slice(1)]


CASES: dict[str, Callable[[int, int], list[pa.Table]]] = {
    "uniform": uniform, "hot image": hot_image, "one image": one_image, "hot bucket": hot_bucket, "short block": short_block,
}  # fmt: skip


def _random(pairs: int, uris: pa.Array, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table({side: uris.take(pa.array(rng.integers(len(uris), size=pairs))) for side in ("left", "right")})


def _repeated(uri: str, times: int) -> pa.Array:
    return pa.repeat(pa.scalar(uri), times)
