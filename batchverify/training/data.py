"""Classes of images in memory, and the batches that are drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from batchverify.errors import PreflightError


@dataclasses.dataclass(frozen=True)
class Group:
    """Classes that belong together, so that telling them apart is the hard case: an alphabet, a product line.

    Attributes:
        name: what the folder or the manifest is called.
        classes: images of one class each, uint8 `(images, size, size, channels)`.
    """

    name: str
    classes: tuple[np.ndarray, ...]


def with_turns(groups: Sequence[Group]) -> list[Group]:
    """Returns each group in its eight orientations: a character turned by 90° or mirrored is a character of its own."""
    turned = [_oriented(group, turns, mirrored=False) for group in groups for turns in range(4)]
    return turned + [_oriented(group, turns, mirrored=True) for group in groups for turns in range(4)]


def split_classes(groups: Sequence[Group], share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Sets classes aside for validation: whole classes, never images of a class that is trained on.

    Every group that can spare two classes gives `share` of its classes, two at least, as pairs are drawn within a group.

    Args:
        groups: of all classes.
        share: of the classes to set aside, in [0, 1).
        seed: of the choice.

    Returns:
        The groups to train on, and those to validate on.

    Raises:
        PreflightError: if `share` is above 0 and no group can spare two classes.
    """
    if not share:
        return list(groups), []
    rng = np.random.default_rng(seed)
    kept, aside = [], []
    for group in groups:
        count = max(2, round(share * len(group.classes)))
        if len(group.classes) < count + 2:
            kept.append(group)
            continue
        chosen = set(rng.choice(len(group.classes), count, replace=False).tolist())
        aside.append(Group(group.name, tuple(c for n, c in enumerate(group.classes) if n in chosen)))
        kept.append(Group(group.name, tuple(c for n, c in enumerate(group.classes) if n not in chosen)))
    if not aside:
        raise PreflightError(
            f"--validation is {share}, and no group has classes enough to set two aside; give more, or --validation 0."
        )
    return kept, aside


class BatchSampler:
    """Draws batches of `groups * classes * 2` images: two of each class, the classes from few groups.

    Images `2 i` and `2 i + 1` show the same class; consecutive runs of `2 * classes` images come from one group. So
    every batch holds the impostors that matter, those from within a group.

    Args:
        groups: to draw from.
        groups_in_batch: how many of them a batch is drawn from.
        classes_in_group: how many classes of each.
        joined: chance of a group to give classes that are made of two of its own, see `join_images`.
    """

    def __init__(self, groups: Sequence[Group], groups_in_batch: int, classes_in_group: int, joined: float = 0.0):
        self._groups = [group for group in groups if len(group.classes) >= classes_in_group]
        self._groups_in_batch, self._classes_in_group, self._joined = groups_in_batch, classes_in_group, joined

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 images `(groups * classes * 2, size, size, channels)`."""
        drawn: list[np.ndarray] = []
        for number in rng.choice(len(self._groups), self._groups_in_batch, replace=False):
            classes = self._groups[number].classes
            draw = self._draw_joined if rng.random() < self._joined else self._draw_classes
            drawn += draw(classes, rng)
        return np.concatenate(drawn)

    def _draw_classes(self, classes: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
        for number in rng.choice(len(classes), self._classes_in_group, replace=False):
            yield classes[number][rng.choice(len(classes[number]), 2, replace=False)]

    def _draw_joined(self, classes: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yields two images of each joined class. Every first part is in two of them, so that both parts matter."""
        firsts = rng.choice(len(classes), -(-self._classes_in_group // 2), replace=False)
        seconds = rng.choice(len(classes), self._classes_in_group, replace=False)
        axis = int(rng.integers(1, 3))
        for first, second in zip(np.tile(firsts, 2), seconds, strict=False):
            one, other = classes[first], classes[second]
            images = rng.choice(min(len(one), len(other)), 2, replace=False)
            yield join_images(one[images], other[images], axis)


def join_images(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Squeezes two images into one, beside each other: of two characters, a character that nobody has seen.

    Of two neighbouring pixels the darker one stays, so that a pen's line does not fade.

    Args:
        first: uint8 `(n, size, size, channels)`; takes the upper or left half.
        second: likewise; the lower or right half.
        axis: 1 for one above the other, 2 for side by side.
    """
    size = first.shape[axis]
    even, odd = np.arange(0, size - 1, 2), np.arange(1, size, 2)
    halves = [np.minimum(images.take(even, axis), images.take(odd, axis)) for images in (first, second)]
    rest = second.take(np.arange(2 * len(even), size), axis)  # the last row or column of an odd size
    return np.concatenate([*halves, rest], axis)


def batch_shape(groups: Sequence[Group], groups_in_batch: int, classes_in_group: int) -> tuple[int, int]:
    """Returns how many groups, and classes of each, a batch can hold so that no class is in it twice.

    As many as asked for if there are as many; else the same number of classes from fewer groups; else what there is.

    Raises:
        PreflightError: if no group has two classes.
    """
    counts = sorted((len(group.classes) for group in groups), reverse=True)
    if not counts or counts[0] < 2:
        raise PreflightError("there are no two classes to train on in any group; give more classes, or set fewer aside.")
    for fewer in range(min(groups_in_batch, len(counts)), 0, -1):
        classes = -(-groups_in_batch * classes_in_group // fewer)
        if counts[fewer - 1] >= classes:
            return fewer, classes
    return 1, counts[0]


class PairSampler:
    """Draws batches of pairs as the published case does: half of them genuine, impostors from within a group.

    Of `2 * pairs` images, `i` and `pairs + i` are a pair; the first half of the pairs is genuine.
    """

    def __init__(self, groups: Sequence[Group], pairs: int):
        self._groups = [group for group in groups if len(group.classes) >= 2]
        self._pairs = pairs
        if not self._groups:
            raise PreflightError("there are no two classes to train on in any group; give more classes.")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 images `(2 * pairs, size, size, channels)`."""
        left, right = [], []
        for pair in range(self._pairs):
            classes = self._groups[rng.integers(len(self._groups))].classes
            one, other = rng.choice(len(classes), 2, replace=False)
            if pair < self._pairs // 2:
                first, second = rng.choice(len(classes[one]), 2, replace=False)
                left.append(classes[one][first])
                right.append(classes[one][second])
            else:
                left.append(classes[one][rng.integers(len(classes[one]))])
                right.append(classes[other][rng.integers(len(classes[other]))])
        return np.stack(left + right)


def _oriented(group: Group, turns: int, mirrored: bool) -> Group:
    name = f"{group.name}-{'m' if mirrored else ''}{90 * turns}"
    flipped = (images[:, :, ::-1] if mirrored else images for images in group.classes)
    return Group(name, tuple(np.rot90(images, turns, axes=(1, 2)) for images in flipped))
