"""The trainer: the network, its optimiser, its losses, and a step of training."""

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

_MAX_GRADIENT_NORM = 5.0
# Share of the impostor loss for pairs within a group, which are the hard ones; pairs of different groups have the rest.
_WITHIN_GROUP = 0.8
_IDENTITY_WEIGHT = 0.1


class Trainer:
    """Trains a network step by step.

    Attributes:
        recipe: The recipe.
        encoder: Model from pixels to embeddings.
        head: Layer from L1 distances of embeddings to scores.
        step: Number of steps so far.

    Args:
        recipe: The recipe.
        groups: The groups to train on.
        encoder: The encoder to start from; None means a new one.
        encoder_weights: File with weights of MobileNetV2 for a new encoder; None means random weights.
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
        self._take_step = tf.function(self._train_step, autograph=False)

    def train_step(self) -> tuple[float, float]:
        """Trains on one batch, and returns its loss and the share of its pairs that are decided correctly at 0.5.

        Only the seed and the number of the step determine the batch and its distortions, so training that was interrupted and
        resumed ends with the same weights.
        """
        self.step += 1
        rng = np.random.default_rng((self.recipe.seed, self.step))
        images = self._sampler.draw(rng)
        loss, accuracy = self._take_step(images, rng.integers(2**31, size=2))
        return float(loss), float(accuracy)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state from which training can resume, for `restore`."""
        return {f"variable_{number}": np.asarray(variable) for number, variable in enumerate(self._all_variables())} | {
            "step": np.asarray(self.step)
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Sets the state that `state` returned."""
        for number, variable in enumerate(self._all_variables()):
            variable.assign(state[f"variable_{number}"])
        self.step = int(state["step"])

    def is_finite(self) -> bool:
        """Returns whether all weights are numbers."""
        return all(np.isfinite(np.asarray(variable)).all() for variable in (*self.encoder.variables, *self.head.variables))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns embeddings, as `network.encode` does."""
        return network.encode(self.encoder, images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, as `network.compare` does."""
        return network.compare(self.head, left, right)

    def _layers(self) -> dict[str, list[keras.Variable]]:
        """Returns the trainable variables by layer, with the names of `recipe.LAYERS`."""
        backbone = next(layer for layer in self.encoder.layers if isinstance(layer, keras.Model))
        layers = {"backbone": backbone.trainable_variables}
        for layer in self.encoder.layers:
            if isinstance(layer, keras.layers.Dense):
                layers["embedding" if layer.name == "embedding" else "dense"] = layer.trainable_variables
        return layers | {"score": [self.head.kernel] if self.recipe.freeze_bias else self.head.trainable_variables}

    def _all_variables(self) -> list[keras.Variable]:
        # The encoder's variables include batch statistics and the state of the dropout's random numbers.
        return [*self.encoder.variables, *self.head.variables, *self._optimizer.variables]

    def _train_step(self, images: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = distort(images, seed, self.recipe.distortion)
        if pixels.shape[-1] == 1:
            pixels = tf.repeat(pixels, 3, axis=-1)
        with tf.GradientTape() as tape:
            embeddings = self.encoder(pixels, training=not self.recipe.frozen_statistics)
            loss, accuracy = self._batch_loss(embeddings) if self.recipe.name == "batch" else self._pair_loss(embeddings)
        gradients = tape.gradient(loss, self._variables)
        gradients, _ = tf.clip_by_global_norm(gradients, _MAX_GRADIENT_NORM)
        self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))
        return loss, accuracy

    def _logits(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(tf.abs(left - right), self.head.kernel[:, 0]) + self.head.bias

    def _batch_loss(self, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns loss and accuracy over all pairs of images in the batch: P images make P² pairs."""
        logits = self._logits(embeddings[:, None], embeddings[None])
        pairs = _PairKinds.of_batch(*self._batch_shape)
        genuine, near, far, identity = (
            tf.boolean_mask(logits, mask) for mask in (pairs.genuine, pairs.near, pairs.far, pairs.identity)
        )
        genuine_loss, near_loss, far_loss = (tf.reduce_mean(tf.nn.softplus(signed)) for signed in (-genuine, near, far))
        impostor_loss = _WITHIN_GROUP * near_loss + (1 - _WITHIN_GROUP) * far_loss
        loss, accuracy = (genuine_loss + impostor_loss) / 2, _accuracy(genuine, near)
        if self.recipe.head == "published":
            return loss, accuracy
        # Each image must score highest with the other image of its class, and high with itself.
        others = tf.where(pairs.identity, tf.constant(-1e9), logits)
        partner = tf.range(len(pairs.identity)) ^ 1
        rank_loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(partner, others))
        identity_loss = tf.reduce_mean(tf.nn.softplus(-identity))
        return loss + rank_loss + _IDENTITY_WEIGHT * identity_loss, accuracy

    def _pair_loss(self, embeddings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns binary cross-entropy, as published, and accuracy over pairs of the first and the second half of the batch."""
        left, right = tf.split(embeddings, 2)
        logits = self._logits(left, right)
        genuine, impostor = logits[: self.recipe.batch_pairs // 2], logits[self.recipe.batch_pairs // 2 :]
        loss = tf.reduce_mean(tf.concat([tf.nn.softplus(-genuine), tf.nn.softplus(impostor)], 0))
        if self.recipe.head != "published":
            loss += _IDENTITY_WEIGHT * tf.reduce_mean(tf.nn.softplus(-self._logits(embeddings, embeddings)))
        return loss, _accuracy(genuine, impostor)


@dataclasses.dataclass(frozen=True)
class _PairKinds:
    """The kinds of pairs in a batch that `BatchSampler` drew: boolean masks `(images, images)`.

    Attributes:
        identity: Mask of images paired with themselves.
        genuine: Mask of two images of one class.
        near: Mask of impostors within a group.
        far: Mask of impostors of different groups; if the batch has one group, the same as `near`.
    """

    identity: np.ndarray
    genuine: np.ndarray
    near: np.ndarray
    far: np.ndarray

    @classmethod
    def of_batch(cls, groups: int, classes: int) -> _PairKinds:
        number = np.arange(groups * classes * 2)
        identity = number[:, None] == number
        same_class = number[:, None] // 2 == number // 2
        same_group = number[:, None] // (2 * classes) == number // (2 * classes)
        return cls(identity, same_class & ~identity, same_group & ~same_class, ~same_group | (groups == 1) & ~same_class)


def _accuracy(genuine: tf.Tensor, impostor: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the shares of genuine and of impostor pairs that are decided correctly at 0.5."""
    genuine_share = tf.reduce_mean(tf.cast(genuine >= 0, tf.float32))
    impostor_share = tf.reduce_mean(tf.cast(impostor < 0, tf.float32))
    return (genuine_share + impostor_share) / 2
