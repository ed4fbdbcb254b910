"""Class folders to batches: two drawings of each class, distorted afresh at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from batchverify.demo import characters


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Classes that belong together, so that telling them apart is the hard case.

    Attributes:
        name: what the folder was called.
        images: one uint8 array `(drawings, size, size)` for each class.
    """

    name: str
    images: tuple[np.ndarray, ...]


def read_alphabets(folder: Path, size: int) -> list[Alphabet]:
    """Reads `folder/[…/]alphabet/character/*.png`; folders of one name, anywhere below, are read once."""
    found: dict[str, Path] = {}
    for character in sorted(path for path in folder.rglob("*") if path.is_dir() and any(path.glob("*.png"))):
        found.setdefault(character.parent.name, character.parent)
    if not found:
        raise ValueError(f"no alphabet/character/*.png below {folder}")
    return [Alphabet(name, _read_alphabet(path, size)) for name, path in sorted(found.items())]


def draw_alphabets(count: int, classes: int, drawings: int, size: int, seed: int) -> list[Alphabet]:
    """Draws `count` invented alphabets of `classes` characters, `drawings` times each."""
    rng = np.random.default_rng(seed)
    alphabets = []
    for number in range(count):
        invented = characters.invent_alphabet(rng, classes)
        images = tuple(
            np.stack([_grey(characters.draw(character, rng), size) for _ in range(drawings)]) for character in invented
        )
        alphabets.append(Alphabet(f"invented-{number}", images))
    return alphabets


def with_quarter_turns(alphabets: Sequence[Alphabet]) -> list[Alphabet]:
    """Returns each alphabet four times: a character turned by 90° is a character of another alphabet."""
    return [
        Alphabet(f"{alphabet.name}-{90 * turns}", tuple(np.rot90(drawn, turns, axes=(1, 2)) for drawn in alphabet.images))
        for alphabet in alphabets
        for turns in range(4)
    ]


class BatchSampler:
    """Draws batches of `groups * classes * 2` images: two drawings of each class, classes from few alphabets.

    Image `2 i` and image `2 i + 1` show the same class; consecutive runs of `2 * classes` images come from
    one alphabet. So every batch holds the impostors that matter, those from within an alphabet.
    """

    def __init__(self, alphabets: Sequence[Alphabet], groups: int, classes: int, rng: np.random.Generator):
        self._alphabets = [alphabet for alphabet in alphabets if len(alphabet.images) >= classes]
        if not self._alphabets:
            raise ValueError(f"no alphabet has {classes} classes or more")
        self._groups, self._classes, self._rng = groups, classes, rng

    def draw(self) -> np.ndarray:
        """Returns uint8 images, shape `(groups * classes * 2, size, size)`."""
        images = []
        for number in self._rng.choice(len(self._alphabets), self._groups, replace=len(self._alphabets) < self._groups):
            alphabet = self._alphabets[number]
            for drawn in self._rng.choice(len(alphabet.images), self._classes, replace=False):
                pair = self._rng.choice(len(alphabet.images[drawn]), 2, replace=False)
                images.append(alphabet.images[drawn][pair])
        return np.concatenate(images)


def _read_alphabet(folder: Path, size: int) -> tuple[np.ndarray, ...]:
    return tuple(
        np.stack([_grey(Image.open(path), size) for path in sorted(character.glob("*.png"))])
        for character in sorted(folder.iterdir())
        if character.is_dir()
    )


def _grey(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))
