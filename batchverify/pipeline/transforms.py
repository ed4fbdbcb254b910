"""`VerifyPairs`: blocks of pairs to scored blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows

from batchverify.config import ScoringConfig, accelerator_hint
from batchverify.model.calibration import Calibration
from batchverify.model.candidate import apply_candidate_sidecar, read_candidate_sidecar
from batchverify.model.registry import resolve_models
from batchverify.model.sidecar import Sidecar, apply_sidecar, read_sidecar
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import StoredFile
from batchverify.pipeline.buckets import bucket_count, request_images
from batchverify.pipeline.calibration import refuse_prior_alone
from batchverify.pipeline.compare import BLOCK_TABLE, IMAGES_TABLE, ComparePairs
from batchverify.pipeline.drawn_images import DrawnImages, base_of_draw
from batchverify.pipeline.encode import DRAWN_OUTPUT, IMAGES_OUTPUT, STORED_FILES_OUTPUT, EncodeImages
from batchverify.pipeline.examine import Examined, ExamineDrawn
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.network import NetworkLoader
from batchverify.pipeline.portable import max_element_bytes
from batchverify.pipeline.stored_embeddings import read_stored
from batchverify.pipeline.two_networks import network_loader
from batchverify.worker_stats import WorkerStats

# The least memory of a worker that encodes on a GPU: an estimate with room to spare, not measured on Dataflow.
_ENCODER_RAM = "12GB"
BY_BUCKET = tuple[int, tuple[str, pa.Table]]
_BY_BLOCK = tuple[str, tuple[str, pa.Table]]


class Verified(NamedTuple):
    """The outputs of `VerifyPairs`.

    Attributes:
        scores: The blocks, tables with the result columns of the output contract.
        images: Tables with one row for each distinct image and the columns `uri`, `status`, `error`, `digest`, `identity`
            and `traits` (a `schema.ImageTraits`); with a store of embeddings also `version` and `reused`.
        stored_files: The files written to the store of embeddings; None without a store.
        examined: One element, what images drawn at random say about the model: how many strangers match, and whether images
            still match themselves after small changes. None where `ScoringConfig` turns off both, and for blocks in windows.

    Examples:
        Both tables are Arrow tables, so they go to any sink that Beam has for Arrow or Parquet.

        >>> import apache_beam as beam, batchverify, pyarrow.csv
        >>> pairs = pyarrow.csv.read_csv("pairs.csv").slice(0, 20)
        >>> with beam.Pipeline(runner="FnApiRunner") as pipeline:
        ...     blocks = pipeline | beam.Create([("block 0", pairs)])
        ...     verified = blocks | batchverify.VerifyPairs(batchverify.ScoringConfig(), expected_images=40)
        ...     _ = verified.images | beam.Map(lambda images: print(images.column_names))
        ['uri', 'status', 'error', 'digest', 'identity', 'traits']
    """

    scores: PCollection[pa.Table]
    images: PCollection[pa.Table]
    stored_files: PCollection[StoredFile] | None = None
    examined: PCollection[Examined] | None = None


class _Prepared(NamedTuple):
    """What the steps of `VerifyPairs` share, once the sidecars have been read."""

    config: ScoringConfig
    loader: NetworkLoader
    calibration: Calibration | None


class VerifyPairs(beam.PTransform[PCollection[tuple[str, pa.Table]], Verified]):
    """Scores blocks of pairs: `(block key, pa.Table)` to tables with the result columns.

    Each block needs a key of its own and the columns that `config` names; all other columns pass through. Blocks of about ten
    thousand rows serve best. With a `manifest_file` column, relative URIs start from the folder of that file.

    To make a `VerifyPairs` reads no file. The model's sidecar is read when the transform is applied to a collection, and the
    model is loaded by the workers.

    Args:
        config: The model, the threshold, the columns and the limits.
        expected_images: The approximate number of distinct images; it decides in how many groups they are encoded.
        loader: The loader of the network in each worker process; by default that of the Keras model of `config`.
        stats: The counts and times of the workers on this machine.
        session: The use of a store of embeddings, or None.
        sidecar: The content of the model's sidecar; None to read it when the transform is applied.
        candidate_sidecar: The content of the candidate's sidecar; None to read it when the transform is applied.

    If the sidecar has a calibration, there is a column `llr`, and with `ScoringConfig.prior` a column `probability`. Workers
    refuse a calibration that was fitted for another model.

    Raises:
        PreflightError: When the transform is applied, if the sidecar cannot be read, or has no calibration for the prior.

    Examples:
        >>> import apache_beam as beam, batchverify, pyarrow.csv
        >>> pairs = pyarrow.csv.read_csv("pairs.csv").slice(0, 20)
        >>> config = batchverify.ScoringConfig(model="model.keras")
        >>> with beam.Pipeline(runner="FnApiRunner") as pipeline:
        ...     blocks = pipeline | beam.Create([("block 0", pairs)])
        ...     verified = blocks | batchverify.VerifyPairs(config, expected_images=40)
        ...     _ = verified.scores | beam.Map(lambda scores: print(scores.num_rows, scores.column_names[-9:-4]))
        20 ['score', 'match', 'identity_left', 'identity_right', 'identity_check']
    """

    def __init__(
        self,
        config: ScoringConfig,
        expected_images: int = 100_000,
        loader: NetworkLoader | None = None,
        stats: WorkerStats | None = None,
        session: EmbeddingStoreSession | None = None,
        sidecar: Sidecar | None = None,
        candidate_sidecar: Sidecar | None = None,
    ):
        super().__init__()
        self._config, self._sidecar, self._candidate_sidecar = config, sidecar, candidate_sidecar
        self._loader, self._stats, self._session = loader, stats or WorkerStats(), session
        self._buckets = bucket_count(expected_images)

    def expand(self, blocks: PCollection[tuple[str, pa.Table]]) -> Verified:
        config, loader, calibration = self._prepare()
        request = beam.FlatMap(request_images, config, self._buckets).with_output_types(BY_BUCKET)
        requests = blocks | "RequestImages" >> request
        encoded = self._by_bucket(requests) | "EncodeImages" >> self._encode(loader, config, blocks.pipeline)
        compare = ComparePairs(loader, config, self._stats, calibration)
        scores = (
            _by_block(blocks, encoded.answers)
            | "GroupByBlock" >> beam.GroupByKey()
            | "ComparePairs" >> beam.ParDo(compare).with_output_types(pa.Table)
        )
        return self._verified(blocks, encoded, scores, loader, config)

    def _prepare(self) -> _Prepared:
        # Whoever gives a sidecar has resolved the names of the models before it was read.
        config = resolve_models(self._config)[0] if self._sidecar is None else self._config
        sidecar = read_sidecar(config.model) if self._sidecar is None else self._sidecar
        second = read_candidate_sidecar(config) if self._candidate_sidecar is None else self._candidate_sidecar
        config = apply_candidate_sidecar(apply_sidecar(config, sidecar), second)
        refuse_prior_alone(config, sidecar)
        loader = self._loader or network_loader(config, sidecar, second, calibration=sidecar.calibration)
        return _Prepared(config, loader, sidecar.calibration)

    def _verified(
        self,
        blocks: PCollection[tuple[str, pa.Table]],
        encoded: Any,
        scores: PCollection[pa.Table],
        loader: NetworkLoader,
        config: ScoringConfig,
    ) -> Verified:
        """Returns the outputs, with the store's files and what drawn images say."""
        stored_files = None if self._session is None else encoded[STORED_FILES_OUTPUT]
        examined = None
        # In windows, each block may be the last: there is no run to draw images from.
        is_one_run = isinstance(blocks.windowing.windowfn, GlobalWindows)
        if is_one_run and (config.stranger_pairs or config.steadiness_images):
            pcolls = {"drawn": encoded[DRAWN_OUTPUT], "blocks": blocks}
            examined = pcolls | "ExamineDrawn" >> ExamineDrawn(loader, config, base_of_draw(config), self._stats)
        return Verified(scores, encoded[IMAGES_OUTPUT], stored_files, examined)

    def _by_bucket(self, requests: PCollection[BY_BUCKET]) -> PCollection[BY_BUCKET]:
        """Returns the requests by bucket, with the stored rows of each bucket beside them."""
        if self._session is not None:
            requests = (requests, self._read_stored(requests.pipeline, self._session)) | "AddStored" >> beam.Flatten()
        by_bucket: PCollection[BY_BUCKET] = requests | beam.GroupByKey()
        return by_bucket

    def _read_stored(self, pipeline: beam.Pipeline, session: EmbeddingStoreSession) -> PCollection[BY_BUCKET]:
        stored: PCollection[BY_BUCKET] = (
            pipeline
            | "StoredFiles" >> beam.Create(session.files(), reshuffle=False)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadStored" >> beam.FlatMap(read_stored, session, self._buckets, self._stats).with_output_types(BY_BUCKET)
        )
        return stored

    def _encode(
        self, loader: NetworkLoader, config: ScoringConfig, pipeline: beam.Pipeline, table: ImageTableLoader | None = None
    ) -> Any:
        """Returns the step that encodes; what it is applied to gives the outputs of `EncodeImages` by tag."""
        chunk_bytes = max_element_bytes(pipeline.options)
        shared = table, self._session, self._stats
        encode = beam.ParDo(EncodeImages(loader, config, self._buckets, base_of_draw(config), chunk_bytes, *shared))
        outputs = {IMAGES_OUTPUT: pa.Table, STORED_FILES_OUTPUT: StoredFile, DRAWN_OUTPUT: DrawnImages}
        return (
            _on_accelerator(encode, config.accelerator)
            .with_outputs(*outputs, main="answers")
            .with_output_types(tuple[str, pa.Table], **outputs)
        )


def _by_block(blocks: PCollection[tuple[str, pa.Table]], answers: PCollection[tuple[str, pa.Table]]) -> PCollection[_BY_BLOCK]:
    """Returns blocks and encoded images by block key.

    Beam's CoGroupByKey would do the same, but it forgets the types of its elements, so that Beam would pickle the tables.
    """
    tables: PCollection[_BY_BLOCK] = (
        blocks | "Blocks" >> beam.MapTuple(lambda key, block: (key, (BLOCK_TABLE, block))).with_output_types(_BY_BLOCK),
        answers | "Answers" >> beam.MapTuple(lambda key, images: (key, (IMAGES_TABLE, images))).with_output_types(_BY_BLOCK),
    ) | beam.Flatten()
    return tables


def _on_accelerator(encode: beam.ParDo, accelerator: str | None) -> beam.ParDo:
    """Requests workers with a GPU for this step. It lies between two shuffles, so that no other step is fused with it."""
    if accelerator is not None:
        encode.with_resource_hints(accelerator=accelerator_hint(accelerator))
        if "machine_type:" not in accelerator:
            encode.with_resource_hints(min_ram=_ENCODER_RAM)
    return encode
