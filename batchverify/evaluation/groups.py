"""Error rates by group, and how far the worst group lies from the best and from all (differentials of ISO/IEC 19795-10)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.evaluation import metrics
from batchverify.evaluation.clusters import COARSE, ClusteredCounts, Clusters, Subjects, merge_clusters
from batchverify.evaluation.strangers import Strangers
from batchverify.manifest.group_values import MIXED, NO_GROUPS, NO_VALUE, count_values, pair_groups
from batchverify.schema import MAX_GROUPS

# The EER of a group needs no finer histogram: with a thousand values, all bins would take 190 MB. Near 0 and 1, where a
# sigmoid is saturated, ten for each power of ten are kept.
_NEAR = 10.0 ** -(np.arange(27, 74) / 10)
_STARTS = np.unique(np.searchsorted(metrics.EDGES, np.concatenate([np.arange(500) / 500, _NEAR, 1 - _NEAR, [1]]).round(9)))
_BINS = len(_STARTS)
# A group's rate can be told where as many errors are expected at the rate of all groups together.
_LEAST_ERRORS = 5
_SHOWN = 60  # Characters of a group's name in a sentence.
# An interval whose upper bound is more than this many times the lower one tells nothing about a ratio.
_WIDEST = 1_000
KINDS = ("impostor", "genuine")


@dataclasses.dataclass(frozen=True)
class Group:
    """Counts of the rows of one group; index 0 stands for impostor pairs and 1 for genuine pairs.

    Attributes:
        rows: Number of rows.
        failed: Number of rows without a score.
        pairs: Numbers of labelled pairs with a score, int64 `(2,)`.
        matches: Numbers of these that match, int64 `(2,)`.
        histograms: Histograms of their scores, int64 `(2, _BINS)`.
        clusters: The counts of pairs and errors by subject; empty without columns that name subjects.
    """

    rows: int
    failed: int
    pairs: np.ndarray
    matches: np.ndarray
    histograms: np.ndarray
    clusters: Clusters

    @classmethod
    def merge(cls, parts: Iterable[Group]) -> Group:
        """Returns the sum of groups."""
        parts = list(parts)
        summed = ("rows", "failed", "pairs", "matches", "histograms")
        sums = {name: sum(getattr(part, name) for part in parts) for name in summed}
        return cls(**sums, clusters=merge_clusters(part.clusters for part in parts))


# A value of a column, `NO_VALUE` or `MIXED`.
Value = str | None
# By column and value; None for a column that has more than `MAX_GROUPS` values.
Groups = dict[str, dict[Value, Group] | None]
# By `kind` of the entries of `_summary.json`, what the report calls our own groups.
_LABELS = {"none": "(none)", "mixed": "(mixed)"}
_KINDS = {NO_VALUE: "none", MIXED: "mixed"}


def count_groups(
    table: pa.Table,
    scores: np.ndarray,
    labels: np.ndarray,
    columns: Mapping[str, tuple[str, str]],
    subjects: Subjects | None = None,
) -> Groups:
    """Counts the rows of each group.

    Args:
        table: Scored rows.
        scores: Their scores, float32 `(n,)`, NaN where there is none.
        labels: 1 for genuine, 0 for impostor, -1 for unlabelled, int8 `(n,)`.
        columns: The columns that name groups, as `group_columns` returns them.
        subjects: The subjects of the rows, if columns name them.
    """
    matches = pc.fill_null(table["match"], False).to_numpy()
    groups = {name: pair_groups(table, *sides) for name, sides in columns.items()}
    return {name: _count_column(column, scores, labels, matches, subjects) for name, column in groups.items()}


def _count_column(
    column: pa.ChunkedArray, scores: np.ndarray, labels: np.ndarray, matches: np.ndarray, subjects: Subjects | None
) -> dict[Value, Group] | None:
    texts = pa.chunked_array(column.chunks, pa.string()).combine_chunks()
    encoded = texts.dictionary_encode(null_encoding="encode")
    names = encoded.dictionary.to_pylist()
    if count_values(names) > MAX_GROUPS:
        return None
    value, has_score, count = encoded.indices.to_numpy(), ~np.isnan(scores), len(names)
    bins = np.searchsorted(_STARTS, metrics.bin_numbers(np.nan_to_num(scores)), side="right") - 1
    kinds = [has_score & (labels == label) for label in (0, 1)]
    rows, failed = np.bincount(value, minlength=count), np.bincount(value[~has_score], minlength=count)
    pairs = np.stack([np.bincount(value[kind], minlength=count) for kind in kinds], axis=1)
    matched = np.stack([np.bincount(value[kind & matches], minlength=count) for kind in kinds], axis=1)
    places = [np.bincount(value[kind] * _BINS + bins[kind], minlength=count * _BINS) for kind in kinds]
    histograms = np.stack([place.reshape(count, _BINS) for place in places], axis=1)
    clusters = [subjects.count(labels, has_score & (value == k), COARSE) if subjects else {} for k in range(count)]
    return {
        name: Group(int(rows[k]), int(failed[k]), pairs[k], matched[k], histograms[k], clusters[k])
        for k, name in enumerate(names)
    }


def merge_groups(parts: Iterable[Groups]) -> Groups:
    """Returns the sum of the counts of several tables."""
    parts = [part for part in parts if part]
    merged: Groups = {}
    for column in dict.fromkeys(name for part in parts for name in part):
        found = [part[column] for part in parts if column in part]
        if any(groups is None for groups in found):
            merged[column] = None
            continue
        by_value: dict[Value, list[Group]] = {}
        for groups in found:
            for value, group in (groups or {}).items():
                by_value.setdefault(value, []).append(group)
        summed = {value: Group.merge(same) for value, same in by_value.items()}
        merged[column] = summed if count_values(summed) <= MAX_GROUPS else None
    return merged


def describe_groups(groups: Groups, strangers: Strangers | None = None) -> dict[str, Any] | None:
    """Returns the section `groups` of `_summary.json`; None without a column."""
    if not groups:
        return None
    of_group = strangers.groups if strangers else {}
    return {
        column: None if values is None else _describe_column(values, of_group.get(column, {}))
        for column, values in groups.items()
    }


def _describe_column(values: Mapping[Value, Group], strangers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    whole = Group.merge(values.values())
    fmr, fnmr = _rates(whole)
    return {
        "each": [
            _describe_group(value, values[value], fmr, fnmr)
            | {"strangers": strangers.get(value) if value is not None else None}
            for value in _sorted(values)
        ],
        "fmr": fmr.value,
        "fnmr": fnmr.value,
        "fmr_ratios": _ratios(values, "impostor"),
        "fnmr_ratios": _ratios(values, "genuine"),
    }


def _sorted(values: Iterable[Value]) -> list[Value]:
    """Returns our own groups, and then the values in the order of their texts."""
    return sorted(values, key=lambda value: (value not in NO_GROUPS, value is not None, value or ""))


def _rates(group: Group) -> tuple[metrics.Rate, metrics.Rate]:
    (impostor, genuine), (false_matches, matches) = group.pairs.tolist(), group.matches.tolist()
    return metrics.Rate(false_matches, impostor), metrics.Rate(genuine - matches, genuine)


def _describe_group(value: Value, group: Group, whole_fmr: metrics.Rate, whole_fnmr: metrics.Rate) -> dict[str, Any]:
    fmr, fnmr = _rates(group)
    impostor, genuine = group.histograms
    eer = metrics.equal_error_rate(genuine, impostor)[0] if group.pairs.all() else None
    of_fmr, of_fnmr = (_effective_sample_size(group, kind) for kind in KINDS)
    return {
        "value": None if value in NO_GROUPS else value,
        "kind": _KINDS.get(value, "value"),
        "rows": group.rows,
        "failed": group.failed,
        "impostor": fmr.trials,
        "genuine": fnmr.trials,
        "fmr": fmr.value,
        "fmr_interval": of_fmr.interval(fmr),
        "fmr_can_be_told": _can_be_told(fmr, whole_fmr),
        "fnmr": fnmr.value,
        "fnmr_interval": of_fnmr.interval(fnmr),
        "fnmr_can_be_told": _can_be_told(fnmr, whole_fnmr),
        "eer": eer,
    }


def _can_be_told(rate: metrics.Rate, whole: metrics.Rate) -> bool:
    return rate.trials * (whole.value or 0) >= _LEAST_ERRORS


def _effective_sample_size(group: Group, kind: str) -> metrics.EffectiveSampleSize:
    counts = group.clusters.get(kind)
    return counts.effective_sample_size(_rates(group)[KINDS.index(kind)]) if counts else metrics.INDEPENDENT


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """An error rate of a group, with its variance.

    Attributes:
        rate: The rate.
        counts: The counts by subject, or None.
        value: The rate; half an error stands for none, so that ratios are finite.
        variance: Its variance.
        quantile: The 97.5% quantile of its distribution, in standard deviations.
    """

    rate: metrics.Rate
    counts: ClusteredCounts | None
    value: float
    variance: float
    quantile: float

    @classmethod
    def of(cls, group: Group, kind: str) -> _Estimate:
        rate, size = _rates(group)[KINDS.index(kind)], _effective_sample_size(group, kind)
        value = max(rate.errors, 0.5) / rate.trials
        # Where all pairs are errors, half a pair that is none keeps the variance from being 0.
        unsure = min(value, 1 - 0.5 / rate.trials)
        share = size.share if 0 < rate.errors < rate.trials else size.share_alike
        return cls(rate, group.clusters.get(kind), value, unsure * (1 - unsure) / (rate.trials * share), size.quantile)

    def ratio_to(self, other: _Estimate) -> dict[str, Any]:
        """Returns the ratio of this rate to that of other pairs, and its 95% interval."""
        return _describe_ratio(self.value / other.value, self._reach(other))

    def ratio_to_all(self, others: _Estimate) -> dict[str, Any]:
        """Returns the ratio of this rate to the rate of its pairs and all others together, and its 95% interval.

        This rate is a part of the whole. The logarithm of its ratio to the whole therefore moves by as much of that of its
        ratio to the others as they have of all errors.
        """
        ours, theirs = self.value * self.rate.trials, others.value * others.rate.trials
        whole = (self.rate.errors + others.rate.errors) / (self.rate.trials + others.rate.trials)
        return _describe_ratio(self.value / whole, self._reach(others) * theirs / (ours + theirs))

    def _reach(self, other: _Estimate) -> float:
        """Returns how far the 95% interval of the ratio's logarithm reaches to either side, by the delta method; above 0."""
        ours, theirs = math.sqrt(self.variance) / self.value, math.sqrt(other.variance) / other.value
        variance = ours**2 + theirs**2 - 2 * self._correlation(other) * ours * theirs
        return max(self.quantile, other.quantile) * math.sqrt(variance)

    def _correlation(self, other: _Estimate) -> float:
        """Returns how far this rate and that of other pairs err together, because pairs of both share subjects.

        With m shared subjects, an estimated correlation is itself uncertain by about 1/√m. A correlation that is estimated
        too high makes an interval too narrow, and one of 1 leaves no interval at all. It is therefore taken as at most
        1 − 2/√m, and as at most 0 for four subjects or fewer.
        """
        if not self.counts or not other.counts:
            return 0.0
        shared = self.counts.shared_clusters(other.counts)
        covariance = self.counts.covariance(self.rate, other.counts, other.rate)
        highest = 1 - 2 / math.sqrt(max(4, shared))
        return min(covariance / math.sqrt(self.variance * other.variance), highest)


