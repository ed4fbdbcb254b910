"""Verification accuracy and one-shot accuracy on classes that the network never saw.

Both follow the shape of Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition"
(2015): random pairs from within a group (an alphabet), half of them genuine; and one drawing of each of 20
characters against another drawing of one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from batchverify.evaluation import metrics
from batchverify.training.data import Group

Encode = Callable[[np.ndarray], np.ndarray]
Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]
_WAYS = 20
_ENCODED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        pairs: how many were scored, half of them genuine.
        accuracy: share of pairs on the right side of a score of 0.5.
        best_accuracy: the same at the best threshold for these pairs.
        best_threshold: that threshold.
        eer: equal error rate.
        one_shot_trials: how many were held.
        one_shot_ways: among how many classes each had to choose; 0 if no group has two.
        one_shot: share of trials won: the right class scores higher than every other.
        identity_score: mean f(x, x).
        lowest_identity_score: of all images in the pairs.
        mean_genuine: mean score of the genuine pairs.
        outscored: share of genuine pairs that score above the identity score of their left image.
    """

    pairs: int
    accuracy: float
    best_accuracy: float
    best_threshold: float
    eer: float
    one_shot_trials: int
    one_shot_ways: int
    one_shot: float
    identity_score: float
    lowest_identity_score: float
    mean_genuine: float
    outscored: float


def evaluate(
    encode: Encode, compare: Compare, groups: Sequence[Group], seed: int, pairs: int = 10_000, trials: int = 2_000
) -> Evaluation:
    """Scores random pairs and holds one-shot trials.

    Args:
        encode: uint8 images `(n, size, size, channels)` to embeddings `(n, d)`.
        compare: two `(n, d)` to scores `(n,)`.
        groups: of classes that were not trained on.
        seed: of the choice of pairs and trials.
        pairs: how many.
        trials: how many.
    """
    rng = np.random.default_rng(seed)
    embedded = [[_encode(encode, images) for images in group.classes] for group in groups if len(group.classes) > 1]
    left, right, genuine = _draw_pairs(embedded, pairs, rng)
    scores, identity = compare(left, right), compare(left, left)
    hits, misses = metrics.histogram(scores[genuine]), metrics.histogram(scores[~genuine])
    accuracies = 1 - (metrics.false_match_rates(misses) + metrics.false_non_match_rates(hits)) / 2
    best = int(np.argmax(accuracies))
    ways, won = _one_shot(compare, embedded, trials, rng)
    return Evaluation(
        pairs=pairs,
        accuracy=float(np.mean((scores >= 0.5) == genuine)),
        best_accuracy=float(accuracies[best]),
        best_threshold=best / metrics.BINS,
        eer=metrics.equal_error_rate(hits, misses)[0],
        one_shot_trials=trials,
        one_shot_ways=ways,
        one_shot=won,
        identity_score=float(identity.mean()),
        lowest_identity_score=float(identity.min()),
        mean_genuine=float(scores[genuine].mean()),
        outscored=float(np.mean(scores[genuine] > identity[genuine])),
    )


def _encode(encode: Encode, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), _ENCODED_AT_ONCE)
    return np.concatenate([encode(images[start : start + _ENCODED_AT_ONCE]) for start in starts])


def _draw_pairs(
    embedded: list[list[np.ndarray]], pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, right = [], []
    genuine = np.arange(pairs) % 2 == 0
    for same in genuine:
        classes = embedded[rng.integers(len(embedded))]
        first, second = rng.choice(len(classes), 2, replace=False)
        if same:
            one, other = rng.choice(len(classes[first]), 2, replace=False)
            left.append(classes[first][one])
            right.append(classes[first][other])
        else:
            left.append(classes[first][rng.integers(len(classes[first]))])
            right.append(classes[second][rng.integers(len(classes[second]))])
    return np.stack(left), np.stack(right), genuine


def _one_shot(compare: Compare, embedded: list[list[np.ndarray]], trials: int, rng: np.random.Generator) -> tuple[int, float]:
    """Holds the trials in groups that have 20 classes, or in the largest. In Omniglot the n-th drawing is the n-th writer's."""
    ways = min(_WAYS, max(len(classes) for classes in embedded))
    wide = [classes for classes in embedded if len(classes) >= ways]
    query, support = [], []
    for _ in range(trials):
        classes = wide[rng.integers(len(wide))]
        chosen = rng.choice(len(classes), ways, replace=False)
        shown, asked = rng.choice(len(classes[chosen[0]]), 2, replace=False)
        query.append(np.broadcast_to(classes[chosen[0]][asked], (ways, classes[0].shape[1])))
        support.append(np.stack([classes[number][shown % len(classes[number])] for number in chosen]))
    scores = compare(np.concatenate(query), np.concatenate(support)).reshape(trials, ways)
    return ways, float(np.mean(scores[:, 0] > scores[:, 1:].max(axis=1)))
