"""Trained-looking models as people have them: one builder for each format, head and way of writing a Siamese network.

Each builder gives a live model and writes its file. A `Case` says how batchverify is to be told what the file does not
say, and how often an image goes through a tower. tf_keras is the Keras 2 that wrote the legacy files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

SIDE = 12
SHAPE = (SIDE, SIDE, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model file to make.

    Attributes:
        build: returns the live model; called once.
        suffix: of the file: `.keras`, `.h5`, or nothing for a SavedModel.
        options: what batchverify is told, as fields of `ModelConfig`.
        scale: what the model wants done with pixels 0..255.
        score: what its output means, as a function of the live model's output.
        encodings: how often an image goes through a tower, for itself and for each pair.
        swapped: whether the model's first input is, by its name, the right one.
    """

    build: Callable[[], Any]
    suffix: str = ".keras"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    scale: Callable[[np.ndarray], np.ndarray] = lambda x: x
    score: Callable[[np.ndarray], np.ndarray] = lambda output: output
    encodings: tuple[int, int] = (1, 0)
    swapped: bool = False


@keras.saving.register_keras_serializable("MyLayers")
class L1Dist(keras.layers.Layer):
    """The custom distance of a much-read tutorial: two tensors, not a list."""

    def call(self, input_embedding, validation_embedding):
        return keras.ops.abs(input_embedding - validation_embedding)


@keras.saving.register_keras_serializable("MyLayers")
class Subclassed(keras.Model):
    """A model whose computation is only in its class."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.embed = keras.layers.Dense(4, activation="tanh")
        self.flat = keras.layers.Flatten()
        self.decide = keras.layers.Dense(1, activation="sigmoid")

    def call(self, pair):
        left, right = (self.embed(self.flat(image) / 255.0) for image in pair)
        return self.decide(keras.ops.abs(left - right))


def tower(k=keras, rescale=True, width=6, channels=3, kind="functional", activation="sigmoid"):
    """Returns an encoder."""
    layers = [k.layers.Rescaling(1 / 255)] if rescale else []
    layers += [k.layers.Conv2D(4, 3, strides=2, activation="relu"), k.layers.Flatten()]
    layers += [k.layers.Dropout(0.4), k.layers.BatchNormalization(), k.layers.Dense(width, activation=activation)]
    if kind == "sequential":
        return k.Sequential([k.layers.Input((SIDE, SIDE, channels)), *layers], name="encoder")
    x = image = k.Input((SIDE, SIDE, channels))
    for layer in layers:
        x = layer(x)
    return k.Model(image, x, name="encoder")


def siamese(join, head=None, k=keras, names=("left", "right"), channels=3, encoder=None, dtype=None, **settings):
    """Returns a Siamese network: `join` makes one tensor of two embeddings, `head` a score of that."""
    k.utils.set_random_seed(7)
    encoder = encoder or tower(k, channels=channels, **settings)
    left, right = (k.Input((SIDE, SIDE, channels), name=name, dtype=dtype) for name in names)
    one, other = encoder(left), encoder(right)
    joined = join(one, other)
    return k.Model([left, right], (head or k.layers.Dense(1, activation="sigmoid"))(joined))


def l1(k=keras):
    return (lambda a, b: keras.ops.abs(a - b)) if k is keras else (lambda a, b: tf.abs(a - b))


def lambda_l1(k=keras):
    body = (lambda t: keras.ops.abs(t[0] - t[1])) if k is keras else (lambda t: tf.abs(t[0] - t[1]))
    return lambda a, b: k.layers.Lambda(body, output_shape=lambda s: s[0], name="distance")([a, b])


def euclidean(a, b):
    return keras.ops.sqrt(keras.ops.sum((a - b) ** 2, axis=1, keepdims=True) + 1e-9)


def towers_written_out(k=keras):
    """Two towers of the same layers, without a nested encoder, with a residual and two tensors into the head."""
    k.utils.set_random_seed(8)
    flat, dense, again = k.layers.Flatten(), k.layers.Dense(5, activation="tanh"), k.layers.Dense(5, activation="tanh")
    left, right = k.Input(SHAPE, name="image_b"), k.Input(SHAPE, name="image_a")

    def side(image):
        first = dense(flat(k.layers.Rescaling(1 / 127.5, offset=-1)(image)))
        return k.layers.Add()([first, again(first)]), first

    (a, raw_a), (b, raw_b) = side(left), side(right)
    joined = k.layers.Concatenate()([k.layers.Subtract()([a, b]), k.layers.Multiply()([raw_a, raw_b])])
    return k.Model([left, right], k.layers.Dense(1, activation="sigmoid")(k.layers.Dense(4)(joined)))


def unshared():
    keras.utils.set_random_seed(9)
    left, right = keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")
    one, other = tower(width=5), tower(width=7)
    one.name, other.name = "one", "other"
    joined = keras.layers.Concatenate()([one(left), other(right)])
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(joined))


def early_fusion():
    """The images meet before any weight: there is no encoder."""
    keras.utils.set_random_seed(10)
    left, right = keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")
    x = keras.layers.Concatenate()([keras.layers.Rescaling(1 / 255)(side) for side in (left, right)])
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(x))
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(x))


def preprocessed(steps, k=keras, **settings):
    """An encoder whose input passes through `steps` first."""
    k.utils.set_random_seed(11)
    image = k.Input(SHAPE)
    x = k.layers.Flatten()(k.layers.Conv2D(4, 3, strides=2, activation="relu")(steps(image)))
    encoder = k.Model(image, k.layers.Dense(6, activation="sigmoid")(x), name="encoder")
    return siamese(l1(k), k=k, encoder=encoder, **settings)


def mobilenet(k):
    """The published encoder, normalised in a Lambda, with the published Euclidean Lambda behind it."""
    k.utils.set_random_seed(14)
    depthwise = [k.layers.DepthwiseConv2D(3, strides=2, use_bias=False), k.layers.BatchNormalization(), k.layers.ReLU(6.0)]
    image = k.Input(SHAPE)
    x = k.layers.Conv2D(8, 3)(k.applications.mobilenet_v2.preprocess_input(image))
    for layer in [*depthwise, k.layers.SeparableConv2D(8, 2), k.layers.GlobalAveragePooling2D(), k.layers.Dense(6)]:
        x = layer(x)
    x = k.layers.Lambda(lambda t: tf.math.l2_normalize(t, axis=1), name="norm")(x)
    distance = lambda t: tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True), 1e-7))  # noqa: E731
    encoder = k.Model(image, x, name="encoder")
    return siamese(lambda a, b: k.layers.Lambda(distance, name="euclidean")([a, b]), k=k, encoder=encoder)


def normalised():
    layer = keras.layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 3100.0, 3200.0])
    return preprocessed(lambda x: layer(keras.layers.Resizing(10, 10)(x)))


def subclassed():
    keras.utils.set_random_seed(12)
    model = Subclassed(name="subclassed")
    model([np.zeros((1, *SHAPE), np.float32)] * 2)
    return model


def by(scale):
    return lambda x: x / scale


def cosine_score(output):
    return (1 + output) / 2


def compared(function):
    """Marks a one-input model's embeddings to be compared pairwise by the test itself."""
    function.compares = True
    return function