def _describe_ratio(ratio: float, reach: float) -> dict[str, Any]:
    """Describes a ratio; its interval is None where it would span more than three powers of ten: the pairs are too few."""
    interval = (ratio * math.exp(-reach), ratio * math.exp(reach)) if 2 * reach <= math.log(_WIDEST) else None
    return {"ratio": ratio, "interval": interval}


def _ratios(values: Mapping[Value, Group], kind: str) -> dict[str, Any] | None:
    """Returns the ratio of the worst group to the best and to all; None where fewer than two groups can be told.

    Pairs of two groups are neither the worst nor the best: impostors of one group are most often harder to tell apart. Rows
    without a group aren't either.
    """
    together, place = Group.merge(values.values()), KINDS.index(kind)
    told = [
        value
        for value in _sorted(values)
        if value is not None and value not in NO_GROUPS and _can_be_told(_rates(values[value])[place], _rates(together)[place])
    ]
    if len(told) < 2:
        return None
    each = {value: _Estimate.of(values[value], kind) for value in told}
    worst, best = max(told, key=lambda value: each[value].value), min(told, key=lambda value: each[value].value)
    others = Group.merge(group for value, group in values.items() if value != worst)
    return {
        "worst": worst,
        "best": best,
        "worst_to_best": each[worst].ratio_to(each[best]),
        "worst_to_all": each[worst].ratio_to_all(_Estimate.of(others, kind)),
    }


