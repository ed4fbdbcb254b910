"""Intervals of error rates whose pairs share subjects, from counts by subject that can be merged in any order.

Two pairs that share a subject are not independent: one face that many others resemble makes many false matches. The variance of
a rate is the dyadic-cluster-robust one of Aronow, Samii and Assenova, "Cluster-Robust Variance Estimation for Dyadic Data"
(Political Analysis, 2015). As Fogliato, Patil and Perona recommend in "Confidence Intervals for Error Rates in 1:1 Matching
Tasks" (International Journal of Computer Vision, 2024), Wilson's interval is then taken for the number of independent pairs
that have this variance. Its quantile is that of Student's t with as many degrees of freedom as subjects carry the variance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.evaluation.metrics import EffectiveSampleSize, Rate, t_quantile
from batchverify.manifest.text_hashes import hash_names

_ALL = np.uint64(2**64 - 1)
_MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Resolution:
    """How finely `ClusteredCounts` counts, and so what it holds at most.

    Attributes:
        clusters: Subjects whose hashes agree modulo this number count as one cluster. As subjects are independent, the expected
            variance stays; the fewer clusters, the more it varies.
        kept: The subjects, and the combinations of two subjects, that are kept; those with the lowest hashes stand for all.
    """

    clusters: int
    kept: int


FINE, COARSE = Resolution(2**16, 2**16), Resolution(2**8, 2**9)


@dataclasses.dataclass(frozen=True)
class ClusteredCounts:
    """The pairs and errors of each subject, and of each combination of two subjects (a dyad).

    Attributes:
        resolution: How finely they are counted.
        total: Numbers of pairs and of errors of which a subject is known, int64 `(2,)`.
        clusters: Numbers of the clusters of subjects, ascending, int64 `(k,)`.
        by_cluster: Their pairs and errors, int64 `(k, 2)`; a pair of two clusters counts in both.
        dyads: Hashes of the dyads, ascending, uint64 `(m,)`.
        by_dyad: Their pairs and errors, int64 `(m, 2)`.
        dyads_to: The highest hash up to which all dyads are kept.
        subjects: Hashes of the subjects, ascending, uint64 `(s,)`.
        subjects_to: The highest hash up to which all subjects are kept.
    """

    resolution: Resolution
    total: np.ndarray
    clusters: np.ndarray
    by_cluster: np.ndarray
    dyads: np.ndarray
    by_dyad: np.ndarray
    dyads_to: np.uint64
    subjects: np.ndarray
    subjects_to: np.uint64

    @classmethod
    def count(
        cls, subjects: np.ndarray, is_known: np.ndarray, is_error: np.ndarray, resolution: Resolution = FINE
    ) -> ClusteredCounts:
        """Counts pairs.

        Args:
            subjects: Hashes of the subjects of the left and of the right images, uint64 `(n, 2)`.
            is_known: Which images have a known subject, bool `(n, 2)`.
            is_error: Which pairs are errors, bool `(n,)`.
            resolution: How finely to count.
        """
        counts = np.stack([np.ones(len(is_error), np.int64), is_error.astype(np.int64)], axis=1)
        cluster = (subjects % np.uint64(resolution.clusters)).astype(np.int64)
        left, right = is_known.T
        right_alone = right & ~(left & (cluster[:, 0] == cluster[:, 1]))  # A pair within one cluster counts there once.
        of_two = left & right & (subjects[:, 0] != subjects[:, 1])
        low, high = np.sort(subjects[of_two], axis=1).T
        clusters = np.concatenate([cluster[left, 0], cluster[right_alone, 1]])
        by_cluster = _sum_by(clusters, np.concatenate([counts[left], counts[right_alone]]))
        dyads, by_dyad, dyads_to = _keep_lowest_counts(low * _MIXER + high, counts[of_two], _ALL, resolution.kept)
        known, known_to = _keep_lowest(np.unique(subjects[is_known]), _ALL, resolution.kept)
        total = counts[left | right].sum(axis=0)
        return cls(resolution, total, *by_cluster, dyads, by_dyad, dyads_to, known, known_to)

    @classmethod
    def merge(cls, parts: Iterable[ClusteredCounts]) -> ClusteredCounts:
        """Returns the counts of all parts together; there is at least one part."""
        parts = list(parts)
        resolution = parts[0].resolution

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        by_cluster = _sum_by(joined("clusters"), joined("by_cluster"))
        dyads_to, subjects_to = min(part.dyads_to for part in parts), min(part.subjects_to for part in parts)
        dyads, by_dyad, dyads_to = _keep_lowest_counts(joined("dyads"), joined("by_dyad"), dyads_to, resolution.kept)
        subjects, subjects_to = _keep_lowest(np.unique(joined("subjects")), subjects_to, resolution.kept)
        total = np.sum([part.total for part in parts], axis=0)
        return cls(resolution, total, *by_cluster, dyads, by_dyad, dyads_to, subjects, subjects_to)

    def variance(self, rate: Rate) -> float:
        """Returns the variance of a rate, of which these are the pairs with a known subject; at least 0."""
        if not rate.trials:
            return 0.0
        count = len(self.clusters)
        return max(0.0, self._squares(rate) * count / max(1, count - 1) / float(rate.trials) ** 2)

    def covariance(self, rate: Rate, other: ClusteredCounts, other_rate: Rate) -> float:
        """Returns the covariance of two rates of different pairs that may share subjects."""
        _, here, there = np.intersect1d(self.clusters, other.clusters, assume_unique=True, return_indices=True)
        sums = _residuals(self.by_cluster[here], rate) @ _residuals(other.by_cluster[there], other_rate)
        # Two pairs of one dyad share two subjects, and are in the products of both.
        dyads, here, there = np.intersect1d(self.dyads, other.dyads, assume_unique=True, return_indices=True)
        dyads_to = min(self.dyads_to, other.dyads_to)
        is_kept = dyads <= dyads_to
        of_dyads = _residuals(self.by_dyad[here[is_kept]], rate) @ _residuals(other.by_dyad[there[is_kept]], other_rate)
        twice = float(of_dyads) * 2.0**64 / (float(dyads_to) + 1)
        return (float(sums) - twice) / (rate.trials * other_rate.trials)

    def shared_clusters(self, other: ClusteredCounts) -> int:
        """Returns the number of clusters that both have."""
        return len(np.intersect1d(self.clusters, other.clusters, assume_unique=True))

    def effective_sample_size(self, rate: Rate) -> EffectiveSampleSize:
        """Returns what the pairs of a rate are worth, of which these are the pairs with a known subject."""
        if not rate.trials or not len(self.clusters):
            return EffectiveSampleSize()
        independent = min(1.0, max(1.0, self._independent_pairs(rate)) / rate.trials)
        variance, share = self.variance(rate), rate.errors / rate.trials
        if rate.errors in (0, rate.trials) or not variance:
            return EffectiveSampleSize(independent, independent)
        worth = min(1.0, share * (1 - share) / variance / rate.trials)
        return EffectiveSampleSize(worth, independent, t_quantile(self._degrees_of_freedom(rate)))

    def _squares(self, rate: Rate) -> float:
        """Returns the sum of the products of the residuals of all two pairs that share a subject, each pair with itself too."""
        share = rate.errors / rate.trials
        # A dyad's pairs share two subjects, and are in the squares of both.
        twice = np.sum(_residuals(self.by_dyad, rate) ** 2) * 2.0**64 / (float(self.dyads_to) + 1)
        alone = (rate.trials - int(self.total[0])) * share * (1 - share)
        return float(np.sum(_residuals(self.by_cluster, rate) ** 2) - twice + alone)

    def _degrees_of_freedom(self, rate: Rate) -> float:
        """Returns the number of clusters that carry the variance, less one: few, if few have most of the errors."""
        squares = _residuals(self.by_cluster, rate) ** 2
        share = rate.errors / rate.trials
        alone = (rate.trials - int(self.total[0])) * share * (1 - share)
        return float((squares.sum() + alone) ** 2 / max(np.sum(squares**2), math.ulp(0))) - 1

    def _independent_pairs(self, rate: Rate) -> float:
        """Returns how many pairs there could be without using a subject twice."""
        per_pair = self.by_cluster[:, 0].sum() / max(1, int(self.total[0]))
        return float(self._subject_count() / per_pair) + rate.trials - int(self.total[0])

    def _subject_count(self) -> float:
        """Returns the number of subjects; where some are left out, the one that the density of the lowest hashes shows.

        Beyer et al., "On Synopses for Distinct-Value Estimation Under Multiset Operations" (SIGMOD, 2007), show that k lowest
        hashes tell the number to within about 1/√k.
        """
        kept = len(self.subjects)
        return kept if self.subjects_to == _ALL else (kept - 1) * 2.0**64 / float(self.subjects_to)


def _residuals(counts: np.ndarray, rate: Rate) -> np.ndarray:
    residuals: np.ndarray = counts[:, 1] - counts[:, 0] * (rate.errors / rate.trials)
    return residuals


def _sum_by(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys, ascending, and the sums of the counts, int64 `(n, 2)`, of each."""
    distinct, places = np.unique(keys, return_inverse=True)
    sums = [np.bincount(places, column, len(distinct)).astype(np.int64) for column in counts.T]
    return distinct, np.stack(sums, axis=1)


