"""Runs the job and waits for its end, or submits it."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import apache_beam as beam
import pyarrow as pa

from batchverify.config import VerificationConfig
from batchverify.errors import JobDetachedError, PreflightError
from batchverify.evaluation.drift import RunStatistics, compare_runs
from batchverify.evaluation.gates import evaluate_gates
from batchverify.evaluation.summary import SUMMARY_VERSION, Summary
from batchverify.evaluation.summary_transform import Summarise
from batchverify.io.storage_options import with_storage_options
from batchverify.manifest.read import ReadManifest
from batchverify.manifest.shard import Manifest
from batchverify.output.embedding_store import EmbeddingStore, EmbeddingStoreSession
from batchverify.output.run_directory import RunDirectory
from batchverify.output.write_scores import FinishRun, WriteScores
from batchverify.pipeline.dataflow import is_dataflow
from batchverify.pipeline.execution import Watcher, run_to_end, submit_pipeline
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.network import NetworkLoader
from batchverify.pipeline.plan import RunPlan, pipeline_options, plan_run, report_memory
from batchverify.pipeline.provenance import SUMMARY_ONLY, describe_run
from batchverify.pipeline.transforms import VerifyPairs
from batchverify.report.render import make_report
from batchverify.schema import output_schema
from batchverify.worker_stats import WorkerStats, profile_run, read_totals, stats_folder


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
    with _stats(beam_args) as stats:
        plan = plan_run(config, beam_args, stats)
        report_memory(plan)
        config = plan.config
        pipeline = _pipeline(plan)
        held = plan.table and plan.table.get()
        with _claimed(config, plan.session) as detach:
            try:
                counters = run_to_end(pipeline, functools.partial(_tell, watch, stats, plan.manifest))
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
    plan = plan_run(config, beam_args)
    config = plan.config
    pipeline = _pipeline(plan)
    with _claimed(config, plan.session) as detach:
        link = submit_pipeline(pipeline)
        detach()
    return Submission(RunDirectory(config.output).path, link)


@contextmanager
def _claimed(config: VerificationConfig, session: EmbeddingStoreSession | None) -> Iterator[Callable[[], None]]:
    """Holds the run directory, and the store of embeddings if there is one; gives what leaves them to a job that goes on."""
    directory = RunDirectory(config.output)
    store = EmbeddingStore(session.path) if session else None

    def detach() -> None:
        directory.detach(config.run_id)
        if store and session:
            store.detach(session.generation)

    with directory.claimed(config.run_id), store.claimed(session.generation) if store and session else nullcontext():
        yield detach


@contextmanager
def _stats(beam_args: Sequence[str]) -> Iterator[WorkerStats]:
    """Gives a stats that the workers share, if they can be on this machine."""
    if is_dataflow(pipeline_options(beam_args)):
        yield WorkerStats()
        return
    with stats_folder() as folder:
        yield WorkerStats(folder)


def _pipeline(plan: RunPlan) -> beam.Pipeline:
    provenance = describe_run(plan.config, plan.network, plan.manifest)
    pipeline = beam.Pipeline(options=plan.options)
    build(
        pipeline, plan.config, plan.manifest, provenance, plan.loader, plan.table, plan.baseline,
        plan.stats, plan.session,
    )  # fmt: skip
    return pipeline


def _tell(watch: Watcher | None, stats: WorkerStats, manifest: Manifest) -> None:
    if watch is not None and stats.folder is not None:
        watch(read_totals(stats.folder), manifest.expected_images, manifest.expected_rows)


def build(
    pipeline: beam.Pipeline,
    config: VerificationConfig,
    manifest: Manifest,
    provenance: dict[str, Any],
    loader: NetworkLoader,
    table: ImageTableLoader | None = None,
    baseline: RunStatistics | None = None,
    stats: WorkerStats | None = None,
    session: EmbeddingStoreSession | None = None,
) -> None:
    """Adds the whole job to `pipeline`; see `Prepared` for the arguments."""
    stats = stats or WorkerStats()
    directory = RunDirectory(config.output)
    told = {key: str(value) for key, value in provenance.items() if key not in SUMMARY_ONLY and value is not None}
    schema = output_schema(manifest.schema, told)
    blocks = pipeline | "ReadManifest" >> ReadManifest(manifest, config, stats)
    expected = max(manifest.expected_images, session.rows if session else 0)
    verified = blocks | "VerifyPairs" >> VerifyPairs(config, expected, loader, table, stats, session)
    files = verified.scores | "WriteScores" >> WriteScores(directory, schema)
    profiled = functools.partial(_profile, stats, time.time(), table is not None)
    summary = (
        {"scores": verified.scores, "images": verified.images}
        | "Summarise" >> Summarise(config, manifest.label_column, manifest.fold_column)
        | "WriteSummary" >> beam.Map(_complete_summary, provenance, config, baseline, profiled, session)
    )
    report = summary | "MakeReport" >> beam.Map(with_storage_options(make_report))
    rows_read = blocks | "RowsRead" >> beam.Map(_rows) | beam.CombineGlobally(sum)
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "FinishRun"
        >> beam.ParDo(
            FinishRun(directory, config.run_id, session),
            beam.pvalue.AsSingleton(summary),
            beam.pvalue.AsSingleton(report),
            beam.pvalue.AsSingleton(rows_read),
            beam.pvalue.AsIter(files),
            *([] if verified.kept is None else [beam.pvalue.AsIter(verified.kept)]),
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
    session: EmbeddingStoreSession | None,
) -> dict[str, Any]:
    summary = {"summary_version": SUMMARY_VERSION, "run": provenance, **found.to_json(provenance["threshold"])}
    summary["baseline"] = baseline and {"path": config.baseline, **compare_runs(baseline, RunStatistics.from_summary(summary))}
    if session is not None:
        summary["embeddings"] = {
            "path": session.path,
            "stored": session.rows,
            "ignored": session.ignored,
            "reused": found.counts["embeddings.reused"],
            "encoded": found.counts["embeddings.encoded"],
        }
    summary["profile"] = profiled()
    return summary | {"gates": [dataclasses.asdict(gate) for gate in evaluate_gates(config, summary)]}


def _profile(stats: WorkerStats, began: float, in_process: bool) -> dict[str, Any] | None:
    """Returns where the time went, or None on another machine than the launcher's."""
    if stats.folder is None or not os.path.isdir(stats.folder):
        return None
    return profile_run(stats.folder, time.time() - began, in_process)
