"""The network at work inside Beam: each distinct image encoded once, then pairs compared.

`ImageEncoder` and `compare_block` are the pure parts; `EncodeImages` and `ComparePairs` are the DoFns that lift
them. Both call one `Network`, which a process loads once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.utils.shared import Shared

from batchverify.config import Refused, RunFailed, ScoringConfig
from batchverify.identity import check_identity, is_match
from batchverify.images import Failure, ImageReader
from batchverify.manifest import pair_uris
from batchverify.reading import ReadAhead
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
from batchverify.sidecar import GoldenPair, complete
from batchverify.stores import in_store
from batchverify.tally import Tally

if TYPE_CHECKING:
    from batchverify.certificate import Certificate

_OK = STATUSES.index(ImageStatus.OK)
_NO_URI = STATUSES.index(ImageStatus.NO_URI)
_BAD_ROW = STATUSES.index(ImageStatus.BAD_ROW)
_NOT_A_NUMBER = "the model gave a score that is not a number"
_LOOKAHEAD_BATCHES = 3
# Of local images, more threads than cores take the processor from one another: on two cores, 8 read and encoded 760 images a
# second, and 2 of them 1,124.
_STORE_THREADS = 16
_GATHERED_BYTES = 64 * 2**20
_LOG = logging.getLogger(__name__)
BLOCK, IMAGES = "block", "images"


class Network(Protocol):
    """What the two DoFns need. `KerasNetwork` is the real one; a benchmark brings its own.

    Attributes:
        encodings_per_image: how often an image goes through a tower of the network when it is encoded.
        encodings_per_pair: how often a pair's images do when they are compared.
    """

    encodings_per_image: int
    encodings_per_pair: int

    def encode(self, uris: pa.Array) -> pa.Table:
        """Returns one row for each of `uris`, in their order: the columns of `encoded_images`."""

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of what was kept of images, `(n, d)` twice."""


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


