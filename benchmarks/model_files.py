"""Model files as strangers have them: what each one needs, and how far its scores are from those of the model itself.

    python -m benchmarks.model_files
    python -m benchmarks.model_files --keep files/

Each network is built as its tutorial or paper builds it, smaller, by Keras 3, Keras 2 (tf_keras) or as ONNX, with random
weights, and written as its owner would. The table compares the scores of 20 pairs of noise with those of the network in
memory, f(x, x) included. `--keep` writes the files into a folder and leaves them there.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf_keras
from onnx import TensorProto, helper, numpy_helper

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.load import load_model

PAIRS = 20
_Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model file.

    Attributes:
        name: What its owner calls it.
        make: Builds the network, writes it into a folder, and returns the file's path and the network's own scores of two
            arrays of pixels 0 to 255, float32 `(n, height, width, channels)`.
        options: The fields of `ModelConfig` that its owner has to give.
    """

    name: str
    make: Callable[[Path], tuple[str, _Scores]]
    options: dict[str, Any]


class L1Dist(keras.layers.Layer):
    """The distance of a much-read face tutorial."""

    def call(self, input_embedding: Any, validation_embedding: Any) -> Any:
        """Returns |a - b|."""
        return keras.ops.abs(input_embedding - validation_embedding)


class TfL1Dist(tf_keras.layers.Layer):
    """The same distance in Keras 2."""

    def call(self, input_embedding: Any, validation_embedding: Any) -> Any:
        """Returns |a - b|."""
        return tf.math.abs(input_embedding - validation_embedding)


# Networks


def _encoder(k: Any, shape: tuple[int, ...], width: int = 16, activation: str | None = None) -> Any:
    image = k.Input(shape)
    x = k.layers.Conv2D(8, 5, strides=2, activation="relu")(image)
    x = k.layers.MaxPooling2D()(k.layers.Conv2D(8, 3, activation="relu")(x))
    return k.Model(image, k.layers.Dense(width, activation=activation)(k.layers.Flatten()(x)), name="embedding")


def _pairs(k: Any, shape: tuple[int, ...], join: Callable[[Any, Any], Any], head: Any = None, encoder: Any = None) -> Any:
    encoder = encoder or _encoder(k, shape, activation="sigmoid")
    names = ("input_img", "validation_img")
    left, right = (k.Input(shape, name=name) for name in names)
    joined = join(encoder(left), encoder(right))
    head = head or k.layers.Dense(1, activation="sigmoid")
    return k.Model([left, right], head(joined))


def _absolute(k: Any) -> Callable[[Any, Any], Any]:
    absolute = keras.ops.abs if k is keras else tf.math.abs
    layer = k.layers.Lambda(lambda tensors: absolute(tensors[0] - tensors[1]), name="distance", output_shape=(16,))
    return lambda a, b: layer([a, b])


def _root(k: Any, guard: str) -> Callable[[Any, Any], Any]:
    """Returns a Euclidean Lambda whose square root is guarded in one of three ways."""
    functions = {
        "maximum": lambda t: tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True), 1e-7)),
        "added": lambda t: tf.sqrt(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True) + 1e-9),
        "none": lambda t: tf.sqrt(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True)),
    }
    layer = k.layers.Lambda(functions[guard], name="distance", output_shape=(1,))
    return lambda a, b: layer([a, b])


def _identity(k: Any) -> Any:
    return k.layers.Activation("linear")


def _contrastive(k: Any) -> Any:
    """Returns the network of keras.io's example on image similarity with a contrastive loss, smaller."""
    image = k.Input((28, 28, 1))
    x = k.layers.Conv2D(4, 5, activation="tanh")(k.layers.BatchNormalization()(image))
    x = k.layers.AveragePooling2D((2, 2))(x)
    x = k.layers.Dense(10, activation="tanh")(k.layers.BatchNormalization()(k.layers.Flatten()(x)))
    head = k.Sequential([k.layers.BatchNormalization(), k.layers.Dense(1, activation="sigmoid")])
    return _pairs(k, (28, 28, 1), _root(k, "maximum"), head, k.Model(image, x, name="embedding"))


