"""All encoded images of a run, for workers that share one process."""

from __future__ import annotations

import dataclasses
import threading
from typing import cast

import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from batchverify.errors import RunError
from batchverify.pipeline.encoded_images import no_encoded_images
from batchverify.pipeline.image_arrays import ImageArrays
from batchverify.pipeline.row_positions import RowPositions
from batchverify.pipeline.uri_index import UriIndex

CHANGED = "the manifest has changed since the run began; run again, and leave it as it is meanwhile"


class ImageTable:
    """All encoded images of a run. Workers that share one process look into it, so no image is sent to a block.

    Attributes:
        index: The positions of the images' URIs.
        positions: The positions of the images that rows name.
        checksums: The checksums of the manifest's URIs, by the file and the first row of a shard.
        buckets: The number of buckets in which images are encoded.
    """

    def __init__(self) -> None:
        self.index = UriIndex()
        self.positions = RowPositions()
        self.buckets = 1
        self.checksums: dict[tuple[str, int], int] = {}
        self._arrays: ImageArrays | None = None
        self._lock = threading.Lock()

    @property
    def arrays(self) -> ImageArrays:
        """The encoded images by the positions of their URIs in `index`."""
        return ImageArrays.of(no_encoded_images()) if self._arrays is None else self._arrays

    def put(self, images: pa.Table) -> None:
        """Stores encoded images; all URIs of the run must be in `index`. Several threads may call this at once."""
        with self._lock:  # Of two threads that both made arrays, one would lose its images.
            if self._arrays is None:
                self._arrays = ImageArrays.empty(len(self.index), images)
        self._arrays.put(self.index.find(images["uri"].combine_chunks()), images)

    def add(self, key: str, left: pa.ChunkedArray, right: pa.ChunkedArray) -> None:
        """Takes the URIs of a block's images, and keeps their positions as far as they are known.

        Args:
            key: The key of the block.
            left: Text `(n,)`, null where a row names no image.
            right: The same of the right images.
        """
        sides = [_one_array(uris) for uris in (left, right)]
        positions = self.index.add(*(side.drop_null() if side.null_count else side for side in sides))
        self.positions.put(key, *map(_with_nulls, positions, sides))


class RowsOfTable:
    """The images that the rows of a block name; see `image_arrays.Images`.

    Args:
        table: The table that holds them.
        key: The key of the block.
    """

    def __init__(self, table: ImageTable, key: str):
        self._table, self._key = table, key

    @property
    def arrays(self) -> ImageArrays:
        """The encoded images."""
        return self._table.arrays

    def find(self, left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of the images; see `image_arrays.Images`."""
        kept = self._table.positions.get(self._key)
        kept = np.full((2, len(left)), -1) if kept is None else kept
        if kept.shape[1] != len(left):
            raise RunError(f"{CHANGED}.")
        return self._find(left, kept[0]), self._find(right, kept[1])

    def _find(self, uris: pa.ChunkedArray, kept: np.ndarray) -> np.ndarray:
        """Looks up the URIs whose positions have not been kept."""
        rows = np.flatnonzero((kept < 0) & uris.is_valid().to_numpy(zero_copy_only=False))
        if len(rows):
            kept[rows] = self._table.index.find(_one_array(uris).take(pa.array(rows)))
            if kept[rows].min() < 0:
                raise RunError(f"{CHANGED}.")
        return kept


def _with_nulls(positions: np.ndarray, uris: pa.Array) -> np.ndarray:
    """Returns the positions of the URIs that are not null, each in its row; -1 in the other rows."""
    if not uris.null_count:
        return positions
    spread = np.full(len(uris), -1)
    spread[uris.is_valid().to_numpy(zero_copy_only=False)] = positions
    return spread


def _one_array(uris: pa.ChunkedArray) -> pa.Array:
    return pa.chunked_array(uris.chunks, pa.string()).combine_chunks()


@dataclasses.dataclass(frozen=True)
class ImageTableLoader:
    """Makes one `ImageTable` in a process and shares it between threads and DoFns.

    The table lives as long as something refers to it, so whoever runs the pipeline keeps the result of `get`.
    """

    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> ImageTable:
        """Returns the table of this process, made by the first call."""
        return cast(ImageTable, self._shared.acquire(ImageTable))
