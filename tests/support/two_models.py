"""Models for tests of a candidate: small Siamese networks that differ in their weights and in the images that they take."""

import json
from pathlib import Path
from typing import Any

import keras


def save_siamese(path: Path, seed: int, size: int = 16, sidecar: dict[str, Any] | None = None, scaled: bool = True) -> str:
    """Saves a network with an L1 head, and its sidecar, and returns its path.

    Args:
        path: The file.
        seed: The seed of its weights.
        size: The height and width that it takes.
        sidecar: The content of its sidecar; None without one.
        scaled: Whether its graph shows the scale of its pixels.
    """
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels) if scaled else pixels
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Dense(10, activation="sigmoid")(keras.layers.Flatten()(x))
    encoder = keras.Model(pixels, x, name="encoder")
    left, right = keras.Input((size, size, 3), name="left"), keras.Input((size, size, 3), name="right")
    score = keras.layers.Dense(
        1,
        activation="sigmoid",
        kernel_initializer=keras.initializers.Constant(-3.0),
        bias_initializer=keras.initializers.Constant(2.5),
    )
    keras.Model([left, right], score(keras.ops.abs(encoder(left) - encoder(right)))).save(path)
    return _with_sidecar(path, sidecar)


def save_whole(path: Path) -> str:
    """Saves a network that compares pixels, so that it cannot be split and runs whole, and returns its path."""
    left, right = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    mixed = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(keras.ops.abs(left - right)))
    weights = keras.initializers.Constant(-0.01)
    keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid", kernel_initializer=weights)(mixed)).save(path)
    return _with_sidecar(path, {"pixels": "0..255"})


def _with_sidecar(path: Path, sidecar: dict[str, Any] | None) -> str:
    if sidecar is not None:
        Path(f"{path}.batchverify.json").write_text(json.dumps(sidecar))
    return str(path)