def _keep_lowest(distinct: np.ndarray, complete_to: np.uint64, most: int) -> tuple[np.ndarray, np.uint64]:
    """Returns the lowest of distinct hashes, which ascend, and the hash up to which all are there."""
    if len(distinct) > most:
        complete_to = min(complete_to, distinct[most - 1])
    return distinct[: np.searchsorted(distinct, complete_to, side="right")], complete_to


def _keep_lowest_counts(
    hashes: np.ndarray, counts: np.ndarray, complete_to: np.uint64, most: int
) -> tuple[np.ndarray, np.ndarray, np.uint64]:
    """Returns the lowest hashes, ascending, with the sums of their counts, and the hash up to which all are there."""
    distinct, sums = _sum_by(hashes, counts)
    kept, complete_to = _keep_lowest(distinct, complete_to, most)
    return kept, sums[: len(kept)], complete_to


# By kind of pair, `impostor` and `genuine`; empty where no column names subjects.
Clusters = Mapping[str, ClusteredCounts]


@dataclasses.dataclass(frozen=True)
class Subjects:
    """The subjects of scored pairs.

    Attributes:
        hashes: Hashes of the subjects of the left and of the right images, uint64 `(n, 2)`.
        is_known: Which images have a known subject, bool `(n, 2)`.
        is_match: Which pairs match, bool `(n,)`.
    """

    hashes: np.ndarray
    is_known: np.ndarray
    is_match: np.ndarray

    @classmethod
    def read(cls, table: pa.Table, columns: tuple[str, str]) -> Subjects:
        """Reads the subjects of a table of scored rows; `columns` name those of the left and of the right images."""
        sides = [hash_names(table[column]) for column in columns]
        hashes, is_known = (np.stack(side, axis=1) for side in zip(*sides, strict=True))
        return cls(hashes, is_known, _decisions(table))

    def with_decisions(self, table: pa.Table) -> Subjects:
        """Returns the same subjects with the decisions of another model about the same rows."""
        return dataclasses.replace(self, is_match=_decisions(table))

    def count(self, labels: np.ndarray, is_counted: np.ndarray, resolution: Resolution = FINE) -> Clusters:
        """Counts labelled pairs.

        Args:
            labels: 1 for genuine, 0 for impostor, -1 for unlabelled, int8 `(n,)`.
            is_counted: Which pairs to count, bool `(n,)`.
            resolution: How finely to count.
        """
        kinds = {
            "impostor": (is_counted & (labels == 0), self.is_match),
            "genuine": (is_counted & (labels == 1), ~self.is_match),
        }
        return {
            kind: ClusteredCounts.count(self.hashes[rows], self.is_known[rows], is_error[rows], resolution)
            for kind, (rows, is_error) in kinds.items()
        }


