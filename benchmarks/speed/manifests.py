"""Manifests of three shapes: how often each image is named decides what encoding it once is worth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CASES = ("lfw", "gallery", "distinct")
PAIRS = 6_000
_LFW_IMAGES = 7_701
_GALLERY_PAIRS_PER_IMAGE = 20
ENCODINGS_PER_PAIR = 6  # of whoever runs the network on the pair, on the left image twice, on the right image twice


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of images, by number.

    Attributes:
        left: int64 `(n,)`.
        right: int64 `(n,)`, never equal to `left`.
        images: The number of distinct images; each is in a pair.
    """

    left: np.ndarray
    right: np.ndarray
    images: int

    def __len__(self) -> int:
        return len(self.left)

    @property
    def arithmetic(self) -> float:
        """Six encodings for each pair, against one for each distinct image."""
        return ENCODINGS_PER_PAIR * len(self) / self.images

    def first(self, count: int) -> Pairs:
        """Returns the first pairs alone."""
        left, right = self.left[:count], self.right[:count]
        return Pairs(left, right, len(np.union1d(left, right)))

    def write(self, path: Path, images: list[str]) -> None:
        """Writes a Parquet manifest with the columns `pair` (number of the row), `left` and `right` (paths)."""
        names = np.asarray(images, object)
        columns = {"pair": np.arange(len(self)), "left": names[self.left], "right": names[self.right]}
        pq.write_table(pa.table(columns), path)


def build_pairs(case: str, scale: float, seed: int) -> Pairs:
    """Returns the pairs of a case, the whole of which has 6,000.

    Args:
        case: `lfw`: the shape of the LFW protocol, 6,000 pairs over 7,701 images; `gallery`: each image in 20 pairs;
            `distinct`: each image in one.
        scale: share of the whole case, above 0.
        seed: The seed of the choice.
    """
    count = max(1, round(PAIRS * scale))
    rng = np.random.default_rng(seed)
    if case == "distinct":
        slots = rng.permutation(2 * count).reshape(2, count)
        return Pairs(slots[0], slots[1], 2 * count)
    if case == "gallery":
        return _gallery(max(_GALLERY_PAIRS_PER_IMAGE + 1, 2 * count // _GALLERY_PAIRS_PER_IMAGE), rng)
    return _every_image_somewhere(count, max(2, min(2 * count, round(_LFW_IMAGES * scale))), rng)


def _gallery(images: int, rng: np.random.Generator) -> Pairs:
    """Each image beside its next ten in a ring, so that it is left in ten pairs and right in ten."""
    left = np.tile(np.arange(images), _GALLERY_PAIRS_PER_IMAGE // 2)
    right = (left + np.repeat(np.arange(1, _GALLERY_PAIRS_PER_IMAGE // 2 + 1), images)) % images
    order = rng.permutation(len(left))
    return Pairs(left[order], right[order], images)


def _every_image_somewhere(count: int, images: int, rng: np.random.Generator) -> Pairs:
    slots = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, 2 * count - images)]))
    left, right = slots.reshape(2, count)
    while (alike := np.flatnonzero(left == right)).size:
        # Exchanging right images keeps every image in a pair.
        others = rng.integers(0, count, alike.size)
        for row, other in zip(alike, others, strict=True):
            right[row], right[other] = right[other], right[row]
    return Pairs(left, right, images)
