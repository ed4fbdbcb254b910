"""The network while it is trained, one optimiser step at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from batchverify.training import network
from batchverify.training.data import BatchSampler, Group, PairSampler, batch_shape
from batchverify.training.distort import distort
from batchverify.training.optimizers import build_optimizer
from batchverify.training.recipe import Recipe

_LARGEST_GRADIENT = 5.0
# Of the impostor term: pairs of one group are what the network will be asked, pairs of different groups keep it honest.
_WITHIN_GROUP = 0.8
_IDENTITY_WEIGHT = 0.1


class Trainer:
    """Holds the network and its optimiser, and takes steps.

    Attributes:
        recipe: what is followed.
        encoder: pixels to embeddings.
        head: L1 distances of embeddings to scores.
        step: steps taken so far.
    """

    def __init__(
        self, recipe: Recipe, groups: Sequence[Group], encoder: keras.Model | None = None, encoder_weights: str | None = None
    ):
        keras.utils.set_random_seed(recipe.seed)
        self.recipe = recipe
        self.step = 0
        self.encoder = encoder or network.build_encoder(recipe.size, recipe.width, recipe.dropout, weights=encoder_weights)
        self.head = network.build_head(recipe.head)
        self._batch_shape = batch_shape(groups, recipe.batch_groups, recipe.batch_classes)
        self._sampler = (
            BatchSampler(groups, *self._batch_shape, recipe.joined)
            if recipe.name == "batch"
            else PairSampler(groups, recipe.batch_pairs)
        )
        layers = self._layers()
        self._variables = [variable for variables in layers.values() for variable in variables]
        self._optimizer = build_optimizer(recipe, layers)
        self._take_step = tf.function(self._train_step)

    def train_step(self) -> tuple[float, float]:
        """Draws a batch, learns from it, and returns its loss and its share of pairs on the right side of 0.5.

        The batch and its distortions depend on the seed and the number of the step alone, so training that was
        interrupted goes on as if it had not been.
        """
        self.step += 1
        rng = np.random.default_rng((self.recipe.seed, self.step))
        images = self._sampler.draw(rng)
        loss, accuracy = self._take_step(images, rng.integers(2**31, size=2))
        return float(loss), float(accuracy)

    def state(self) -> dict[str, np.ndarray]:
        """Returns all that training goes on from."""
        return {f"variable_{number}": np.asarray(variable) for number, variable in enumerate(self._all_variables())} | {
            "step": np.asarray(self.step)
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes up where `state` was taken."""
        for number, variable in enumerate(self._all_variables()):
            variable.assign(state[f"variable_{number}"])
        self.step = int(state["step"])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """See `network.encode`."""
        return network.encode(self.encoder, images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `network.compare`."""
        return network.compare(self.head, left, right)

    def _layers(self) -> dict[str, list[keras.Variable]]:
        backbone = next(layer for layer in self.encoder.layers if isinstance(layer, keras.Model))
        layers = {"backbone": backbone.trainable_variables}
        for layer in self.encoder.layers:
            if isinstance(layer, keras.layers.Dense):
                layers["embedding" if layer.name == "embedding" else "dense"] = layer.trainable_variables
        return layers | {"score": [self.head.kernel] if self.recipe.freeze_bias else self.head.trainable_variables}

    def _all_variables(self) -> list[keras.Variable]:
        # Of the encoder, `variables` also holds batch statistics and the state of the dropout's random numbers.
        return [*self.encoder.variables, *self.head.variables, *self._optimizer.variables]

    def _train_step(self, images: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = distort(images, seed, self.recipe.distortion)
        if pixels.shape[-1] == 1:
            pixels = tf.repeat(pixels, 3, axis=-1)
        with tf.GradientTape() as tape:
            embeddings = self.encoder(pixels, training=not self.recipe.frozen_statistics)
            loss, accuracy = self._batch_loss(embeddings) if self.recipe.name == "batch" else self._pair_loss(embeddings)
        gradients = tape.gradient(loss, self._variables)
        gradients, _ = tf.clip_by_global_norm(gradients, _LARGEST_GRADIENT)
        self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))
        return loss, accuracy

    def _logits(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(tf.abs(left - right), self.head.kernel[:, 0]) + self.head.bias

    def _batch_loss(self, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Compares all images of the batch with each other: P encodings, P² pairs."""
        logits = self._logits(embeddings[:, None], embeddings[None])
        pairs = _PairKinds.of(*self._batch_shape)
        genuine, near, far, identity = (
            tf.boolean_mask(logits, mask) for mask in (pairs.genuine, pairs.near, pairs.far, pairs.identity)
        )
        accept = tf.reduce_mean(tf.nn.softplus(-genuine))
        reject = _WITHIN_GROUP * tf.reduce_mean(tf.nn.softplus(near)) + (1 - _WITHIN_GROUP) * tf.reduce_mean(
            tf.nn.softplus(far)
        )
        loss, accuracy = (accept + reject) / 2, _accuracy(genuine, near)
        if self.recipe.head == "published":
            return loss, accuracy
        # Each image must find its partner among all others of the batch, and itself above the threshold.
        others = tf.where(pairs.identity, tf.constant(-1e9), logits)
        partner = tf.range(len(pairs.identity)) ^ 1
        rank = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(partner, others))
        return loss + rank + _IDENTITY_WEIGHT * tf.reduce_mean(tf.nn.softplus(-identity)), accuracy

    def _pair_loss(self, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Compares the left half of the batch with the right half: binary cross-entropy, as published."""
        left, right = tf.split(embeddings, 2)
        logits = self._logits(left, right)
        genuine, impostor = logits[: self.recipe.batch_pairs // 2], logits[self.recipe.batch_pairs // 2 :]
        loss = tf.reduce_mean(tf.concat([tf.nn.softplus(-genuine), tf.nn.softplus(impostor)], 0))
        if self.recipe.head != "published":
            loss += _IDENTITY_WEIGHT * tf.reduce_mean(tf.nn.softplus(-self._logits(embeddings, embeddings)))
        return loss, _accuracy(genuine, impostor)


@dataclasses.dataclass(frozen=True)
class _PairKinds:
    """Boolean masks, `(images, images)`, over all pairs of a batch that `BatchSampler` drew."""

    identity: np.ndarray
    genuine: np.ndarray
    near: np.ndarray
    far: np.ndarray

    @classmethod
    def of(cls, groups: int, classes: int) -> _PairKinds:
        number = np.arange(groups * classes * 2)
        identity = number[:, None] == number
        same_class = number[:, None] // 2 == number // 2
        same_group = number[:, None] // (2 * classes) == number // (2 * classes)
        return cls(identity, same_class & ~identity, same_group & ~same_class, ~same_group | (groups == 1) & ~same_class)


def _accuracy(genuine: tf.Tensor, impostor: tf.Tensor) -> tf.Tensor:
    """Returns the share of pairs on the right side of a score of 0.5, both kinds counting the same."""
    right = (tf.reduce_mean(tf.cast(genuine >= 0, tf.float32)), tf.reduce_mean(tf.cast(impostor < 0, tf.float32)))
    return (right[0] + right[1]) / 2
