"""The network at work inside Beam: each distinct image encoded once, then pairs compared.

`ImageEncoder` and `compare_block` are the pure parts; `EncodeImages` and `ComparePairs` are the DoFns that lift
them. Both call one `Network`, which a process loads once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from batchverify.config import ScoringConfig
from batchverify.errors import PreflightError, RunError
from batchverify.evaluation.identity import check_identity, is_match
from batchverify.images.decode import UndecodedJpeg
from batchverify.images.failure import ImageFailure
from batchverify.images.prefetch import Prefetcher
from batchverify.images.reader import ImageRead, ImageReader
from batchverify.io.filesystem import is_remote
from batchverify.manifest.columns import pair_uris
from batchverify.memory import EMBEDDING_BYTES_AT_ONCE
from batchverify.model.sidecar import GoldenPair, apply_sidecar
from batchverify.output.embedding_store import EmbeddingStoreSession, StoredFile, current_rows, is_unchanged, retained_rows
from batchverify.schema import (
    BAD_ROW_COLUMN,
    MANIFEST_FILE,
    PROVENANCE_FIELDS,
    RESULT_FIELDS,
    STATUSES,
    VERDICTS,
    ImageStatus,
    category,
)
from batchverify.worker_stats import WorkerStats

if TYPE_CHECKING:
    from batchverify.model.identity_bound import IdentityBound

_OK = STATUSES.index(ImageStatus.OK)
_NO_URI = STATUSES.index(ImageStatus.NO_URI)
_BAD_ROW = STATUSES.index(ImageStatus.BAD_ROW)
_NOT_A_NUMBER = "the model gave a score that is not a number"
_LOOKAHEAD_BATCHES = 3
# Batches that are decoded and encoded side by side, each by its share of the cores: so that none waits for the slowest
# thread of each step, and so many that they fit into memory. One more has its turn while another one starts or ends.
_MOST_SHARES = 4
# Of local images, more threads than cores take the processor from one another: on two cores, 8 read and encoded 760 images a
# second, and 2 of them 1,124.
_STORE_THREADS = 16
_GATHERED_BYTES = 64 * 2**20
_LOOK_UPS_AT_ONCE = 1024
_LOG = logging.getLogger(__name__)
Found = TypeVar("Found")
BLOCK, IMAGES, KEPT = "block", "images", "kept"
# Columns of encoded images that no block is sent.
_NOT_SENT = ["version", "reused"]


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

    read: list[ImageRead]
    embeddings: np.ndarray | None


class KerasNetwork:
    """A trained Siamese network that fetches and decodes its images itself, in threads, while the device works.

    Several batches are under way at once, each decoded and encoded by a thread of its own. Where TensorFlow is not in use
    yet, it is told to divide no step among more cores than each of these threads has.

    Args:
        config: which model, and the limits of its images.
        tally: is told how far it is.
        versions: of `config.EMBEDDING_VERSIONS`, where embeddings are kept: what tells that an image has not changed.

    Attributes:
        facts: about the model.
        preprocessing: what is done to a decoded image.
    """

    def __init__(self, config: ScoringConfig, tally: WorkerStats | None = None, versions: str | None = None):
        from batchverify.model.load import load_model, share_cores

        self._config = config = apply_sidecar(config)
        self._tally = tally = tally or WorkerStats()
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
        self._reader = ImageReader(layout, *limits, config.image_root, config.image_timeout, tally, versions)
        self._most_under_way = shares + 1
        self._encoding = ThreadPoolExecutor(self._most_under_way, "encode-images")
        self._ahead: Prefetcher | None = None

    def encode(self, uris: pa.Array) -> pa.Table:
        """Fetches, decodes and encodes `uris`; see `Network.encode`."""
        read: list[ImageRead] = []
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

    def _encode_batch(self, read: list[ImageRead]) -> _Batch:
        """Decodes what was left to be decoded, and encodes all."""
        read = self._decoded(read)
        pixels = [found.image for found in read if isinstance(found.image, np.ndarray)]
        embeddings = None
        if pixels:
            with self._tally.encoding():
                embeddings = self._model.encode(np.stack(pixels))
        self._tally.add(images_encoded=len(pixels), images_failed=len(read) - len(pixels))
        return _Batch(
            [found if isinstance(found.image, ImageFailure) else found._replace(image=None) for found in read], embeddings
        )

    def _decoded(self, read: list[ImageRead]) -> list[ImageRead]:
        files = [found.image for found in read if isinstance(found.image, UndecodedJpeg)]
        if not files or self._decode_jpegs is None:
            return read
        with self._tally.timed("decode"):
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
            read = functools.partial(self._reader.read_version, leave_jpegs=self._decode_jpegs is not None)
            self._ahead = Prefetcher(read, _too_slow(limit_s), threads, limit_s)
        return self._ahead

    def _await(self, batches: Iterator[Found]) -> Found | None:
        with self._tally.timed("wait"):
            return next(batches, None)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `Network.compare`."""
        return self._model.compare(left, right)

    def certificate(self) -> IdentityBound | None:
        """Returns what the head's weights prove; None where the model could not be taken apart."""
        from batchverify.model.identity_bound import bound_identity

        return bound_identity(self._model.siamese) if self._model.siamese else None

    def prove(self, uris: Sequence[str]) -> None:
        """Compares the network's parts with the whole on images at `uris`, as many as can be read.

        Raises:
            PreflightError: if they differ.
        """
        read = self._read_ahead(uris).batches(uris, max(1, len(uris)), 0)
        images = [found.image for batch in read for found in self._decoded(batch) if isinstance(found.image, np.ndarray)]
        try:
            self._model.prove(np.stack(images) if images else np.zeros((0,)))
        except ValueError as error:
            raise PreflightError(f"--model {self.facts.path}: on images of the manifest {error}; export it again.") from None
        if images and (found := self._model.judge_runtime(np.stack(images))):
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


