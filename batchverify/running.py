"""A pipeline run to its end, its failure told in a sentence, and a worker's death noticed where the runner does not."""

from __future__ import annotations

import collections
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from batchverify.config import WORKER_DIED, Refused, RunFailed

_LOG = logging.getLogger(__name__)
# How a local runner's thread says that the worker process which it watches over has ended.
_WORKER_EXITED = "Worker subprocess exited"
_LOST_WORKER = "a worker process died, killed or out of memory; its own log says why, and the run can be started again."
_LOOK_AGAIN_S = 0.25
# A runner that is connected to a worker notices its end at once; one that still waits for it to connect, never.
_GRACE_S = 10.0


def run_to_end(pipeline: beam.Pipeline, tick: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Runs a pipeline and returns its counters of the namespace `batchverify`, each summed over its steps.

    Args:
        pipeline: to run.
        tick: is called some times a second meanwhile.

    Raises:
        RunFailed: if it did not end well. Where a worker died that the runner waits for, the runner's threads go on
            waiting; whoever ends the process must not join them.
    """
    ended: Future[PipelineResult] = Future()
    with _worker_deaths() as died:
        threading.Thread(target=_settle, args=(pipeline, ended), name="run-pipeline", daemon=True).start()
        try:
            result = _wait_for(ended, died, tick)
        except RunFailed:
            raise
        except Exception as error:  # A runner raises whatever its workers raised, in its own wrapping.
            raise RunFailed(_root_cause(error)) from error
    if result.state not in (None, PipelineState.DONE):
        raise RunFailed(f"the runner ended in state {result.state}; its own log says why.")
    return _counters(result)


def _settle(pipeline: beam.Pipeline, ended: Future[PipelineResult]) -> None:
    try:
        result = pipeline.run()
        if link := _job_link(pipeline, result):
            _LOG.info("The job: %s", link)
        result.wait_until_finish()
        ended.set_result(result)
    except BaseException as error:
        ended.set_exception(error)


def _job_link(pipeline: beam.Pipeline, result: PipelineResult) -> str | None:
    """Returns where Dataflow shows a job, with the counters that a local run's bar shows; None for other runners."""
    cloud = pipeline.options.view_as(GoogleCloudOptions)
    job = getattr(result, "job_id", None)
    if not callable(job) or not cloud.project or not cloud.region:
        return None
    return f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{job()}?project={cloud.project}"


@contextmanager
def _worker_deaths() -> Iterator[threading.Event]:
    """Gives an event that is set when a local runner says, in a thread of its own, that a worker has exited."""
    died, otherwise = threading.Event(), threading.excepthook

    def notice(args: threading.ExceptHookArgs) -> None:
        if _WORKER_EXITED in str(args.exc_value):
            died.set()
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
    raise RunFailed(_LOST_WORKER)


def _counters(result: PipelineResult) -> dict[str, int]:
    totals: collections.Counter[str] = collections.Counter()
    for counter in result.metrics().query(MetricsFilter().with_namespace("batchverify"))["counters"]:
        totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def _root_cause(error: BaseException) -> str:
    """Returns what went wrong in a worker in a sentence, out of the traceback that the runner made of it."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r" \[while running.*", "", text, flags=re.S)
    if ours := re.findall(rf"(?:{RunFailed.__name__}|{Refused.__name__}): (.+)", text):
        return ours[-1]
    if WORKER_DIED in text:
        return _LOST_WORKER
    if systems := re.findall(r"\[Errno \d+\] (.+)", text):
        return f"{systems[-1]}; check --output, its free space, and the space for temporary files."
    if services := re.findall(r'details = "(.+?)"', text):
        return f"a part of the runner does not answer ({services[-1]}); check that its job service and its workers run."
    return text.splitlines()[-1 if "Traceback" in text else 0]
