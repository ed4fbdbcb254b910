"""A `PairModel` with the threads that fetch and decode its images: URIs to embeddings, pairs of embeddings to scores."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from batchverify import garbage_collector
from batchverify.config import ScoringConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import UndecodedImage
from batchverify.images.failure import ImageFailure
from batchverify.images.pixel_budget import BYTES_PER_PIXEL, PixelBudget
from batchverify.images.prefetch import Prefetcher
from batchverify.images.reader import ImageReader, ReadResult
from batchverify.images.variants import VARIANTS
from batchverify.io.storage_options import with_storage_options
from batchverify.model.calibration import Calibration, config_settings
from batchverify.model.sidecar import GoldenPair
from batchverify.model.start_tensorflow import start_tensorflow
from batchverify.pipeline.drawn_images import base_of_draw, hash_uris
from batchverify.pipeline.encoded_images import OK_CODE, encoded_images
from batchverify.pipeline.inference_metrics import InferenceLog
from batchverify.pipeline.memory import default_decoding_pixels
from batchverify.pipeline.network import NetworkLoader
from batchverify.schema import STATUSES, ImageStatus
from batchverify.uris import is_remote
from batchverify.worker_stats import WorkerStats

if TYPE_CHECKING:
    from batchverify.model.identity_bound import IdentityBound
    from batchverify.model.pair_model import PairModel
    from batchverify.model.proven_model import ProvenModel

_PREFETCHED_BATCHES = 3
# Several batches are decoded and encoded at the same time, each with its share of the cores, so that no core waits for the
# slowest thread of each step. The number is limited because each batch takes memory.
_MAX_PARALLEL_BATCHES = 4
# Threads that fetch from a store mostly wait. Local images are read with one thread for each core: on two cores, two threads
# read and encoded 1,124 images a second, and eight threads 760.
_REMOTE_FETCH_THREADS = 16
_LOOKUP_BATCH_SIZE = 1024
# To hand a local file to a thread and back costs as much as to read it, so that a thread takes several at once.
_READ_TOGETHER = 16
# Large photos take long to change and to decode again, and each change of one is in memory, so that fewer of them are.
_CHANGED_AT_ONCE, _CHANGING_THREADS = 8, 2
_MAX_CHANGED_PIXELS = 100_000_000
_LOG = logging.getLogger(__name__)
Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class EncodedBatch:
    """The results of one batch.

    Attributes:
        reads: The result of reading each image, without its pixels.
        embeddings: `(n, d)`, the embeddings of the images that could be read; None if none could.
    """

    reads: list[ReadResult]
    embeddings: np.ndarray | None


class NetworkParts(NamedTuple):
    """What a `KerasNetwork` is made of; see there."""

    model: PairModel | ProvenModel
    reader: ImageReader
    config: ScoringConfig
    stats: WorkerStats
    inferences: InferenceLog


class KerasNetwork:
    """A trained Siamese network that fetches and decodes its images itself, in threads, while the device works.

    Several batches are encoded at the same time, each by a thread of its own. `load_network` makes one.

    Args:
        model: The trained model.
        reader: The reader of its images.
        config: The configuration, completed by the model's sidecar.
        stats: The counts and times of this process.
        inferences: Where to log what is computed.

    Attributes:
        facts: What a run records about the model.
        preprocessing: What is done to an image before the network sees it.
        encodings_per_image: See `Network`.
        encodings_per_pair: See `Network`.
        embedding_bytes: See `Network`.
        inferences: See `Network`.
    """

    def __init__(
        self,
        model: PairModel | ProvenModel,
        reader: ImageReader,
        config: ScoringConfig,
        stats: WorkerStats,
        inferences: InferenceLog,
    ):
        self._model, self._reader, self._config, self._stats = model, reader, config, stats
        self.facts, self.preprocessing = model.facts, model.preprocessing
        self.encodings_per_image, self.encodings_per_pair = self.facts.encodings_per_image, self.facts.encodings_per_pair
        self.embedding_bytes, self.inferences = self.facts.embedding_bytes, inferences
        # More would wait for the encoder in memory, and be computed in parts.
        self._batch_size = min(config.batch_size, max(ScoringConfig.batch_size, model.images_at_once))
        # One more batch than are encoded at a time waits, so that a thread that ends its batch has the next one at once.
        self._max_submitted = _parallel_batches() + 1
        self._encoders = ThreadPoolExecutor(self._max_submitted, "encode-images")
        self._prefetcher: Prefetcher[ReadResult] | None = None
        self._lowest: dict[int, str] = {}
        self._lowest_lock = threading.Lock()

    def encode(self, uris: pa.Array) -> pa.Table:
        """Fetches, decodes and encodes `uris`; see `Network.encode`."""
        self._keep_lowest(uris)
        batches = self._encode_batches(uris.to_pylist())
        encoded: list[EncodedBatch] = []
        while batch := self._next_batch(batches):
            encoded.append(batch)
        return self._with_versions(uris, encoded)

    def encode_parts(self, uris: pa.Array, is_due: Callable[[], bool]) -> Iterator[pa.Table]:
        """See `EmbeddingLookupNetwork.encode_parts`; the next images are read and encoded while a part is used."""
        self._keep_lowest(uris)
        batches = self._encode_batches(uris.to_pylist())
        part: list[EncodedBatch] = []
        start = end = 0
        while batch := self._next_batch(batches):
            part.append(batch)
            end += len(batch.reads)
            if end < len(uris) and is_due():
                yield self._with_versions(uris.slice(start, end - start), part)
                part, start = [], end
        yield self._with_versions(uris.slice(start), part)

    def _with_versions(self, uris: pa.Array, encoded: Sequence[EncodedBatch]) -> pa.Table:
        """Returns the table of encoded images, with their versions where embeddings are stored."""
        images = self.to_table(uris, encoded)
        if self._reader.versions is None:
            return images
        versions = [read.version for batch in encoded for read in batch.reads]
        return images.append_column("version", pa.array(versions, pa.string()))

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `Network.compare`."""
        return self._model.compare(left, right)

    def encode_changed(self, uris: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Encodes images after small changes; see `ChangingNetwork.encode_changed`."""
        positions: list[int] = []
        pixels: dict[str, list[np.ndarray]] = {name: [] for name in VARIANTS}
        left = _MAX_CHANGED_PIXELS
        with ThreadPoolExecutor(_CHANGING_THREADS) as threads:
            # Always as many at a time, so that the number of threads does not decide which images are left out.
            for start in range(0, len(uris), _CHANGED_AT_ONCE):
                some = uris[start : start + _CHANGED_AT_ONCE]
                for position, changed in enumerate(threads.map(self._reader.read_changed, some, [left] * len(some)), start):
                    if changed is not None:
                        positions.append(position)
                        left -= changed[0]
                        for name, image in changed[1].items():
                            pixels[name].append(image)
        embeddings: dict[str, np.ndarray] = {}
        if positions:  # All changes are encoded together, because a batch takes as long when it is not full.
            encoded = self._encode_in_batches([image for images in pixels.values() for image in images])
            embeddings = dict(zip(pixels, np.split(encoded, len(pixels)), strict=True))
        return np.array(positions, np.int64), embeddings

    def _keep_lowest(self, uris: pa.Array) -> None:
        """Has the files kept that `measure_steadiness` may ask for, those with the lowest hashes of all so far.

        Where all workers share one process, no image is fetched twice then.
        """
        if self._config.steadiness_images:
            hashes = hash_uris(uris, base_of_draw(self._config))
            with self._lowest_lock:
                self._lowest.update(zip(hashes.tolist(), uris.to_pylist(), strict=True))
                lowest = sorted(self._lowest)[: self._config.steadiness_images]
                self._lowest = {key: self._lowest[key] for key in lowest}
                self._reader.kept.want(self._lowest.values())

    def _encode_in_batches(self, images: list[np.ndarray]) -> np.ndarray:
        size = self._batch_size
        return np.concatenate(
            [self._model.encode(np.stack(images[start : start + size])) for start in range(0, len(images), size)]
        )

    def look_up(self, uris: pa.Array) -> pa.Table:
        """Finds out whether images exist, and their versions or digests; see `EmbeddingLookupNetwork.look_up`."""
        names: list[str] = uris.to_pylist()
        reads: list[ReadResult] = []
        batches = self._get_prefetcher(names).batches(names, _LOOKUP_BATCH_SIZE, 1, self._reader.look_up)
        while batch := self._next_batch(batches):
            reads += batch
        failures = [_failure_of(read) for read in reads]
        return pa.table(
            {
                "uri": uris.cast(pa.string()),
                "status": _status_codes(failures),
                "error": pa.array(_errors(failures), pa.string()),
                "digest": pa.array([read.digest for read in reads], pa.binary(16)),
                "version": pa.array([read.version for read in reads], pa.string()),
            }
        )

    def decoding_bytes(self, uris: Sequence[str]) -> int:
        """Returns the memory that images may take while they are decoded; `uris` show whether they lie in a store."""
        pixels = self._fetch_threads(uris) * self._config.max_image_pixels
        return BYTES_PER_PIXEL * (min(pixels, self._reader.budget.limit) if self._reader.budget else pixels)

    def identity_bound(self) -> IdentityBound | None:
        """Returns what the weights of the head prove; None where the model could not be split."""
        return self._model.identity_bound(self._config)

    def check_split(self, uris: Sequence[str]) -> None:
        """Compares the network's two parts with the whole network, on those images at `uris` that can be read.

        Raises:
            PreflightError: If they differ.
        """
        batches = self._get_prefetcher(uris).batches(uris, max(1, len(uris)), 0)
        self.check_split_on([read for batch in batches for read in batch])

    def check_split_on(self, reads: list[ReadResult]) -> None:
        """Does what `check_split` does, on images that have been read."""
        images = [read.image for read in self.decode_deferred(reads) if isinstance(read.image, np.ndarray)]
        try:
            self._model.check_split(np.stack(images) if images else np.zeros((0,)))
        except ValueError as error:
            raise PreflightError(f"--model {self.facts.path}: on images of the manifest {error}; export it again.") from None
        if images and (note := self._model.describe_runtime(np.stack(images))):
            _LOG.info("On images of the manifest: %s", note)

    def check_golden_pairs(self, pairs: Sequence[GoldenPair]) -> None:
        """Scores pairs whose scores are known.

        Raises:
            PreflightError: If an image cannot be read, or a score differs. Then the model is not the one that was measured, or
                its images are prepared in another way.
        """
        for pair in pairs:
            score = float(self._model.compare(self._encode_golden(pair.left), self._encode_golden(pair.right))[0])
            if not abs(score - pair.score) <= pair.tolerance:
                raise PreflightError(
                    f"--model {self.facts.path}: the golden pair {pair.left}, {pair.right} should score {pair.score:g}, "
                    f"but scores {score:.6g} on {platform.node()}; check --pixels, --color, --resize, --fit, and that it is "
                    "the same model; if only some workers say so, check their device and libraries."
                )

    def _encode_golden(self, uri: str) -> np.ndarray:
        image, _ = self._reader.read(uri)
        if isinstance(image, ImageFailure):
            raise PreflightError(
                f"golden pair of --model {self.facts.path}: {uri}: {image.error}; repair the image, or remove the pair."
            )
        return self._model.encode(image[None])

    def _encode_batches(self, uris: Sequence[str]) -> Iterator[EncodedBatch]:
        """Yields the results for `uris` in batches, in order, while the next batches are read and encoded."""
        submitted: collections.deque[Future[EncodedBatch]] = collections.deque()
        for reads in self._get_prefetcher(uris).batches(uris, self._batch_size, _PREFETCHED_BATCHES):
            submitted.append(self._encoders.submit(self._encode_batch, reads))
            if len(submitted) > self._max_submitted:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()

    def _encode_batch(self, reads: list[ReadResult]) -> EncodedBatch:
        batch = self.encode_reads(reads)
        failed = sum(isinstance(read.image, ImageFailure) for read in batch.reads)
        self._stats.add(images_encoded=len(reads) - failed, images_failed=failed)
        return batch

    def encode_reads(self, reads: list[ReadResult]) -> EncodedBatch:
        """Encodes the images that could be read, in a thread of its own."""
        reads = self.decode_deferred(reads)
        pixels = [read.image for read in reads if isinstance(read.image, np.ndarray)]
        embeddings = None
        if pixels:
            images = _stack(pixels)
            with self._stats.encoding(), self.inferences.encoding(images):
                embeddings = self._model.encode(images)
        return EncodedBatch([_without_pixels(read) for read in reads], embeddings)

    def decode_deferred(self, reads: list[ReadResult]) -> list[ReadResult]:
        """Returns `reads` with the files decoded whose decoding was deferred to the batch."""
        files = [read.image for read in reads if isinstance(read.image, UndecodedImage)]
        if not files or self._reader.decode_batch is None:
            return reads
        with self._stats.timed("decode"):
            images = iter(self._reader.decode_batch(files))
        return [read._replace(image=next(images)) if isinstance(read.image, UndecodedImage) else read for read in reads]

    def _get_prefetcher(self, uris: Sequence[str]) -> Prefetcher[ReadResult]:
        """Returns the threads that read. The first call decides how many there are, by whether its `uris` lie in a store."""
        if self._prefetcher is None:
            limit_s, threads = self._config.image_timeout, self._fetch_threads(uris)
            read = functools.partial(self._reader.read_with_version, defer=True)
            together = 1 if any(map(is_remote, uris)) else min(_READ_TOGETHER, max(1, self._batch_size // (2 * threads)))
            self._prefetcher = Prefetcher(read, _timed_out_after(limit_s), threads, limit_s, together)
        return self._prefetcher

    def _fetch_threads(self, uris: Sequence[str]) -> int:
        return self._config.fetch_threads or (_REMOTE_FETCH_THREADS if any(map(is_remote, uris)) else _core_count())

    def _next_batch(self, batches: Iterator[Batch]) -> Batch | None:
        with self._stats.timed("wait"):
            return next(batches, None)

    def to_table(self, uris: pa.Array, batches: Sequence[EncodedBatch]) -> pa.Table:
        """Returns the table of encoded images of batches, whose images are `uris` in their order."""
        reads = [read for batch in batches for read in batch.reads]
        parts = [batch.embeddings for batch in batches if batch.embeddings is not None]
        failures = [_failure_of(read) for read in reads]
        is_encoded = np.array([failure is None for failure in failures], bool)
        size = self.facts.embedding_size
        # A model that runs whole keeps pixels of one byte. A table without an embedding must be like all others.
        dtype = parts[0].dtype if parts else np.uint8 if self.facts.embedding_bytes == size else np.float32
        encoded = np.concatenate([np.zeros((0, size), dtype), *parts])
        embeddings = np.zeros((len(reads), size), dtype)
        embeddings[is_encoded] = encoded
        identity = np.full(len(reads), np.nan, np.float32)
        identity[is_encoded] = self._model.compare(encoded, encoded) if len(encoded) else []
        digests, traits = [read.digest for read in reads], [int(read.traits) for read in reads]
        return encoded_images(uris, _status_codes(failures), _errors(failures), digests, identity, embeddings, traits)


def load_network(config: ScoringConfig, stats: WorkerStats | None = None, versions: str | None = None) -> KerasNetwork:
    """Loads the model that `config` names.

    If this process has not used TensorFlow yet, each of TensorFlow's steps is limited to the cores that one of the batches
    that are encoded at the same time has.

    Args:
        config: The configuration, completed by the model's sidecar.
        stats: The counts and times of this process.
        versions: One of `config.EMBEDDING_VERSIONS`, where embeddings are stored: how an image is found to be unchanged.

    Raises:
        PreflightError: If the model cannot be used.
    """
    return KerasNetwork(*load_parts(config, stats, versions))


def load_parts(
    config: ScoringConfig, stats: WorkerStats | None = None, versions: str | None = None, is_candidate: bool = False
) -> NetworkParts:
    """Does what `load_network` does, and returns the parts of the network; see `load_model` for a candidate."""
    start_tensorflow()
    from batchverify.model.load import decisions_subject, load_model, share_cores
    from batchverify.model.proven_model import load_proven

    garbage_collector.resume()

    stats = stats or WorkerStats()
    share_cores(_core_count() // _parallel_batches())
    inferences = InferenceLog()
    with inferences.loading():
        load = functools.partial(load_model, is_candidate=is_candidate)
        model = load_proven(config, load, decisions_subject(config, is_candidate))
    limits = config.max_image_pixels, config.max_image_bytes
    budget = PixelBudget(config.max_decoding_pixels or default_decoding_pixels())
    reader = ImageReader(
        model.preprocessing.layout(), *limits, config.image_root, config.image_timeout, stats, versions, budget,
        decode_batch=model.preprocessing.batch_decoder(config.max_image_pixels),
    )  # fmt: skip
    return NetworkParts(model, reader, config, stats, inferences)


def keras_loader(
    config: ScoringConfig,
    golden_pairs: Sequence[GoldenPair] = (),
    stats: WorkerStats | None = None,
    versions: str | None = None,
    calibration: Calibration | None = None,
) -> NetworkLoader:
    """Returns the loader that calls `load_network` in each worker process, and then scores the golden pairs there.

    With a calibration, it also refuses one that does not fit the model. A run leaves it out: it decides about that before.
    """
    load = with_storage_options(_load_and_check)
    return NetworkLoader(functools.partial(load, config, tuple(golden_pairs), stats, versions, calibration))


def _load_and_check(
    config: ScoringConfig,
    golden_pairs: Sequence[GoldenPair],
    stats: WorkerStats | None,
    versions: str | None,
    calibration: Calibration | None,
) -> KerasNetwork:
    """Loads the network of a process. A worker may have another device, or other libraries, than the launcher."""
    network = load_network(config, stats, versions)
    network.check_golden_pairs(golden_pairs)
    refuse_unfit(calibration, network, config)
    return network


def refuse_unfit(calibration: Calibration | None, network: KerasNetwork, config: ScoringConfig) -> None:
    """Refuses a calibration, if there is one, that was fitted for another model or other settings.

    Raises:
        PreflightError: If it does not fit.
    """
    if calibration and (problem := calibration.why_unfit(f"sha256:{network.facts.digest}", config_settings(config))):
        raise PreflightError(f"the calibration of --model {network.facts.path}: {problem}; calibrate again, or remove it.")


def _stack(images: list[np.ndarray]) -> np.ndarray:
    """Returns images as one array `(n, height, width, channels)`; those that one call has decoded lie in one already."""
    decoded = images[0].base
    if decoded is not None and decoded.shape == (len(images), *images[0].shape) and all(x.base is decoded for x in images):
        return decoded
    return np.stack(images)


def _failure_of(read: ReadResult) -> ImageFailure | None:
    return read.image if isinstance(read.image, ImageFailure) else None


def _without_pixels(read: ReadResult) -> ReadResult:
    return read if isinstance(read.image, ImageFailure) else read._replace(image=None, second=None)


def _status_codes(failures: Sequence[ImageFailure | None]) -> np.ndarray:
    return np.array([OK_CODE if failure is None else STATUSES.index(failure.status) for failure in failures], np.int8)


def _errors(failures: Sequence[ImageFailure | None]) -> list[str | None]:
    return [failure.error if failure else None for failure in failures]


def _timed_out_after(limit_s: float) -> Callable[[str], ReadResult]:
    failure = ImageFailure(
        ImageStatus.UNAVAILABLE, f"fetching and decoding it took longer than {limit_s:g} s (--image-timeout)"
    )
    return lambda _: ReadResult(failure)


def _parallel_batches() -> int:
    return min(_core_count(), _MAX_PARALLEL_BATCHES)


def _core_count() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