def _failure(read: ImageRead) -> ImageFailure | None:
    return read.image if isinstance(read.image, ImageFailure) else None


def _statuses(failures: Sequence[ImageFailure | None]) -> np.ndarray:
    return np.array([_OK if failure is None else STATUSES.index(failure.status) for failure in failures], np.int8)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _too_slow(limit_s: float) -> Callable[[str], ImageRead]:
    failure = ImageFailure(
        ImageStatus.UNAVAILABLE, f"fetching and decoding it took longer than {limit_s:g} s (--image-timeout)"
    )
    return lambda _: ImageRead(failure)


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
        for bucket, theirs in _by_bucket(uris, len(self._by_bucket)):
            images = self._by_bucket[bucket]
            if images is None:
                raise RunError("a block is compared before its images are encoded; this is a fault of this program.")
            found.append(images.take(pc.index_in(theirs, value_set=images["uri"])))
        return pa.concat_tables(found).combine_chunks() if found else _no_images()


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


class EncodeImages(beam.DoFn):
    """`(bucket, [(block key, table of URIs), …])` to `(block key, encoded images)` for every block that asked.

    A bucket whose embeddings are too many to hold is encoded and answered in parts, each image in one of them. A second
    output, `images`, has each distinct image once, without its embedding. Where embeddings are kept, some of the tables are
    stored rows instead, of no block; a third output, `kept`, has the rows of the next generation.

    Args:
        loader: of the network.
        config: what becomes of scores that are no numbers.
        table: where the images are put instead of into the answers, which are empty then.
        keeping: what the run does with a store of embeddings, or None.
        tally: is told how far it is.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader | None = None,
        keeping: EmbeddingStoreSession | None = None,
        tally: WorkerStats | None = None,
    ):
        self._loader, self._on_nan, self._table_loader = loader, config.on_nan, table
        self._keeping, self._tally = keeping, tally or WorkerStats()
        self._encoded = Metrics.counter("batchverify", "images_encoded")
        self._reused = Metrics.counter("batchverify", "images_reused")
        self._failed = Metrics.counter("batchverify", "images_failed")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, request: tuple[int, Iterable[tuple[str, pa.Table]]]) -> Iterator[Any]:
        bucket, found = request
        asked, stored = _apart(found)
        keys, uris, places = _distinct_requests(asked)
        parts, named = [], []
        kept: list[pa.Table] = []
        most = max(1, EMBEDDING_BYTES_AT_ONCE // self._network.embedding_bytes)
        for first in range(0, len(uris), most):
            images = self._images(uris.slice(first, most), stored)
            yield beam.pvalue.TaggedOutput(IMAGES, images.drop_columns(["embedding"]))
            if self._keeping is not None:
                yield from _kept(kept)  # The last rows wait for those that are carried over: one file, not two.
                kept = [current_rows(images, self._keeping.today)]
                named.append(kept[0]["uri"].combine_chunks())
            images = images.drop_columns([name for name in _NOT_SENT if name in images.column_names])
            if self._table is None:
                yield from _answers(keys, places, images, first)
            else:
                parts.append(images)
        if self._table is not None and keys:
            self._table.put(bucket, parts)
            yield from ((key, _no_images()) for key in keys)
        if self._keeping is not None and stored is not None:
            others = stored.filter(pc.invert(pc.is_in(stored["uri"], value_set=pa.chunked_array(named, pa.string()))))
            kept.append(retained_rows(others, self._keeping.today, self._keeping.days))
        yield from _kept(kept)

    def _images(self, uris: pa.Array, stored: pa.Table | None) -> pa.Table:
        if self._keeping is None:
            images = self._network.encode(uris)
            reused = 0
        else:
            images = encode_new(uris, stored, cast(EmbeddingLookupNetwork, self._network), self._tally)
            reused = pc.sum(images["reused"]).as_py() or 0
        if self._on_nan == "fail":
            _require_finite(images)
        ok = int(np.count_nonzero(images["status"].to_numpy() == _OK))
        self._encoded.inc(ok - reused)
        self._reused.inc(reused)
        self._failed.inc(len(uris) - ok)
        self._encodings.inc((ok - reused) * self._network.encodings_per_image)
        return images


def _kept(tables: list[pa.Table]) -> Iterator[Any]:
    if any(table.num_rows for table in tables):
        yield beam.pvalue.TaggedOutput(KEPT, pa.concat_tables(tables))


def _distinct_requests(asked: Sequence[tuple[str, pa.Table]]) -> tuple[list[str], pa.Array, list[np.ndarray]]:
    """Returns the keys of blocks, the distinct URIs that they ask for, and where among these each block's are, in order.

    One pass for all blocks: looking up each block's URIs by themselves would hash all of the bucket's for each block.
    """
    if not asked:
        return [], pa.array([], pa.string()), []
    keys, tables = zip(*asked, strict=True)
    named = pa.chunked_array([table["uri"].combine_chunks() for table in tables], pa.string())
    coded = named.dictionary_encode().unify_dictionaries().chunks
    return list(keys), coded[0].dictionary, [np.sort(theirs.indices.to_numpy()) for theirs in coded]


def _answers(keys: list[str], places: list[np.ndarray], images: pa.Table, first: int) -> Iterator[tuple[str, pa.Table]]:
    """Yields for each block those of its images that are among `images`, the first of which has the place `first`."""
    for key, theirs in zip(keys, places, strict=True):
        low, high = np.searchsorted(theirs, (first, first + images.num_rows))
        if high > low:
            yield key, images.take(pa.array(theirs[low:high] - first))


def _apart(found: Iterable[tuple[str, pa.Table]]) -> tuple[list[tuple[str, pa.Table]], pa.Table | None]:
    """Returns what blocks ask for, and the stored rows of a bucket, None if there are none."""
    asked, stored = [], []
    for key, table in found:
        if "embedding" in table.column_names:
            stored.append(table)
        else:
            asked.append((key, table))
    return asked, pa.concat_tables(stored).combine_chunks() if stored else None


def encode_new(uris: pa.Array, stored: pa.Table | None, network: EmbeddingLookupNetwork, tally: WorkerStats) -> pa.Table:
    """Returns what `network.encode` would, with a column `reused`; only what is not stored or has changed is encoded.

    Args:
        uris: distinct ones.
        stored: rows of a store with the key of this run, or None.
        network: looks images up, and encodes them.
        tally: is told of images that need no encoding.
    """
    if stored is None:
        return _with_reused(network.encode(uris), False)
    place = pc.index_in(uris, value_set=stored["uri"].combine_chunks())
    known = uris.filter(place.is_valid())
    rows, now = stored.take(place.drop_null()), network.look_up(known)
    gone = now["status"].to_numpy() != _OK
    same = is_unchanged(rows, now) & ~gone
    rest = pa.concat_arrays([uris.filter(place.is_null()), known.filter(pa.array(~same & ~gone))])
    tally.add(images_reused=int(same.sum()), images_failed=int(gone.sum()))
    parts = [_of_stored(rows.filter(pa.array(same))), _of_failed(now.filter(pa.array(gone)), rows["embedding"].type)]
    if len(rest):
        parts.append(_with_reused(network.encode(rest), False))
    images = pa.concat_tables([part.select(parts[0].column_names) for part in parts]).combine_chunks()
    return images.take(pc.index_in(uris, value_set=images["uri"].combine_chunks()))


def _with_reused(images: pa.Table, reused: bool) -> pa.Table:
    return images.append_column("reused", pa.array(np.full(images.num_rows, reused)))


def _of_stored(rows: pa.Table) -> pa.Table:
    embeddings = _embedding_matrix(rows).reshape(rows.num_rows, rows["embedding"].type.list_size)
    images = encoded_images(
        rows["uri"].combine_chunks(),
        np.full(rows.num_rows, _OK, np.int8),
        [None] * rows.num_rows,
        rows["digest"].combine_chunks(),
        rows["identity"].to_numpy(),
        embeddings,
    )
    return _with_reused(images.append_column("version", rows["version"]), True)


def _of_failed(now: pa.Table, embedding: pa.FixedSizeListType) -> pa.Table:
    count = now.num_rows
    images = encoded_images(
        now["uri"].combine_chunks(),
        now["status"].to_numpy(),
        now["error"].combine_chunks(),
        [None] * count,
        np.full(count, np.nan),
        np.zeros((count, embedding.list_size), np.float32),
    )
    return _with_reused(images.append_column("version", pa.nulls(count, pa.string())), False)


def read_stored(
    part: StoredFile, keeping: EmbeddingStoreSession, buckets: int, tally: WorkerStats
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Reads one file of a store, each of its rows in the bucket that its URI belongs to, beside what blocks ask for there."""
    with tally.timed("read"):
        rows = keeping.read(part)
        by_bucket = list(_rows_by_bucket(rows["uri"].combine_chunks(), buckets))
    for bucket, places in by_bucket:
        yield bucket, ("", rows.take(places))


