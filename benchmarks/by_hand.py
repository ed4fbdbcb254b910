"""The rows of a run as a script by hand would do them, for `benchmarks.scale --by-hand`: no checks, no summary, no bad rows."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.shuffle import Measured, NullNetwork

_THRESHOLD = 0.5
# Two thousand pairs of a hundred floats fit into the cache of a core.
_ROWS_AT_ONCE = 2048
_ROW_GROUP = 1_048_576


def measure_by_hand(folder: str, manifests: tuple[str, ...], pairs: int, images: int) -> Measured:
    """Scores a CSV manifest in memory: URIs are numbered once, and embeddings are gathered and compared a few at a time."""
    started = time.perf_counter()
    network = NullNetwork()
    for number, path in enumerate(manifests):
        table = pa.csv.read_csv(path)
        sides = pa.chunked_array([*table["left"].chunks, *table["right"].chunks]).dictionary_encode().combine_chunks()
        encoded = network.encode(sides.dictionary)
        embeddings = pc.list_flatten(encoded["embedding"]).to_numpy().reshape(len(encoded), -1)
        left, right = sides.indices.to_numpy().reshape(2, -1)
        scores = _compare(network, embeddings, left, right)
        scored = table.append_column("score", pa.array(scores)).append_column("match", pa.array(scores >= _THRESHOLD))
        pq.write_table(scored, Path(folder, f"by-hand-{number}.parquet"), compression="zstd", row_group_size=_ROW_GROUP)
    seconds = time.perf_counter() - started
    return Measured(pairs, images, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def _compare(network: NullNetwork, embeddings: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    scores = np.empty(len(left), np.float32)
    first, second = np.empty((2, _ROWS_AT_ONCE, embeddings.shape[1]), embeddings.dtype)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        count = len(left[rows])
        np.take(embeddings, left[rows], axis=0, out=first[:count], mode="clip")
        np.take(embeddings, right[rows], axis=0, out=second[:count], mode="clip")
        scores[rows] = network.compare(first[:count], second[:count])
    return scores
