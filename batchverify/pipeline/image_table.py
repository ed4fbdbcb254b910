"""All encoded images of a run, for workers that share one process."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from batchverify.errors import RunError
from batchverify.pipeline.encoded_images import no_encoded_images
from batchverify.pipeline.image_arrays import ImageArrays
from batchverify.pipeline.uri_index import UriIndex

CHANGED = "the manifest has changed since the run began; run again, and leave it as it is meanwhile"


class ImageTable:
    """All encoded images of a run. Workers that share one process look into it, so no image is sent to a block.

    Attributes:
        index: The positions of the images' URIs.
        checksums: The checksums of the manifest's URIs, by the file and the first row of a shard.
        buckets: The number of buckets in which images are encoded.
    """

    def __init__(self) -> None:
        self.index = UriIndex()
        self.buckets = 1
        self.checksums: dict[tuple[str, int], int] = {}
        self._arrays: ImageArrays | None = None

    @property
    def arrays(self) -> ImageArrays:
        """The encoded images by the positions of their URIs in `index`."""
        return ImageArrays.of(no_encoded_images()) if self._arrays is None else self._arrays

    def put(self, images: pa.Table) -> None:
        """Stores encoded images; all URIs of the run must be in `index`."""
        if self._arrays is None:
            self._arrays = ImageArrays.empty(len(self.index), images)
        self._arrays.put(self.index.find(images["uri"].combine_chunks()), images)

    def find(self, uris: pa.ChunkedArray) -> np.ndarray:
        """Returns the positions of images; see `image_arrays.Images`."""
        positions = self.index.find(pa.chunked_array(uris.chunks, pa.string()).combine_chunks())
        if np.any((positions < 0) & uris.is_valid().to_numpy(zero_copy_only=False)):
            raise RunError(f"{CHANGED}.")
        return positions


@dataclasses.dataclass(frozen=True)
class ImageTableLoader:
    """Makes one `ImageTable` in a process and shares it between threads and DoFns.

    The table lives as long as something refers to it, so whoever runs the pipeline keeps the result of `get`.
    """

    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> ImageTable:
        """Returns the table of this process, made by the first call."""
        return cast(ImageTable, self._shared.acquire(ImageTable))
