"""The job: a manifest's pairs, each distinct image encoded once, every row scored, checked and written."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from batchverify.config import Limit, ScoringConfig, VerificationConfig, accelerator_hint
from batchverify.dataflow import fit, is_dataflow, refuse_local_images
from batchverify.errors import PreflightError
from batchverify.evaluation.baseline import read_baseline
from batchverify.evaluation.drift import RunStatistics, compare_runs
from batchverify.evaluation.gates import evaluate_gates
from batchverify.evaluation.summary import SUMMARY_VERSION, Summarise, Summary
from batchverify.inference import (
    BLOCK,
    IMAGES,
    KEPT,
    ComparePairs,
    EncodeImages,
    ImageTableLoader,
    KerasNetwork,
    NetworkLoader,
    read_stored,
    request_images,
    write_kept,
)
from batchverify.io.object_store import refuse_unreachable
from batchverify.io.storage_options import set_storage_options, with_storage_options
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import ReadManifest
from batchverify.manifest.shard import Manifest
from batchverify.memory import EMBEDDING_BYTES_AT_ONCE, available_bytes, process_bytes, worker_bytes
from batchverify.model.sidecar import apply_sidecar, golden_pairs
from batchverify.output.embedding_store import (
    EmbeddingStore,
    EmbeddingStoreSession,
    Generation,
    StoredFile,
    differing_settings,
    embedding_key,
    open_store,
)
from batchverify.output.run_directory import RunDirectory
from batchverify.output.write_scores import WriteScores, finish_run
from batchverify.progress import Watcher
from batchverify.report.render import make_report
from batchverify.running import JobDetachedError, run_to_end, submit_pipeline
from batchverify.schema import output_schema
from batchverify.version import VERSION
from batchverify.worker_stats import WorkerStats, profile_run, read_totals, stats_folder

_LOG = logging.getLogger(__name__)
_IMAGES_PER_BUCKET = 4096
_MOST_BUCKETS = 4096
# Of a worker that encodes on a GPU, at least: an estimate with room to spare, as none has been measured on Dataflow.
_ENCODER_RAM = "12GB"
_BY_BUCKET = tuple[int, tuple[str, pa.Table]]
# Beam's own DirectRunner first looks for another runner on the network, without a time-out.
IN_PROCESS_RUNNER = "FnApiRunner"
_LIBRARIES = ("apache-beam", "keras", "numpy", "pillow", "pyarrow", "tensorflow")
# What the summary says of a run, and the Parquet files need not.
_DETAILS = ("label_column", "fold_column", "working_directory", "options", "versions", "certificate")


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
        tally: is told how far the workers of this machine are.
        keeping: what is done with a store of embeddings, or None.
    """

    def __init__(
        self,
        config: ScoringConfig,
        expected_images: int = 100_000,
        loader: NetworkLoader | None = None,
        table: ImageTableLoader | None = None,
        tally: WorkerStats | None = None,
        keeping: EmbeddingStoreSession | None = None,
    ):
        super().__init__()
        self._config = config = apply_sidecar(config)
        self._buckets = table.buckets if table else bucket_count(expected_images)
        self._loader, self._table, self._tally = loader or keras_loader(config), table, tally or WorkerStats()
        self._keeping = keeping

    def expand(self, blocks: beam.PCollection[tuple[str, pa.Table]]) -> Verified:
        requests = blocks | "RequestImages" >> beam.FlatMap(request_images, self._config, self._buckets).with_output_types(
            _BY_BUCKET
        )
        if self._keeping is not None:
            requests = (requests, self._stored(blocks.pipeline, self._keeping)) | "BesideStored" >> beam.Flatten()
        encoded = (
            requests
            | beam.GroupByKey()
            | "EncodeImages"
            >> _on_accelerator(
                beam.ParDo(EncodeImages(self._loader, self._config, self._table, self._keeping, self._tally)),
                self._config.accelerator,
            )
            .with_outputs(IMAGES, KEPT, main="answers")
            .with_output_types(tuple[str, pa.Table], **{IMAGES: pa.Table, KEPT: pa.Table})
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
            >> beam.ParDo(ComparePairs(self._loader, self._config, self._table, self._tally)).with_output_types(pa.Table)
        )
        kept = encoded[KEPT] | "WriteKept" >> beam.FlatMap(write_kept, self._keeping, self._tally) if self._keeping else None
        return Verified(scored, encoded[IMAGES], kept)

    def _stored(
        self, pipeline: beam.Pipeline, keeping: EmbeddingStoreSession
    ) -> beam.PCollection[tuple[int, tuple[str, pa.Table]]]:
        return (
            pipeline
            | "StoredParts" >> beam.Create(keeping.parts(), reshuffle=False)
            | "SpreadParts" >> beam.Reshuffle()
            | "ReadStored" >> beam.FlatMap(read_stored, keeping, self._buckets, self._tally).with_output_types(_BY_BUCKET)
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


def keras_loader(config: ScoringConfig, tally: WorkerStats | None = None, versions: str | None = None) -> NetworkLoader:
    """Returns what loads the network that `config` names; see `KerasNetwork` for the arguments."""
    return NetworkLoader(functools.partial(with_storage_options(KerasNetwork), config, tally, versions))


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    Attributes:
        output: the run directory.
        summary: what stands in its `summary.json`.
        counters: Beam's counters of the run, by name: `images_encoded`, `images_reused`, `images_failed`, `rows_scored`, and
            `encodings`: how often an image went through a tower of the network.
    """

    output: str
    summary: dict[str, Any]
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job that was handed to Dataflow and goes on there.

    Attributes:
        output: the run directory, which has `_SUCCESS` when the job has done its work.
        link: where Dataflow shows the job; None where a Flex Template's launcher is about to start it.
    """

    output: str
    link: str | None


def run(config: VerificationConfig, beam_args: Sequence[str] = (), watch: Watcher | None = None) -> RunResult:
    """Runs the job and waits for its end.

    Args:
        config: what to do.
        beam_args: Beam's own arguments, `--runner=…` and so on; in this process without them.
        watch: is told how far the run is, where its workers are on this machine.

    Raises:
        PreflightError: if manifest, model or output directory cannot be used; nothing has been written.
        RunError: if the run cannot be finished; there is no `_SUCCESS`. `JobDetachedError` where a job of Dataflow's may yet do.
    """
    with _tally(beam_args) as tally:
        prepared = prepare(config, beam_args, tally)
        _tell_of_memory(prepared)
        config = prepared.config
        pipeline = _pipeline(prepared)
        held = prepared.table and prepared.table.get()
        with _claimed(config, prepared.keeping) as detach:
            try:
                counters = run_to_end(pipeline, functools.partial(_tell, watch, tally, prepared.manifest))
            except JobDetachedError:
                detach()
                raise
        del held
    directory = RunDirectory(config.output)
    return RunResult(directory.path, directory.read_summary(), counters)


def submit(config: VerificationConfig, beam_args: Sequence[str]) -> Submission:
    """Hands the job to Dataflow without waiting for it; the job itself finishes the run.

    Args:
        config: what to do.
        beam_args: Beam's own arguments.

    Raises:
        PreflightError: as `run`, and for another runner.
        RunError: if Dataflow does not take the job.
    """
    if not is_dataflow(pipeline_options(beam_args)):
        raise PreflightError("--no-wait is for --runner=DataflowRunner; the work of other runners ends with this process.")
    prepared = prepare(config, beam_args)
    config = prepared.config
    pipeline = _pipeline(prepared)
    with _claimed(config, prepared.keeping) as detach:
        link = submit_pipeline(pipeline)
        detach()
    return Submission(RunDirectory(config.output).path, link)


@contextmanager
def _claimed(config: VerificationConfig, keeping: EmbeddingStoreSession | None) -> Iterator[Callable[[], None]]:
    """Holds the run directory, and the store of embeddings if there is one; gives what leaves them to a job that goes on."""
    directory = RunDirectory(config.output)
    store = EmbeddingStore(keeping.path) if keeping else None

    def detach() -> None:
        directory.detach(config.run_id)
        if store and keeping:
            store.detach(keeping.generation)

    with directory.claimed(config.run_id), store.claimed(keeping.generation) if store and keeping else nullcontext():
        yield detach


@contextmanager
def _tally(beam_args: Sequence[str]) -> Iterator[WorkerStats]:
    """Gives a tally that the workers share, if they can be on this machine."""
    if is_dataflow(pipeline_options(beam_args)):
        yield WorkerStats()
        return
    with stats_folder() as folder:
        yield WorkerStats(folder)


def _pipeline(prepared: Prepared) -> beam.Pipeline:
    provenance = _provenance(prepared.config, prepared.network, prepared.manifest)
    pipeline = beam.Pipeline(options=prepared.options)
    build(
        pipeline, prepared.config, prepared.manifest, provenance, prepared.loader, prepared.table, prepared.baseline,
        prepared.tally, prepared.keeping,
    )  # fmt: skip
    return pipeline


def _tell(watch: Watcher | None, tally: WorkerStats, manifest: Manifest) -> None:
    if watch is not None and tally.folder is not None:
        watch(read_totals(tally.folder), manifest.expected_images, manifest.expected_rows)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that is needed to run, found to be in order.

    Attributes:
        config: what to do, with what the model's sidecar says.
        manifest: looked through.
        loader: of the network. Held to the end of the run: in-process workers share this very network.
        network: loaded and proven.
        baseline: the run to compare with, or None.
        options: Beam's.
        table: what workers that share this process keep the encoded images in; None for other workers.
        tally: is told how far the workers of this machine are.
        keeping: what is done with a store of embeddings, or None.
    """

    config: VerificationConfig
    manifest: Manifest
    loader: NetworkLoader
    network: KerasNetwork
    baseline: RunStatistics | None
    options: PipelineOptions
    table: ImageTableLoader | None
    tally: WorkerStats
    keeping: EmbeddingStoreSession | None


def prepare(config: VerificationConfig, beam_args: Sequence[str] = (), tally: WorkerStats | None = None) -> Prepared:
    """Looks at everything that a run needs before anything is written.

    Args:
        config: what to do.
        beam_args: Beam's own arguments.
        tally: is told how far the run is.

    Raises:
        PreflightError: if manifest, model, baseline, store of embeddings or output directory cannot be used.
    """
    options = pipeline_options(beam_args)
    fit(options, config)
    set_storage_options(options)
    refuse_unreachable(_places(config), config.output)
    RunDirectory(config.output).refuse_taken(config.overwrite)
    baseline = read_baseline(config)
    found = open_store(config.embeddings, config.embeddings_rebuild) if config.embeddings else None
    config = apply_sidecar(config)
    manifest = plan_manifest(config)
    if is_dataflow(options):
        refuse_local_images(manifest.sample)
    tally = tally or WorkerStats()
    loader = keras_loader(config, tally, config.embeddings_version if config.embeddings else None)
    network = loader.get()
    assert isinstance(network, KerasNetwork)
    network.check_golden(golden_pairs(config))
    network.prove(manifest.sample)
    keeping = _keeping(config, network, *found) if found else None
    table = image_table(options, manifest, keeping.rows if keeping else 0)
    if table is None:
        config = dataclasses.replace(config, block_rows=bounded_block_rows(config.block_rows, network.embedding_bytes))
    return Prepared(config, manifest, loader, network, baseline, options, table, tally, keeping)


def _keeping(
    config: VerificationConfig, network: KerasNetwork, stored: Generation | None, ignored: str | None
) -> EmbeddingStoreSession:
    """Decides what to do with the store, and says if what it has is not used."""
    assert config.embeddings is not None
    if network.encodings_per_pair:
        raise PreflightError(
            f"--embeddings {config.embeddings}: the network of --model {network.facts.path} runs whole, for each pair anew, so "
            "that there are no embeddings to keep; leave --embeddings out."
        )
    key = embedding_key(config, network.facts, network.preprocessing)
    if stored and (names := differing_settings(stored.key, key)):
        stored, ignored = None, f"made with another {', '.join(names).replace('_', ' ')}"
    if ignored:
        _LOG.warning("--embeddings %s: what is stored is not used, and replaced at the end (%s).", config.embeddings, ignored)
    today = datetime.datetime.now(datetime.UTC).date()
    return EmbeddingStoreSession(
        config.embeddings.rstrip("/") or "/", config.embeddings_version, key, stored, ignored, today, config.embeddings_days
    )


def _places(config: VerificationConfig) -> Iterator[tuple[str, str | None]]:
    """Yields whatever a run reads or writes, after the option that names it."""
    yield from (("--manifest", path) for path in config.manifests)
    yield from (("--model", config.model), ("--baseline", config.baseline), ("--image-root", config.image_root))
    yield from (("--embeddings", config.embeddings), ("--output", config.output))


def _tell_of_memory(prepared: Prepared) -> None:
    """Says what workers elsewhere need, and warns of a run in this process that its memory does not hold; estimates both."""
    manifest, left, embedding_bytes = prepared.manifest, available_bytes(), prepared.network.embedding_bytes
    if prepared.table is None:
        rows = min(prepared.config.block_rows, manifest.expected_rows)
        row_bytes = manifest.expected_bytes * rows // max(1, manifest.expected_rows)
        needed = worker_bytes(row_bytes, min(2 * rows, manifest.expected_images), embedding_bytes)
        _LOG.info(
            "A worker needs up to %.1f GiB, beside libraries and model, for each block of %s rows that it works on at a time.",
            needed / 2**30, f"{rows:,}",
        )  # fmt: skip
        return
    images = manifest.expected_images + (prepared.keeping.rows if prepared.keeping else 0)
    needed = process_bytes(manifest.expected_bytes, images, embedding_bytes)
    if left is not None and needed > left:
        _LOG.warning(
            "This run needs about %.1f GiB of memory, and %.1f GiB are left: %s rows and %s images are held in this process. "
            "Run the manifest in parts, or on a distributed runner (--runner=DataflowRunner), which holds a block at a time.",
            needed / 2**30, left / 2**30, f"{manifest.expected_rows:,}", f"{manifest.expected_images:,}",
        )  # fmt: skip


def image_table(options: PipelineOptions, manifest: Manifest, stored: int = 0) -> ImageTableLoader | None:
    """Returns the table that the workers of a run with `options` share, or None where they are in several processes.

    Somebody must hold the table itself while the pipeline runs.

    Args:
        options: Beam's.
        manifest: of the run.
        stored: how many embeddings are read from a store.
    """
    if options.view_as(StandardOptions).runner != IN_PROCESS_RUNNER:
        return None
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        return None
    return ImageTableLoader(bucket_count(max(manifest.expected_images, stored)))


def build(
    pipeline: beam.Pipeline,
    config: VerificationConfig,
    manifest: Manifest,
    provenance: dict[str, Any],
    loader: NetworkLoader,
    table: ImageTableLoader | None = None,
    baseline: RunStatistics | None = None,
    tally: WorkerStats | None = None,
    keeping: EmbeddingStoreSession | None = None,
) -> None:
    """Adds the whole job to `pipeline`; see `Prepared` for the arguments."""
    tally = tally or WorkerStats()
    directory = RunDirectory(config.output)
    told = {key: str(value) for key, value in provenance.items() if key not in _DETAILS and value is not None}
    schema = output_schema(manifest.schema, told)
    blocks = pipeline | "ReadManifest" >> ReadManifest(manifest, config, tally)
    expected = max(manifest.expected_images, keeping.rows if keeping else 0)
    verified = blocks | "VerifyPairs" >> VerifyPairs(config, expected, loader, table, tally, keeping)
    files = verified.scores | "WriteScores" >> WriteScores(directory, schema)
    profiled = functools.partial(_profile, tally, time.time(), table is not None)
    summary = (
        {"scores": verified.scores, "images": verified.images}
        | "Summarise" >> Summarise(config, manifest.label_column, manifest.fold_column)
        | "WriteSummary" >> beam.Map(_complete_summary, provenance, config, baseline, profiled, keeping)
    )
    report = summary | "MakeReport" >> beam.Map(with_storage_options(make_report))
    rows_read = blocks | "RowsRead" >> beam.Map(_rows) | beam.CombineGlobally(sum)
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "FinishRun"
        >> beam.Map(
            with_storage_options(finish_run),
            directory,
            config.run_id,
            beam.pvalue.AsSingleton(summary),
            beam.pvalue.AsSingleton(report),
            beam.pvalue.AsSingleton(rows_read),
            beam.pvalue.AsIter(files),
            *([] if verified.kept is None else [keeping, beam.pvalue.AsIter(verified.kept)]),
        )
    )


def _rows(element: tuple[str, pa.Table]) -> int:
    return element[1].num_rows


def _complete_summary(
    found: Summary,
    provenance: dict[str, Any],
    config: VerificationConfig,
    baseline: RunStatistics | None,
    profiled: Callable[[], dict[str, Any] | None],
    keeping: EmbeddingStoreSession | None,
) -> dict[str, Any]:
    summary = {"summary_version": SUMMARY_VERSION, "run": provenance, **found.to_json(provenance["threshold"])}
    summary["baseline"] = baseline and {"path": config.baseline, **compare_runs(baseline, RunStatistics.of(summary))}
    if keeping is not None:
        summary["embeddings"] = {
            "path": keeping.path,
            "stored": keeping.rows,
            "ignored": keeping.ignored,
            "reused": found.counts["embeddings.reused"],
            "encoded": found.counts["embeddings.encoded"],
        }
    summary["profile"] = profiled()
    return summary | {"gates": [dataclasses.asdict(gate) for gate in evaluate_gates(config, summary)]}


def _profile(tally: WorkerStats, began: float, in_process: bool) -> dict[str, Any] | None:
    """Returns where the time went, or None on another machine than the launcher's."""
    if tally.folder is None or not os.path.isdir(tally.folder):
        return None
    return profile_run(tally.folder, time.time() - began, in_process)


def bounded_block_rows(block_rows: int, embedding_bytes: int) -> int:
    """Returns how many rows a block may have so that the embeddings that are sent to it, two a row at most, stay in bounds."""
    return max(1, min(block_rows, EMBEDDING_BYTES_AT_ONCE // (2 * embedding_bytes)))


def _provenance(config: VerificationConfig, network: KerasNetwork, manifest: Manifest) -> dict[str, Any]:
    model = network.facts
    return {
        "version": VERSION,
        "run_id": config.run_id,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "manifest": list(config.manifests),
        "limit": config.limit,
        "model": model.path,
        "model_digest": f"sha256:{model.digest}",
        "threshold": config.match_threshold(),
        "identity_tolerance": config.identity_tolerance,
        "model_structure": model.structure,
        "model_notes": list(model.notes),
        "preprocessing": model.preprocessing,
        "label_column": manifest.label_column,
        "fold_column": manifest.fold_column,
        "working_directory": os.getcwd(),
        "options": _options_given(config),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "certificate": _certificate(network),
    }


def _options_given(config: VerificationConfig) -> dict[str, Any]:
    """Returns what of `config` is not at its default, as JSON has it, but the run id."""
    given = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "run_id" and value != field.default:
            given[field.name] = str(value) if isinstance(value, Limit) else list(value) if isinstance(value, tuple) else value
    return given


def _certificate(network: KerasNetwork) -> dict[str, Any] | None:
    certificate = network.certificate()
    if certificate is None:
        return None
    positive = sum(float(weight) > 0 for weight in certificate.weights)
    return dataclasses.asdict(certificate) | {"weights": len(certificate.weights), "positive_weights": positive}


def pipeline_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options, with the runner that is this process where nobody names another."""
    options = PipelineOptions(list(beam_args), save_main_session=False)
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = IN_PROCESS_RUNNER
    return options
