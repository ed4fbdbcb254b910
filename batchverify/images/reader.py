"""Reads images as a network wants them: fetch, then decode."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import NamedTuple

import numpy as np

from batchverify.images.decode import UndecodedJpeg, decode_or_defer
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import FetchedFile, fetch_file
from batchverify.images.resize import Layout
from batchverify.worker_stats import WorkerStats

# Larger JPEG files are decoded where they are read: those that are left wait in memory, hundreds at a time.
_MOST_BYTES_LEFT = 512 * 2**10


class ImageRead(NamedTuple):
    """What reading an image, or only looking it up, gave.

    Attributes:
        image: uint8 pixels `(height, width, channels)`, or a JPEG file that is left to be decoded, or the failure; None if it
            was only looked up, and is there.
        digest: 16 bytes of the file's content; None if they were not read.
        version: what the file's own file system says of it, which another content would change; None where it says nothing
            that is sure, or nobody asked.
    """

    image: np.ndarray | UndecodedJpeg | ImageFailure | None
    digest: bytes | None = None
    version: str | None = None


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads images as the network wants them.

    Attributes:
        layout: of the result.
        max_pixels: an image of more is `too_large`.
        max_bytes: a file of more is `too_large`.
        root: folder outside of which nothing is opened, or None.
        limit_s: seconds that one image may take in all.
        stats: is told how long it took.
        versions: of `config.EMBEDDING_VERSIONS`: what `look_up` goes by; None where nobody looks up.
    """

    layout: Layout
    max_pixels: int
    max_bytes: int
    root: str | None = None
    limit_s: float = 60.0
    stats: WorkerStats = dataclasses.field(default_factory=WorkerStats)
    versions: str | None = None

    def read(self, uri: str) -> tuple[np.ndarray | ImageFailure, bytes | None]:
        """Returns uint8 pixels `(height, width, channels)` or a failure, and the 16-byte digest of the file's bytes."""
        read = self.read_version(uri)
        assert isinstance(read.image, np.ndarray | ImageFailure)
        return read.image, read.digest

    def read_version(self, uri: str, leave_jpegs: bool = False) -> ImageRead:
        """Reads an image, and the version of it that was there before the first byte was read.

        Args:
            uri: of the image.
            leave_jpegs: whether small and plain JPEG files are left to be decoded.
        """
        file = self._fetch(uri, want_version=self.versions == "stat")
        if isinstance(file, ImageFailure):
            return ImageRead(file)
        fetched = time.perf_counter()
        leave_jpeg = leave_jpegs and len(file.data) <= _MOST_BYTES_LEFT
        image = decode_or_defer(file.data, self.layout, self.max_pixels, leave_jpeg)
        self.stats.collect("decode", time.perf_counter() - fetched)
        return ImageRead(image, _digest(file.data), file.version)

    def look_up(self, uri: str) -> ImageRead:
        """Finds out what tells whether an image has changed, its version or its digest, and decodes nothing."""
        by_content = self.versions == "content"
        file = self._fetch(uri, want_data=by_content, want_version=not by_content)
        if isinstance(file, ImageFailure):
            return ImageRead(file)
        return ImageRead(None, digest=_digest(file.data)) if by_content else ImageRead(None, version=file.version)

    def _fetch(self, uri: str, want_version: bool, want_data: bool = True) -> FetchedFile | ImageFailure:
        started = time.perf_counter()
        file = fetch_file(uri, self.max_bytes, self.root, self.limit_s, want_version, want_data)
        self.stats.collect("fetch", time.perf_counter() - started)
        return file


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
