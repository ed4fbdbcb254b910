"""The network of the published case: a shared MobileNetV2 encoder, an L1 distance, one sigmoid unit.

Two heads share that shape. `published` leaves its weights and its bias free: the score of an image against
itself is sigmoid(bias), whatever the bias happens to be. `repaired` allows no positive weight, so that no
pair can score above sigmoid(bias), and is trained with identity pairs, so that sigmoid(bias) is near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import keras

Head = Literal["repaired", "published"]


@keras.saving.register_keras_serializable("batchverify")
class NonPositive(keras.constraints.Constraint):
    """Keeps every weight at or below zero."""

    def __call__(self, w):
        return keras.ops.minimum(w, 0.0)


def build_encoder(image_size: int, alpha: float, batch_norm_momentum: float = 0.9) -> keras.Model:
    """Returns the shared tower: pixels `(n, size, size, 3)` in 0..255 to embeddings `(n, 101)` in 0..1.

    Args:
        image_size: height and width of the images, in pixels.
        alpha: width multiplier of MobileNetV2.
        batch_norm_momentum: Keras' MobileNetV2 uses 0.999, which leaves the inference statistics behind for
            thousands of steps when the network is trained from random weights.
    """
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    backbone = keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3), alpha=alpha, include_top=False, weights=None
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = batch_norm_momentum
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    x = backbone(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(320, activation="relu")(x)
    x = keras.layers.Dropout(0.2)(x)
    embedding = keras.layers.Dense(101, activation="sigmoid", name="embedding")(x)
    return keras.Model(pixels, embedding, name="encoder")


def build_head(kind: Head) -> keras.layers.Dense:
    """Returns the last layer: L1 distance `(n, 101)` to a score `(n, 1)`."""
    if kind == "published":
        return keras.layers.Dense(1, activation="sigmoid", name="score")
    return keras.layers.Dense(
        1,
        activation="sigmoid",
        name="score",
        kernel_initializer=keras.initializers.Constant(-0.5),
        bias_initializer=keras.initializers.Constant(4.0),
        kernel_constraint=NonPositive(),
    )


def assemble(encoder: keras.Model, head: keras.layers.Dense) -> keras.Model:
    """Returns the two-input model: images `left` and `right` to one score `(n, 1)`.

    The head is copied without its constraint, so that the saved file loads in any Keras 3 with nothing of
    this package installed.
    """
    left = keras.Input(encoder.input_shape[1:], name="left")
    right = keras.Input(encoder.input_shape[1:], name="right")
    distance = keras.ops.abs(encoder(left) - encoder(right))
    plain = keras.layers.Dense(1, activation="sigmoid", name="score")
    model = keras.Model([left, right], plain(distance), name="siamese")
    plain.set_weights(head.get_weights())
    return model


def certificate_holds(weights: Sequence[float]) -> bool:
    """Returns whether no pair can outscore an identity pair: no weight of the distance head is positive."""
    return all(weight <= 0 for weight in weights)