def write_kept(rows: pa.Table, keeping: EmbeddingStoreSession, tally: WorkerStats) -> list[StoredFile]:
    """Writes rows of the next generation, and returns the files that hold them."""
    with tally.timed("write"):
        return list(keeping.write(rows))


class ComparePairs(beam.DoFn):
    """`(block key, [(BLOCK, block), (IMAGES, encoded images), …])` to the block with the result columns of the output contract.

    Args:
        loader: of the network.
        config: columns, threshold and tolerance.
        table: where `EncodeImages` has put the images, if it has.
        tally: is told how far it is.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader | None = None,
        tally: WorkerStats | None = None,
    ):
        self._loader, self._config, self._table_loader, self._tally = loader, config, table, tally or WorkerStats()
        self._scored = Metrics.counter("batchverify", "rows_scored")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, element: tuple[str, Iterable[tuple[str, pa.Table]]]) -> Iterator[pa.Table]:
        key, found = element
        by_kind: dict[str, list[pa.Table]] = {BLOCK: [], IMAGES: []}
        for kind, table in found:
            by_kind[kind].append(table)
        if len(by_kind[BLOCK]) != 1:
            raise RunError(f"{len(by_kind[BLOCK])} blocks have the key {key}; give every block a key of its own.")
        (block,) = by_kind[BLOCK]
        with self._tally.timed("compare"):
            scored = compare_block(block, self._images(block, by_kind[IMAGES]), self._network, self._config)
        failed = scored["score"].null_count
        rows = scored.num_rows - failed
        self._scored.inc(rows)
        self._encodings.inc(rows * self._network.encodings_per_pair)
        with self._tally.timed("write"):  # Beam runs what comes next before it comes back for more.
            yield scored
        self._tally.add(rows_scored=rows, rows_failed=failed)

    def _images(self, block: pa.Table, answers: list[pa.Table]) -> pa.Table:
        if self._table is not None:
            return self._table.find(_distinct_uris(block, self._config))
        return pa.concat_tables(answers).combine_chunks() if answers else _no_images()


def request_images(
    element: tuple[str, pa.Table], config: ScoringConfig, buckets: int
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Asks for the distinct images of a block, each in the bucket that its URI belongs to."""
    key, block = element
    for bucket, uris in _by_bucket(_distinct_uris(block, config), buckets):
        yield bucket, (key, pa.table({"uri": uris}))


