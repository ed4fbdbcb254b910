"""All encoded images of a run, for workers that share one process."""

from __future__ import annotations

import dataclasses
import functools

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.utils.shared import Shared

from batchverify.errors import RunError
from batchverify.pipeline.buckets import split_by_bucket
from batchverify.pipeline.network import no_images


class ImageTable:
    """All encoded images of a run, by bucket, for workers that share one process: they need not travel to each block.

    Args:
        buckets: how many there are.
    """

    def __init__(self, buckets: int):
        self._by_bucket: list[pa.Table | None] = [None] * buckets

    def put(self, bucket: int, parts: list[pa.Table]) -> None:
        """Keeps the encoded images of one bucket."""
        self._by_bucket[bucket] = pa.concat_tables(parts)

    def find(self, uris: pa.Array) -> pa.Table:
        """Returns the encoded images of distinct `uris`, in another order."""
        found = []
        for bucket, theirs in split_by_bucket(uris, len(self._by_bucket)):
            images = self._by_bucket[bucket]
            if images is None:
                raise RunError("a block is compared before its images are encoded; this is a fault of this program.")
            found.append(images.take(pc.index_in(theirs, value_set=images["uri"])))
        return pa.concat_tables(found).combine_chunks() if found else no_images()


@dataclasses.dataclass(frozen=True)
class ImageTableLoader:
    """Makes one `ImageTable` in a process and shares it between threads and DoFns; it lives as long as somebody holds it.

    Attributes:
        buckets: how many there are.
    """

    buckets: int
    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> ImageTable:
        return self._shared.acquire(functools.partial(ImageTable, self.buckets))
