"""Which classes a model takes for each other, and what more images of each class would bring.

    python -m benchmarks.one_shot --images omniglot/ --group Early_Aramaic

Each image of the group is assigned to the class that it scores highest with, first with one image of each class, then with the
mean embedding of several. Drawings with the same number are taken to be by the same writer, as in Omniglot, and no image is
compared with its own writer's. Classes that even many images of each do not part are nearly the same drawing to the encoder.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from batchverify.errors import PreflightError
from batchverify.training import network
from batchverify.training.data import Group
from batchverify.training.sources import read_folders

EMBEDDED = Path(__file__).parent.parent / "batchverify" / "demo" / "sane.keras"
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def accuracy(embeddings: np.ndarray, score: Score, shots: int, draws: int, rng: np.random.Generator) -> float:
    """Returns the share of images that score highest with the mean embedding of their class.

    Args:
        embeddings: The embeddings, float32 `(classes, writers, d)`.
        score: The scores, `(n,)`, of two arrays of embeddings, `(n, d)` each.
        shots: Number of writers whose images make a mean.
        draws: Number of times that the writers are drawn anew for each writer whose images are assigned.
        rng: The source of the draws.
    """
    classes, writers = embeddings.shape[:2]
    correct = []
    for writer in range(writers):
        others = np.delete(np.arange(writers), writer)
        for _ in range(draws):
            means = embeddings[:, rng.choice(others, shots, replace=False)].mean(axis=1)
            scores = _score_all(score, embeddings[:, writer], means)
            correct.append(np.mean(scores.argmax(axis=1) == np.arange(classes)))
    return float(np.mean(correct))


def confusion(embeddings: np.ndarray, score: Score) -> np.ndarray:
    """Returns how often an image of class i is taken for class j given one image of each; rows sum to 1."""
    classes, writers = embeddings.shape[:2]
    counts = np.zeros((classes, classes))
    for query in range(writers):
        for support in np.delete(np.arange(writers), query):
            scores = _score_all(score, embeddings[:, query], embeddings[:, support])
            counts[np.arange(classes), scores.argmax(axis=1)] += 1
    return counts / (writers * (writers - 1))


def _score_all(score: Score, queries: np.ndarray, supports: np.ndarray) -> np.ndarray:
    """Returns the scores of each query with each support, `(queries, supports)`."""
    left = np.repeat(queries, len(supports), axis=0)
    return score(left, np.tile(supports, (len(queries), 1))).reshape(len(queries), len(supports))


def embed(model: keras.Model, group: Group) -> np.ndarray:
    """Returns the embeddings, float32 `(classes, writers, d)`, of as many images of each class as the smallest class has."""
    writers = min(len(images) for images in group.classes)
    encoder = model.get_layer("encoder")
    return np.stack([network.encode(encoder, images[:writers]) for images in group.classes])


def main() -> None:
    """Prints the accuracies, and the pairs of classes that cost most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder as `batchverify train --images` reads it")
    parser.add_argument("--group", required=True, help="name of the group")
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED, help="a model that `batchverify train` made (default: the embedded one)"
    )
    parser.add_argument("--draws", type=int, default=20, help="draws of writers for each writer (default: 20)")
    parser.add_argument("--worst", type=int, default=5, help="pairs of classes to print (default: 5)")
    options = parser.parse_args()
    model = keras.models.load_model(options.model, compile=False)
    try:
        groups = {group.name: group for group in read_folders(options.images, model.input_shape[0][1])}
    except PreflightError as error:
        parser.error(str(error))
    if options.group not in groups:
        parser.error(f"--group {options.group}: there is no such group; there is {', '.join(groups)}.")
    embeddings = embed(model, groups[options.group])
    classes, writers = embeddings.shape[:2]
    score = functools.partial(network.compare, model.get_layer("score"))
    mistakes = confusion(embeddings, score)
    print(f"| images of each of {classes} classes | decided correctly |\n| --- | --- |")
    print(f"| 1 | {np.trace(mistakes) / classes:.4f} |")
    for shots in sorted({shots for shots in (2, 5, 10, writers - 1) if 1 < shots < writers}):
        draws = options.draws if shots < writers - 1 else 1
        print(f"| {shots} | {accuracy(embeddings, score, shots, draws, np.random.default_rng(0)):.4f} |")
    np.fill_diagonal(mistakes, 0)
    print(f"\nGiven one image of each, {mistakes.sum() / classes:.4f} of the images are decided wrongly. The costliest pairs:")
    costs = np.triu(mistakes + mistakes.T) / classes
    for place in costs.ravel().argsort()[::-1][: options.worst]:
        first, second = divmod(int(place), classes)
        print(
            f"{costs[first, second]:.4f} by classes {first + 1} and {second + 1}: "
            f"{mistakes[first, second]:.0%} and {mistakes[second, first]:.0%} are taken for the other"
        )


if __name__ == "__main__":
    main()
