"""The limit, first way: tf.data decodes each distinct image once, as parallel as it finds best, while the last batch is encoded."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmarks.speed.scripts.encoder import Parts
from benchmarks.speed.scripts.work import Scores, Task, pixels


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    parts = Parts(task.model)
    paths, left, right = task.distinct()
    options = tf.data.Options()
    options.deterministic = True
    images = (
        tf.data.Dataset.from_tensor_slices(paths)
        .map(lambda path: pixels(path, parts.size), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(task.batch_size)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    embeddings = np.concatenate([parts.encode(batch).numpy() for batch in images])
    identity = parts.compare(embeddings, embeddings)
    return Scores(parts.compare(embeddings[left], embeddings[right]), identity[left], identity[right])
