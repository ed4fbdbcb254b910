"""An image as a network takes it: fetched, then decoded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from batchverify.images.decode import BatchDecode, DecodedImage, UndecodedImage, decode, decode_or_defer, resize_picture
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import FetchedFile, fetch_file
from batchverify.images.layout import Layout
from batchverify.images.pixel_budget import PixelBudget, reserved_pixels
from batchverify.images.variants import make_variants
from batchverify.schema import ImageTraits
from batchverify.worker_stats import WorkerStats

# A larger file is decoded at once, because hundreds of undecoded files wait in memory, and a batch decoder decodes one file
# for each core at the same time, beside all threads.
_MAX_DEFERRED_BYTES, _MAX_DEFERRED_PIXELS = 512 * 2**10, 8_000_000
_MAX_KEPT_BYTES = 64 * 2**20


class KeptFiles:
    """The bytes of some files that are read, kept so that they need not be fetched again; 64 MiB at most.

    Attributes:
        wanted: The URIs of the files to keep when they are read.
    """

    def __init__(self) -> None:
        self.wanted: frozenset[str] = frozenset()
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def want(self, uris: Iterable[str]) -> None:
        """Keeps these files from now on, and drops all others."""
        with self._lock:
            self.wanted = frozenset(uris)
            self._files = {uri: data for uri, data in self._files.items() if uri in self.wanted}

    def offer(self, uri: str, data: bytes) -> None:
        """Keeps a file that has been read, if it is wanted and there is room."""
        if uri in self.wanted:
            with self._lock:
                if sum(map(len, self._files.values())) + len(data) <= _MAX_KEPT_BYTES:
                    self._files[uri] = data

    def get(self, uri: str) -> bytes | None:
        """Returns the bytes of a file that was kept."""
        return self._files.get(uri)


class ReadResult(NamedTuple):
    """The result of reading an image, or of looking it up only.

    Attributes:
        image: The pixels `(height, width, channels)`, a file that is left undecoded, or the failure; None if the
            image exists and was only looked up.
        digest: The 16-byte digest of the file's content; None if the content was not read.
        version: The file system's version of the file, which changes with its content; None if it was not asked for, or the
            file system gives no version that is sure to change.
        traits: What the file holds beyond the colours of one upright picture; none where it was only looked up.
        second: What became of the same file in the reader's second layout; None without one, and where `image` is a failure.
    """

    image: np.ndarray | UndecodedImage | ImageFailure | None
    digest: bytes | None = None
    version: str | None = None
    traits: ImageTraits = ImageTraits.NONE
    second: np.ndarray | UndecodedImage | ImageFailure | None = None


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads images in the layout that the network takes.

    Attributes:
        layout: The layout of the pixels.
        max_pixels: The largest number of pixels; an image with more is `too_large`.
        max_bytes: The largest size in bytes; a file with more is `too_large`.
        root: The folder that every image must lie in; None allows all places.
        timeout_s: The seconds that one image may take in all.
        stats: The statistics that the times of fetching and decoding are added to.
        versions: The kind of version that `look_up` finds, one of `config.EMBEDDING_VERSIONS`; None where nothing is looked
            up.
        budget: The pixels that all threads may decode at the same time; None sets no bound.
        kept: The files to keep for `read_changed`.
        decode_batch: The batch decoder of the layout, if there is one. It decodes a large file by itself: Python is not needed
            between the steps then, as it is where the loader decodes.
        second_layout: A layout that files are decoded to as well, for a second network; None without one.
        second_decode_batch: The batch decoder of the second layout, if there is one.
    """

    layout: Layout
    max_pixels: int
    max_bytes: int
    root: str | None = None
    timeout_s: float = 60.0
    stats: WorkerStats = dataclasses.field(default_factory=WorkerStats)
    versions: str | None = None
    budget: PixelBudget | None = None
    kept: KeptFiles = dataclasses.field(default_factory=KeptFiles)
    decode_batch: BatchDecode | None = None
    second_layout: Layout | None = None
    second_decode_batch: BatchDecode | None = None

    def read(self, uri: str) -> tuple[np.ndarray | ImageFailure, bytes | None]:
        """Returns uint8 pixels `(height, width, channels)` or a failure, and the 16-byte digest of the file's bytes."""
        result = self.read_with_version(uri)
        assert isinstance(result.image, np.ndarray | ImageFailure)
        return result.image, result.digest

    def read_with_version(self, uri: str, defer: bool = False) -> ReadResult:
        """Reads an image, and the version that the file had before its first byte was read.

        Args:
            uri: The image's path or URI.
            defer: Whether files that are not large are left undecoded where the loader has a batch decoder for them.
        """
        file = self._fetch(uri, with_version=self.versions == "stat")
        if isinstance(file, ImageFailure):
            return ReadResult(file)
        self.kept.offer(uri, file.data)
        fetched = time.perf_counter()
        decoded = self._decode(file.data, self.layout, self.decode_batch, defer)
        second = None
        if self.second_layout is not None and not isinstance(decoded.image, ImageFailure):
            second = self._decode(file.data, self.second_layout, self.second_decode_batch, defer).image
        self.stats.collect("decode", time.perf_counter() - fetched)
        return ReadResult(decoded.image, _digest(file.data), file.version, decoded.traits, second)

    def _decode(self, data: bytes, layout: Layout, decode_batch: BatchDecode | None, defer: bool) -> DecodedImage:
        """Decodes a file to a layout, unless it is to wait for its batch; a large one never waits."""
        decoded = decode_or_defer(data, layout, self.max_pixels, defer and decode_batch is not None, self.budget)
        file = decoded.image
        if decode_batch is None or not isinstance(file, UndecodedImage) or _is_small(file):
            return decoded
        pixels = reserved_pixels(file.pixels, layout.loader.bytes_per_pixel)
        with self.budget.reserve(pixels) if self.budget else contextlib.nullcontext():
            return decoded._replace(image=decode_batch([file])[0])

    def read_changed(self, uri: str, max_pixels: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """Reads an image after each of the changes of `variants.VARIANTS`.

        Args:
            uri: The image's path or URI.
            max_pixels: The largest number of pixels of the picture.

        Returns:
            The number of its pixels, and for each change pixels `(height, width, channels)`; None if that cannot be done.
        """
        data = self.kept.get(uri) or self._fetch(uri, with_version=False)
        if isinstance(data, ImageFailure):
            return None
        data = data if isinstance(data, bytes) else data.data
        if (changed := make_variants(data, min(max_pixels, self.max_pixels))) is None:
            return None
        images = {name: self._load_variant(variant) for name, variant in changed[1].items()}
        pixels = {name: image for name, image in images.items() if isinstance(image, np.ndarray)}
        return (changed[0], pixels) if len(pixels) == len(images) else None

    def _load_variant(self, variant: bytes | Image.Image) -> np.ndarray | ImageFailure:
        if isinstance(variant, bytes):
            return decode(variant, self.layout, self.max_pixels)
        return resize_picture(variant, self.layout, self.max_pixels)

    def look_up(self, uri: str) -> ReadResult:
        """Finds the version or the digest that shows whether an image has changed, and decodes nothing."""
        by_content = self.versions == "content"
        file = self._fetch(uri, with_data=by_content, with_version=not by_content)
        if isinstance(file, ImageFailure):
            return ReadResult(file)
        return ReadResult(None, digest=_digest(file.data)) if by_content else ReadResult(None, version=file.version)

    def _fetch(self, uri: str, with_version: bool, with_data: bool = True) -> FetchedFile | ImageFailure:
        started = time.perf_counter()
        file = fetch_file(uri, self.max_bytes, self.root, self.timeout_s, with_version, with_data)
        self.stats.collect("fetch", time.perf_counter() - started)
        return file


def _is_small(file: UndecodedImage) -> bool:
    return len(file.data) <= _MAX_DEFERRED_BYTES and file.pixels <= _MAX_DEFERRED_PIXELS


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