def _decisions(table: pa.Table) -> np.ndarray:
    is_match: np.ndarray = pc.fill_null(table["match"], False).to_numpy()
    return is_match


def merge_clusters(parts: Iterable[Clusters]) -> Clusters:
    """Returns the counts of all parts together."""
    parts = [part for part in parts if part]
    if not parts:
        return {}
    return {kind: ClusteredCounts.merge(part[kind] for part in parts) for kind in parts[0]}


def effective_sample_sizes(
    clusters: Clusters, pairs: tuple[int, int], matches: tuple[int, int]
) -> dict[str, EffectiveSampleSize] | None:
    """Returns what the pairs of `fmr`, `fnmr` and `accuracy` are worth; None where no subject is known.

    Args:
        clusters: Counts by subject.
        pairs: Numbers of genuine and of impostor pairs with a score.
        matches: Numbers of these that match.
    """
    if not clusters or not any(counts.total[0] for counts in clusters.values()):
        return None
    fmr, fnmr = Rate(matches[1], pairs[1]), Rate(pairs[0] - matches[0], pairs[0])
    errors = Rate(fmr.errors + fnmr.errors, fmr.trials + fnmr.trials)
    return {
        "fmr": clusters["impostor"].effective_sample_size(fmr),
        "fnmr": clusters["genuine"].effective_sample_size(fnmr),
        "accuracy": ClusteredCounts.merge(clusters.values()).effective_sample_size(errors),
    }
