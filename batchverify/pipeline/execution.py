"""A pipeline run to its end, its failure told in a sentence, and a worker's death noticed where the runner does not.

A service's job goes on without this process, so it is cancelled with it, or handed over with `submit_pipeline`.
"""

from __future__ import annotations

import collections
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.runner import PipelineResult, PipelineState

from batchverify import shutdown
from batchverify.errors import WORKER_DIED, JobDetachedError, PreflightError, RunError
from batchverify.pipeline.dataflow import job_link

_LOG = logging.getLogger(__name__)
# How a local runner's thread says that the worker process which it watches over has ended.
_WORKER_EXITED = "Worker subprocess exited"
_POLLING = "poll_for_job_completion"  # Beam's thread that asks Dataflow
_LOST_WORKER = "a worker process died, killed or out of memory; its own log says why, and the run can be started again."
_LOOK_AGAIN_S = 0.25
# A runner that is connected to a worker notices its end at once; one that still waits for it to connect, never.
_GRACE_S = 10.0
_CANCEL_WITHIN_S = 20.0
_JOBS: dict[str, PipelineResult] = {}  # of a service, and not known to have ended; by their links


def submit_pipeline(pipeline: beam.Pipeline) -> str | None:
    """Hands a pipeline to a service, and returns the job's link at once; None where a template's launcher starts the job.

    Raises:
        RunError: if the service does not take it.
    """
    try:
        return job_link(pipeline.options, pipeline.run())
    except Exception as error:  # A runner raises whatever its client does.
        raise RunError(_root_cause(error)) from error


def run_to_end(pipeline: beam.Pipeline, tick: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Runs a pipeline and returns its counters of the namespace `batchverify`, each summed over its steps.

    Args:
        pipeline: to run.
        tick: is called some times a second meanwhile.

    Raises:
        RunError: if it did not end well. Where a worker died that the runner waits for, the runner's threads go on
            waiting; whoever ends the process must not join them.
    """
    ended: Future[PipelineResult] = Future()
    with _worker_deaths() as died:
        threading.Thread(target=_settle, args=(pipeline, ended), name="run-pipeline", daemon=True).start()
        try:
            result = _wait_for(ended, died, tick)
        except RunError:
            raise
        except Exception as error:  # A runner raises whatever its workers raised, in its own wrapping.
            raise RunError(_root_cause(error)) from error
    if result.state not in (None, PipelineState.DONE):
        raise RunError(f"the runner ended in state {result.state}; its own log says why.")
    return _counters(result)


def _settle(pipeline: beam.Pipeline, ended: Future[PipelineResult]) -> None:
    try:
        result = pipeline.run()
        if link := job_link(pipeline.options, result):
            _LOG.info("The job: %s", link)
            _wait_for_job(link, result)
        else:
            result.wait_until_finish()
        ended.set_result(result)
    except BaseException as error:
        ended.set_exception(error)


def _wait_for_job(link: str, result: Any) -> None:
    """Waits for the end of a service's job.

    Raises:
        RunError: if it did not end well.
        JobDetachedError: if it is not known to have ended.
    """
    _JOBS[link] = result
    try:
        result.wait_until_finish()
    except Exception as error:  # of the job, or of the client that asks for its state
        if not result.is_in_terminal_state():
            raise JobDetachedError(f"the job was lost sight of, and may go on and finish; see {link}.") from error
        if result.state == PipelineState.CANCELLED:
            raise RunError(f"the job was cancelled; see {link}.") from error
        raise RunError(f"{_root_cause(error).rstrip('.')}; see {link}.") from error
    finally:
        if result.is_in_terminal_state():
            _JOBS.pop(link, None)


def cancel_jobs() -> list[str]:
    """Cancels the jobs that this process waits for, and returns the links of those that go on, as far as is known."""
    asked: dict[str, Future[None]] = {link: Future() for link in _JOBS}
    for link, done in asked.items():
        threading.Thread(target=_cancel, args=(_JOBS[link], done), name="cancel-job", daemon=True).start()
    wait(asked.values(), _CANCEL_WITHIN_S)
    return [link for link, done in asked.items() if not done.done() or done.exception() is not None]


shutdown.register_cancellation(cancel_jobs)


def _cancel(result: PipelineResult, done: Future[None]) -> None:
    try:
        result.cancel()
        done.set_result(None)
    except BaseException as error:
        done.set_exception(error)


@contextmanager
def _worker_deaths() -> Iterator[threading.Event]:
    """Gives an event that is set when a local runner says, in a thread of its own, that a worker has exited."""
    died, otherwise = threading.Event(), threading.excepthook

    def notice(args: threading.ExceptHookArgs) -> None:
        if _WORKER_EXITED in str(args.exc_value):
            died.set()
        elif args.thread is not None and _POLLING in args.thread.name:
            _LOG.error("The job's state cannot be asked for (%s).", args.exc_value)
        else:
            otherwise(args)

    threading.excepthook = notice
    try:
        yield died
    finally:
        threading.excepthook = otherwise


def _wait_for(ended: Future[PipelineResult], died: threading.Event, tick: Callable[[], None]) -> PipelineResult:
    while not died.is_set():
        tick()
        if wait([ended], _LOOK_AGAIN_S).done:
            return ended.result()
    if wait([ended], _GRACE_S).done:
        return ended.result()
    raise RunError(_LOST_WORKER)


def _counters(result: PipelineResult) -> dict[str, int]:
    totals: collections.Counter[str] = collections.Counter()
    try:
        found = result.metrics().query(MetricsFilter().with_namespace("batchverify"))["counters"]
    except Exception as error:  # A service may show a job's state and not its counters; the run is done all the same.
        _LOG.warning("Beam's counters of the run cannot be read (%s).", _root_cause(error))
        return {}
    for counter in found:
        totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def _root_cause(error: BaseException) -> str:
    """Returns what went wrong in a worker in a sentence, out of the traceback that the runner made of it."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"^Dataflow pipeline failed\. State: \w+, Error:\n", "", text)
    text = re.sub(r" \[while running.*", "", text, flags=re.S)
    if ours := re.findall(rf"(?:{RunError.__name__}|{PreflightError.__name__}): (.+)", text):
        return ours[-1]
    if WORKER_DIED in text:
        return _LOST_WORKER
    if systems := re.findall(r"\[Errno \d+\] (.+)", text):
        return f"{systems[-1]}; check --output, its free space, and the space for temporary files."
    if services := re.findall(r'details = "(.+?)"', text):
        return f"a part of the runner does not answer ({services[-1]}); check that its job service and its workers run."
    return text.splitlines()[-1 if "Traceback" in text else 0]


class Watcher(Protocol):
    """Is told how far a run is, some times a second, with what `stats.read_totals` gives."""

    def __call__(self, totals: dict[str, float], images: int, rows: int) -> None: ...
