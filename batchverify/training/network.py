"""The network of the published case: a shared MobileNetV2 encoder, an L1 distance, one sigmoid unit.

There are two heads of this shape. The score of an image against itself is sigmoid(bias). The head `published` does not
constrain its weights and its bias, so sigmoid(bias) may be any number. The head `repaired` allows no positive weight, so no
pair can score above sigmoid(bias), and it is trained with identity pairs, so that sigmoid(bias) is near 1.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.errors import PreflightError, short_reason

EMBEDDING_SIZE = 101


@keras.saving.register_keras_serializable("batchverify")
class NonPositive(keras.constraints.Constraint):  # type: ignore[misc]
    """Keeps every weight at or below zero."""

    def __call__(self, w: Any) -> Any:
        return keras.ops.minimum(w, 0.0)


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Keras' batch normalisation, with TensorFlow's single kernel for the training step.

    Keras 3 uses a dozen operations, and each reads and writes the whole batch. On two cores a training step of MobileNetV2
    (width 0.35, 128 images of 96×96) takes 0.57 s with these operations and 0.23 s with the kernel; `benchmarks/train_step.py`
    measures it.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises with the statistics of the batch in training, and with the moving statistics otherwise."""
        if not training:
            return super().call(inputs, training=False, mask=mask)
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma.value, offset=self.beta.value, mean=tf.zeros([0]), variance=tf.zeros([0]),
            epsilon=self.epsilon, is_training=True,
        )  # fmt: skip
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return normalised


def build_encoder(
    size: int, width: float, dropout: float = 0.2, batch_norm_momentum: float = 0.9, weights: str | None = None
) -> keras.Model:
    """Returns the encoder: pixels `(n, size, size, 3)` in 0..255 to embeddings `(n, 101)` in 0..1.

    Args:
        size: Height and width of the images in pixels.
        width: Multiplier of MobileNetV2's channels (alpha).
        dropout: Share of the values before the embedding that a training step sets to 0.
        batch_norm_momentum: Momentum of the moving statistics. Keras' MobileNetV2 uses 0.999: if the network is trained from
            random weights, its moving statistics are then wrong for thousands of steps.
        weights: File with weights of MobileNetV2 without its top, as Keras publishes them for ImageNet. None means random
            weights.

    Raises:
        PreflightError: if the weights cannot be read, or are for another width.
    """
    pixels = keras.Input((size, size, 3), name="pixels")
    backbone = keras.applications.MobileNetV2(input_shape=(size, size, 3), alpha=width, include_top=False, weights=None)
    if weights is not None:
        _load_backbone(backbone, weights, width)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = batch_norm_momentum
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    x = backbone(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(320, activation="relu", name="dense")(x)
    x = keras.layers.Dropout(dropout)(x)
    embedding = keras.layers.Dense(EMBEDDING_SIZE, activation="sigmoid", name="embedding")(x)
    return with_batch_norm(keras.Model(pixels, embedding, name="encoder"), FusedBatchNormalization)


def build_head(kind: str) -> keras.layers.Dense:
    """Returns a built head: L1 distances `(n, 101)` to scores `(n, 1)`.

    Args:
        kind: One of `recipe.HEADS`.
    """
    if kind == "published":
        head = keras.layers.Dense(1, activation="sigmoid", name="score")
    else:
        head = keras.layers.Dense(
            1,
            activation="sigmoid",
            name="score",
            kernel_initializer=keras.initializers.Constant(-0.5),
            bias_initializer=keras.initializers.Constant(4.0),
            kernel_constraint=NonPositive(),
        )
    head.build((None, EMBEDDING_SIZE))
    return head


def assemble(encoder: keras.Model, head: keras.layers.Dense) -> keras.Model:
    """Returns the model with two inputs: images `left` and `right` to scores `(n, 1)`.

    The copy of the head has no constraint, and the copy of the encoder has Keras' own batch normalisation. Any Keras 3 can
    therefore load the saved file without this package.
    """
    encoder = with_batch_norm(encoder, keras.layers.BatchNormalization)
    left = keras.Input(encoder.input_shape[1:], name="left")
    right = keras.Input(encoder.input_shape[1:], name="right")
    distance = keras.ops.abs(encoder(left) - encoder(right))
    plain_head = keras.layers.Dense(1, activation="sigmoid", name="score")
    model = keras.Model([left, right], plain_head(distance), name="siamese")
    plain_head.set_weights(head.get_weights())
    return model


def encode(encoder: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the embeddings, float32 `(n, 101)`, of images, uint8 `(n, size, size, 1 or 3)`, as inference computes them."""
    pixels = images.astype(np.float32)
    return np.asarray(encoder(np.broadcast_to(pixels, (*pixels.shape[:3], 3)), training=False))


def compare(head: keras.layers.Dense, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the scores, float32 `(n,)`, of pairs of embeddings, `(n, 101)` each."""
    return np.asarray(head(np.abs(left - right)))[:, 0]


def read_encoder(path: str, size: int) -> keras.Model:
    """Returns the encoder of a model that `assemble` made.

    Raises:
        PreflightError: if the file holds no such model, or a model for another image size.
    """
    try:
        encoder = keras.models.load_model(path, compile=False).get_layer("encoder")
    except Exception as error:  # Keras raises every exception of its layers.
        raise PreflightError(
            f"--start-from {path}: it cannot be read as a model of this command ({short_reason(error)}); name another file."
        ) from None
    if encoder.input_shape[1] != size:
        raise PreflightError(
            f"--start-from {path}: its images have {encoder.input_shape[1]} pixels, and --size is {size}; give the same size."
        )
    return with_batch_norm(encoder, FusedBatchNormalization)


def with_batch_norm(encoder: keras.Model, kind: type[keras.layers.BatchNormalization]) -> keras.Model:
    """Returns a copy of `encoder` whose layers of batch normalisation are of the class `kind`."""

    def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        return (kind if is_norm else type(layer)).from_config(layer.get_config())

    copy = keras.models.clone_model(encoder, clone_function=copy_layer, recursive=True)
    copy.set_weights(encoder.get_weights())
    return copy


def _load_backbone(backbone: keras.Model, weights: str, width: float) -> None:
    try:
        backbone.load_weights(weights)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"--encoder-weights {weights}: they do not fit MobileNetV2 of width {width} without its top "
            f"({short_reason(error)}); give the no_top file of that width, as keras.applications downloads it."
        ) from None
