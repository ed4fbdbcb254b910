"""The summary of a run, from counts that can be merged in any order; docs/summary.md documents every key of `_summary.json`."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.evaluation import metrics
from batchverify.evaluation.candidate import candidate_images, candidate_rows, count_flips, describe_flips
from batchverify.evaluation.clusters import Clusters, Subjects, effective_sample_sizes, merge_clusters
from batchverify.evaluation.extremes import Extremes, find_extremes
from batchverify.evaluation.groups import Groups, count_groups, describe_groups, merge_groups
from batchverify.evaluation.strangers import Strangers
from batchverify.manifest.group_values import group_columns
from batchverify.manifest.labels import parse_labels
from batchverify.manifest.names import column_names
from batchverify.schema import STATUSES, IdentityCheck, ImageStatus, ImageTraits, category_codes, is_category, is_match

KINDS = ("unlabelled", "impostor", "genuine")
# A run has few folds. A column with another value in each row does not name folds, and must not fill the memory.
_MAX_FOLDS = 50
_MAX_FOLD_LENGTH = 100
_SUMMED_FIELDS = ("scores", "identity_faults", "identity_scores")

Folds = dict[str, np.ndarray]


def _empty_histograms() -> np.ndarray:
    return np.zeros((len(KINDS), metrics.BINS), np.int64)


def _empty_histogram() -> np.ndarray:
    return np.zeros(metrics.BINS, np.int64)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts of some of a run's rows and images. Two summaries can be merged, in any order.

    Attributes:
        counts: The counts by name; names are those of `_summary.json`, with dots.
        scores: Histograms of scores, one for each of `KINDS`, int64 `(3, BINS)`.
        identity_faults: Histogram of the scores of rows whose identity check is not sane, int64 `(BINS,)`.
        identity_scores: Histogram of the distinct images' identity scores, int64 `(BINS,)`.
        identity_range: Lowest and highest identity score.
        identity_sum: Sum of all identity scores.
        folds: Histograms of impostor and genuine pairs by fold, int64 `(2, BINS)` each; None where there are too many folds.
        extremes: The most extreme pairs of each kind.
        groups: The counts of rows by group.
        clusters: The counts of pairs and errors by subject, by kind of pair; empty without columns that name subjects.
        strangers: The comparisons of images drawn at random; None where this part has none.
        steadiness: The section `steadiness` of `_summary.json`; None where this part has none.
        candidate: The same counts of the candidate, without extremes and groups; None where this part has none.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    scores: np.ndarray = dataclasses.field(default_factory=_empty_histograms)
    identity_faults: np.ndarray = dataclasses.field(default_factory=_empty_histogram)
    identity_scores: np.ndarray = dataclasses.field(default_factory=_empty_histogram)
    identity_range: tuple[float, float] = (float("inf"), float("-inf"))
    identity_sum: float = 0.0
    folds: Folds | None = dataclasses.field(default_factory=dict)
    extremes: Extremes = dataclasses.field(default_factory=Extremes)
    groups: Groups = dataclasses.field(default_factory=dict)
    clusters: Clusters = dataclasses.field(default_factory=dict)
    strangers: Strangers | None = None
    steadiness: dict[str, Any] | None = None
    candidate: Summary | None = None

    @classmethod
    def merge(cls, parts: Iterable[Summary]) -> Summary:
        """Returns the sum of all parts; without parts, the summary of no rows."""
        parts = list(parts)
        counts: collections.Counter[str] = collections.Counter()
        for part in parts:
            counts.update(part.counts)
        sums = {name: sum((getattr(part, name) for part in parts), getattr(cls(), name)) for name in _SUMMED_FIELDS}
        low = min((part.identity_range[0] for part in parts), default=float("inf"))
        high = max((part.identity_range[1] for part in parts), default=float("-inf"))
        return cls(
            counts=counts,
            identity_range=(low, high),
            identity_sum=sum(part.identity_sum for part in parts),
            folds=_merge_folds(part.folds for part in parts),
            extremes=Extremes.merge(part.extremes for part in parts),
            groups=merge_groups(part.groups for part in parts),
            clusters=merge_clusters(part.clusters for part in parts),
            strangers=next((part.strangers for part in parts if part.strangers), None),
            steadiness=next((part.steadiness for part in parts if part.steadiness), None),
            candidate=cls.merge(candidates) if (candidates := [part.candidate for part in parts if part.candidate]) else None,
            **sums,
        )

    def to_json(self, threshold: float, fmr: Sequence[float] = (), candidate_threshold: float | None = None) -> dict[str, Any]:
        """Returns the sections of `_summary.json` about rows and images.

        Args:
            threshold: The threshold in force.
            fmr: False match rates, beside those that every run has, to name a threshold for.
            candidate_threshold: The candidate's threshold in force; None without a candidate.
        """
        failed = metrics.Rate(self.counts["images.total"] - self.counts["images.ok"], self.counts["images.total"])
        return {
            "rows": self._counts_below("rows"),
            "images": self._counts_below("images"),
            "image_traits": {_trait_name(trait): self.counts[f"image_traits.{_trait_name(trait)}"] for trait in ImageTraits},
            "identity": self._identity(),
            "groups": describe_groups(self.groups, self.strangers),
            "strangers": self.strangers and dict(self.strangers.section),
            "steadiness": self.steadiness,
            "failure_to_acquire": {"rate": failed.value, "interval": failed.interval},
            "error_rates": self._error_rates(threshold, fmr),
            "score_histograms": self._score_histograms(),
            "extremes": self.extremes.to_json(),
            "calibration": None,
            "embeddings": None,
            "candidate": None if candidate_threshold is None else self._describe_candidate(candidate_threshold, fmr),
        }

    def _describe_candidate(self, threshold: float, fmr: Sequence[float]) -> dict[str, Any]:
        sections = (self.candidate or Summary()).to_json(threshold, fmr)
        kept = ("images", "identity", "strangers", "steadiness", "error_rates", "score_histograms")
        return {
            **describe_flips(self._counts_below("flips")),
            "rows": {name: sections["rows"].get(name, 0) for name in ("scored", "failed", "matches")},
            **{name: sections[name] for name in kept},
        }

    def _counts_below(self, name: str) -> dict[str, int]:
        prefix = f"{name}."
        return {key.removeprefix(prefix): count for key, count in sorted(self.counts.items()) if key.startswith(prefix)}

    def _identity(self) -> dict[str, Any]:
        numbers = int(self.identity_scores.sum())
        low, high = self.identity_range
        return {
            **{str(verdict): self.counts[f"identity.{verdict}"] for verdict in IdentityCheck},
            "images_compared": self.counts["images.ok"],
            "images_below_threshold": self.counts["identity.images_below_threshold"],
            "score_min": low if numbers else None,
            "score_mean": self.identity_sum / numbers if numbers else None,
            "score_max": high if numbers else None,
        }

    def _error_rates(self, threshold: float, fmr: Sequence[float]) -> dict[str, Any] | None:
        _, impostor, genuine = self.scores
        if not genuine.sum() and not impostor.sum():
            return None
        failed = self.counts["pairs.genuine_failed"], self.counts["pairs.impostor_failed"]
        matches = self.counts["pairs.genuine_matches"], self.counts["pairs.impostor_matches"]
        folds = {name: (genuine, impostor) for name, (impostor, genuine) in (self.folds or {}).items()}
        sizes = effective_sample_sizes(self.clusters, (int(genuine.sum()), int(impostor.sum())), matches)
        rates = metrics.describe_error_rates(genuine, impostor, threshold, matches, failed, fmr, sizes)
        return rates | {"folds": metrics.describe_folds(folds)}

    def _score_histograms(self) -> dict[str, Any]:
        return {
            **{kind: metrics.sparse(counts) for kind, counts in zip(KINDS, self.scores, strict=True)},
            "identity_faults": metrics.sparse(self.identity_faults),
            "identity": metrics.sparse(self.identity_scores),
            "strangers": metrics.sparse(self.strangers.histogram) if self.strangers else [],
            "folds": self.folds
            and {
                name: {"impostor": metrics.sparse(impostor), "genuine": metrics.sparse(genuine)}
                for name, (impostor, genuine) in sorted(self.folds.items())
            },
        }


def summarise_rows(table: pa.Table, config: ScoringConfig, label_column: str | None, fold_column: str | None) -> Summary:
    """Summarises one table of scored rows."""
    labels = parse_labels(table[label_column])[0] if label_column else np.full(table.num_rows, -1, np.int8)
    subjects = Subjects.read(table, config.subject_columns) if label_column and config.subject_columns else None
    summary = _summarise_scores(table, labels, fold_column, subjects)
    candidate = None
    if config.candidate is not None:
        summary.counts.update(count_flips(table, labels))
        again = candidate_rows(table)
        candidate = _summarise_scores(again, labels, fold_column, subjects and subjects.with_decisions(again))
    if config.review is not None:
        summary.counts["rows.review"] = pc.sum(table["review"]).as_py() or 0
    # Rows without a score have NaN there.
    groups = count_groups(table, table["score"].to_numpy(), labels, group_columns(config), subjects)
    return dataclasses.replace(summary, extremes=find_extremes(table, labels, config), groups=groups, candidate=candidate)


def _summarise_scores(table: pa.Table, labels: np.ndarray, fold_column: str | None, subjects: Subjects | None) -> Summary:
    scored = table["score"].is_valid().to_numpy(zero_copy_only=False)
    scores = table["score"].to_numpy()
    sane = is_category(table["identity_check"], str(IdentityCheck.SANE))
    return Summary(
        counts=_count_rows(table, labels),
        scores=np.stack([metrics.histogram(scores[scored & (labels == code - 1)]) for code in range(len(KINDS))]),
        identity_faults=metrics.histogram(scores[scored & ~sane]),
        folds=_fold_histograms(table[fold_column], scores, scored, labels) if fold_column else {},
        clusters=subjects.count(labels, scored) if subjects else {},
    )


def _count_rows(table: pa.Table, labels: np.ndarray) -> collections.Counter[str]:
    counts = collections.Counter({"rows.total": table.num_rows, "rows.failed": table["score"].null_count})
    counts["rows.scored"] = counts["rows.total"] - counts["rows.failed"]
    counts["rows.matches"] = pc.sum(table["match"]).as_py() or 0
    left_ok, right_ok = (is_category(table[column], str(ImageStatus.OK)) for column in ("left_status", "right_status"))
    is_failed = table["score"].is_null().to_numpy()
    counts["rows.not_a_number"] = int(np.count_nonzero(is_failed & left_ok & right_ok))
    counts["rows.same_image"] = pc.sum(table["same_image"]).as_py() or 0
    for column, name in (("identity_check", "identity"), ("left_status", "rows.left"), ("right_status", "rows.right")):
        codes, names = category_codes(table[column])
        for category, count in zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True):
            if count:
                counts[f"{name}.{category}"] += count
    counts.update(_count_labelled(table, labels))
    return counts


def _count_labelled(table: pa.Table, labels: np.ndarray) -> collections.Counter[str]:
    """Counts the matches and failures of genuine and of impostor pairs."""
    counts: collections.Counter[str] = collections.Counter()
    failed = table["score"].is_null().to_numpy(zero_copy_only=False)
    match = pc.fill_null(table["match"], False).to_numpy()
    for code, name in ((1, "genuine"), (0, "impostor")):
        counts[f"pairs.{name}_matches"] = int(np.count_nonzero(match & (labels == code)))
        counts[f"pairs.{name}_failed"] = int(np.count_nonzero(failed & (labels == code)))
    return counts


def _fold_histograms(column: pa.ChunkedArray, scores: np.ndarray, scored: np.ndarray, labels: np.ndarray) -> Folds | None:
    """Returns the histograms of each fold; rows with an empty value belong to none."""
    names = pc.utf8_slice_codeunits(column_names(column), 0, _MAX_FOLD_LENGTH).combine_chunks().dictionary_encode()
    if len(names.dictionary) > _MAX_FOLDS:
        return None
    fold = pc.fill_null(names.indices, -1).to_numpy()
    return {
        name: np.stack([metrics.histogram(scores[scored & (fold == number) & (labels == label)]) for label in (0, 1)])
        for number, name in enumerate(names.dictionary.to_pylist())
    }


def _merge_folds(parts: Iterable[Folds | None]) -> Folds | None:
    merged: Folds = {}
    for part in parts:
        if part is None:
            return None
        for name, counts in part.items():
            merged[name] = merged[name] + counts if name in merged else counts
    return merged if len(merged) <= _MAX_FOLDS else None


def _trait_name(trait: ImageTraits) -> str:
    return str(trait.name).lower()


def summarise_images(table: pa.Table, threshold: float, candidate_threshold: float | None = None) -> Summary:
    """Summarises one table of encoded images; its candidate's columns, too, if there is a threshold for them."""
    if candidate_threshold is not None:
        candidate = summarise_images(candidate_images(table), candidate_threshold)
        return dataclasses.replace(summarise_images(table, threshold), candidate=candidate)
    statuses = np.bincount(table["status"].to_numpy(), minlength=len(STATUSES))
    counts = collections.Counter({f"images.{status}": int(n) for status, n in zip(STATUSES, statuses, strict=True) if n})
    counts["images.total"] = table.num_rows
    ok = table["status"].to_numpy() == STATUSES.index(ImageStatus.OK)
    if "reused" in table.column_names:
        counts["embeddings.reused"] = pc.sum(table["reused"]).as_py() or 0
        counts["embeddings.encoded"] = int(ok.sum()) - counts["embeddings.reused"]
    traits = table["traits"].to_numpy()[ok]
    counts.update({f"image_traits.{_trait_name(trait)}": int(np.count_nonzero(traits & trait)) for trait in ImageTraits})
    identity = table["identity"].to_numpy()[ok]
    # What is not a number reaches no threshold.
    counts["identity.images_below_threshold"] = int(np.count_nonzero(~is_match(identity, threshold)))
    identity = identity[~np.isnan(identity)]
    if not len(identity):
        return Summary(counts=counts)
    return Summary(
        counts=counts,
        identity_scores=metrics.histogram(identity),
        identity_range=(float(identity.min()), float(identity.max())),
        identity_sum=float(identity.sum(dtype=np.float64)),
    )
