"""Compares the time of a training step with Keras' own batch normalisation and with TensorFlow's kernel for it.

    python -m benchmarks.train_step --size 96 --images 128

Both steps encode the same images with the same weights and take gradients of the same loss; they alternate, and the
ratio is of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import keras
import tensorflow as tf

from batchverify.training.network import FusedBatchNormalization, build_encoder, with_batch_norm


def gradients_of(encoder: keras.Model, images: tf.Tensor) -> Callable[[], object]:
    """Returns a function that encodes the images and computes gradients, as a training step does."""

    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(images, training=True) ** 2)
        return tape.gradient(loss, encoder.trainable_variables)

    return step


def main() -> None:
    """Prints the median times and their ratio."""
    parser = argparse.ArgumentParser(description="Seconds of a training step with two kinds of batch normalisation.")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--width", type=float, default=0.35)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    images = tf.random.uniform((options.images, options.size, options.size, 3), maxval=255)
    encoder = build_encoder(options.size, options.width, dropout=0.0)
    kinds = {"composed": keras.layers.BatchNormalization, "fused": FusedBatchNormalization}
    steps = {name: gradients_of(with_batch_norm(encoder, kind), images) for name, kind in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number:  # TensorFlow traces the functions in the first round.
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(", ".join(f"{name} {median:.3f} s" for name, median in medians.items()), end="")
    print(f"; ratio {medians['composed'] / medians['fused']:.2f}")


if __name__ == "__main__":
    main()
