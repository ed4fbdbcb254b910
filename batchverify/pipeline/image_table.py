"""All encoded images of a run, for workers that share one process."""

from __future__ import annotations

import dataclasses
import functools
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.shared import Shared

from batchverify.errors import RunError
from batchverify.pipeline.buckets import split_by_bucket
from batchverify.pipeline.encoded_images import no_encoded_images


class ImageTable:
    """All encoded images of a run, by bucket. Workers that share one process look into it, so no image is sent to a block.

    Args:
        buckets: The number of buckets.
    """

    def __init__(self, buckets: int):
        self._by_bucket: list[pa.Table | None] = [None] * buckets

    def put(self, bucket: int, tables: list[pa.Table]) -> None:
        """Stores the encoded images of one bucket."""
        self._by_bucket[bucket] = pa.concat_tables(tables)

    def look_up(self, uris: pa.Array) -> pa.Table:
        """Returns the encoded images of distinct `uris`, in any order."""
        tables = []
        for bucket, bucket_uris in split_by_bucket(uris, len(self._by_bucket)):
            images = self._by_bucket[bucket]
            if images is None:
                raise RunError("a block is compared before its images are encoded; this is a fault of this program.")
            tables.append(images.take(pc.index_in(bucket_uris, value_set=images["uri"])))
        return pa.concat_tables(tables).combine_chunks() if tables else no_encoded_images()


@dataclasses.dataclass(frozen=True)
class ImageTableLoader:
    """Makes one `ImageTable` in a process and shares it between threads and DoFns.

    The table lives as long as something refers to it, so whoever runs the pipeline keeps the result of `get`.

    Attributes:
        buckets: The number of buckets.
    """

    buckets: int
    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> ImageTable:
        """Returns the table of this process, made by the first call."""
        return cast(ImageTable, self._shared.acquire(functools.partial(ImageTable, self.buckets)))
