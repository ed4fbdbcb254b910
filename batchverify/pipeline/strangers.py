"""Strangers in a job: compares the drawn images with each other, without those that show the same subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.evaluation.strangers import ImageGroups, Strangers, describe_strangers, draw_pairs
from batchverify.manifest.columns import find_label_column, pair_uris, require_columns
from batchverify.manifest.group_values import group_columns, image_groups
from batchverify.manifest.labels import parse_labels
from batchverify.manifest.text_hashes import hash_column, hash_names, hash_text
from batchverify.pipeline.compare import compare_in_slices
from batchverify.pipeline.drawn_images import DrawnImages, hash_uris
from batchverify.pipeline.encoded_images import embedding_matrix
from batchverify.pipeline.network import Network
from batchverify.pipeline.wrong_scores import MODEL, without_wrong_scores

# A network that runs whole encodes both images of each pair again: about 2% of the images, and a few in a small run.
_IMAGES_PER_WHOLE_PAIR, _LEAST_WHOLE_PAIRS = 50, 100
# What is known about images that are not drawn is dropped as soon as it cannot matter any more.
_MAX_GENUINE, _MAX_SUBJECTS = 2**17, 2**15
_ALL = np.uint64(2**64 - 1)
_MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class KnownMates:
    """What a manifest says about images that show the same subject, for the images with the lowest hashes.

    Attributes:
        genuine: Hashes of the two images of genuine pairs, the lower one first, uint64 `(n, 2)`, by rising second.
        subjects: Hashes of an image and of its subject, uint64 `(n, 2)`, by rising image.
        groups: For each grouping, hashes of an image and of its group, uint64 `(n, 2)`, by rising image.
        group_names: The names of groups by their hashes.
        has_labels: Whether the manifest has labels.
        complete_to: The highest hash up to which all that the manifest says is here.
    """

    genuine: np.ndarray
    subjects: np.ndarray
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    group_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    has_labels: bool = False
    complete_to: np.uint64 = _ALL

    @classmethod
    def read(cls, block: pa.Table, config: ScoringConfig, base: str) -> KnownMates:
        """Reads a block of the manifest; `base` is the result of `base_of_draw`."""
        require_columns(block.column_names, config)
        label_column, groupings = find_label_column(block.column_names, config), group_columns(config)
        if not label_column and not config.subject_columns and not groupings:
            return cls(_no_hashes(), _no_hashes())
        left, right = pair_uris(block, config)
        has_both = pc.and_(pc.is_valid(left), pc.is_valid(right)).to_numpy(zero_copy_only=False)
        genuine, subjects = _no_hashes(), _no_hashes()
        if label_column:
            chosen = pa.array(has_both & (parse_labels(block[label_column])[0] == 1))
            pairs = np.stack([_hash_images(side.filter(chosen), base) for side in (left, right)], axis=1)
            genuine = np.sort(pairs, axis=1)
        if config.subject_columns:
            sides = zip((left, right), config.subject_columns, strict=True)
            subjects = np.concatenate([_subjects_of(uris, block[column], base) for uris, column in sides])
        groups: dict[str, np.ndarray] = {}
        names: dict[int, str] = {}
        for grouping, columns in groupings.items():
            values_of = [image_groups(block[column]) for column in columns]
            sides = zip((left, right), values_of, strict=True)
            groups[grouping] = np.concatenate([_hash_groups(uris, values, base) for uris, values in sides])
            for values in values_of:
                distinct = values.unique()
                names |= zip(hash_text(distinct).tolist(), distinct.to_pylist(), strict=True)
        return cls.merge([cls(genuine, subjects, groups, names, label_column is not None)])

    @classmethod
    def merge(cls, parts: Iterable[KnownMates]) -> KnownMates:
        """Returns what all parts say together."""
        parts = list(parts)
        genuine = np.concatenate([_no_hashes(), *(part.genuine for part in parts)])
        subjects = np.concatenate([_no_hashes(), *(part.subjects for part in parts)])
        complete_to = min((part.complete_to for part in parts), default=_ALL)
        genuine, genuine_to = _keep_lowest(genuine, 1, _MAX_GENUINE)
        subjects, subjects_to = _keep_lowest(subjects, 0, _MAX_SUBJECTS)
        groups: dict[str, np.ndarray] = {}
        for grouping in dict.fromkeys(name for part in parts for name in part.groups):
            found = np.concatenate([part.groups[grouping] for part in parts if grouping in part.groups])
            groups[grouping], groups_to = _keep_lowest(found, 0, _MAX_SUBJECTS)
            complete_to = min(complete_to, groups_to)
        names = {value: name for part in parts for value, name in part.group_names.items()}
        has_labels = any(part.has_labels for part in parts)
        return cls(genuine, subjects, groups, names, has_labels, min(complete_to, genuine_to, subjects_to))

    def groups_of(self, hashes: np.ndarray) -> dict[str, ImageGroups]:
        """Returns the groups of images with these ascending hashes, by grouping."""
        return {grouping: self._groups_of(hashes, found) for grouping, found in self.groups.items()}

    def _groups_of(self, hashes: np.ndarray, found: np.ndarray) -> ImageGroups:
        positions, are_drawn = _positions(hashes, found[:, 0])
        values, numbers = np.unique(found[are_drawn, 1], return_inverse=True)
        codes = np.full(len(hashes), -1)
        codes[positions[are_drawn]] = numbers
        codes[np.bincount(positions[are_drawn], minlength=len(hashes)) > 1] = -1
        return ImageGroups([self.group_names[value] for value in values.tolist()], codes)


def _keep_lowest(hashes: np.ndarray, column: int, most: int) -> tuple[np.ndarray, np.uint64]:
    """Returns the distinct rows with the lowest hashes in a column, and the hash up to which they are all there."""
    # One number for both hashes: to compare rows of two numbers takes twenty times as long.
    mixed = hashes[:, 0] * _MIXER + hashes[:, 1]
    hashes = hashes[~pd.Series(mixed).duplicated().to_numpy()]
    complete_to = _ALL
    if len(hashes) > most:
        first_dropped = np.partition(hashes[:, column], most)[most]
        hashes = hashes[hashes[:, column] < first_dropped]
        complete_to = first_dropped - np.uint64(min(1, int(first_dropped)))
    return hashes[np.argsort(hashes[:, column], kind="stable")], complete_to


def _no_hashes() -> np.ndarray:
    return np.zeros((0, 2), np.uint64)


def _subjects_of(uris: pa.ChunkedArray, subjects: pa.ChunkedArray, base: str) -> np.ndarray:
    """Returns the hashes of images and of their subjects, uint64 `(n, 2)`; rows without one of both are left out."""
    names, is_named = hash_names(subjects)
    is_known = pc.is_valid(uris).to_numpy(zero_copy_only=False) & is_named
    return np.stack([_hash_images(uris.filter(pa.array(is_known)), base), names[is_known]], axis=1)


def _hash_groups(uris: pa.ChunkedArray, groups: pa.ChunkedArray, base: str) -> np.ndarray:
    """Returns the hashes of images and of their groups, uint64 `(n, 2)`; rows without an image are left out."""
    is_known = pc.is_valid(uris)
    return np.stack([_hash_images(uris.filter(is_known), base), hash_column(groups.filter(is_known))], axis=1)


def _hash_images(uris: pa.ChunkedArray, base: str) -> np.ndarray:
    return hash_column(uris, lambda distinct: hash_uris(distinct, base))


def compare_strangers(
    drawn: DrawnImages, mates: KnownMates, network: Network, config: ScoringConfig, who: str = MODEL
) -> Strangers:
    """Compares the drawn images with each other, without pairs that are known to be mates.

    Args:
        drawn: The drawn images.
        mates: What the manifest says about mates.
        network: The network that compares embeddings.
        config: The configuration, completed by the model's sidecar.
        who: `MODEL` or `CANDIDATE`, which the network is.

    Raises:
        RunError: If a score is not a number in [0, 1], unless `config.on_nan` is `keep`.
    """
    hashes = np.zeros(0, np.uint64) if drawn.rows is None else drawn.rows["hash"].to_numpy()
    hashes = hashes[: np.searchsorted(hashes, mates.complete_to, side="right")]
    reasons = {
        "same_content": _mates_by_content(drawn.rows, len(hashes)),
        "genuine": _mates_by_pairs(hashes, mates.genuine),
        "same_subject": _mates_by_subject(hashes, mates.subjects),
    }
    pairs = config.stranger_pairs
    if network.encodings_per_pair:
        pairs = min(pairs, max(_LEAST_WHOLE_PAIRS, drawn.total // _IMAGES_PER_WHOLE_PAIR))
    left, right = draw_pairs(len(hashes), pairs, np.unique(np.concatenate(list(reasons.values()))))
    scores = np.zeros(0, np.float32)
    if drawn.rows is not None and len(left):
        scores = _compare(drawn.rows, left, right, network, config.on_nan, who)
    left_out = {reason: len(np.unique(codes)) for reason, codes in reasons.items()}
    known_by = "subjects" if len(mates.subjects) else "labels" if mates.has_labels else None
    limit = getattr(config, "max_stranger_matches", None)  # `VerifyPairs` has no gates.
    groups, threshold = mates.groups_of(hashes), config.match_threshold()
    described = describe_strangers(scores, left, right, drawn.total, known_by, left_out, threshold, limit, groups)
    return described.with_subjects(_subjects_of_each(hashes, mates.subjects)) if config.subject_columns else described


def _compare(rows: pa.Table, left: np.ndarray, right: np.ndarray, network: Network, on_nan: str, who: str) -> np.ndarray:
    """Returns the scores of drawn images, float32 `(n,)`, NaN where the network gave none."""
    outputs, uris = compare_in_slices(embedding_matrix(rows), left, right, network), rows["uri"]

    def name_pair(place: int) -> str:
        return f"{uris[int(left[place])]} and {uris[int(right[place])]}"

    return without_wrong_scores(outputs, np.ones(len(outputs), bool), on_nan, name_pair, who)[0]


def _mates_by_content(rows: pa.Table | None, count: int) -> np.ndarray:
    if rows is None:
        return np.zeros(0, np.int64)
    digests = rows["digest"].slice(0, count).combine_chunks()
    known = np.flatnonzero(pc.is_valid(digests).to_numpy(zero_copy_only=False))
    return _codes_of_groups(known, digests.dictionary_encode().indices.take(pa.array(known)).to_numpy(), count)


def _mates_by_pairs(hashes: np.ndarray, genuine: np.ndarray) -> np.ndarray:
    positions, are_drawn = _positions(hashes, genuine)
    pairs = positions[are_drawn.all(axis=1)]
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    codes: np.ndarray = pairs[:, 0] * len(hashes) + pairs[:, 1]
    return codes


def _subjects_of_each(hashes: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Returns the number of subjects that the manifest names for each of the drawn images, int64 `(n,)`."""
    positions, are_drawn = _positions(hashes, subjects[:, 0])
    return np.bincount(positions[are_drawn], minlength=len(hashes))


def _mates_by_subject(hashes: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    positions, are_drawn = _positions(hashes, subjects[:, 0])
    return _codes_of_groups(positions[are_drawn], subjects[are_drawn, 1], len(hashes))


def _positions(hashes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where hashes stand among the ascending hashes of the drawn images, and whether they do."""
    if not len(hashes):
        return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
    positions = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    return positions, hashes[positions] == wanted


def _codes_of_groups(positions: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Returns all pairs of positions that share a group, as `draw_pairs` takes them."""
    members = pd.DataFrame({"position": positions, "group": groups}).drop_duplicates()
    pairs = members[members.duplicated("group", keep=False)].merge(members, on="group")
    pairs = pairs[pairs["position_x"] < pairs["position_y"]]
    codes: np.ndarray = pairs["position_x"].to_numpy(np.int64) * count + pairs["position_y"].to_numpy(np.int64)
    return codes
