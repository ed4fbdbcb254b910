"""Runs a pipeline to its end, reports its failure in one sentence, and notices a worker's death where the runner does not.

A job on Dataflow does not need this process, so it is cancelled when this process is stopped, or left to itself with
`submit_pipeline`.
"""

from __future__ import annotations

import collections
import functools
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from batchverify import shutdown
from batchverify.errors import WORKER_DIED, JobDetachedError, PreflightError, RunError
from batchverify.pipeline.dataflow import is_dataflow, job_link
from batchverify.pipeline.plan import IN_PROCESS_RUNNER
from batchverify.pipeline.portable import Engine, find_engine
from batchverify.temporary_folder import temporary_folder

_LOG = logging.getLogger(__name__)
# The error in the thread of a local runner that watches over a worker process, when that process has ended.
_WORKER_EXITED = "Worker subprocess exited"
# The name of Beam's thread that asks Dataflow for the state of a job.
_POLLING_THREAD = "poll_for_job_completion"
# The name of Beam's thread that reads the messages of a job service; the run itself reports that the service has gone.
_READING_THREAD = "wait_until_finish_read"
# The words of Prism, and of Flink and Spark, for a worker that died.
_LOST_WORKER_WORDS = (
    WORKER_DIED,
    "SDK worker disconnected",
    "CANCELLED: call already cancelled",
    "CANCELLED: client cancelled",
    "No client connected within timeout",
)
# The words of Flink and Spark for a worker pool that does not answer.
_NO_POOL_WORDS = ("StatusRuntimeException: UNAVAILABLE", "java.net.ConnectException")
_NO_POOL = (
    "a worker pool does not answer; check that one runs beside each task manager, at the address in --environment_config."
)
# What Java puts before the words of an error, such as `java.io.IOException: `.
_JAVA_CLASS = re.compile(r"\b(?:[a-z]\w*\.)+[A-Z]\w*(?:Exception|Error): ")
_LOST_WORKER = "a worker process died, killed or out of memory; its own log says why, and the run can be started again."
_POLL_INTERVAL_S = 0.25
# A runner that is connected to a worker notices its end at once. A runner that waits for a worker to connect never does.
_NOTICE_WITHIN_S = 10.0
_CANCEL_WITHIN_S = 20.0
# What cancels the jobs on Dataflow and on other engines that are not known to have ended, by where they can be looked at.
_running_jobs: dict[str, Callable[[], None]] = {}


class Watcher(Protocol):
    """A function that shows the progress of a run; it is called several times a second."""

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None:
        """Shows the progress.

        Args:
            totals: The counts and times of the workers, as `worker_stats.read_totals` returns them.
            images: The expected number of distinct images.
            rows: The expected number of rows.
        """


def submit_pipeline(pipeline: beam.Pipeline) -> str | None:
    """Submits a pipeline to Dataflow and returns the job's link; None where a Flex Template's launcher starts the job.

    Raises:
        RunError: If Dataflow does not accept it.
    """
    try:
        with _staging_folder(pipeline.options):
            result = pipeline.run()
        return job_link(pipeline.options, result)
    except Exception as error:  # A runner raises whatever its client raises.
        raise RunError(_root_cause(error)) from error


@contextmanager
def _staging_folder(options: PipelineOptions) -> Iterator[None]:
    """Gives Beam a temporary folder for what it stages to other processes; it makes folders there and deletes none of them."""
    if options.view_as(StandardOptions).runner == IN_PROCESS_RUNNER:
        yield
        return
    with temporary_folder() as folder:
        earlier, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = earlier