def _inception_resnet(k: Any) -> Any:
    """Returns an encoder with the scaled residuals of Keras' Inception-ResNet, as facenet_keras.h5 has them."""
    image = k.Input((32, 32, 3))
    x = k.layers.Conv2D(8, 3, strides=2, activation="relu")(image)
    for number, factor in enumerate((0.17, 0.1)):
        up = k.layers.Conv2D(8, 1)(k.layers.Conv2D(4, 3, padding="same", activation="relu")(x))
        scale = k.layers.Lambda(
            lambda inputs, scale: inputs[0] + inputs[1] * scale, name=f"block_{number}", arguments={"scale": factor},
            output_shape=(15, 15, 8),
        )  # fmt: skip
        x = k.layers.Activation("relu")(scale([x, up]))
    return k.Model(image, k.layers.Dense(16, use_bias=False)(k.layers.GlobalAveragePooling2D()(x)))


def _channels_first(k: Any) -> Any:
    image = k.Input((3, 32, 32))
    x = k.layers.Conv2D(4, 3)(k.layers.Permute((2, 3, 1))(image))
    encoder = k.Model(image, k.layers.Dense(16)(k.layers.Flatten()(x)), name="embedding")
    return _pairs(k, (3, 32, 32), _absolute(k), encoder=encoder)


# Files


def _own(model: Any, scale: Callable[[np.ndarray], np.ndarray], score: Callable[[np.ndarray], np.ndarray]) -> _Scores:
    def scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        output = model([scale(left), scale(right)], training=False)
        return np.asarray(score(np.asarray(output, np.float64))).reshape(len(left))

    return scores


def _embedded(encoder: Any, scale: Callable[[np.ndarray], np.ndarray], compare: _Scores) -> _Scores:
    def scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return compare(*(np.asarray(encoder(scale(side), training=False), np.float64) for side in (left, right)))

    return scores


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.float32(255)


def _signed(x: np.ndarray) -> np.ndarray:
    return x / np.float32(127.5) - 1


def _standardized(x: np.ndarray) -> np.ndarray:
    return np.asarray(tf.image.per_image_standardization(x))


def _as_it_is(x: np.ndarray) -> np.ndarray:
    return x


def _from_distance(distance: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + distance))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((1 + (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)) / 2)


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.linalg.norm(a - b, axis=1)))


def _saved(
    build: Callable[[], Any],
    name: str,
    scale: Callable[[np.ndarray], np.ndarray] = _unit,
    score: Callable[[np.ndarray], np.ndarray] = _as_it_is,
    compare: _Scores | None = None,
) -> Callable[[Path], tuple[str, _Scores]]:
    """Returns a maker of a file that `model.save` writes, or `model.export` where the name has no ending."""

    def make(folder: Path) -> tuple[str, _Scores]:
        model, path = build(), str(folder / name)
        if "." in name:
            model.save(path)
        elif isinstance(model, tf_keras.Model):
            model.save(path, save_format="tf")
        else:
            model.export(path, verbose=False)
        return path, _embedded(model, scale, compare) if compare else _own(model, scale, score)

    return make


def _trained_in_keras_2() -> Any:
    """Returns a network that was trained with an optimizer of Keras 2 that has slot variables."""
    model = _pairs(tf_keras, (32, 32, 3), lambda a, b: tf.math.abs(a - b))
    model.compile(tf_keras.optimizers.legacy.Adam(), "binary_crossentropy")
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    model.fit([images, images[::-1]], np.ones((4, 1)), verbose=0)
    return model


def _weights_alone(folder: Path) -> tuple[str, _Scores]:
    model = _pairs(keras, (32, 32, 3), _absolute(keras))
    (folder / "model.json").write_text(model.to_json())
    model.save_weights(folder / "model.weights.h5")
    return str(folder / "model.weights.h5"), _own(model, _unit, _as_it_is)


