"""`VerifyPairs`: blocks of pairs to scored blocks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa

from batchverify.config import ScoringConfig, accelerator_hint
from batchverify.io.storage_options import with_storage_options
from batchverify.model.sidecar import apply_sidecar
from batchverify.output.embedding_store import EmbeddingStoreSession, StoredFile
from batchverify.pipeline.buckets import request_images
from batchverify.pipeline.compare import BLOCK, IMAGES, RETAINED, ComparePairs
from batchverify.pipeline.encode import EncodeImages, read_stored, write_retained
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.network import KerasNetwork, NetworkLoader
from batchverify.worker_stats import WorkerStats

_IMAGES_PER_BUCKET = 4096
_MOST_BUCKETS = 4096
# Of a worker that encodes on a GPU, at least: an estimate with room to spare, as none has been measured on Dataflow.
_ENCODER_RAM = "12GB"
BY_BUCKET = tuple[int, tuple[str, pa.Table]]


class Verified(NamedTuple):
    """What `VerifyPairs` gives.

    Attributes:
        scores: tables, the blocks with the result columns of the output contract.
        images: tables, one row for each distinct image: uri, status, error, digest, identity; and where embeddings are kept
            version and reused.
        kept: the files that were written to the store of embeddings; None without one.
    """

    scores: beam.PCollection[pa.Table]
    images: beam.PCollection[pa.Table]
    kept: beam.PCollection[StoredFile] | None = None


class VerifyPairs(beam.PTransform):
    """Scores blocks of pairs: `(block key, pa.Table)` to tables with the result columns.

    Each block needs a key of its own and the columns that `config` names; all other columns pass through.
    Blocks of some ten thousand rows serve best. With a `manifest_file` column, relative URIs start from its folder.

    Args:
        config: model, threshold, columns and limits.
        expected_images: about how many distinct images there are; decides how many groups they are encoded in.
        loader: loads the network in each worker process; a Keras model as `config` says, unless given.
        table: holds the encoded images where all workers share one process; without it they travel to each block.
        stats: is told how far the workers of this machine are.
        session: what is done with a store of embeddings, or None.
    """

    def __init__(
        self,
        config: ScoringConfig,
        expected_images: int = 100_000,
        loader: NetworkLoader | None = None,
        table: ImageTableLoader | None = None,
        stats: WorkerStats | None = None,
        session: EmbeddingStoreSession | None = None,
    ):
        super().__init__()
        self._config = config = apply_sidecar(config)
        self._buckets = table.buckets if table else bucket_count(expected_images)
        self._loader, self._table, self._stats = loader or keras_loader(config), table, stats or WorkerStats()
        self._session = session

    def expand(self, blocks: beam.PCollection[tuple[str, pa.Table]]) -> Verified:
        requests = blocks | "RequestImages" >> beam.FlatMap(request_images, self._config, self._buckets).with_output_types(
            BY_BUCKET
        )
        if self._session is not None:
            requests = (requests, self._stored(blocks.pipeline, self._session)) | "BesideStored" >> beam.Flatten()
        encoded = (
            requests
            | beam.GroupByKey()
            | "EncodeImages"
            >> _on_accelerator(
                beam.ParDo(EncodeImages(self._loader, self._config, self._table, self._session, self._stats)),
                self._config.accelerator,
            )
            .with_outputs(IMAGES, RETAINED, main="answers")
            .with_output_types(tuple[str, pa.Table], **{IMAGES: pa.Table, RETAINED: pa.Table})
        )
        # Not CoGroupByKey, which forgets the elements' types: Beam would pickle the tables.
        by_block = tuple[str, tuple[str, pa.Table]]
        scored = (
            (
                blocks | "Blocks" >> beam.MapTuple(lambda key, block: (key, (BLOCK, block))).with_output_types(by_block),
                encoded.answers
                | "Answers" >> beam.MapTuple(lambda key, images: (key, (IMAGES, images))).with_output_types(by_block),
            )
            | beam.Flatten()
            | "GroupByBlock" >> beam.GroupByKey()
            | "ComparePairs"
            >> beam.ParDo(ComparePairs(self._loader, self._config, self._table, self._stats)).with_output_types(pa.Table)
        )
        kept = (
            encoded[RETAINED] | "WriteKept" >> beam.FlatMap(write_retained, self._session, self._stats)
            if self._session
            else None
        )
        return Verified(scored, encoded[IMAGES], kept)

    def _stored(
        self, pipeline: beam.Pipeline, session: EmbeddingStoreSession
    ) -> beam.PCollection[tuple[int, tuple[str, pa.Table]]]:
        return (
            pipeline
            | "StoredParts" >> beam.Create(session.parts(), reshuffle=False)
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadStored" >> beam.FlatMap(read_stored, session, self._buckets, self._stats).with_output_types(BY_BUCKET)
        )


def _on_accelerator(encode: beam.ParDo, accelerator: str | None) -> beam.ParDo:
    """Asks for workers of its own for a step: shuffles lie before and behind it, so no other stage is fused with it."""
    if accelerator is not None:
        encode.with_resource_hints(accelerator=accelerator_hint(accelerator))
        if "machine_type:" not in accelerator:
            encode.with_resource_hints(min_ram=_ENCODER_RAM)
    return encode


def bucket_count(expected_images: int) -> int:
    """Returns in how many groups so many distinct images are encoded."""
    return max(1, min(_MOST_BUCKETS, -(-expected_images // _IMAGES_PER_BUCKET)))


def keras_loader(config: ScoringConfig, stats: WorkerStats | None = None, versions: str | None = None) -> NetworkLoader:
    """Returns what loads the network that `config` names; see `KerasNetwork` for the arguments."""
    return NetworkLoader(functools.partial(with_storage_options(KerasNetwork), config, stats, versions))
