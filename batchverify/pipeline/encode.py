"""The DoFn that encodes each distinct image once, bucket by bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics.metric import Metrics

from batchverify.config import ScoringConfig
from batchverify.evaluation.candidate import IMAGE_COLUMNS
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import StoredFile
from batchverify.pipeline.drawn_images import DrawnImages
from batchverify.pipeline.encoded_images import (
    OK_CODE,
    is_with_candidate,
    no_encoded_images,
    without_embeddings,
)
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.inference_metrics import InferenceMetrics
from batchverify.pipeline.network import EmbeddingLookupNetwork, NetworkLoader
from batchverify.pipeline.stored_embeddings import PartClock, StoredBucket
from batchverify.pipeline.wrong_scores import CANDIDATE, MODEL, without_wrong_scores
from batchverify.tracing import span
from batchverify.worker_stats import WorkerStats

# The tags of the outputs of `EncodeImages` beside its main output, the answers to blocks.
IMAGES_OUTPUT, STORED_FILES_OUTPUT, DRAWN_OUTPUT = "images", "stored_files", "drawn"
# Columns of encoded images that `ComparePairs` does not need.
_NOT_SENT = ("version", "reused", "traits")


class EncodeImages(beam.DoFn):
    """Turns `(bucket, [(block key, table of URIs), …])` into `(block key, encoded images)` for every block that asks.

    If the embeddings of a bucket take more memory than is allowed, the bucket is encoded and answered in chunks; each image
    is in one chunk. The output `IMAGES_OUTPUT` has one row for each distinct image, without its embedding.

    With a store of embeddings, some of the tables of the input hold stored rows instead of URIs; they have no block. The output
    `STORED_FILES_OUTPUT` then has the files that were written to the store. They are written here, as soon as their images are
    encoded, and not in a step of its own, which some runners begin only when this one has ended.

    The output `DRAWN_OUTPUT` has images to compare with strangers, a `DrawnImages` for each bucket.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        buckets: The number of buckets.
        base: The result of `base_of_draw`.
        chunk_bytes: The most embeddings that are encoded before they are sent, in bytes.
        table: The table that takes the images; then the answers are empty, and the number of buckets is the table's. None to
            send the images in the answers.
        session: The use of a store of embeddings in this run, or None.
        stats: The counts and times of this process.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        buckets: int,
        base: str,
        chunk_bytes: int,
        table: ImageTableLoader | None = None,
        session: EmbeddingStoreSession | None = None,
        stats: WorkerStats | None = None,
    ):
        self._loader, self._on_nan, self._table_loader = loader, config.on_nan, table
        self._session, self._stats = session, stats or WorkerStats()
        self._base, self._chunk_bytes = base, chunk_bytes
        self._buckets, self._are_drawn = buckets, config.stranger_pairs + config.steadiness_images > 0
        self._encoded = Metrics.counter("batchverify", "images_encoded")
        self._reused = Metrics.counter("batchverify", "images_reused")
        self._failed = Metrics.counter("batchverify", "images_failed")
        self._encodings = Metrics.counter("batchverify", "encodings")
        self._inferences = InferenceMetrics()

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()
        self._clock = PartClock()

    def process(self, element: tuple[int, Iterable[tuple[str, pa.Table]]]) -> Iterator[Any]:
        bucket, tables = element
        buckets = self._buckets if self._table is None else self._table.buckets
        requests, stored = split_requests(tables)
        store = None if self._session is None else StoredBucket(self._session, stored, self._clock, self._stats)
        drawn: list[DrawnImages] = []
        chunk_size = max(1, self._chunk_bytes // self._network.embedding_bytes)
        for start in range(0, len(requests.uris), chunk_size):
            uris = requests.uris.slice(start, chunk_size)
            with span("encode", images=len(uris), bucket=bucket):
                images = self._encode(uris, store)
            yield beam.pvalue.TaggedOutput(IMAGES_OUTPUT, without_embeddings(images))
            if store is not None:
                yield from _stored(store.add(images))
            if self._are_drawn:
                drawn.append(DrawnImages.draw(images, self._network.embedding_bytes, buckets, self._base))
            images = images.drop_columns([name for name in _NOT_SENT if name in images.column_names])
            if self._table is None:
                yield from requests.answers(images, start)
            else:
                self._table.put(images)
        if self._table is not None:
            yield from ((key, no_encoded_images()) for key in requests.keys)
        if drawn:
            yield beam.pvalue.TaggedOutput(DRAWN_OUTPUT, DrawnImages.merge(drawn))
        if store is not None:
            yield from _stored(store.finish())

    def _encode(self, uris: pa.Array, store: StoredBucket | None) -> pa.Table:
        if store is None:
            images = self._network.encode(uris)
            reused = 0
        else:
            images = store.encode(uris, cast(EmbeddingLookupNetwork, self._network))
            reused = pc.sum(images["reused"]).as_py() or 0
        images = _without_wrong_identity(images, self._on_nan, MODEL, "status", "identity")
        if is_with_candidate(images):
            columns = IMAGE_COLUMNS["status"], IMAGE_COLUMNS["identity"]
            images = _without_wrong_identity(images, self._on_nan, CANDIDATE, *columns)
        ok = int(np.count_nonzero(images["status"].to_numpy() == OK_CODE))
        self._encoded.inc(ok - reused)
        self._reused.inc(reused)
        self._failed.inc(len(uris) - ok)
        self._encodings.inc((ok - reused) * self._network.encodings_per_image)
        self._inferences.report(self._network.inferences)
        return images


@dataclasses.dataclass(frozen=True)
class BucketRequests:
    """What blocks ask of one bucket.

    Attributes:
        keys: The keys of the blocks.
        uris: The distinct URIs that the blocks ask for, text `(n,)`.
        positions: For each block the positions of its URIs in `uris`, ascending.
    """

    keys: list[str]
    uris: pa.Array
    positions: list[np.ndarray]

    @classmethod
    def combine(cls, requests: Sequence[tuple[str, pa.Table]]) -> BucketRequests:
        """Combines `(block key, table of URIs)`.

        All blocks are combined in one pass: to look up the URIs of each block by themselves would hash all URIs of the bucket
        once for each block.
        """
        if not requests:
            return cls([], pa.array([], pa.string()), [])
        keys, tables = zip(*requests, strict=True)
        uris = pa.chunked_array([table["uri"].combine_chunks() for table in tables], pa.string())
        encoded = uris.dictionary_encode().unify_dictionaries().chunks
        return cls(list(keys), encoded[0].dictionary, [np.sort(chunk.indices.to_numpy()) for chunk in encoded])

    def answers(self, images: pa.Table, start: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields for each block its images among `images`, which are those of `uris` from position `start` on."""
        for key, positions in zip(self.keys, self.positions, strict=True):
            low, high = np.searchsorted(positions, (start, start + images.num_rows))
            if high > low:
                yield key, images.take(pa.array(positions[low:high] - start))


def split_requests(tables: Iterable[tuple[str, pa.Table]]) -> tuple[BucketRequests, pa.Table | None]:
    """Returns the requests of the blocks, and the stored rows of the bucket, None if there are none."""
    requests, stored = [], []
    for key, table in tables:
        if "embedding" in table.column_names:
            stored.append(table)
        else:
            requests.append((key, table))
    return BucketRequests.combine(requests), pa.concat_tables(stored).combine_chunks() if stored else None


def _stored(files: Iterable[StoredFile]) -> Iterator[Any]:
    return (beam.pvalue.TaggedOutput(STORED_FILES_OUTPUT, file) for file in files)


def _without_wrong_identity(images: pa.Table, on_nan: str, who: str, status: str, identity: str) -> pa.Table:
    """Returns encoded images with NaN for identity scores that are none.

    Args:
        images: The encoded images.
        on_nan: The treatment of such an output, one of `config.ON_NAN`.
        who: `MODEL` or `CANDIDATE`.
        status: The column with its statuses.
        identity: The column with its identity scores.

    Raises:
        RunError: If there is one, unless `on_nan` is `keep`.
    """
    outputs, is_encoded = images[identity].to_numpy(), images[status].to_numpy() == OK_CODE
    scores, _ = without_wrong_scores(outputs, is_encoded, on_nan, lambda row: f"{images['uri'][row]} against itself", who)
    return images if scores is outputs else images.set_column(images.column_names.index(identity), identity, pa.array(scores))