def _distinct_uris(block: pa.Table, config: ScoringConfig) -> pa.Array:
    left, right = pair_uris(block, config)
    return pa.chunked_array([*left.chunks, *right.chunks], pa.string()).unique().drop_null()


def _by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Splits distinct URIs by the bucket that each belongs to."""
    for bucket, places in _rows_by_bucket(uris, buckets):
        yield bucket, uris.take(places)


def _rows_by_bucket(uris: pa.Array, buckets: int) -> Iterator[tuple[int, pa.Array]]:
    """Yields buckets, and the places in `uris` of those that belong to each."""
    bucket = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False) % buckets
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    for number in np.unique(bucket):
        yield int(number), pa.array(order[bounds[number] : bounds[number + 1]])


def compare_block(block: pa.Table, images: pa.Table, network: Network, config: ScoringConfig) -> pa.Table:
    """Returns `block` with the result columns, each row looked up in `images`.

    Raises:
        RunError: at a score that is not a number, unless `config.on_nan` says `keep`.
    """
    left, right = (_Side.find(uris, images) for uris in pair_uris(block, config))
    scores = _scores(left, right, images, network)
    odd = np.isnan(scores) & (left.status == _OK) & (right.status == _OK)
    if odd.any() and config.on_nan == "fail":
        raise RunError(f"{_NOT_A_NUMBER}; check its weights, or keep such rows without a score with --on-nan keep.")
    error = _first_error(left, right, odd)
    if BAD_ROW_COLUMN in block.column_names:
        bad = block[BAD_ROW_COLUMN]
        left, right = (side.of_bad_rows(bad.is_valid().to_numpy()) for side in (left, right))
        error, block = pc.coalesce(bad, error), block.drop_columns([BAD_ROW_COLUMN])
    if MANIFEST_FILE in block.column_names:
        place = block.column_names.index(MANIFEST_FILE)
        block = block.set_column(place, PROVENANCE_FIELDS[0], block[MANIFEST_FILE].cast(pa.string()))
    verdicts = check_identity(scores, left.identity, right.identity, config.match_threshold(), config.identity_tolerance)
    columns = [
        _nullable(scores),
        pa.array(is_match(scores, config.match_threshold()), mask=np.isnan(scores)),
        _nullable(left.identity),
        _nullable(right.identity),
        category(verdicts, VERDICTS),
        _same_image(left, right, images),
        category(left.status, STATUSES),
        category(right.status, STATUSES),
        error,
    ]
    for field, column in zip(RESULT_FIELDS, columns, strict=True):
        block = block.append_column(field, column)
    return block


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of a block's pairs, looked up.

    Attributes:
        uris: text `(n,)`, null where a row names none.
        place: int64 `(n,)`, the row in the table of images, -1 where there is none.
        status: int8 `(n,)`, positions in `STATUSES`.
        identity: float32 `(n,)`, NaN where there is none.
        error: text `(n,)`, null where the image is ok.
    """

    uris: pa.ChunkedArray
    place: np.ndarray
    status: np.ndarray
    identity: np.ndarray
    error: pa.ChunkedArray

    @classmethod
    def find(cls, uris: pa.ChunkedArray, images: pa.Table) -> _Side:
        index = pc.index_in(uris, value_set=images["uri"])
        place = pc.fill_null(index, -1).to_numpy().astype(np.int64)
        if np.any((place < 0) & uris.is_valid().to_numpy(zero_copy_only=False)):
            raise RunError("an image that a block asked for was not answered; this is a fault of this program.")
        status = np.append(images["status"].to_numpy(), np.int8(_NO_URI))[place].astype(np.int8)
        identity = np.append(images["identity"].to_numpy(), np.float32(np.nan))[place].astype(np.float32)
        error = pc.if_else(pc.is_valid(index), images["error"].take(index), "the manifest names no image")
        return cls(uris, place, status, identity, error)

    def of_bad_rows(self, bad: np.ndarray) -> _Side:
        """Returns the same with the status of rows of the manifest that could not be read, bool `(n,)`."""
        return dataclasses.replace(self, status=np.where(bad, np.int8(_BAD_ROW), self.status))

    def described(self, side: str) -> pa.ChunkedArray:
        """Returns the errors in full, with side and URI; null where there is none."""
        return pc.binary_join_element_wise(f"{side} image ", pc.fill_null(self.uris, "(none)"), ": ", self.error, "")