def run_to_end(pipeline: beam.Pipeline, tick: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Runs a pipeline and returns its counters of the namespace `batchverify`, each summed over its steps.

    Args:
        pipeline: The pipeline.
        tick: A function that is called several times a second during the run.

    Raises:
        RunError: If the pipeline failed. If a worker died that the runner waits for, the runner's threads go on waiting;
            whoever ends the process must not join them.
    """
    ended: Future[PipelineResult] = Future()
    with _worker_deaths() as worker_died:
        threading.Thread(target=_run_in_thread, args=(pipeline, ended), name="run-pipeline", daemon=True).start()
        try:
            result = _wait_until_ended(ended, worker_died, tick)
        except RunError:
            raise
        except Exception as error:  # A runner wraps whatever its workers raised in an exception of its own.
            raise RunError(_root_cause(error)) from error
    if result.state not in (None, PipelineState.DONE):
        raise RunError(f"the runner ended in state {result.state}; its own log says why.")
    return _sum_counters(result)


def cancel_jobs() -> list[str]:
    """Cancels the jobs that this process waits for, and returns the links of those that may not have been cancelled."""
    cancellations: dict[str, Future[None]] = {link: Future() for link in _running_jobs}
    for link, cancelled in cancellations.items():
        threading.Thread(target=_cancel, args=(_running_jobs[link], cancelled), name="cancel-job", daemon=True).start()
    wait(cancellations.values(), _CANCEL_WITHIN_S)
    return [link for link, cancelled in cancellations.items() if not cancelled.done() or cancelled.exception() is not None]


shutdown.register_cancellation(cancel_jobs)


def _cancel(cancel: Callable[[], None], cancelled: Future[None]) -> None:
    try:
        cancel()
        cancelled.set_result(None)
    except BaseException as error:
        cancelled.set_exception(error)


def _run_in_thread(pipeline: beam.Pipeline, ended: Future[PipelineResult]) -> None:
    try:
        ended.set_result(_run(pipeline))
    except BaseException as error:
        ended.set_exception(error)


def _run(pipeline: beam.Pipeline) -> Any:
    """Runs a pipeline and returns its result when it has ended."""
    engine = find_engine(pipeline.options)  # Beam changes the options when it runs the pipeline.
    with _staging_folder(pipeline.options):
        result: Any = pipeline.run()
        if not is_dataflow(pipeline.options):  # A job service on this machine reads the staged files until the end.
            _wait_beside_engine(engine, result)
            return result
    link = job_link(pipeline.options, result)
    if link is None:
        result.wait_until_finish()
    else:
        _LOG.info("The job: %s", link)
        _wait_for_job(link, result)
    return result


def _wait_beside_engine(engine: Engine | None, result: Any) -> None:
    """Waits for the end of a job in this process, or of one on an engine, which a signal cancels."""
    if engine is None:
        result.wait_until_finish()
        return
    job = f"{result._job_id}; see {engine.place}"
    _LOG.info("The job: %s", job)
    _running_jobs[job] = functools.partial(engine.cancel, result)
    try:
        result.wait_until_finish()
    finally:
        del _running_jobs[job]


def _wait_for_job(link: str, result: Any) -> None:
    """Waits for the end of a job on Dataflow.

    Raises:
        RunError: If it failed or was cancelled.
        JobDetachedError: If it is not known to have ended.
    """
    _running_jobs[link] = result.cancel
    try:
        result.wait_until_finish()
    except Exception as error:  # The job raises it, or the client that asks for the job's state.
        if not result.is_in_terminal_state():
            raise JobDetachedError(f"the job was lost sight of, and may go on and finish; see {link}.") from error
        if result.state == PipelineState.CANCELLED:
            raise RunError(f"the job was cancelled; see {link}.") from error
        raise RunError(f"{_root_cause(error).rstrip('.')}; see {link}.") from error
    finally:
        if result.is_in_terminal_state():
            _running_jobs.pop(link, None)


@contextmanager
def _worker_deaths() -> Iterator[threading.Event]:
    """Yields an event that is set when a thread of a local runner reports that a worker has exited."""
    worker_died, original_hook = threading.Event(), threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if _WORKER_EXITED in str(args.exc_value):
            worker_died.set()
        elif args.thread is not None and _POLLING_THREAD in args.thread.name:
            _LOG.error("The state of the job is unknown (%s).", args.exc_value)
        elif args.thread is None or _READING_THREAD not in args.thread.name:
            original_hook(args)

    threading.excepthook = hook
    try:
        yield worker_died
    finally:
        threading.excepthook = original_hook


def _wait_until_ended(ended: Future[PipelineResult], worker_died: threading.Event, tick: Callable[[], None]) -> PipelineResult:
    while not worker_died.is_set():
        tick()
        if wait([ended], _POLL_INTERVAL_S).done:
            return ended.result()
    if wait([ended], _NOTICE_WITHIN_S).done:
        return ended.result()
    raise RunError(_LOST_WORKER)


def _sum_counters(result: Any) -> dict[str, int]:
    totals: collections.Counter[str] = collections.Counter()
    try:
        counters = result.metrics().query(MetricsFilter().with_namespace("batchverify"))["counters"]
    except Exception as error:  # Whoever may see a job's state may not see its counters. The run has finished all the same.
        _LOG.warning("Beam's counters of the run cannot be read (%s).", _root_cause(error))
        return {}
    for counter in counters:
        totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def _root_cause(error: BaseException) -> str:
    """Returns in one sentence what failed in a worker, from the traceback that the runner puts into its own exception."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"^Dataflow pipeline failed\. State: \w+, Error:\n", "", text)
    text = re.sub(r" \[while running.*", "", text, flags=re.S)
    if match := _last(rf"(?:{RunError.__name__}|{PreflightError.__name__}): (.+)", text):
        return match
    text = re.sub(r"^Pipeline \S+ failed in state FAILED: ", "", text)
    if any(words in text for words in _LOST_WORKER_WORDS):
        return _LOST_WORKER
    if any(words in text for words in _NO_POOL_WORDS):
        return _NO_POOL
    text = _JAVA_CLASS.sub("", text)
    if match := _last(r"\[Errno \d+\] (.+)", text):
        return f"{match}; check --output, its free space, and the space for temporary files."
    if match := _last(r'details = "(.+?)"', text):
        return f"a part of the runner does not answer ({match}); check that its job service and its workers run."
    return text.splitlines()[-1 if "Traceback" in text else 0]


def _last(pattern: str, text: str) -> str | None:
    matches: list[str] = re.findall(pattern, text)
    return matches[-1] if matches else None