def largest_ratio(section: Mapping[str, Any] | None) -> float | None:
    """Returns the largest ratio of a worst group to a best one, over all columns and both rates; None if none can be told."""
    columns = [column for column in (section or {}).values() if column]
    ratios = [column[name] for column in columns for name in ("fmr_ratios", "fnmr_ratios") if column[name]]
    return max((ratio["worst_to_best"]["ratio"] for ratio in ratios), default=None)


def group_label(group: Mapping[str, Any]) -> str:
    """Returns what the report calls an entry of `groups.*.each`; no value has the label of another, or one of ours."""
    return _LABELS.get(group["kind"]) or _value_label(group["value"])


def _value_label(value: str) -> str:
    is_clear = value not in _LABELS.values() and not value.startswith("'")
    return value if is_clear else f"'{value}'"


def describe_differential(column: str, section: Mapping[str, Any] | None) -> str:
    """Returns in words how far the groups of one column lie apart."""
    if section is None:
        return f"{column}: more than {MAX_GROUPS:,} values, so these are no groups"
    sentences = []
    for rate in ("fmr", "fnmr"):
        if ratios := section[f"{rate}_ratios"]:
            by_value = {group["value"]: group[rate] for group in section["each"]}
            worst, best = by_value[ratios["worst"]], by_value[ratios["best"]]
            labels = map(_value_label, (ratios["worst"], ratios["best"]))
            names = [label if len(label) <= _SHOWN else f"{label[:_SHOWN]}…" for label in labels]
            half = ", counting half an error for none" if best == 0 else ""
            to_best, to_all = ratios["worst_to_best"], ratios["worst_to_all"]
            times = f"{to_best['ratio']:.1f} times, {_describe_interval(to_best['interval'])}"
            all_times = f"{to_all['ratio']:.1f} times that of all"
            sentences.append(
                f"{rate.upper()} {worst:.2%} for {names[0]} and {best:.2%} for {names[1]} ({times}{half}; {all_times})"
            )
    if section["fmr"] is None and section["fnmr"] is None:
        return f"{column}: no labels, so no error rates; the report has the strangers of each group"
    return f"{column}: {'; '.join(sentences) if sentences else 'too few pairs to tell groups apart'}"


def _describe_interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "too few pairs to tell an interval"
    return f"95% interval {interval[0]:.1f} to {interval[1]:.1f}"
