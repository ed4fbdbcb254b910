"""Trained models: from a file to the two calls that the pipeline makes.

TensorFlow is imported here and in `siamese`, and only by what loads a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.config import ModelFacts, Refused
from batchverify.siamese import CannotSplit, Siamese, split_siamese

_LOG = logging.getLogger(__name__)
_PAIRS_AT_ONCE = 8192


class PairModel:
    """A Siamese network, ready to be called with NumPy arrays.

    Every call has one fixed shape, padded at the end, so that there is one trace of each function. A call that
    exhausts the device's memory is repeated with half the rows, and the smaller shape is kept.

    Attributes:
        facts: what a run writes down about the model.
    """

    def __init__(self, siamese: Siamese, facts: ModelFacts, batch_size: int):
        self.facts = facts
        self._encode = FixedShapeCall(_encoder_function(siamese.encoder), batch_size)
        self._compare = FixedShapeCall(_head_function(siamese.head), _PAIRS_AT_ONCE)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns embeddings, float32 `(n, d)`, of uint8 images `(n, height, width, channels)`."""
        return self._encode(images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of two arrays of embeddings, float32 `(n, d)`."""
        return self._compare(left, right)


class FixedShapeCall:
    """Calls a function on slices of `rows` rows, the last one padded, and joins the results.

    Args:
        function: takes arrays of `rows` rows each, returns one array of `rows` rows.
        rows: at most so many at once.
    """

    def __init__(self, function: Callable[..., np.ndarray], rows: int):
        self._function, self.rows = function, rows

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        while True:
            try:
                # Of an empty array one padded slice is computed, for the shape of its rows.
                starts = range(0, max(1, len(arrays[0])), self.rows)
                return np.concatenate([self._slice(arrays, start) for start in starts])
            except tf.errors.ResourceExhaustedError:
                if self.rows == 1:
                    raise
                self.rows //= 2
                _LOG.warning("The device is out of memory; from here on it is given %d rows at once.", self.rows)

    def _slice(self, arrays: tuple[np.ndarray, ...], start: int) -> np.ndarray:
        parts = [array[start : start + self.rows] for array in arrays]
        count = len(parts[0])
        return self._function(*(_padded(part, self.rows) for part in parts))[:count]


def load_model(path: str | None, batch_size: int) -> PairModel:
    """Loads the model at `path`, or the embedded one, and proves its split.

    Raises:
        Refused: if it cannot be used; in one sentence, with the remedy.
    """
    _let_gpu_memory_grow()
    with _local_copy(path) as local:
        digest = _sha256(local)
        model = _load_keras(path, local)
    try:
        siamese = split_siamese(model)
    except CannotSplit as error:
        raise Refused(f"--model {path}: {error}") from None
    shape = _image_shape(path, siamese.encoder)
    size = math.prod(siamese.encoder.outputs[0].shape[1:])
    facts = ModelFacts(path or "embedded", digest, path is None, shape, size)
    return PairModel(siamese, facts, batch_size)


def _load_keras(path: str | None, local: str) -> keras.Model:
    if path is not None and not path.endswith(".keras"):
        raise Refused(f"--model {path}: only .keras files are read; save the model with model.save('model.keras').")
    try:
        return keras.models.load_model(local, compile=False)
    except Exception as error:  # Keras raises whatever its layers do.
        words = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise Refused(
            f"--model {path}: Keras {keras.__version__} cannot load it ({words}); "
            "save it again with the Keras that trained it, in the .keras format."
        ) from None


def _image_shape(path: str | None, encoder: keras.Model) -> tuple[int, int, int]:
    shape = tuple(encoder.inputs[0].shape[1:])
    if len(shape) != 3 or None in shape or shape[2] not in (1, 3):
        raise Refused(
            f"--model {path}: its inputs have the shape {shape}; give one that takes images of fixed height and width, "
            "with 1 or 3 channels last."
        )
    return shape


def _encoder_function(encoder: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    @tf.function(reduce_retracing=False)
    def encode(images: tf.Tensor) -> tf.Tensor:
        embeddings = encoder(tf.cast(images, tf.float32), training=False)
        return tf.cast(tf.reshape(embeddings, [tf.shape(images)[0], -1]), tf.float32)

    return lambda images: encode(tf.constant(images)).numpy()


def _head_function(head: keras.Model) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    shapes = [[-1, *tensor.shape[1:]] for tensor in head.inputs]

    @tf.function(reduce_retracing=False)
    def compare(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        pair = [tf.reshape(side, shape) for side, shape in zip((left, right), shapes, strict=True)]
        return tf.cast(tf.reshape(head(pair, training=False), [-1]), tf.float32)

    return lambda left, right: compare(tf.constant(left), tf.constant(right)).numpy()


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


def _let_gpu_memory_grow() -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # TensorFlow has begun to use the device; it can't be changed any more.
            _LOG.warning("GPU memory growth could not be turned on; TensorFlow was in use already.")


@contextlib.contextmanager
def _local_copy(path: str | None) -> Iterator[str]:
    """Gives a local path of the model, wherever it is stored."""
    if path is None:
        with importlib.resources.as_file(importlib.resources.files("batchverify.demo") / "sane.keras") as local:
            yield str(local)
    elif "://" not in path:
        if not os.path.isfile(path):
            raise Refused(f"--model {path}: there is no such file; check the path.")
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield _download(path, os.path.join(folder, "model.keras"))


def _download(uri: str, local: str) -> str:
    try:
        with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as source, open(local, "wb") as copy:
            while data := source.read(2**20):
                copy.write(data)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise Refused(f"--model {uri}: it cannot be fetched ({str(error)[:200]}); check the URI and your access.") from None
    return local


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