@compared
def by_cosine(a, b):
    return (1 + np.sum(a * b, 1) / np.sqrt(np.sum(a * a, 1) * np.sum(b * b, 1))) / 2


@compared
def by_euclidean(a, b):
    return 1 / (1 + np.linalg.norm(a - b, axis=1))


@compared
def by_l1(a, b):
    return 1 / (1 + np.abs(a - b).sum(1))


def encoder_alone(k=keras, **settings):
    k.utils.set_random_seed(13)
    return tower(k, activation="linear", **settings)


L1 = {"lambdas": ("l1",)}
WHOLE = (2, 2)
CASES: dict[str, Case] = {
    # heads
    "l1": Case(lambda: siamese(l1())),
    "squared": Case(lambda: siamese(lambda a, b: (a - b) ** 2)),
    "multiply": Case(lambda: siamese(lambda a, b: keras.layers.Multiply()([a, b]))),
    "several_dense": Case(
        lambda: siamese(
            lambda a, b: keras.layers.Concatenate()([a, b]),
            keras.Sequential([keras.layers.Dense(5, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]),
        )
    ),
    "euclidean_then_dense": Case(lambda: siamese(euclidean)),
    "euclidean_distance": Case(
        lambda: siamese(euclidean, keras.layers.Identity()), options={"output_is": "distance"}, score=lambda d: 1 / (1 + d)
    ),
    "cosine": Case(
        lambda: siamese(lambda a, b: keras.layers.Dot(axes=1, normalize=True)([a, b]), keras.layers.Identity()),
        options={"output_is": "cosine"},
        score=cosine_score,
    ),
    "dot": Case(lambda: siamese(lambda a, b: keras.layers.Dot(axes=1)([a, b]))),
    "logit": Case(
        lambda: siamese(l1(), keras.layers.Dense(1)), options={"output_is": "logit"}, score=lambda x: 1 / (1 + np.exp(-x))
    ),
    "softmax": Case(
        lambda: siamese(l1(), keras.layers.Dense(2, activation="softmax")),
        options={"match_column": 1},
        score=lambda output: output[:, 1],
    ),
    "flat_output": Case(
        lambda: siamese(l1(), keras.Sequential([keras.layers.Dense(1, activation="sigmoid"), keras.layers.Reshape(())]))
    ),
    # structures
    "sequential_encoder": Case(lambda: siamese(l1(), kind="sequential")),
    "towers_written_out": Case(towers_written_out, swapped=True),
    "unshared": Case(unshared, encodings=(2, 0)),
    "early_fusion": Case(early_fusion, encodings=WHOLE),
    "subclassed": Case(
        subclassed,
        options={"custom_objects": ("Subclassed=tests.support.model_zoo:Subclassed",), "pixels": "0..255"},
        encodings=WHOLE,
    ),
    "custom_distance": Case(
        lambda: siamese(lambda a, b: L1Dist(name="l1_dist")(a, b)), options={"custom_objects": ("L1Dist=l1",)}
    ),
    "lambda": Case(lambda: siamese(lambda_l1()), options=L1),
    # pixels
    "told_0..1": Case(lambda: siamese(l1(), rescale=False), options={"pixels": "0..1"}, scale=by(255.0)),
    "told_-1..1": Case(
        lambda: siamese(l1(), rescale=False), options={"pixels": "-1..1"}, scale=lambda x: x / np.float32(127.5) - 1
    ),
    "grey": Case(lambda: siamese(l1(), channels=1)),
    "uint8": Case(lambda: siamese(l1(), dtype="uint8")),
    "normalised": Case(normalised),
    "ops_of_preprocess_input": Case(lambda: preprocessed(keras.applications.mobilenet_v2.preprocess_input)),
    # one input
    "encoder_cosine": Case(encoder_alone, options={"compare": "cosine"}, score=by_cosine),
    "encoder_euclidean": Case(encoder_alone, options={"compare": "euclidean"}, score=by_euclidean),
    "encoder_l1_h5": Case(encoder_alone, ".h5", {"compare": "l1"}, score=by_l1),
    "encoder_saved_model": Case(encoder_alone, "", {"compare": "l1", "pixels": "0..255"}, score=by_l1),
    # other formats
    "h5": Case(lambda: siamese(l1()), ".h5"),
    "h5_lambda": Case(lambda: siamese(lambda_l1()), ".h5", L1),
    "h5_sequential": Case(lambda: siamese(l1(), kind="sequential"), ".hdf5"),
    "saved_model": Case(lambda: siamese(l1()), "", {"pixels": "0..255"}, encodings=WHOLE),
    # Keras 2
    "keras2_h5_lambda": Case(lambda: siamese(lambda_l1(tf_keras), k=tf_keras), ".h5", L1),
    "keras2_h5_sequential": Case(lambda: siamese(lambda_l1(tf_keras), k=tf_keras, kind="sequential"), ".h5", L1),
    "keras2_h5_tensorflow_ops": Case(lambda: siamese(l1(tf_keras), k=tf_keras), ".h5"),
    "keras2_h5_preprocess_input": Case(
        lambda: preprocessed(tf_keras.applications.mobilenet_v2.preprocess_input, k=tf_keras), ".h5"
    ),
    "keras2_h5_mobilenet": Case(lambda: mobilenet(tf_keras), ".h5", {"lambdas": ("euclidean", "norm=l2_normalize")}),
    "keras2_keras_mobilenet": Case(lambda: mobilenet(tf_keras), ".keras", {"lambdas": ("euclidean", "norm=l2_normalize")}),
    "keras2_h5_towers_written_out": Case(lambda: towers_written_out(tf_keras), ".h5", swapped=True),
    "keras2_keras": Case(lambda: siamese(lambda_l1(tf_keras), k=tf_keras), ".keras", L1),
    "keras2_saved_model": Case(
        lambda: siamese(l1(tf_keras), k=tf_keras), "", {"pixels": "0..255"}, encodings=WHOLE
    ),
}  # fmt: skip


def write(case: Case, folder: Path) -> tuple[Any, str]:
    """Builds a case's model and saves it; returns the live model and the file's path."""
    model = case.build()
    path = str(folder / f"model{case.suffix}")
    if case.suffix:
        model.save(path)
    elif isinstance(model, tf_keras.Model):
        model.save(path, save_format="tf")
    else:
        model.export(path, verbose=False)
    return model, path


def live_scores(case: Case, model: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the live model's own scores of uint8 pixels `(n, 12, 12, channels)`, float `(n,)`."""
    left, right = (right, left) if case.swapped else (left, right)
    sides = [case.scale(side.astype(np.float32)) for side in (left, right)]
    if getattr(case.score, "compares", False):
        return case.score(*(np.asarray(model(side, training=False), np.float64) for side in sides))
    if any(str(one.dtype) in ("uint8", "<dtype: 'uint8'>") for one in getattr(model, "inputs", None) or []):
        sides = [left, right]
    output = np.asarray(model(sides, training=False), np.float64)
    return np.asarray(case.score(output)).reshape(len(left))