def _scores(left: _Side, right: _Side, images: pa.Table, network: Network) -> np.ndarray:
    scores = np.full(len(left.place), np.nan, np.float32)
    both = np.flatnonzero((left.status == _OK) & (right.status == _OK))
    embeddings = _embedding_matrix(images)
    # Slices keep the gathered embeddings small beside the block itself, however wide they are.
    step = max(1, min(8192, _GATHERED_BYTES // max(1, embeddings.itemsize * embeddings.shape[1])))
    for start in range(0, len(both), step):
        rows = both[start : start + step]
        scores[rows] = network.compare(embeddings[left.place[rows]], embeddings[right.place[rows]])
    return scores


def _embedding_matrix(images: pa.Table) -> np.ndarray:
    column = images["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1) if len(column) else np.zeros((0, 1), np.float32)


def _same_image(left: _Side, right: _Side, images: pa.Table) -> pa.Array:
    digests = images["digest"].combine_chunks().dictionary_encode()
    codes = np.append(pc.fill_null(digests.indices, -1).to_numpy(), -1)
    one, other = codes[left.place], codes[right.place]
    return pa.array(one == other, mask=(one < 0) | (other < 0))


def _first_error(left: _Side, right: _Side, odd: np.ndarray) -> pa.ChunkedArray | pa.Array:
    if np.all(left.status == _OK) and np.all(right.status == _OK) and not odd.any():
        return pa.nulls(len(left.status), pa.string())
    return pc.coalesce(left.described("left"), right.described("right"), pc.if_else(pa.array(odd), _NOT_A_NUMBER, None))


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))


def _no_images() -> pa.Table:
    return encoded_images(pa.array([], pa.string()), np.zeros(0, np.int8), [], [], np.zeros(0), np.zeros((0, 1)))


def _require_finite(images: pa.Table) -> None:
    ok = images["status"].to_numpy() == _OK
    wrong = ok & ~np.isfinite(images["identity"].to_numpy())
    if wrong.any():
        uri = images["uri"][int(np.argmax(wrong))].as_py()
        raise RunError(f"{_NOT_A_NUMBER} to {uri} against itself; check its weights, or see --on-nan keep.")
