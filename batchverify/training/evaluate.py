"""Verification accuracy and one-shot accuracy on alphabets that the network never saw.

Both follow the shape of Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition"
(2015): random pairs from within an alphabet, half of them genuine; and one drawing of each of 20 characters
against another drawing of one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from batchverify.training.data import Alphabet


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on held-out alphabets.

    Attributes:
        accuracy: share of pairs on the right side of a score of 0.5, half of the pairs genuine.
        best_accuracy: the same at the best threshold for these pairs.
        best_threshold: that threshold.
        one_shot: share of 20-way one-shot trials won.
        identity_score: mean f(x, x).
        mean_genuine: mean score of the genuine pairs.
        outscored: share of genuine pairs that score above an identity score of theirs.
    """

    accuracy: float
    best_accuracy: float
    best_threshold: float
    one_shot: float
    identity_score: float
    mean_genuine: float
    outscored: float


def evaluate(
    encoder: keras.Model,
    head: keras.layers.Dense,
    alphabets: Sequence[Alphabet],
    seed: int,
    pairs: int = 10_000,
    trials: int = 400,
) -> Evaluation:
    """Scores `pairs` random pairs and `trials` one-shot trials of `alphabets`."""
    rng = np.random.default_rng(seed)
    embedded = [[_embed(encoder, drawn) for drawn in alphabet.images] for alphabet in alphabets]
    left, right, genuine = _draw_pairs(embedded, pairs, rng)
    scores, identity = _score(head, left, right), _score(head, left, left)
    thresholds = np.linspace(0.01, 0.99, 99)
    accuracies = [float(np.mean((scores >= threshold) == genuine)) for threshold in thresholds]
    best = int(np.argmax(accuracies))
    return Evaluation(
        accuracy=float(np.mean((scores >= 0.5) == genuine)),
        best_accuracy=accuracies[best],
        best_threshold=float(thresholds[best]),
        one_shot=float(np.mean([_one_shot(head, embedded, rng) for _ in range(trials)])),
        identity_score=float(identity.mean()),
        mean_genuine=float(scores[genuine].mean()),
        outscored=float(np.mean(scores[genuine] > identity[genuine])),
    )


def _embed(encoder: keras.Model, drawn: np.ndarray) -> np.ndarray:
    pixels = np.repeat(drawn[..., None], 3, axis=-1).astype(np.float32)
    return np.asarray(encoder(pixels, training=False))


def _draw_pairs(embedded, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    genuine = np.arange(pairs) % 2 == 0
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for same in genuine:
        alphabet = embedded[rng.integers(len(embedded))]
        first, second = rng.choice(len(alphabet), 2, replace=False)
        one, other = rng.choice(len(alphabet[first]), 2, replace=False)
        sides.append((alphabet[first][one], alphabet[first if same else second][other]))
    left, right = zip(*sides, strict=True)
    return np.stack(left), np.stack(right), genuine


def _one_shot(head: keras.layers.Dense, embedded, rng: np.random.Generator, ways: int = 20) -> bool:
    alphabet = [characters for characters in embedded if len(characters) >= ways] or embedded
    characters = alphabet[rng.integers(len(alphabet))]
    chosen = rng.choice(len(characters), min(ways, len(characters)), replace=False)
    support_writer, query_writer = rng.choice(len(characters[chosen[0]]), 2, replace=False)
    support = np.stack([characters[number][support_writer] for number in chosen])
    query = np.broadcast_to(characters[chosen[0]][query_writer], support.shape)
    return bool(np.argmax(_score(head, query, support)) == 0)


def _score(head: keras.layers.Dense, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(head(np.abs(left - right)))[:, 0]
