"""Spark's `predict_batch_udf` in local mode, as its documentation shows it: the model is loaded in each Python worker."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import FloatType, StructField, StructType

from benchmarks.speed.scripts.work import Scores, Task

_COLUMNS = ("score", "identity_left", "identity_right")


def score(task: Task) -> Scores:
    """Scores the pairs of a task."""
    os.environ["PYSPARK_PYTHON"] = sys.executable  # its workers would take the first python3 on the path
    spark = SparkSession.builder.master("local[*]").appName("pairs").getOrCreate()
    model = task.model

    def make_predict_fn() -> Any:
        import keras

        from benchmarks.speed.scripts.work import pixels

        siamese = keras.models.load_model(model, compile=False)
        size = siamese.input_shape[0][1:3]

        def predict(left: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
            one, other = (np.stack([pixels(path, size) for path in paths]) for paths in (left, right))
            questions = ((one, other), (one, one), (other, other))
            answers = (siamese.predict([*images], batch_size=len(one), verbose=0)[:, 0] for images in questions)
            return dict(zip(_COLUMNS, answers, strict=True))

        return predict

    kind = StructType([StructField(name, FloatType()) for name in _COLUMNS])
    predict = predict_batch_udf(make_predict_fn, return_type=kind, batch_size=task.batch_size)
    pairs = spark.read.parquet(task.manifest).repartition(spark.sparkContext.defaultParallelism)
    rows = pairs.withColumn("found", predict("left", "right")).select("pair", "found.*").collect()
    spark.stop()
    found = np.array(sorted(map(tuple, rows)), np.float32)
    return Scores(found[:, 1], found[:, 2], found[:, 3])
