"""The network taken apart by hand, for the two scripts that measure the limit."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


class Parts:
    """Encoder and head of a network that `benchmarks.speed.networks` made.

    Args:
        path: The path of its `.keras` file.

    Attributes:
        size: height and width of its images in pixels.
    """

    def __init__(self, path: str):
        model = keras.models.load_model(path, compile=False)
        self._encoder, self._head = model.get_layer("encoder"), model.get_layer("score")
        self.size = self._encoder.input_shape[1:3]
        images = tf.TensorSpec((None, *self.size, 3), tf.float32)
        traced = tf.function(self._embed, input_signature=[images], autograph=False)
        # Weights that are constants let TensorFlow merge batch normalisation into the convolutions (see benchmarks.encoder).
        self._frozen = convert_variables_to_constants_v2(traced.get_concrete_function())

    def encode(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """Returns embeddings, float32 `(n, d)`, of float32 images `(n, height, width, 3)`."""
        return self._frozen(tf.convert_to_tensor(images))[0]

    def _embed(self, images: tf.Tensor) -> tf.Tensor:
        return self._encoder(images, training=False)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of embeddings `(n, d)` twice, all in one call."""
        return self._head(tf.abs(left - right)).numpy()[:, 0]
