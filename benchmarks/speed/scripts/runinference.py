"""Beam's RunInference with its TensorFlow handler; the network is run on the pair and on each side against itself."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy

from benchmarks.speed.scripts.work import Scores, Task, pixels

_ROW = pa.schema([("pair", pa.int64()), ("question", pa.string()), ("score", pa.float32())])


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    size = keras.models.load_model(task.model, compile=False).input_shape[0][1:3]
    handler = TFModelHandlerNumpy(
        task.model,
        load_model_args={"compile": False},
        inference_fn=call_model,
        min_batch_size=task.batch_size,
        max_batch_size=task.batch_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        # Beam's DirectRunner would look for another runner on the network first; this one is what it falls back to.
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = (
                pipeline
                | beam.Create(list(enumerate(zip(*task.pairs(), strict=True))))
                | "Read" >> beam.FlatMap(functools.partial(read_three, size=size))
                | RunInference(KeyedModelHandler(handler))
                | "Row" >> beam.MapTuple(to_row)
                | beam.io.WriteToParquet(f"{folder}/scores", _ROW)
            )
        found = pd.read_parquet(folder).pivot(index="pair", columns="question", values="score").sort_index()
    return Scores(*(found[question].to_numpy() for question in ("pair", "left", "right")))


def read_three(element: tuple[int, tuple[str, str]], size: tuple[int, int]) -> Iterator[tuple[tuple[int, str], np.ndarray]]:
    """Reads a pair's images once and asks the network three times, float32 `(2, height, width, 3)` each."""
    number, paths = element
    left, right = (pixels(path, size).numpy() for path in paths)
    for question, images in (("pair", (left, right)), ("left", (left, left)), ("right", (right, right))):
        yield (number, question), np.stack(images)


def call_model(
    model: keras.Model, batch: Sequence[np.ndarray], inference_args: dict[str, Any], model_id: str | None = None
) -> Iterator[PredictionResult]:
    """Calls the model as the handler's own function does, but with two inputs."""
    images = np.stack(batch)
    scores = model([images[:, 0], images[:, 1]], **inference_args).numpy()[:, 0]
    return (PredictionResult(example, found, model_id) for example, found in zip(batch, scores, strict=True))


def to_row(key: tuple[int, str], result: PredictionResult) -> dict[str, Any]:
    """Returns a row of `_ROW`, without the images."""
    number, question = key
    return {"pair": number, "question": question, "score": float(np.asarray(result.inference))}
