"""Verification accuracy and one-shot accuracy on classes that the network was not trained on.

Both are measured as in Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition" (2015).
Verification scores random pairs from within a group (an alphabet), of which half are genuine. A one-shot trial compares a
drawing of one character with drawings of 20 characters, among them another drawing of the same character.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from batchverify.evaluation import metrics
from batchverify.training.data import Group

Encode = Callable[[np.ndarray], np.ndarray]
Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]
_MAX_WAYS = 20
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of a network.

    Attributes:
        pairs: Number of pairs that were scored; half of them are genuine.
        accuracy: Share of pairs that are decided correctly at the threshold 0.5.
        best_accuracy: Share of pairs that are decided correctly at the best threshold for these pairs.
        best_threshold: The best threshold for these pairs.
        eer: Equal error rate.
        one_shot_trials: Number of one-shot trials.
        one_shot_ways: Number of classes in each trial.
        one_shot: Share of trials in which the right class scores higher than every other class.
        identity_score: Mean of f(x, x) over the left images.
        lowest_identity_score: Lowest f(x, x) of the left images.
        mean_genuine: Mean score of the genuine pairs.
        outscored: Share of genuine pairs that score higher than their left image scores against itself.
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
    """Scores random pairs and one-shot trials.

    Args:
        encode: Function from images, uint8 `(n, size, size, channels)`, to embeddings `(n, d)`.
        compare: Function from two arrays of embeddings `(n, d)` to scores `(n,)`.
        groups: Groups of classes that were not trained on.
        seed: Seed of the choice of pairs and trials.
        pairs: Number of pairs.
        trials: Number of one-shot trials.
    """
    rng = np.random.default_rng(seed)
    embedded = [_encode_classes(encode, group.classes) for group in groups if len(group.classes) > 1]
    left, right, genuine = _draw_pairs(embedded, pairs, rng)
    scores, identity = compare(left, right), compare(left, left)
    genuine_scores, impostor_scores = metrics.histogram(scores[genuine]), metrics.histogram(scores[~genuine])
    fmr, fnmr = metrics.false_match_rates(impostor_scores), metrics.false_non_match_rates(genuine_scores)
    accuracies = 1 - (fmr + fnmr) / 2
    best = int(np.argmax(accuracies))
    ways, one_shot = _one_shot(compare, embedded, trials, rng)
    return Evaluation(
        pairs=pairs,
        accuracy=float(np.mean((scores >= 0.5) == genuine)),
        best_accuracy=float(accuracies[best]),
        best_threshold=float(np.append(metrics.EDGES, 1.0)[best]),
        eer=metrics.equal_error_rate(genuine_scores, impostor_scores)[0],
        one_shot_trials=trials,
        one_shot_ways=ways,
        one_shot=one_shot,
        identity_score=float(identity.mean()),
        lowest_identity_score=float(identity.min()),
        mean_genuine=float(scores[genuine].mean()),
        outscored=float(np.mean(scores[genuine] > identity[genuine])),
    )


def _encode_classes(encode: Encode, classes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the embeddings of each class; batches hold images of several classes, as a class is small."""
    images = np.concatenate(classes)
    starts = range(0, len(images), _BATCH_SIZE)
    embedded = np.concatenate([encode(images[start : start + _BATCH_SIZE]) for start in starts])
    return np.split(embedded, np.cumsum([len(images) for images in classes])[:-1])


def _draw_pairs(
    embedded: list[list[np.ndarray]], pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the left and the right embeddings of random pairs, and which pairs are genuine: every second one."""
    left, right = [], []
    genuine = np.arange(pairs) % 2 == 0
    for same in genuine:
        classes = embedded[rng.integers(len(embedded))]
        left_class, other_class = (classes[number] for number in rng.choice(len(classes), 2, replace=False))
        if same:
            left_image, right_image = rng.choice(len(left_class), 2, replace=False)
            left.append(left_class[left_image])
            right.append(left_class[right_image])
        else:
            left.append(left_class[rng.integers(len(left_class))])
            right.append(other_class[rng.integers(len(other_class))])
    return np.stack(left), np.stack(right), genuine


def _one_shot(compare: Compare, embedded: list[list[np.ndarray]], trials: int, rng: np.random.Generator) -> tuple[int, float]:
    """Returns the number of classes in a trial, and the share of trials that are decided correctly.

    Trials use groups with at least 20 classes, or the largest group if no group has 20. All drawings that a query is compared
    with have the same number within their class: in Omniglot they are by the same writer.
    """
    ways = min(_MAX_WAYS, max(len(classes) for classes in embedded))
    wide = [classes for classes in embedded if len(classes) >= ways]
    query, support = [], []
    for _ in range(trials):
        classes = wide[rng.integers(len(wide))]
        chosen = rng.choice(len(classes), ways, replace=False)
        support_image, query_image = rng.choice(len(classes[chosen[0]]), 2, replace=False)
        query.append(np.broadcast_to(classes[chosen[0]][query_image], (ways, classes[0].shape[1])))
        support.append(np.stack([classes[number][support_image % len(classes[number])] for number in chosen]))
    scores = compare(np.concatenate(query), np.concatenate(support)).reshape(trials, ways)
    return ways, float(np.mean(scores[:, 0] > scores[:, 1:].max(axis=1)))
