"""Strangers in a job: draws images of the run at random, and compares them with each other.

The images with the lowest hashes of their URIs are drawn. That makes a random sample which depends on nothing but the URIs: not
on blocks, buckets, batches or the runner. It can be merged in any order, and takes a few megabytes through one small shuffle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics.metric import Metrics
from apache_beam.pvalue import AsSingleton, PCollection

from batchverify.config import ScoringConfig
from batchverify.evaluation.strangers import Strangers, describe_strangers, draw_pairs
from batchverify.manifest.columns import find_label_column, pair_uris
from batchverify.manifest.labels import parse_labels
from batchverify.pipeline.compare import compare_in_slices
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix
from batchverify.pipeline.network import Network, NetworkLoader
from batchverify.worker_stats import WorkerStats

_MAX_IMAGES = 2048
_MAX_BYTES = 32 * 2**20
# A network that runs whole encodes both images of each pair again: about 2% of the images, and a few in a small run.
_IMAGES_PER_WHOLE_PAIR, _LEAST_WHOLE_PAIRS = 50, 100
# What is known about images that are not drawn is dropped as soon as it cannot matter any more.
_MAX_GENUINE, _MAX_SUBJECTS = 2**17, 2**15
_ALL = np.uint64(2**64 - 1)


@dataclasses.dataclass(frozen=True)
class DrawnImages:
    """Some images of a run, those whose URIs have the lowest hashes.

    Attributes:
        total: Number of images that they were drawn from.
        most: Number of images that the run draws at most.
        rows: Columns `hash` (uint64, ascending), `digest` and `embedding`; None for no images.
    """

    total: int
    most: int
    rows: pa.Table | None

    @classmethod
    def draw(cls, images: pa.Table, embedding_bytes: int, buckets: int) -> DrawnImages:
        """Draws images from a table of encoded images; those without an embedding are not drawn.

        Args:
            images: Encoded images of one bucket.
            embedding_bytes: The size of one embedding.
            buckets: The number of buckets.
        """
        most = max(2, min(_MAX_IMAGES, _MAX_BYTES // max(1, embedding_bytes)))
        # A bucket holds a binomial number of the images that the run draws. Six standard deviations above its mean are as good
        # as certain to hold them all.
        mean = most / buckets
        count = min(most, math.ceil(mean + 6 * math.sqrt(mean) + 8))
        images = images.filter(pa.array(images["status"].to_numpy() == OK_CODE))
        hashes = hash_text(images["uri"].combine_chunks())
        chosen = np.argsort(hashes)[:count]
        rows = images.select(["digest", "embedding"]).take(pa.array(chosen))
        return cls(images.num_rows, most, rows.add_column(0, "hash", pa.array(hashes[chosen], pa.uint64())))

    @classmethod
    def merge(cls, parts: Iterable[DrawnImages]) -> DrawnImages:
        """Draws again from images that have been drawn."""
        parts = list(parts)
        total, most = sum(part.total for part in parts), min((part.most for part in parts), default=_MAX_IMAGES)
        tables = [part.rows for part in parts if part.rows is not None and part.rows.num_rows]
        if not tables:
            return cls(total, most, None)
        return cls(total, most, pa.concat_tables(tables).sort_by("hash").slice(0, most).combine_chunks())


@dataclasses.dataclass(frozen=True)
class KnownMates:
    """What a manifest says about images that show the same subject, for the images with the lowest hashes.

    Attributes:
        genuine: Hashes of the two images of genuine pairs, the lower one first, uint64 `(n, 2)`, by rising second.
        subjects: Hashes of an image and of its subject, uint64 `(n, 2)`, by rising image.
        has_labels: Whether the manifest has labels.
        complete_to: The highest hash up to which all that the manifest says is here.
    """

    genuine: np.ndarray
    subjects: np.ndarray
    has_labels: bool = False
    complete_to: np.uint64 = _ALL

    @classmethod
    def read(cls, block: pa.Table, config: ScoringConfig) -> KnownMates:
        """Reads a block of the manifest."""
        label_column = find_label_column(block.column_names, config)
        if not label_column and not config.subject_columns:
            return cls(_no_hashes(), _no_hashes())
        left, right = pair_uris(block, config)
        has_both = pc.and_(pc.is_valid(left), pc.is_valid(right)).to_numpy(zero_copy_only=False)
        genuine, subjects = _no_hashes(), _no_hashes()
        if label_column:
            chosen = pa.array(has_both & (parse_labels(block[label_column])[0] == 1))
            pairs = np.stack([_hash_column(side.filter(chosen)) for side in (left, right)], axis=1)
            genuine = np.sort(pairs, axis=1)
        if config.subject_columns:
            sides = zip((left, right), config.subject_columns, strict=True)
            subjects = np.concatenate([_subjects_of(uris, block[column]) for uris, column in sides])
        return cls.merge([cls(genuine, subjects, label_column is not None)])

    @classmethod
    def merge(cls, parts: Iterable[KnownMates]) -> KnownMates:
        """Returns what all parts say together."""
        parts = list(parts)
        genuine = np.concatenate([_no_hashes(), *(part.genuine for part in parts)])
        subjects = np.concatenate([_no_hashes(), *(part.subjects for part in parts)])
        complete_to = min((part.complete_to for part in parts), default=_ALL)
        genuine, genuine_to = _keep_lowest(genuine, 1, _MAX_GENUINE)
        subjects, subjects_to = _keep_lowest(subjects, 0, _MAX_SUBJECTS)
        has_labels = any(part.has_labels for part in parts)
        return cls(genuine, subjects, has_labels, min(complete_to, genuine_to, subjects_to))


def _keep_lowest(hashes: np.ndarray, column: int, most: int) -> tuple[np.ndarray, np.uint64]:
    """Returns the distinct rows with the lowest hashes in a column, and the hash up to which they are all there."""
    hashes = np.unique(hashes, axis=0)
    hashes = hashes[np.argsort(hashes[:, column], kind="stable")]
    if len(hashes) <= most:
        return hashes, _ALL
    first_dropped = hashes[most, column]
    return hashes[:most], first_dropped - np.uint64(min(1, int(first_dropped)))


def _no_hashes() -> np.ndarray:
    return np.zeros((0, 2), np.uint64)


def _subjects_of(uris: pa.ChunkedArray, subjects: pa.ChunkedArray) -> np.ndarray:
    """Returns the hashes of images and of their subjects, uint64 `(n, 2)`; rows without one of both are left out."""
    names = subjects.cast(pa.string())
    is_known = pc.and_(pc.is_valid(uris), pc.fill_null(pc.not_equal(names, ""), False))
    return np.stack([_hash_column(column.filter(is_known)) for column in (uris, names)], axis=1)


def _hash_column(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the hashes of a column in which most values occur again and again, uint64 `(n,)`."""
    values = pa.chunked_array(column.chunks, pa.string()).combine_chunks().dictionary_encode()
    hashes: np.ndarray = hash_text(values.dictionary)[values.indices.to_numpy()]
    return hashes


