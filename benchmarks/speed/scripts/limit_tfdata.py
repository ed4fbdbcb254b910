"""The limit, first way: tf.data decodes each distinct image once, in as many threads as it finds best, ahead of the encoder."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmarks.speed.scripts.encoder import Parts
from benchmarks.speed.scripts.work import Scores, Task, pixels


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    parts = Parts(task.model)
    paths, left, right = task.distinct()
    images = (
        tf.data.Dataset.from_tensor_slices(paths)
        .map(lambda path: pixels(path, parts.size), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(task.batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    embeddings = np.concatenate([parts.encode(batch).numpy() for batch in images])
    identity = parts.compare(embeddings, embeddings)
    return Scores(parts.compare(embeddings[left], embeddings[right]), identity[left], identity[right])