def _onnx_encoder(folder: Path) -> tuple[str, _Scores]:
    encoder = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
         keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(16)]
    )  # fmt: skip
    kernel, bias, weights, offset = encoder.get_weights()
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "offset"], ["embedding"]),
    ]
    values = {"kernel": kernel.transpose(3, 2, 0, 1), "bias": bias, "weights": weights, "offset": offset}
    constants = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 16])
    graph = helper.make_graph(nodes, "encoder", [image], [embedding], constants)
    path = str(folder / "encoder.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path, _embedded(encoder, _signed, _cosine)


_FACE, _SMALL, _L1 = (100, 100, 3), (32, 32, 3), ("l1",)
_DISTANCE = {"lambdas": ("euclidean",), "output_is": "distance", "pixels": "0..1"}
KINDS = [
    Kind("the face tutorial (`L1Dist`), `.keras` of Keras 3", _saved(
        lambda: _pairs(keras, _FACE, lambda a, b: L1Dist()(a, b)), "siamesemodel.keras"),
        {"custom_objects": ("L1Dist=l1",), "pixels": "0..1"}),
    Kind("the same, `.h5` of Keras 2", _saved(
        lambda: _pairs(tf_keras, _FACE, lambda a, b: TfL1Dist()(a, b)), "siamesemodel.h5"),
        {"custom_objects": ("TfL1Dist=l1",), "pixels": "0..1"}),
    Kind("keras.io, contrastive loss, `.keras` of Keras 3", _saved(
        lambda: _contrastive(keras), "contrastive.keras", _as_it_is, lambda x: 1 - x),
        {"lambdas": ("euclidean",), "output_is": "dissimilarity", "pixels": "0..255"}),
    Kind("keras.io, contrastive loss, `.h5` of Keras 2", _saved(
        lambda: _contrastive(tf_keras), "contrastive.h5", _as_it_is, lambda x: 1 - x),
        {"lambdas": ("euclidean",), "output_is": "dissimilarity", "pixels": "0..255"}),
    Kind("keras.io, triplet loss: the embedding alone", _saved(
        lambda: _encoder(keras, _SMALL), "embedding.keras", _unit, compare=_euclidean),
        {"compare": "euclidean", "pixels": "0..1"}),
    Kind("Koch's one-shot network, `.h5` of Keras 3", _saved(
        lambda: _pairs(keras, (105, 105, 1), _absolute(keras)), "koch.h5"), {"lambdas": _L1, "pixels": "0..1"}),
    Kind("Koch's one-shot network, `.h5` of Keras 2", _saved(
        lambda: _pairs(tf_keras, (105, 105, 1), _absolute(tf_keras)), "koch2.h5"), {"lambdas": _L1, "pixels": "0..1"}),
    Kind("SigNet: a Euclidean Lambda is the output, the root guarded by a maximum", _saved(
        lambda: _pairs(tf_keras, (64, 96, 1), _root(tf_keras, "maximum"), _identity(tf_keras)), "signet.h5", _unit,
        _from_distance), _DISTANCE),
    Kind("the same, the guard added", _saved(
        lambda: _pairs(tf_keras, (64, 96, 1), _root(tf_keras, "added"), _identity(tf_keras)), "added.h5", _unit,
        _from_distance), _DISTANCE),
    Kind("the same, without a guard", _saved(
        lambda: _pairs(tf_keras, (64, 96, 1), _root(tf_keras, "none"), _identity(tf_keras)), "none.h5", _unit,
        _from_distance), _DISTANCE),
    Kind("MNIST pairs with `tf.abs` between two layers (TFOpLambda), `.h5` of Keras 2", _saved(
        lambda: _pairs(tf_keras, (28, 28, 1), lambda a, b: tf.math.abs(a - b)), "mnist.h5"), {"pixels": "0..1"}),
    Kind("MNIST pairs with `keras.ops`, `.keras` of Keras 3", _saved(
        lambda: _pairs(keras, (28, 28, 1), lambda a, b: keras.ops.abs(a - b)), "mnist.keras"), {"pixels": "0..1"}),
    Kind("FaceNet as Inception-ResNet, `.h5` of Keras 2", _saved(
        lambda: _inception_resnet(tf_keras), "facenet_keras.h5", _standardized, compare=_cosine),
        {"lambdas": ("scaled_add",), "compare": "cosine", "pixels": "standardize"}),
    Kind("an encoder like ArcFace's, `.keras` of Keras 3", _saved(
        lambda: _encoder(keras, (112, 112, 3)), "arcface.keras", _signed, compare=_cosine),
        {"compare": "cosine", "pixels": "-1..1"}),
    Kind("an encoder in ONNX with channels first, as InsightFace's", _onnx_encoder,
        {"compare": "cosine", "pixels": "-1..1"}),
    Kind("SavedModel of Keras 2 after training with `legacy.Adam`", _saved(_trained_in_keras_2, "trained"),
        {"pixels": "0..1"}),
    Kind("SavedModel that Keras 3 exports", _saved(
        lambda: _pairs(keras, _SMALL, lambda a, b: keras.ops.abs(a - b)), "exported"), {"pixels": "0..1"}),
    Kind("weights alone beside `model.json`", _weights_alone, {"lambdas": _L1, "pixels": "0..1"}),
    Kind("images with their channels first, `.keras` of Keras 3", _saved(
        lambda: _channels_first(keras), "first.keras", lambda x: _unit(x).transpose(0, 3, 1, 2)),
        {"lambdas": _L1, "pixels": "0..1"}),
    Kind("an autoencoder", _saved(
        lambda: keras.Sequential([keras.Input(_SMALL), keras.layers.Conv2D(4, 3, padding="same"),
                                  keras.layers.Conv2D(3, 3, padding="same")]), "autoencoder.keras", compare=_cosine),
        {"compare": "cosine", "pixels": "0..1"}),
    Kind("a classifier of ten classes between pairs", _saved(
        lambda: _pairs(keras, _SMALL, _absolute(keras), keras.layers.Dense(10, activation="softmax")), "ten.keras"), {}),
]  # fmt: skip


def measure(kind: Kind, folder: Path) -> tuple[str, str, float | None]:
    """Makes a file of a kind and scores 20 pairs of noise with it.

    Returns:
        What is said without options, what is said with them (empty where the file is scored), and the largest difference of a
        score to the network's own, f(x, x) included.
    """
    keras.utils.set_random_seed(4)
    path, own = kind.make(folder)
    asked, _ = _load(path, {})
    said, model = _load(path, kind.options)
    if model is None:
        return asked, said, None
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 256, (2, PAIRS, *model.facts.image_shape)).astype(np.float32)
    a, b = model.encode(left), model.encode(right)
    differences = [model.compare(a, b) - own(left, right), model.compare(a, a) - own(left, left)]
    return asked, said, float(np.abs(differences).max())


def _load(path: str, options: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "", load_model(ModelConfig(model=path, **options))
    except PreflightError as error:
        return " ".join(error.problems), None


def table(folder: Path) -> Iterator[str]:
    """Yields the lines of a table in Markdown, one for each kind."""
    yield "| file | options that it needs | largest difference of a score |"
    yield "| --- | --- | --- |"
    for number, kind in enumerate(KINDS):
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        asked, said, difference = measure(kind, place)
        options = f"`{' '.join(_format_options(kind.options))}`" if kind.options else "none"
        outcome = f"{difference:.0e}" if difference is not None else f"refused: {(said or asked).partition(': ')[2]}"
        yield f"| {kind.name} | {options} | {outcome} |"


def _format_options(options: dict[str, Any]) -> Iterator[str]:
    names = {"lambdas": "--lambda", "custom_objects": "--custom-object"}
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            yield f"{names.get(name) or '--' + name.replace('_', '-')} {one}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the files, which stay (default: a temporary one)")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        for line in table(keep or Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
