"""The network that a worker process loads once: images to embeddings, pairs to scores."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from batchverify.config import ScoringConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import UndecodedJpeg
from batchverify.images.failure import ImageFailure
from batchverify.images.prefetch import Prefetcher
from batchverify.images.reader import ImageReader, ReadResult
from batchverify.io.filesystem import is_remote
from batchverify.model.sidecar import GoldenPair, apply_sidecar
from batchverify.schema import STATUSES, ImageStatus
from batchverify.worker_stats import WorkerStats

if TYPE_CHECKING:
    from batchverify.model.identity_bound import IdentityBound


OK_CODE = STATUSES.index(ImageStatus.OK)
_LOOKAHEAD_BATCHES = 3
# Batches that are decoded and encoded side by side, each by its share of the cores: so that none waits for the slowest
# thread of each step, and so many that they fit into memory. One more has its turn while another one starts or ends.
_MOST_SHARES = 4
# Of local images, more threads than cores take the processor from one another: on two cores, 8 read and encoded 760 images a
# second, and 2 of them 1,124.
_STORE_THREADS = 16
_LOOK_UPS_AT_ONCE = 1024
_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


class Network(Protocol):
    """What the two DoFns need. `KerasNetwork` is the real one; a benchmark brings its own.

    Attributes:
        encodings_per_image: how often an image goes through a tower of the network when it is encoded.
        encodings_per_pair: how often a pair's images do when they are compared.
        embedding_bytes: of what is kept of one image.
    """

    encodings_per_image: int
    encodings_per_pair: int
    embedding_bytes: int

    def encode(self, uris: pa.Array) -> pa.Table:
        """Returns one row for each of `uris`, in their order: the columns of `encoded_images`."""

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of what was kept of images, `(n, d)` twice."""


class EmbeddingLookupNetwork(Network, Protocol):
    """What `EncodeImages` needs of a network whose embeddings are kept: `encode` also gives the column `version`."""

    def look_up(self, uris: pa.Array) -> pa.Table:
        """Returns one row for each of `uris`, in their order: `uri`, `status`, `error`, `digest` and `version`."""


