"""The limit, second way: threads decode each distinct image once, one by one, two batches ahead of the encoder."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from benchmarks.speed.scripts.encoder import Parts
from benchmarks.speed.scripts.work import Scores, Task, pixels

_AHEAD = 2


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    parts = Parts(task.model)
    paths, left, right = task.distinct()
    embeddings = np.concatenate([parts.encode(batch).numpy() for batch in read_ahead(paths, parts.size, task.batch_size)])
    identity = parts.compare(embeddings, embeddings)
    return Scores(parts.compare(embeddings[left], embeddings[right]), identity[left], identity[right])


def read_ahead(paths: list[str], size: tuple[int, int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields batches of pixels, float32 `(n, height, width, 3)`; while one is used, the next two are filled in threads."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        under_way: collections.deque[tuple[np.ndarray, list[Future[None]]]] = collections.deque()
        for start in range(0, len(paths), batch_size):
            chosen = paths[start : start + batch_size]
            batch = np.empty((len(chosen), *size, 3), np.float32)
            under_way.append((batch, [threads.submit(read_into, batch[row], path) for row, path in enumerate(chosen)]))
            if len(under_way) > _AHEAD:
                yield _filled(*under_way.popleft())
        while under_way:
            yield _filled(*under_way.popleft())


def _filled(batch: np.ndarray, reading: list[Future[None]]) -> np.ndarray:
    for future in reading:
        future.result()
    return batch


def read_into(place: np.ndarray, path: str) -> None:
    """Decodes and resizes an image into `place`, float32 `(height, width, 3)`."""
    with tf.device("CPU"):
        place[...] = pixels(path, place.shape[:2]).numpy()