def hash_text(values: pa.Array) -> np.ndarray:
    """Returns a 64-bit hash of each text, the same in every process; uint64 `(n,)`."""
    hashes: np.ndarray = pd.util.hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
    return hashes


def compare_strangers(drawn: DrawnImages, mates: KnownMates, network: Network, config: ScoringConfig) -> Strangers:
    """Compares the drawn images with each other, without pairs that are known to be mates.

    Args:
        drawn: The drawn images.
        mates: What the manifest says about mates.
        network: The network that compares embeddings.
        config: The configuration, completed by the model's sidecar.
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
        scores = compare_in_slices(embedding_matrix(drawn.rows), left, right, network)
    left_out = {reason: len(np.unique(codes)) for reason, codes in reasons.items()}
    known_by = "subjects" if config.subject_columns else "labels" if mates.has_labels else None
    limit = getattr(config, "max_stranger_matches", None)  # `VerifyPairs` has no gates.
    return describe_strangers(scores, left, right, drawn.total, known_by, left_out, config.match_threshold(), limit)


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


class CompareStrangers(beam.PTransform[Any, Any]):
    """Turns `{"drawn": DrawnImages of buckets, "blocks": blocks of the manifest}` into one `Strangers`.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        stats: The counts and times of this process.
    """

    def __init__(self, loader: NetworkLoader, config: ScoringConfig, stats: WorkerStats):
        super().__init__()
        self._loader, self._config, self._stats = loader, config, stats

    def expand(self, pcolls: dict[str, PCollection[Any]]) -> PCollection[Strangers]:
        drawn = pcolls["drawn"] | "Draw" >> beam.CombineGlobally(DrawnImages.merge)
        mates = (
            pcolls["blocks"]
            | "ReadMates" >> beam.Map(_read_mates, self._config)
            | "MergeMates" >> beam.CombineGlobally(KnownMates.merge)
        )
        compare = beam.ParDo(_Compare(self._loader, self._config, self._stats), AsSingleton(drawn), AsSingleton(mates))
        strangers: PCollection[Strangers] = drawn.pipeline | "Once" >> beam.Create([None], reshuffle=False) | compare
        return strangers


def _read_mates(element: tuple[str, pa.Table], config: ScoringConfig) -> KnownMates:
    return KnownMates.read(element[1], config)


class _Compare(beam.DoFn):
    def __init__(self, loader: NetworkLoader, config: ScoringConfig, stats: WorkerStats):
        self._loader, self._config, self._stats = loader, config, stats
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()

    def process(self, _: None, drawn: DrawnImages, mates: KnownMates) -> Iterator[Strangers]:
        with self._stats.timed("compare"):
            strangers = compare_strangers(drawn, mates, self._network, self._config)
        self._encodings.inc(strangers.section["pairs"] * self._network.encodings_per_pair)
        yield strangers
