"""Metrics under the names that Beam's RunInference gives them, so that dashboards made for it show this job, too."""

from __future__ import annotations

import collections
import contextlib
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from apache_beam.metrics.metric import Metrics

_NAMESPACE = "batchverify"
Entry = TypeVar("Entry")


class ModelLoad(NamedTuple):
    """What it took to load the model.

    Attributes:
        milliseconds: The time.
        growth: The bytes by which the peak memory of the process grew.
    """

    milliseconds: int
    growth: int


class _Inference(NamedTuple):
    """One call of the encoder.

    Attributes:
        images: The number of images.
        size: The bytes of their pixels.
        microseconds: The time of the call.
    """

    images: int
    size: int
    microseconds: int


class InferenceLog:
    """What a network has computed since somebody last took it. The network's threads write, and steps of the pipeline take."""

    def __init__(self) -> None:
        self._loads: collections.deque[ModelLoad] = collections.deque()
        self._inferences: collections.deque[_Inference] = collections.deque()

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Logs that its block loads the model."""
        before, started = _peak_memory(), time.perf_counter()
        yield
        self._loads.append(ModelLoad(round((time.perf_counter() - started) * 1e3), _peak_memory() - before))

    @contextlib.contextmanager
    def encoding(self, images: np.ndarray) -> Iterator[None]:
        """Logs that its block encodes images `(n, …)`."""
        started = time.perf_counter()
        yield
        microseconds = round((time.perf_counter() - started) * 1e6)
        self._inferences.append(_Inference(len(images), images.nbytes, microseconds))

    def take(self) -> tuple[list[ModelLoad], list[_Inference]]:
        """Returns what was logged, each entry to one caller only."""
        return list(_drain(self._loads)), list(_drain(self._inferences))


class InferenceMetrics:
    """The metrics of a step of the pipeline that encodes. Beam takes values only from the thread that processes a bundle."""

    def __init__(self) -> None:
        self._count = Metrics.counter(_NAMESPACE, "num_inferences")
        self._batch_size = Metrics.distribution(_NAMESPACE, "inference_request_batch_size")
        self._batch_bytes = Metrics.distribution(_NAMESPACE, "inference_request_batch_byte_size")
        self._latency = Metrics.distribution(_NAMESPACE, "inference_batch_latency_micro_secs")
        self._load_latency = Metrics.distribution(_NAMESPACE, "load_model_latency_milli_secs")
        self._model_size = Metrics.distribution(_NAMESPACE, "model_byte_size")

    def report(self, log: InferenceLog) -> None:
        """Reports what `log` holds, and empties it."""
        loads, inferences = log.take()
        for load in loads:
            self._load_latency.update(load.milliseconds)
            self._model_size.update(load.growth)
        for inference in inferences:
            self._count.inc(inference.images)
            self._batch_size.update(inference.images)
            self._batch_bytes.update(inference.size)
            self._latency.update(inference.microseconds)


def _drain(entries: collections.deque[Entry]) -> Iterator[Entry]:
    with contextlib.suppress(IndexError):
        while True:
            yield entries.popleft()


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
