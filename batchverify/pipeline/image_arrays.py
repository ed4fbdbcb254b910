"""Encoded images as arrays, in which pairs look up their images by position."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.errors import RunError, short_reason
from batchverify.evaluation.candidate import candidate_images
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix, is_with_candidate
from batchverify.pipeline.memory import available_bytes
from batchverify.schema import STATUSES, ImageStatus

_LOG = logging.getLogger(__name__)
# The share of the memory that is left which embeddings may take; blocks, pixels and tables of URIs need the rest.
_SHARE_OF_MEMORY = 0.6
_NO_IMAGE = "the manifest names no image"
_NO_URI = STATUSES.index(ImageStatus.NO_URI)


@dataclasses.dataclass(frozen=True)
class ImageArrays:
    """Encoded images, one entry an image, and one more at the end: that of a row that names no image, whose position is -1.

    Attributes:
        status: int8 `(n + 1,)`, positions in `STATUSES`.
        identity: float32 `(n + 1,)`, the identity scores; NaN where there is none.
        digest: uint64 `(n + 1, 2)`, the digests of the files' content; 0 where there is none.
        embeddings: float32 or uint8 `(n, d)`.
        errors: What is wrong with the images that have no embedding, by position.
        candidate: The same images as the candidate has them, or None.
    """

    status: np.ndarray
    identity: np.ndarray
    digest: np.ndarray
    embeddings: np.ndarray
    errors: dict[int, str]
    candidate: ImageArrays | None = None

    @classmethod
    def empty(cls, count: int, like: pa.Table) -> ImageArrays:
        """Returns arrays for `count` images that are still to be put in.

        Args:
            count: The number of images.
            like: Encoded images with embeddings of the same kind.
        """
        embeddings = embedding_matrix(like)
        status, identity = np.full(count + 1, _NO_URI, np.int8), np.full(count + 1, np.nan, np.float32)
        candidate = cls.empty(count, candidate_images(like)) if is_with_candidate(like) else None
        room = _room(count, embeddings.shape[1], embeddings.dtype)
        return cls(status, identity, np.zeros((count + 1, 2), np.uint64), room, {}, candidate)

    @classmethod
    def of(cls, images: pa.Table) -> ImageArrays:
        """Returns the arrays of a table of encoded images."""
        arrays = cls.empty(images.num_rows, images)
        arrays.put(np.arange(images.num_rows), images)
        return arrays

    def put(self, positions: np.ndarray, images: pa.Table) -> None:
        """Puts encoded images at positions, int64 `(m,)`."""
        self.status[positions] = images["status"].to_numpy()
        self.identity[positions] = images["identity"].to_numpy()
        self.digest[positions] = _digest_numbers(images["digest"])
        self.embeddings[positions] = embedding_matrix(images)
        failed = np.flatnonzero(images["error"].is_valid().to_numpy())
        errors = images["error"].take(pa.array(failed)).to_pylist()
        self.errors.update(zip(positions[failed].tolist(), errors, strict=True))
        if self.candidate is not None:
            self.candidate.put(positions, candidate_images(images))

    def error_texts(self, positions: np.ndarray) -> pa.Array:
        """Returns what is wrong with images, text `(m,)`; null where an image has an embedding."""
        failed, place = np.unique(positions, return_inverse=True)
        is_failed = self.status[failed] != OK_CODE
        texts = [self.errors.get(position, _NO_IMAGE) for position in failed[is_failed].tolist()]
        number = np.cumsum(is_failed) - 1
        return pa.array(texts, pa.string()).take(pa.array(number[place], mask=~is_failed[place]))


class Images(Protocol):
    """Encoded images that are found by the URIs of pairs."""

    @property
    def arrays(self) -> ImageArrays:
        """The encoded images."""

    def find(self, left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of the left and of the right images, int64 `(n,)`; -1 for null.

        Raises:
            RunError: If there is no such image.
        """


class BlockImages:
    """The encoded images of one block.

    Args:
        images: The images, each once, in any order.
    """

    def __init__(self, images: pa.Table):
        self._uris = images["uri"]
        self.arrays = ImageArrays.of(images)

    def find(self, left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of the images; see `Images`."""
        return self._find(left), self._find(right)

    def _find(self, uris: pa.ChunkedArray) -> np.ndarray:
        found = pc.fill_null(pc.index_in(uris, value_set=self._uris), -1)
        positions: np.ndarray = found.to_numpy().astype(np.int64)
        if np.any((positions < 0) & uris.is_valid().to_numpy(zero_copy_only=False)):
            raise RunError("a block did not get an image that it asked for; this is a fault of this program.")
        return positions


def _room(count: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Returns an array for embeddings, `(count, width)`: in memory, or in a temporary file where memory is too small.

    Raises:
        RunError: If there is no space for the file.
    """
    size, available = count * width * dtype.itemsize, available_bytes()
    if available is None or size <= available * _SHARE_OF_MEMORY:
        return np.empty((count, width), dtype)
    _LOG.warning(
        "The embeddings of %s images take %.1f GiB, and %.1f GiB of memory are left: they are kept in a file in %s, which "
        "is slower. A distributed runner (--runner=DataflowRunner) spreads them over workers.",
        f"{count:,}", size / 2**30, available / 2**30, tempfile.gettempdir(),
    )  # fmt: skip
    try:
        # The file has no name, so that it ends with the process. What is not allocated now would kill the process later.
        with tempfile.TemporaryFile(prefix="batchverify-embeddings-") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            room: np.ndarray = np.memmap(file, dtype, "r+", shape=(count, width))
            return room
    except OSError as error:
        raise RunError(
            f"{tempfile.gettempdir()}: the embeddings take {size / 2**30:.1f} GiB, which do not fit there "
            f"({short_reason(error)}); free space, or set TMPDIR to a folder that has some."
        ) from None


def _digest_numbers(digests: pa.ChunkedArray) -> np.ndarray:
    """Returns digests of 16 bytes as numbers, uint64 `(n, 2)`; 0 where there is none."""
    filled = pc.fill_null(digests, bytes(16)).combine_chunks()
    buffer = filled.buffers()[1]
    numbers: np.ndarray = np.frombuffer(buffer, np.uint64).reshape(-1, 2)
    start: int = filled.offset
    return numbers[start : start + len(digests)]
