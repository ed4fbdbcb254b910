"""The job: run to its end, or submitted to Dataflow."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import apache_beam as beam

from batchverify.config import VerificationConfig
from batchverify.errors import JobDetachedError, PreflightError, RunError, short_reason
from batchverify.output.embedding_store import EmbeddingStore
from batchverify.output.run_directory import RunDirectory
from batchverify.pipeline.build import build
from batchverify.pipeline.dataflow import is_dataflow
from batchverify.pipeline.execution import Watcher, run_to_end, submit_pipeline
from batchverify.pipeline.plan import RunPlan, pipeline_options, plan_run, read_store_again, report_memory
from batchverify.pipeline.portable import job_server
from batchverify.run_id import set_run_id
from batchverify.temporary_folder import temporary_folder
from batchverify.tracing import SetAttribute, flush_spans, span
from batchverify.worker_stats import WorkerStats, read_totals

_building = threading.Lock()


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        output: The run directory.
        summary: The content of its `_summary.json`.
        counters: Beam's counters of the run, by name: `images_encoded`, `images_reused`, `images_failed`, `rows_scored`, and
            `encodings`, the number of times that a tower of the network saw an image, but for strangers and steadiness.

    Examples:
        >>> import batchverify
        >>> result = batchverify.run(batchverify.VerificationConfig(manifests=("pairs.csv",), output="result/"))
        >>> result.summary["rows"]["total"], result.counters["images_failed"]
        (125, 2)
    """

    output: str
    summary: dict[str, Any]
    counters: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job that was submitted to Dataflow and runs there.

    Attributes:
        output: The run directory; it has `_SUCCESS` when the job has finished the run.
        link: The address of the job's page in Google Cloud's console; None where a Flex Template's launcher is about to start
            the job.

    Examples:
        >>> import batchverify
        >>> batchverify.Submission("gs://nightly-pairs/scores", link=None).output
        'gs://nightly-pairs/scores'
    """

    output: str
    link: str | None


def run(config: VerificationConfig, beam_args: Sequence[str] = (), watch: Watcher | None = None) -> RunResult:
    """Runs the job and waits for its end.

    Args:
        config: The configuration of the run.
        beam_args: Beam's own arguments, such as `--runner=…`; without them the job runs in this process.
        watch: A function that is called several times a second with the progress of the run, if its workers are on this
            machine.

    Returns:
        The result of the finished run.

    Raises:
        PreflightError: If the manifest, the model or the output directory cannot be used. Nothing has been written then.
        RunError: If the run cannot be finished. The run directory has no `_SUCCESS` then, unless the message says that all but
            the last reading is done.
        JobDetachedError: If the state of a job on Dataflow is unknown; the job may still finish the run.

    Examples:
        >>> import batchverify
        >>> config = batchverify.VerificationConfig(manifests=("pairs.csv",), output="scores/", model="model.keras")
        >>> result = batchverify.run(config)
        >>> result.summary["rows"]["scored"], result.summary["rows"]["total"]
        (122, 125)
    """
    with _traced() as set_attribute, _worker_stats(beam_args) as stats:
        with span("plan", is_parent=True):
            plan = plan_run(config, beam_args, stats)
        set_run_id(plan.run_id)
        set_attribute("run_id", plan.run_id)
        with job_server(plan.options), _claimed(plan) as detach:
            plan = read_store_again(plan)
            report_memory(plan)
            pipeline = _make_pipeline(plan)
            table = plan.table and plan.table.get()  # The table lives as long as something refers to it.
            try:
                counters = run_to_end(pipeline, functools.partial(_report_progress, watch, plan))
            except JobDetachedError:
                detach()
                raise
            del table
    directory = RunDirectory(config.output)
    return RunResult(directory.path, _read_summary(directory), counters)


def submit(config: VerificationConfig, beam_args: Sequence[str]) -> Submission:
    """Submits the job to Dataflow without waiting for its end; the job itself finishes the run.

    Args:
        config: The configuration of the run.
        beam_args: Beam's own arguments, among them `--runner=DataflowRunner`.

    Returns:
        The submitted job.

    Raises:
        PreflightError: If `run` would raise it, or the runner is not Dataflow.
        RunError: If Dataflow does not accept the job.

    Examples:
        >>> import batchverify
        >>> config = batchverify.VerificationConfig(
        ...     manifests=("gs://nightly-pairs/pairs.csv",),
        ...     output="gs://nightly-pairs/scores",
        ...     model="gs://nightly-pairs/model.keras",
        ... )
        >>> beam_args = ["--runner=DataflowRunner", "--project=my-project", "--region=europe-west4"]
        >>> submission = batchverify.submit(config, [*beam_args, "--temp_location=gs://nightly-pairs/tmp"])
        >>> submission.link
        'https://console.cloud.google.com/dataflow/jobs/europe-west4/job-1?project=my-project'
    """
    if not is_dataflow(pipeline_options(beam_args)):
        raise PreflightError("--no-wait is for --runner=DataflowRunner; the work of other runners ends with this process.")
    plan = plan_run(config, beam_args)
    set_run_id(plan.run_id)
    with _claimed(plan) as detach:
        link = submit_pipeline(_make_pipeline(read_store_again(plan)))
        detach()
    return Submission(RunDirectory(config.output).path, link)


def _read_summary(directory: RunDirectory) -> dict[str, Any]:
    """Returns the summary of a run that has finished.

    Raises:
        RunError: If it cannot be read.
    """
    try:
        return directory.read_summary()
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise RunError(
            f"--output {directory.path} holds the finished run, but its _summary.json cannot be read ({short_reason(error)}); "
            "read there whether the gates are met."
        ) from None


def _make_pipeline(plan: RunPlan) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=plan.options)
    # Beam makes a folder for transforms in other languages, of which there are none, and deletes it only after a whole run.
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)
    with _without_interactive_beam():
        build(pipeline, plan)
    return pipeline


@contextmanager
def _without_interactive_beam() -> Iterator[None]:
    """Keeps Beam from adding the number of a notebook's cell to the labels of steps.

    For that it imports its interactive environment, which fails with pandas 3 and asks for packages of its own.
    """
    module: Any = beam.pipeline
    with _building:
        original = module.alter_label_if_ipython
        module.alter_label_if_ipython = lambda *_: None
        try:
            yield
        finally:
            module.alter_label_if_ipython = original


@contextmanager
def _traced() -> Iterator[SetAttribute]:
    """Records the block as the span of the run, and sends all spans at its end."""
    try:
        with span("run", is_parent=True) as set_attribute:
            yield set_attribute
    finally:
        flush_spans()


@contextmanager
def _claimed(plan: RunPlan) -> Iterator[Callable[[], None]]:
    """Claims the run directory, and the store of embeddings if there is one.

    Yields:
        A function that leaves both to a job that runs on without this process.
    """
    directory, run_id, session = RunDirectory(plan.config.output), plan.run_id, plan.session
    store = EmbeddingStore(session.path) if session else None

    def detach() -> None:
        directory.detach(run_id)
        if store and session:
            store.detach(session.folder)

    with (
        directory.claimed(run_id, plan.config.overwrite),
        store.claimed(session.folder) if store and session else nullcontext(),
    ):
        yield detach


@contextmanager
def _worker_stats(beam_args: Sequence[str]) -> Iterator[WorkerStats]:
    """Yields counts and times that workers share with this process, if they can be on this machine."""
    if is_dataflow(pipeline_options(beam_args)):
        yield WorkerStats()
        return
    with temporary_folder() as folder:
        yield WorkerStats(folder)


def _report_progress(watch: Watcher | None, plan: RunPlan) -> None:
    if watch is not None and plan.stats.folder is not None:
        watch(read_totals(plan.stats.folder), plan.manifest.expected_images, plan.manifest.expected_rows)
