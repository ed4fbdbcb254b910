"""Classes of images in memory, and the samplers that draw batches from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from batchverify.errors import PreflightError


@dataclasses.dataclass(frozen=True)
class Group:
    """Classes that belong together and are hard to tell apart, such as the characters of an alphabet.

    Attributes:
        name: Name of the folder or the manifest.
        classes: The images of each class, uint8 `(images, size, size, channels)`.
        weight: How often the group is drawn against a group of weight 1.
    """

    name: str
    classes: tuple[np.ndarray, ...]
    weight: int = 1

    def with_channels(self, channels: int) -> Group:
        """Returns the group with grey images that have so many channels, without a copy."""
        return dataclasses.replace(
            self, classes=tuple(np.broadcast_to(images, (*images.shape[:3], channels)) for images in self.classes)
        )


def with_turns(groups: Sequence[Group]) -> list[Group]:
    """Returns each group in its eight orientations. A character that is turned by 90° or mirrored is another character."""
    turned = [_oriented(group, turns, mirrored=False) for group in groups for turns in range(4)]
    return turned + [_oriented(group, turns, mirrored=True) for group in groups for turns in range(4)]


def split_classes(groups: Sequence[Group], share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Sets whole classes aside for validation, so that no class is both trained on and validated on.

    Each group gives `share` of its classes, and at least two, because pairs are drawn within a group. A group that would keep
    fewer than two classes gives none.

    Args:
        groups: All groups.
        share: Share of the classes to set aside, in [0, 1).
        seed: Seed of the choice.

    Returns:
        The groups to train on, and the groups to validate on.

    Raises:
        PreflightError: if `share` is above 0 and no group has enough classes.
    """
    if not share:
        return list(groups), []
    rng = np.random.default_rng(seed)
    training, validation = [], []
    for group in groups:
        count = max(2, round(share * len(group.classes)))
        if len(group.classes) < count + 2:
            training.append(group)
            continue
        chosen = set(rng.choice(len(group.classes), count, replace=False).tolist())
        validation.append(Group(group.name, tuple(c for n, c in enumerate(group.classes) if n in chosen)))
        training.append(Group(group.name, tuple(c for n, c in enumerate(group.classes) if n not in chosen)))
    if not validation:
        raise PreflightError(
            f"--validation is {share}, and no group has enough classes to set two aside; give more classes, or --validation 0."
        )
    return training, validation


