"""The published way: `model.predict` over tf.data, once for the pairs and once more for each side against itself."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from benchmarks.speed.scripts.work import Scores, Task, pixels


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    model = keras.models.load_model(task.model, compile=False)
    size = model.input_shape[0][1:3]
    left, right = task.pairs()

    def read_pair(one: tf.Tensor, other: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"left": pixels(one, size), "right": pixels(other, size)}

    def read_twin(one: tf.Tensor) -> dict[str, tf.Tensor]:
        image = pixels(one, size)
        return {"left": image, "right": image}

    def predict(paths, read) -> np.ndarray:
        images = tf.data.Dataset.from_tensor_slices(paths).map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return model.predict(images.batch(task.batch_size).prefetch(tf.data.AUTOTUNE), verbose=0)[:, 0]

    return Scores(predict((left, right), read_pair), predict(left, read_twin), predict(right, read_twin))
