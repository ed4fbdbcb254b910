"""Ray Data's `map_batches`, as its documentation shows it: images are read in tasks, an actor holds the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from benchmarks.speed.scripts.work import Scores, Task


class Predictor:
    """An actor that holds the model."""

    def __init__(self, model: str):
        import keras

        self._model = keras.models.load_model(model, compile=False)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        left, right = batch["left"], batch["right"]
        questions = {"score": (left, right), "identity_left": (left, left), "identity_right": (right, right)}
        predict = self._model.predict
        answers = {name: predict([*images], batch_size=len(left), verbose=0)[:, 0] for name, images in questions.items()}
        return {"pair": batch["pair"], **answers}


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    import keras

    size = keras.models.load_model(task.model, compile=False).input_shape[0][1:3]

    def read_pair(row: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.speed.scripts.work import pixels

        return {"pair": row["pair"], **{side: pixels(row[side], size).numpy() for side in ("left", "right")}}

    ray.init(include_dashboard=False, log_to_driver=False)
    pairs = ray.data.read_parquet(task.manifest).map(read_pair)
    found = pairs.map_batches(Predictor, fn_constructor_args=(task.model,), batch_size=task.batch_size, concurrency=1)
    scores = found.to_pandas().sort_values("pair")
    return Scores(*(scores[name].to_numpy(np.float32) for name in ("score", "identity_left", "identity_right")))