class BatchSampler:
    """Draws batches of `groups * classes * 2` images: two images of each class, and several classes of each group.

    Images `2 i` and `2 i + 1` show the same class. Each run of `2 * classes` images comes from one group, so every batch
    has impostors from within a group, which are the hardest. No group is drawn twice for a batch.

    Args:
        groups: The groups to draw from.
        groups_in_batch: Number of groups in a batch.
        classes_in_group: Number of classes of each group in a batch.
        joined: Probability that the classes of a group are joined in twos, as `join_images` does.
    """

    def __init__(self, groups: Sequence[Group], groups_in_batch: int, classes_in_group: int, joined: float = 0.0):
        self._groups = [group for group in groups if len(group.classes) >= classes_in_group]
        self._groups_in_batch, self._classes_in_group, self._joined = groups_in_batch, classes_in_group, joined
        weights = np.array([group.weight for group in self._groups])
        self._shares = None if len(set(weights)) == 1 else weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 images `(groups * classes * 2, size, size, channels)`."""
        drawn: list[np.ndarray] = []
        for number in rng.choice(len(self._groups), self._groups_in_batch, replace=False, p=self._shares):
            classes = self._groups[number].classes
            draw = self._draw_joined if rng.random() < self._joined else self._draw_classes
            drawn += draw(classes, rng)
        return np.concatenate(drawn)

    def _draw_classes(self, classes: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
        for number in rng.choice(len(classes), self._classes_in_group, replace=False):
            yield classes[number][rng.choice(len(classes[number]), 2, replace=False)]

    def _draw_joined(self, classes: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yields two images of each joined class.

        Each first half is part of two joined classes, so that a network cannot tell them apart by the first half alone.
        """
        firsts = rng.choice(len(classes), -(-self._classes_in_group // 2), replace=False)
        seconds = rng.choice(len(classes), self._classes_in_group, replace=False)
        axis = int(rng.integers(1, 3))
        for first, second in zip(np.tile(firsts, 2), seconds, strict=False):
            count = min(len(classes[first]), len(classes[second]))
            images = rng.choice(count, 2, replace=False)
            yield join_images(classes[first][images], classes[second][images], axis)


def join_images(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Returns images whose halves are squeezed images: two characters become one new character.

    Two neighbouring pixels become one with the darker value, so that pen strokes do not fade.

    Args:
        first: Images for the upper or left half, uint8 `(n, size, size, channels)`.
        second: Images for the lower or right half, of the same shape.
        axis: 1 puts `first` above `second`; 2 puts it to the left.
    """
    size = first.shape[axis]
    even, odd = np.arange(0, size - 1, 2), np.arange(1, size, 2)
    halves = [np.minimum(images.take(even, axis), images.take(odd, axis)) for images in (first, second)]
    remainder = second.take(np.arange(2 * len(even), size), axis)  # An odd size leaves one row or column.
    return np.concatenate([*halves, remainder], axis)


def batch_shape(groups: Sequence[Group], groups_in_batch: int, classes_in_group: int) -> tuple[int, int]:
    """Returns numbers of groups and of classes in each group for batches that contain no class twice.

    If there are not enough groups with enough classes, a batch has the same number of classes from fewer groups. If that is not
    possible either, it has all classes of the largest group.

    Raises:
        PreflightError: if no group has two classes.
    """
    counts = sorted((len(group.classes) for group in groups), reverse=True)
    if not counts or counts[0] < 2:
        raise PreflightError("no group has two classes to train on; give more classes, or set fewer aside.")
    for fewer in range(min(groups_in_batch, len(counts)), 0, -1):
        classes = -(-groups_in_batch * classes_in_group // fewer)
        if counts[fewer - 1] >= classes:
            return fewer, classes
    return 1, counts[0]


class PairSampler:
    """Draws batches of pairs as the published case does: half of them are genuine, and impostors come from one group.

    A batch has `2 * pairs` images. Images `i` and `pairs + i` are a pair; the first half of the pairs is genuine.

    Args:
        groups: The groups to draw from; groups with one class are left out.
        pairs: Number of pairs in a batch.

    Raises:
        PreflightError: if no group has two classes.
    """

    def __init__(self, groups: Sequence[Group], pairs: int):
        self._groups = [group for group in groups if len(group.classes) >= 2 for _ in range(group.weight)]
        self._pairs = pairs
        if not self._groups:
            raise PreflightError("no group has two classes to train on; give more classes.")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 images `(2 * pairs, size, size, channels)`."""
        left, right = [], []
        for pair in range(self._pairs):
            classes = self._groups[rng.integers(len(self._groups))].classes
            left_class, other_class = (classes[number] for number in rng.choice(len(classes), 2, replace=False))
            if pair < self._pairs // 2:
                left_image, right_image = rng.choice(len(left_class), 2, replace=False)
                left.append(left_class[left_image])
                right.append(left_class[right_image])
            else:
                left.append(left_class[rng.integers(len(left_class))])
                right.append(other_class[rng.integers(len(other_class))])
        return np.stack(left + right)


def _oriented(group: Group, turns: int, mirrored: bool) -> Group:
    name = f"{group.name}-{'m' if mirrored else ''}{90 * turns}"
    flipped = (images[:, :, ::-1] if mirrored else images for images in group.classes)
    turned = tuple(np.rot90(images, turns, axes=(1, 2)) for images in flipped)
    return dataclasses.replace(group, name=name, classes=turned)
