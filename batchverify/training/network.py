"""The network of the published case: a shared MobileNetV2 encoder, an L1 distance, one sigmoid unit.

Two heads share that shape. `published` leaves its weights and its bias free: the score of an image against
itself is sigmoid(bias), whatever the bias happens to be. `repaired` allows no positive weight, so that no
pair can score above sigmoid(bias), and is trained with identity pairs, so that sigmoid(bias) is near 1.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.errors import PreflightError

EMBEDDING_SIZE = 101


@keras.saving.register_keras_serializable("batchverify")
class NonPositive(keras.constraints.Constraint):  # type: ignore[misc]  # Keras has no types
    """Keeps every weight at or below zero."""

    def __call__(self, w: Any) -> Any:
        return keras.ops.minimum(w, 0.0)


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]  # Keras has no types
    """Keras' batch normalisation, trained by TensorFlow's one kernel for it.

    Keras 3 composes it of a dozen operations, each a pass over memory. On two cores a training step of MobileNetV2
    (width 0.35, 128 images of 96×96) takes 0.57 s with these and 0.23 s with the kernel; `benchmarks/train_step.py`.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises by the batch's statistics in training, and by the moving ones otherwise."""
        if not training:
            return super().call(inputs, training=False, mask=mask)
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma.value, offset=self.beta.value, mean=tf.zeros([0]), variance=tf.zeros([0]),
            epsilon=self.epsilon, is_training=True,
        )  # fmt: skip
        for moving, found in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + found * (1 - self.momentum))
        return normalised


def build_encoder(
    size: int, width: float, dropout: float = 0.2, batch_norm_momentum: float = 0.9, weights: str | None = None
) -> keras.Model:
    """Returns the shared tower: pixels `(n, size, size, 3)` in 0..255 to embeddings `(n, 101)` in 0..1.

    Args:
        size: height and width of the images in pixels.
        width: multiplier of MobileNetV2's channels (alpha).
        dropout: share of the values before the embedding that a training step leaves out.
        batch_norm_momentum: Keras' MobileNetV2 uses 0.999, which leaves the inference statistics behind for
            thousands of steps when the network is trained from random weights.
        weights: file of MobileNetV2 weights without its top, as Keras publishes them for ImageNet; random if None.

    Raises:
        PreflightError: if the weights cannot be read, or are of another width.
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
    """Returns the last layer, built, of one of `recipe.HEADS`: L1 distance `(n, 101)` to a score `(n, 1)`."""
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
    """Returns the two-input model: images `left` and `right` to one score `(n, 1)`.

    The head is copied without its constraint and the encoder with Keras' own batch normalisation, so that the saved
    file loads in any Keras 3 with nothing of this package installed.
    """
    encoder = with_batch_norm(encoder, keras.layers.BatchNormalization)
    left = keras.Input(encoder.input_shape[1:], name="left")
    right = keras.Input(encoder.input_shape[1:], name="right")
    distance = keras.ops.abs(encoder(left) - encoder(right))
    plain = keras.layers.Dense(1, activation="sigmoid", name="score")
    model = keras.Model([left, right], plain(distance), name="siamese")
    plain.set_weights(head.get_weights())
    return model


def encode(encoder: keras.Model, images: np.ndarray) -> np.ndarray:
    """Encodes uint8 `(n, size, size, 1 or 3)` as inference does: float32 `(n, 101)`."""
    pixels = images.astype(np.float32)
    return np.asarray(encoder(np.broadcast_to(pixels, (*pixels.shape[:3], 3)), training=False))


def compare(head: keras.layers.Dense, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores pairs of embeddings, `(n, 101)` twice: float32 `(n,)`."""
    return np.asarray(head(np.abs(left - right)))[:, 0]


def read_encoder(path: str, size: int) -> keras.Model:
    """Returns the encoder of a model that `assemble` made.

    Raises:
        PreflightError: if the file holds no such model, or one of another image size.
    """
    try:
        encoder = keras.models.load_model(path, compile=False).get_layer("encoder")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreflightError(
            f"--start-from {path}: no model that this command wrote can be read there ({_brief(error)})."
        ) from None
    if encoder.input_shape[1] != size:
        raise PreflightError(
            f"--start-from {path}: it takes {encoder.input_shape[1]} pixels, and --size is {size}; give both alike."
        )
    return with_batch_norm(encoder, FusedBatchNormalization)


def with_batch_norm(encoder: keras.Model, kind: type[keras.layers.BatchNormalization]) -> keras.Model:
    """Returns a copy of `encoder` whose batch normalisation is of this kind."""

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        return (kind if is_norm else type(layer)).from_config(layer.get_config())

    copy = keras.models.clone_model(encoder, clone_function=copied, recursive=True)
    copy.set_weights(encoder.get_weights())
    return copy


def _load_backbone(backbone: keras.Model, weights: str, width: float) -> None:
    try:
        backbone.load_weights(weights)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"--encoder-weights {weights}: they do not fit MobileNetV2 of width {width} without its top ({_brief(error)}); "
            "give the no_top file of that width, as keras.applications downloads it."
        ) from None


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
