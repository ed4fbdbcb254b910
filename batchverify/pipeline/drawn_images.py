"""A random sample of a run's images: those with the lowest hashes of their URIs.

The sample depends on nothing but the URIs: not on blocks, buckets, batches or the runner. It can be merged in any order, and
takes a few megabytes through one small shuffle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.evaluation.candidate import IMAGE_COLUMNS, candidate_images
from batchverify.manifest.columns import parent_folder
from batchverify.manifest.text_hashes import hash_text
from batchverify.pipeline.encoded_images import OK_CODE
from batchverify.pipeline.memory import PORTABLE_ELEMENT_BYTES

_MAX_IMAGES = 2048
_MAX_BYTES = PORTABLE_ELEMENT_BYTES
_COLUMNS = ("uri", "digest", "traits", "embedding", IMAGE_COLUMNS["status"], IMAGE_COLUMNS["embedding"])


@dataclasses.dataclass(frozen=True)
class DrawnImages:
    """Some images of a run, those whose URIs have the lowest hashes.

    Attributes:
        total: Number of images that they were drawn from.
        most: Number of images that the run draws at most.
        rows: Columns `hash` (uint64, ascending), `uri`, `digest`, `traits` and `embedding`, and with a candidate its columns;
            None for no images.
    """

    total: int
    most: int
    rows: pa.Table | None

    @classmethod
    def draw(cls, images: pa.Table, embedding_bytes: int, buckets: int, base: str) -> DrawnImages:
        """Draws images from a table of encoded images; those without an embedding are not drawn.

        Args:
            images: Encoded images of one bucket.
            embedding_bytes: The size of one embedding.
            buckets: The number of buckets.
            base: The result of `base_of_draw`.
        """
        most = max(2, min(_MAX_IMAGES, _MAX_BYTES // max(1, embedding_bytes)))
        # A bucket holds a binomial number of the images that the run draws. Six standard deviations above its mean are as good
        # as certain to hold them all.
        mean = most / buckets
        count = min(most, math.ceil(mean + 6 * math.sqrt(mean) + 8))
        encoded = np.flatnonzero(images["status"].to_numpy() == OK_CODE)
        hashes = hash_uris(images["uri"].combine_chunks().take(pa.array(encoded)), base)
        chosen = np.argsort(hashes)[:count]
        names = [name for name in _COLUMNS if name in images.column_names]
        rows = images.select(names).take(pa.array(encoded[chosen]))
        return cls(len(encoded), most, rows.add_column(0, "hash", pa.array(hashes[chosen], pa.uint64())))

    def of_candidate(self) -> DrawnImages:
        """Returns the same images with the embeddings of the candidate, without those that only its loader could not read."""
        if self.rows is None:
            return self
        rows = candidate_images(self.rows)
        return dataclasses.replace(self, rows=rows.filter(pc.equal(rows["status"], OK_CODE)).combine_chunks())

    @classmethod
    def merge(cls, parts: Iterable[DrawnImages]) -> DrawnImages:
        """Draws again from images that have been drawn."""
        parts = list(parts)
        total, most = sum(part.total for part in parts), min((part.most for part in parts), default=_MAX_IMAGES)
        tables = [part.rows for part in parts if part.rows is not None and part.rows.num_rows]
        if not tables:
            return cls(total, most, None)
        return cls(total, most, pa.concat_tables(tables).sort_by("hash").slice(0, most).combine_chunks())


def base_of_draw(config: ScoringConfig) -> str:
    """Returns the folder that URIs are hashed relative to, so that a run draws the same images wherever its folder lies.

    It is found once, by the launcher, because a relative path has another meaning where workers are.
    """
    if config.image_root:
        return config.image_root.rstrip("/") + "/"
    manifests = getattr(config, "manifests", ())  # `VerifyPairs` need not have any.
    return parent_folder(manifests[0]).rstrip("/") + "/" if manifests else ""


def hash_uris(uris: pa.Array, base: str) -> np.ndarray:
    """Returns a 64-bit hash of each URI, without `base` where it begins with that; uint64 `(n,)`."""
    if base and len(uris):
        relative = pc.utf8_slice_codeunits(uris, len(base))
        uris = pc.if_else(pc.starts_with(uris, base), relative, uris)
    return hash_text(uris)
