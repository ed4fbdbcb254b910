"""What all contenders share: the task, the pixels of an image, and the form of the answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contender is asked to do.

    Attributes:
        manifest: Parquet file with the columns `pair` (0, 1, …), `left` and `right`.
        model: `.keras` file of a Siamese network.
        batch_size: pairs, or images, that go through the network at once.
    """

    manifest: str
    model: str
    batch_size: int

    def pairs(self) -> tuple[list[str], list[str]]:
        """Returns the paths of the left images, and of the right ones."""
        table = pq.read_table(self.manifest)
        return table["left"].to_pylist(), table["right"].to_pylist()

    def distinct(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Returns the distinct paths, and where among them each pair's left and right image stands, int `(n,)` twice."""
        table = pq.read_table(self.manifest)
        paths = pa.chunked_array([*table["left"].chunks, *table["right"].chunks]).unique()
        left, right = (pc.index_in(table[side], value_set=paths).to_numpy() for side in ("left", "right"))
        return paths.to_pylist(), left, right


@dataclasses.dataclass(frozen=True)
class Scores:
    """A contender's answer, in the manifest's order.

    Attributes:
        score: f(left, right), float32 `(n,)`.
        identity_left: f(left, left), the same.
        identity_right: f(right, right), the same.
    """

    score: np.ndarray
    identity_left: np.ndarray
    identity_right: np.ndarray


def write_scores(path: str, scores: Scores) -> None:
    """Writes a Parquet file with a column for each of the three."""
    pq.write_table(pa.table(dataclasses.asdict(scores)), path)


def pixels(path: tf.Tensor | str, size: tuple[int, int]) -> tf.Tensor:
    """Decodes a JPEG file and resizes it, as batchverify does: float32 `(height, width, 3)`."""
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return tf.image.resize(image, size)