class KerasNetwork:
    """A trained Siamese network that fetches and decodes its images itself, in threads, while the device works.

    Args:
        config: which model, and the limits of its images.
        tally: is told how far it is.
    """

    def __init__(self, config: ScoringConfig, tally: Tally | None = None):
        from batchverify.models import load_model

        self._config = config = complete(config)
        self._tally = tally = tally or Tally()
        self._model = load_model(config)
        self.facts = self._model.facts
        self.encodings_per_image, self.encodings_per_pair = self.facts.encodings_per_image, self.facts.encodings_per_pair
        layout = self._model.preprocessing.layout()
        self._reader = ImageReader(
            layout, config.max_image_pixels, config.max_image_bytes, config.image_root, config.image_timeout, tally
        )
        self._ahead: ReadAhead | None = None

    def encode(self, uris: pa.Array) -> pa.Table:
        """Fetches, decodes and encodes `uris`; see `Network.encode`."""
        read, embeddings, digests = [], [], []
        names = uris.to_pylist()
        batches = self._read_ahead(names).batches(names, self._config.batch_size, _LOOKAHEAD_BATCHES)
        while results := self._await(batches):
            pixels = [image for image, _ in results if not isinstance(image, Failure)]
            if pixels:
                with self._tally.timed("encode"):
                    embeddings.append(self._model.encode(np.stack(pixels)))
            self._tally.add(images_encoded=len(pixels), images_failed=len(results) - len(pixels))
            read += [None if not isinstance(image, Failure) else image for image, _ in results]
            digests += [digest for _, digest in results]
        return self._assemble(uris, read, embeddings, digests)

    def _read_ahead(self, uris: Sequence[str]) -> ReadAhead:
        """Returns the threads that read; how many there are is decided by the first images that are asked for."""
        if self._ahead is None:
            limit_s = self._config.image_timeout
            threads = self._config.fetch_threads or (_STORE_THREADS if any(map(in_store, uris)) else _cores())
            self._ahead = ReadAhead(self._reader.read, _too_slow(limit_s), threads, limit_s)
        return self._ahead

    def _await(self, batches: Iterator[list]) -> list | None:
        with self._tally.timed("wait"):
            return next(batches, None)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `Network.compare`."""
        return self._model.compare(left, right)

    def certificate(self) -> Certificate | None:
        """Returns what the head's weights prove; None where the model could not be taken apart."""
        from batchverify.certificate import certify

        return certify(self._model.siamese) if self._model.siamese else None

    def prove(self, uris: Sequence[str]) -> None:
        """Compares the network's parts with the whole on images at `uris`, as many as can be read.

        Raises:
            Refused: if they differ.
        """
        read = self._read_ahead(uris).batches(uris, max(1, len(uris)), 0)
        images = [image for batch in read for image, _ in batch if not isinstance(image, Failure)]
        try:
            self._model.prove(np.stack(images) if images else np.zeros((0,)))
        except ValueError as error:
            raise Refused(f"--model {self.facts.path}: on images of the manifest {error}; export it again.") from None
        if images and (found := self._model.judge_runtime(np.stack(images))):
            _LOG.info("Of the manifest: %s", found)

    def check_golden(self, pairs: Sequence[GoldenPair]) -> None:
        """Scores pairs whose scores are known.

        Raises:
            Refused: at an image that can't be read or a score that is another; the model isn't the one that was measured,
                or its images come to it in another way.
        """
        for pair in pairs:
            images = []
            for uri in (pair.left, pair.right):
                image, _ = self._reader.read(uri)
                if isinstance(image, Failure):
                    raise Refused(
                        f"golden pair of --model {self.facts.path}: {uri}: {image.error}; mend it, or take the pair out."
                    )
                images.append(self._model.encode(image[None]))
            score = float(self._model.compare(*images)[0])
            if not abs(score - pair.score) <= pair.tolerance:
                raise Refused(
                    f"--model {self.facts.path}: the golden pair {pair.left}, {pair.right} should score {pair.score:g}, "
                    f"but scores {score:.6g}; check --pixels, --color, --resize, --fit, and that it is the same model."
                )

    def _assemble(self, uris: pa.Array, read: list[Failure | None], embeddings: list[np.ndarray], digests) -> pa.Table:
        encoded = np.array([failure is None for failure in read], bool)
        dtype = np.float32 if not embeddings else embeddings[0].dtype
        found = np.concatenate([np.zeros((0, self.facts.embedding_size), dtype), *embeddings])
        spread = np.zeros((len(read), self.facts.embedding_size), dtype)
        spread[encoded] = found
        identity = np.full(len(read), np.nan, np.float32)
        identity[encoded] = self._model.compare(found, found) if len(found) else []
        status = np.array([_OK if failure is None else STATUSES.index(failure.status) for failure in read], np.int8)
        return encoded_images(uris, status, [failure.error if failure else None for failure in read], digests, identity, spread)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _too_slow(limit_s: float) -> Callable[[str], tuple[Failure, None]]:
    failure = Failure(ImageStatus.UNAVAILABLE, f"fetching and decoding it took longer than {limit_s:g} s (--image-timeout)")
    return lambda _: (failure, None)


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

    def put(self, bucket: int, images: pa.Table) -> None:
        """Keeps the encoded images of one bucket."""
        self._by_bucket[bucket] = images

    def find(self, uris: pa.Array) -> pa.Table:
        """Returns the encoded images of distinct `uris`, in another order."""
        found = []
        for bucket, theirs in _by_bucket(uris, len(self._by_bucket)):
            images = self._by_bucket[bucket]
            if images is None:
                raise RunFailed("a block is compared before its images are encoded; this is a fault of this program.")
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
    """`(bucket, [(block key, table of URIs)])` to `(block key, encoded images)` for every block that asked.

    A second output, `images`, has each distinct image once, without its embedding.

    Args:
        loader: of the network.
        config: what becomes of scores that are no numbers.
        table: where the images are put instead of into the answers, which are empty then.
    """

    def __init__(self, loader: NetworkLoader, config: ScoringConfig, table: ImageTableLoader | None = None):
        self._loader, self._on_nan, self._table_loader = loader, config.on_nan, table
        self._encoded = Metrics.counter("batchverify", "images_encoded")
        self._failed = Metrics.counter("batchverify", "images_failed")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, request: tuple[int, Iterable[tuple[str, pa.Table]]]) -> Iterator[Any]:
        bucket, asked = request
        wanted = [(key, table["uri"].combine_chunks()) for key, table in asked]
        uris = pa.chunked_array([uris for _, uris in wanted], pa.string()).unique()
        images = self._network.encode(uris)
        if self._on_nan == "fail":
            _require_finite(images)
        encoded = int(np.count_nonzero(images["status"].to_numpy() == _OK))
        self._encoded.inc(encoded)
        self._failed.inc(len(uris) - encoded)
        self._encodings.inc(encoded * self._network.encodings_per_image)
        yield beam.pvalue.TaggedOutput(IMAGES, images.drop_columns(["embedding"]))
        if self._table is not None:
            self._table.put(bucket, images)
            yield from ((key, _no_images()) for key, _ in wanted)
            return
        for key, theirs in wanted:
            yield key, images.take(pc.index_in(theirs, value_set=uris))


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
        tally: Tally | None = None,
    ):
        self._loader, self._config, self._table_loader, self._tally = loader, config, table, tally or Tally()
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
            raise RunFailed(f"{len(by_kind[BLOCK])} blocks have the key {key}; give every block a key of its own.")
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
    bucket = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False) % buckets
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    for number in np.unique(bucket):
        yield int(number), uris.take(pa.array(order[bounds[number] : bounds[number + 1]]))


def compare_block(block: pa.Table, images: pa.Table, network: Network, config: ScoringConfig) -> pa.Table:
    """Returns `block` with the result columns, each row looked up in `images`.

    Raises:
        RunFailed: at a score that is not a number, unless `config.on_nan` says `keep`.
    """
    left, right = (_Side.find(uris, images) for uris in pair_uris(block, config))
    scores = _scores(left, right, images, network)
    odd = np.isnan(scores) & (left.status == _OK) & (right.status == _OK)
    if odd.any() and config.on_nan == "fail":
        raise RunFailed(f"{_NOT_A_NUMBER}; check its weights, or keep such rows without a score with --on-nan keep.")
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
            raise RunFailed("an image that a block asked for was not answered; this is a fault of this program.")
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
        raise RunFailed(f"{_NOT_A_NUMBER} to {uri} against itself; check its weights, or see --on-nan keep.")
