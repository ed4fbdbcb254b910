"""Measures images per second of the encoder alone: called by Keras, traced, frozen as in a run, and in lower precision.

    python -m benchmarks.encoder --network full --rounds 6

The variants take turns. Rates are medians over the rounds; ratios to the traced variant are computed within each round. The
last column compares the scores of the network's own head with those of the traced variant. OpenVINO is included if it is
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.model.frozen_graph import FrozenFunction
from batchverify.model.runtimes import OpenVinoFunction
from benchmarks.speed.images import SIZES, ensure_images
from benchmarks.speed.networks import CALIBRATION_IMAGES, NETWORKS, ensure_network
from benchmarks.speed.scripts.limit_threads import read_ahead

Encode = Callable[[np.ndarray], np.ndarray]
_BATCHES = 4
_REWRITING = "auto_mixed_precision_onednn_bfloat16"


def encoder_variants(encoder: keras.Model) -> Iterator[tuple[str, Encode]]:
    """Yields names and functions that encode uint8 images `(n, height, width, 3)`."""

    def embed(pixels: Any) -> Any:
        return encoder(tf.cast(pixels, tf.float32), training=False)

    traced = tf.function(embed, autograph=False)
    yield "traced", lambda pixels: traced(tf.constant(pixels)).numpy()
    yield "predict", lambda pixels: encoder.predict(pixels, batch_size=len(pixels), verbose=0)
    yield "frozen", FrozenFunction(embed)
    yield "frozen, bfloat16", _in_bfloat16(FrozenFunction(embed))
    if importlib.util.find_spec("openvino"):
        for precision in ("float32", "bfloat16"):
            yield f"OpenVINO, {precision}", OpenVinoFunction(embed, precision)


def _in_bfloat16(encode: Encode) -> Encode:
    """Returns `encode` with TensorFlow's own rewriting of graphs to bfloat16. The option must be set during each call."""

    def encode_rewritten(pixels: np.ndarray) -> np.ndarray:
        tf.config.optimizer.set_experimental_options({_REWRITING: True})
        try:
            return encode(pixels)
        finally:
            tf.config.optimizer.set_experimental_options({_REWRITING: False})

    return encode_rewritten


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Images a second through the encoder alone.")
    parser.add_argument("--network", choices=NETWORKS, default="full", help="MobileNetV2: 0.35 at 96, or 1.0 at 224 pixels")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    cache = Path(tempfile.gettempdir()) / "batchverify-benchmark"
    parser.add_argument("--cache", type=Path, default=cache, help="folder of the images and networks, which are made once")
    options = parser.parse_args()

    paths = ensure_images(options.cache, SIZES["250x250"], CALIBRATION_IMAGES, 0)
    model = keras.models.load_model(ensure_network(Path(paths[0]).parent, options.network, paths), compile=False)
    encoder, head = model.get_layer("encoder"), model.get_layer("score")
    images = next(iter(read_ahead(list(paths[: options.batch_size]), encoder.input_shape[1:3], options.batch_size)))
    variants = dict(encoder_variants(encoder))
    scores = {name: _scores(head, encode(images)) for name, encode in variants.items()}
    rates = _measure_rates(variants, images, options.rounds)

    print(f"{options.network}, {options.batch_size} images at once, {options.rounds} rounds")
    print(f"{'':20}{'images/s':>10}{'ratio':>8}{'least':>8}{'most':>8}{'largest difference of a score':>32}")
    for name, rate in rates.items():
        ratio = rate / rates["traced"]
        difference = np.abs(scores[name] - scores["traced"]).max()
        print(
            f"{name:20}{np.median(rate):>10,.0f}{np.median(ratio):>8.2f}{ratio.min():>8.2f}{ratio.max():>8.2f}{difference:>32.1g}"
        )


def _measure_rates(variants: dict[str, Encode], images: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
    """Returns the images per second of each variant in each round."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, encode in variants.items():
            started = time.perf_counter()
            for _ in range(_BATCHES):
                encode(images)
            rates[name].append(_BATCHES * len(images) / (time.perf_counter() - started))
    return {name: np.array(each) for name, each in rates.items()}


def _scores(head: Any, embeddings: np.ndarray) -> np.ndarray:
    left, right = (embeddings[place] for place in np.triu_indices(len(embeddings)))
    return head(np.abs(left - right)).numpy()[:, 0]


if __name__ == "__main__":
    main()