def encoded_images(
    uris: pa.Array,
    status: np.ndarray,
    error: list[str | None],
    digest: list[bytes | None],
    identity: np.ndarray,
    embeddings: np.ndarray,
) -> pa.Table:
    """Returns the table that a `Network` answers with.

    Args:
        uris: text `(n,)`.
        status: int8 `(n,)`, positions in `schema.STATUSES`.
        error: `(n,)`, None where the status is `ok`.
        digest: `(n,)`, 16 bytes of each file's content; None where it could not be read.
        identity: float32 `(n,)`, NaN where there is no embedding.
        embeddings: float32 or uint8 `(n, d)`.
    """
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    return pa.table(
        {
            "uri": uris.cast(pa.string()),
            "status": pa.array(status, pa.int8()),
            "error": pa.array(error, pa.string()),
            "digest": pa.array(digest, pa.binary(16)),
            "identity": pa.array(np.asarray(identity, np.float32)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        }
    )


class _Batch(NamedTuple):
    """What became of some images.

    Attributes:
        read: of each, without its pixels.
        embeddings: `(n, d)` of those that could be read; None if none could.
    """

    read: list[ReadResult]
    embeddings: np.ndarray | None


class KerasNetwork:
    """A trained Siamese network that fetches and decodes its images itself, in threads, while the device works.

    Several batches are under way at once, each decoded and encoded by a thread of its own. Where TensorFlow is not in use
    yet, it is told to divide no step among more cores than each of these threads has.

    Args:
        config: which model, and the limits of its images.
        stats: is told how far it is.
        versions: of `config.EMBEDDING_VERSIONS`, where embeddings are kept: what tells that an image has not changed.

    Attributes:
        facts: about the model.
        preprocessing: what is done to a decoded image.
    """

    def __init__(self, config: ScoringConfig, stats: WorkerStats | None = None, versions: str | None = None):
        from batchverify.model.load import load_model, share_cores

        self._config = config = apply_sidecar(config)
        self._stats = stats = stats or WorkerStats()
        shares = min(_cores(), _MOST_SHARES)
        share_cores(_cores() // shares)
        self._model = load_model(config)
        self.facts = self._model.facts
        self.encodings_per_image, self.encodings_per_pair = self.facts.encodings_per_image, self.facts.encodings_per_pair
        self.embedding_bytes = self.facts.embedding_bytes
        self.preprocessing = self._model.preprocessing
        layout = self.preprocessing.layout()
        limits = config.max_image_pixels, config.max_image_bytes
        self._decode_jpegs = self.preprocessing.jpeg_decoder(config.max_image_pixels)
        self._reader = ImageReader(layout, *limits, config.image_root, config.image_timeout, stats, versions)
        self._most_under_way = shares + 1
        self._encoding = ThreadPoolExecutor(self._most_under_way, "encode-images")
        self._ahead: Prefetcher | None = None

    def encode(self, uris: pa.Array) -> pa.Table:
        """Fetches, decodes and encodes `uris`; see `Network.encode`."""
        read: list[ReadResult] = []
        embeddings = []
        batches = self._encoded(uris.to_pylist())
        while batch := self._await(batches):
            read += batch.read
            if batch.embeddings is not None:
                embeddings.append(batch.embeddings)
        images = self._assemble(uris, [_failure(found) for found in read], embeddings, [found.digest for found in read])
        if self._reader.versions is None:
            return images
        return images.append_column("version", pa.array([found.version for found in read], pa.string()))

    def _encoded(self, uris: Sequence[str]) -> Iterator[_Batch]:
        """Yields what became of `uris` in batches, in order, with more on their way."""
        under_way: collections.deque[Future[_Batch]] = collections.deque()
        for read in self._read_ahead(uris).batches(uris, self._config.batch_size, _LOOKAHEAD_BATCHES):
            under_way.append(self._encoding.submit(self._encode_batch, read))
            if len(under_way) > self._most_under_way:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _encode_batch(self, read: list[ReadResult]) -> _Batch:
        """Decodes what was left to be decoded, and encodes all."""
        read = self._decoded(read)
        pixels = [found.image for found in read if isinstance(found.image, np.ndarray)]
        embeddings = None
        if pixels:
            with self._stats.encoding():
                embeddings = self._model.encode(np.stack(pixels))
        self._stats.add(images_encoded=len(pixels), images_failed=len(read) - len(pixels))
        return _Batch(
            [found if isinstance(found.image, ImageFailure) else found._replace(image=None) for found in read], embeddings
        )

    def _decoded(self, read: list[ReadResult]) -> list[ReadResult]:
        files = [found.image for found in read if isinstance(found.image, UndecodedJpeg)]
        if not files or self._decode_jpegs is None:
            return read
        with self._stats.timed("decode"):
            images = iter(self._decode_jpegs(files))
        return [found._replace(image=next(images)) if isinstance(found.image, UndecodedJpeg) else found for found in read]

    def look_up(self, uris: pa.Array) -> pa.Table:
        """Finds out whether images are there and what tells if they have changed; see `EmbeddingLookupNetwork.look_up`."""
        names, found = uris.to_pylist(), []
        batches = self._read_ahead(names).batches(names, _LOOK_UPS_AT_ONCE, 1, self._reader.look_up)
        while results := self._await(batches):
            found += results
        failures = [_failure(one) for one in found]
        return pa.table(
            {
                "uri": uris.cast(pa.string()),
                "status": _statuses(failures),
                "error": pa.array([failure and failure.error for failure in failures], pa.string()),
                "digest": pa.array([one.digest for one in found], pa.binary(16)),
                "version": pa.array([one.version for one in found], pa.string()),
            }
        )

    def _read_ahead(self, uris: Sequence[str]) -> Prefetcher:
        """Returns the threads that read; how many there are is decided by the first images that are asked for."""
        if self._ahead is None:
            limit_s = self._config.image_timeout
            threads = self._config.fetch_threads or (_STORE_THREADS if any(map(is_remote, uris)) else _cores())
            read = functools.partial(self._reader.read_with_version, defer_jpegs=self._decode_jpegs is not None)
            self._ahead = Prefetcher(read, _too_slow(limit_s), threads, limit_s)
        return self._ahead

    def _await(self, batches: Iterator[Result]) -> Result | None:
        with self._stats.timed("wait"):
            return next(batches, None)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `Network.compare`."""
        return self._model.compare(left, right)

    def certificate(self) -> IdentityBound | None:
        """Returns what the head's weights prove; None where the model could not be taken apart."""
        from batchverify.model.identity_bound import find_identity_bound

        return find_identity_bound(self._model.split) if self._model.split else None

    def check_split(self, uris: Sequence[str]) -> None:
        """Compares the network's parts with the whole on images at `uris`, as many as can be read.

        Raises:
            PreflightError: if they differ.
        """
        read = self._read_ahead(uris).batches(uris, max(1, len(uris)), 0)
        images = [found.image for batch in read for found in self._decoded(batch) if isinstance(found.image, np.ndarray)]
        try:
            self._model.check_split(np.stack(images) if images else np.zeros((0,)))
        except ValueError as error:
            raise PreflightError(f"--model {self.facts.path}: on images of the manifest {error}; export it again.") from None
        if images and (found := self._model.describe_runtime(np.stack(images))):
            _LOG.info("Of the manifest: %s", found)

    def check_golden(self, pairs: Sequence[GoldenPair]) -> None:
        """Scores pairs whose scores are known.

        Raises:
            PreflightError: at an image that can't be read or a score that is another; the model isn't the one that was measured,
                or its images come to it in another way.
        """
        for pair in pairs:
            images = []
            for uri in (pair.left, pair.right):
                image, _ = self._reader.read(uri)
                if isinstance(image, ImageFailure):
                    raise PreflightError(
                        f"golden pair of --model {self.facts.path}: {uri}: {image.error}; mend it, or take the pair out."
                    )
                images.append(self._model.encode(image[None]))
            score = float(self._model.compare(*images)[0])
            if not abs(score - pair.score) <= pair.tolerance:
                raise PreflightError(
                    f"--model {self.facts.path}: the golden pair {pair.left}, {pair.right} should score {pair.score:g}, "
                    f"but scores {score:.6g}; check --pixels, --color, --resize, --fit, and that it is the same model."
                )

    def _assemble(self, uris: pa.Array, read: list[ImageFailure | None], embeddings: list[np.ndarray], digests) -> pa.Table:
        encoded = np.array([failure is None for failure in read], bool)
        dtype = np.float32 if not embeddings else embeddings[0].dtype
        found = np.concatenate([np.zeros((0, self.facts.embedding_size), dtype), *embeddings])
        spread = np.zeros((len(read), self.facts.embedding_size), dtype)
        spread[encoded] = found
        identity = np.full(len(read), np.nan, np.float32)
        identity[encoded] = self._model.compare(found, found) if len(found) else []
        return encoded_images(
            uris, _statuses(read), [failure.error if failure else None for failure in read], digests, identity, spread
        )


def _failure(read: ReadResult) -> ImageFailure | None:
    return read.image if isinstance(read.image, ImageFailure) else None


def _statuses(failures: Sequence[ImageFailure | None]) -> np.ndarray:
    return np.array([OK_CODE if failure is None else STATUSES.index(failure.status) for failure in failures], np.int8)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _too_slow(limit_s: float) -> Callable[[str], ReadResult]:
    failure = ImageFailure(
        ImageStatus.UNAVAILABLE, f"fetching and decoding it took longer than {limit_s:g} s (--image-timeout)"
    )
    return lambda _: ReadResult(failure)


@dataclasses.dataclass(frozen=True)
class NetworkLoader:
    """Loads a network once in each worker process and shares it between threads and DoFns.

    Attributes:
        load: makes the network.
    """

    load: Callable[[], Network]
    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> Network:
        return self._shared.acquire(self.load)


def embedding_matrix(images: pa.Table) -> np.ndarray:
    column = images["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1) if len(column) else np.zeros((0, 1), np.float32)


def no_images() -> pa.Table:
    return encoded_images(pa.array([], pa.string()), np.zeros(0, np.int8), [], [], np.zeros(0), np.zeros((0, 1)))
