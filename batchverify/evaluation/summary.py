"""What a run found, from mergeable counts: computed inside the pipeline, written as `summary.json`.

`summary.json`, version 2. A key that is not always there has a `?`; `*` stands for names that the data decide. Rates are shares
in [0, 1], with `…_interval` the bounds of Wilson's 95% interval; null stands for a rate of nothing. A histogram is a list of
`[bin, count]` without the empty bins: bin i of `bins` begins at the score i/bins.

| key | type | |
| --- | --- | --- |
| summary_version | int | 2; readers refuse what is newer than they are |
| run.version, run.run_id, run.started | str | of this program, of the run, in UTC |
| run.manifest | list | as it was given |
| run.model, run.model_digest, run.model_structure, run.preprocessing | str | |
| run.limit | int? | only so many rows were asked for |
| run.model_notes | list | sentences |
| run.threshold, run.identity_tolerance | float | |
| run.label_column, run.fold_column | str? | the columns in use, null for none |
| run.options.* | any | every field of `VerificationConfig`; what is at its default is not there |
| run.working_directory | str | where relative paths of the manifest start |
| run.versions.* | str | of Python and of the libraries |
| run.certificate | dict? | null where the model could not be taken apart; else as in the rows below |
| run.certificate.comparison | str? | what the head computes of two embeddings |
| run.certificate.bias, run.certificate.identity_score, run.certificate.bound | float? | see `certificate.Certificate` |
| run.certificate.weights, run.certificate.positive_weights | int | how many, and how many of them are above zero |
| run.certificate.holds | bool? | whether no pair can outscore an identity score; null where weights don't tell |
| rows.total, rows.scored, rows.failed, rows.matches, rows.same_image, rows.not_a_number | int | rows |
| rows.left.*, rows.right.* | int | rows by that image's status |
| images.total | int | distinct images |
| images.* | int | distinct images by status |
| identity.sane, identity.below_threshold, identity.outscored, identity.not_checked | int | rows by verdict |
| identity.images_below_threshold | int | distinct images |
| identity.score_min, identity.score_mean, identity.score_max | float? | of distinct images' identity scores |
| failure_to_acquire.rate | float? | share of distinct images that could not be read (ISO/IEC 19795-1) |
| failure_to_acquire.interval | list? | |
| error_rates | dict? | null without labels; else as in the rows below |
| error_rates.threshold | float | |
| error_rates.genuine, error_rates.impostor | int | pairs with a score |
| error_rates.genuine_failed, error_rates.impostor_failed | int | pairs without |
| error_rates.fmr, error_rates.fnmr, error_rates.accuracy | float? | of pairs with a score |
| error_rates.eer, error_rates.eer_threshold | float? | of pairs with a score |
| error_rates.generalised_fmr, error_rates.generalised_fnmr | float? | of all: a genuine pair that failed is a false non-match |
| error_rates.*_interval | list? | |
| error_rates.at_fmr | list | empty without impostor pairs |
| error_rates.at_fmr[].target | float | an FMR |
| error_rates.at_fmr[].threshold | float? | the lowest that gives it |
| error_rates.at_fmr[].fmr, error_rates.at_fmr[].fnmr | float? | found there |
| error_rates.at_fmr[].fmr_interval, error_rates.at_fmr[].fnmr_interval | list? | |
| error_rates.at_fmr[].evidence | str | `enough`, `rough` or `too_few`; see `metrics.OperatingPoint` |
| error_rates.folds | dict? | null without folds; LFW's protocol, see `metrics.fold_accuracies` |
| error_rates.folds.accuracy_mean, error_rates.folds.accuracy_standard_error | float | |
| error_rates.folds.each | list | |
| error_rates.folds.each[].fold | str | |
| error_rates.folds.each[].pairs | int | |
| error_rates.folds.each[].threshold, error_rates.folds.each[].accuracy | float | |
| score_histograms.bins | int | |
| score_histograms.unlabelled, score_histograms.impostor, score_histograms.genuine | list | of rows |
| score_histograms.identity_faults | list | of rows whose identity check is not sane |
| score_histograms.identity | list | of distinct images' identity scores |
| score_histograms.folds | dict? | null where there are more than 50 |
| score_histograms.folds.*.genuine, score_histograms.folds.*.impostor | list | of rows |
| extremes.* | list | at most 12 pairs of a kind, the most telling first; see `extremes.Extremes` |
| extremes.*[].left, extremes.*[].right, extremes.*[].error | str? | as in manifest and output; cut after 1,000 characters |
| extremes.*[].manifest_file | str | |
| extremes.*[].manifest_row | int | |
| extremes.*[].score, extremes.*[].identity_left, extremes.*[].identity_right | float? | |
| extremes.*[].label | bool? | true for a genuine pair |
| baseline | dict? | the run compared with; null without one; else as in the rows below, `[before, now]` |
| baseline.path, baseline.run_id | str | |
| baseline.psi, baseline.ks | float? | see `drift`; null where a run has no scores |
| baseline.match_rate, baseline.score_mean, baseline.threshold | list | |
| baseline.failures.*, baseline.identity.* | list | by status; by what `identity` has |
| baseline.model_changed | bool | |
| embeddings | dict? | the store of embeddings; null without one; else as in the rows below |
| embeddings.path | str | |
| embeddings.stored | int | embeddings that were read; tonight's manifest need not name them all |
| embeddings.ignored | str? | why others, that lie there, were not |
| embeddings.reused, embeddings.encoded | int | distinct images |
| profile | dict? | where the time went; null where workers were on other machines; else as in the rows below |
| profile.wall_seconds | float | since the pipeline began, to the summary |
| profile.seconds.* | float | of all workers; `fetch`, `decode`, `encode` while others `wait`; `shuffle` is the rest |
| profile.images_per_second, profile.rows_per_second | float | |
| profile.device_idle_share | float? | share of wall_seconds in which the encoder did nothing; null with several processes |
| gates | list | empty where none is set |
| gates[].option, gates[].limit | str | |
| gates[].found | float? | rows at fault, or the population stability index, null where there is nothing to compare |
| gates[].rows | int | |
| gates[].met | bool | |
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import ScoringConfig
from batchverify.evaluation import metrics
from batchverify.evaluation.extremes import Extremes, find_extremes
from batchverify.evaluation.identity import is_match
from batchverify.manifest.columns import parse_labels
from batchverify.schema import STATUSES, IdentityCheck, ImageStatus

SUMMARY_VERSION = 2
KINDS = ("unlabelled", "impostor", "genuine")
# Folds are few; a column with a value for each row is none of them, and must not fill the memory.
_MOST_FOLDS = 50
_LONGEST_FOLD = 100
_ADDED = ("scores", "identity_faults", "identity_scores")

Folds = dict[str, np.ndarray]


def _no_scores() -> np.ndarray:
    return np.zeros((len(KINDS), metrics.BINS), np.int64)


def _no_bins() -> np.ndarray:
    return np.zeros(metrics.BINS, np.int64)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts that add up, in any order.

    Attributes:
        counts: how many of what; names are those of `summary.json`, with dots.
        scores: int64 `(3, BINS)`, a histogram of scores for each of `KINDS`.
        identity_faults: int64 `(BINS,)`, of the scores of rows whose identity check is not sane.
        identity_scores: int64 `(BINS,)`, of distinct images' identity scores.
        identity_range: lowest and highest identity score.
        identity_sum: sum of all identity scores.
        folds: for each fold int64 `(2, BINS)`, histograms of impostor and genuine pairs; None where there are too many.
        extremes: the most telling pairs.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    scores: np.ndarray = dataclasses.field(default_factory=_no_scores)
    identity_faults: np.ndarray = dataclasses.field(default_factory=_no_bins)
    identity_scores: np.ndarray = dataclasses.field(default_factory=_no_bins)
    identity_range: tuple[float, float] = (float("inf"), float("-inf"))
    identity_sum: float = 0.0
    folds: Folds | None = dataclasses.field(default_factory=dict)
    extremes: Extremes = dataclasses.field(default_factory=Extremes)

    @classmethod
    def merge(cls, parts: Iterable[Summary]) -> Summary:
        """Adds up; of nothing it is the summary of no rows."""
        parts = list(parts)
        counts: collections.Counter[str] = collections.Counter()
        for part in parts:
            counts.update(part.counts)
        sums = {name: sum((getattr(part, name) for part in parts), getattr(cls(), name)) for name in _ADDED}
        low = min((part.identity_range[0] for part in parts), default=float("inf"))
        high = max((part.identity_range[1] for part in parts), default=float("-inf"))
        return cls(
            counts=counts,
            identity_range=(low, high),
            identity_sum=sum(part.identity_sum for part in parts),
            folds=_merge_folds(part.folds for part in parts),
            extremes=Extremes.merge(part.extremes for part in parts),
            **sums,
        )

    def to_json(self, threshold: float) -> dict[str, Any]:
        """Returns what `summary.json` says of the rows and images."""
        compared = int(self.identity_scores.sum())
        low, high = self.identity_range
        failed = metrics.Rate(self.counts["images.total"] - self.counts["images.ok"], self.counts["images.total"])
        return {
            "rows": self._section("rows"),
            "images": self._section("images"),
            "identity": {
                **{str(verdict): self.counts[f"identity.{verdict}"] for verdict in IdentityCheck},
                "images_below_threshold": self.counts["identity.images_below_threshold"],
                "score_min": low if compared else None,
                "score_mean": self.identity_sum / compared if compared else None,
                "score_max": high if compared else None,
            },
            "failure_to_acquire": {"rate": failed.value, "interval": failed.interval},
            "error_rates": self._error_rates(threshold),
            "score_histograms": {
                "bins": metrics.BINS,
                **{kind: metrics.sparse(found) for kind, found in zip(KINDS, self.scores, strict=True)},
                "identity_faults": metrics.sparse(self.identity_faults),
                "identity": metrics.sparse(self.identity_scores),
                "folds": self.folds
                and {
                    name: {"impostor": metrics.sparse(impostor), "genuine": metrics.sparse(genuine)}
                    for name, (impostor, genuine) in sorted(self.folds.items())
                },
            },
            "extremes": self.extremes.to_json(),
            "embeddings": None,
        }

    def _section(self, name: str) -> dict[str, int]:
        return {key.removeprefix(f"{name}."): n for key, n in sorted(self.counts.items()) if key.startswith(f"{name}.")}

    def _error_rates(self, threshold: float) -> dict[str, Any] | None:
        _, impostor, genuine = self.scores
        failed = self.counts["pairs.genuine_failed"], self.counts["pairs.impostor_failed"]
        if not genuine.sum() and not impostor.sum():
            return None
        matches = self.counts["pairs.genuine_matches"], self.counts["pairs.impostor_matches"]
        folds = {name: (genuine, impostor) for name, (impostor, genuine) in (self.folds or {}).items()}
        found = metrics.describe(genuine, impostor, threshold, matches, failed)
        return found | {"folds": metrics.describe_folds(folds)}


class Summarise(beam.PTransform):
    """`{"scores": tables, "images": tables}` to one `Summary`.

    Args:
        config: of the run.
        label_column: manifest column with labels, or None.
        fold_column: manifest column with folds, or None.
    """

    def __init__(self, config: ScoringConfig, label_column: str | None, fold_column: str | None = None):
        super().__init__()
        self._config, self._label_column, self._fold_column = config, label_column, fold_column

    def expand(self, pcolls: dict[str, beam.PCollection[pa.Table]]) -> beam.PCollection[Summary]:
        columns = (self._config, self._label_column, self._fold_column)
        rows = pcolls["scores"] | "Rows" >> beam.Map(summarise_rows, *columns)
        images = pcolls["images"] | "Images" >> beam.Map(summarise_images, self._config.match_threshold())
        return (rows, images) | beam.Flatten() | beam.CombineGlobally(Summary.merge)


def summarise_rows(table: pa.Table, config: ScoringConfig, label_column: str | None, fold_column: str | None) -> Summary:
    """Counts one table of scored rows."""
    labels = parse_labels(table[label_column])[0] if label_column else np.full(table.num_rows, -1, np.int8)
    scored = table["score"].is_valid().to_numpy(zero_copy_only=False)
    scores = table["score"].to_numpy()
    verdict = table["identity_check"].cast(pa.string())
    sane = pc.is_in(verdict, pa.array([str(IdentityCheck.SANE)])).to_numpy(zero_copy_only=False)
    return Summary(
        counts=_count_rows(table, labels),
        scores=np.stack([metrics.histogram(scores[scored & (labels == code - 1)]) for code in range(len(KINDS))]),
        identity_faults=metrics.histogram(scores[scored & ~sane]),
        folds=_count_folds(table[fold_column], scores, scored, labels) if fold_column else {},
        extremes=find_extremes(table, labels, config),
    )


def _count_rows(table: pa.Table, labels: np.ndarray) -> collections.Counter[str]:
    counts = collections.Counter({"rows.total": table.num_rows, "rows.failed": table["score"].null_count})
    counts["rows.scored"] = counts["rows.total"] - counts["rows.failed"]
    counts["rows.matches"] = pc.sum(table["match"]).as_py() or 0
    both = pc.and_(*(pc.equal(table[column].cast(pa.string()), "ok") for column in ("left_status", "right_status")))
    counts["rows.not_a_number"] = pc.sum(pc.and_(both, table["score"].is_null())).as_py() or 0
    counts["rows.same_image"] = pc.sum(table["same_image"]).as_py() or 0
    for column, name in (("identity_check", "identity"), ("left_status", "rows.left"), ("right_status", "rows.right")):
        for found in pc.value_counts(table[column].cast(pa.string())).to_pylist():
            counts[f"{name}.{found['values']}"] += found["counts"]
    failed = table["score"].is_null().to_numpy(zero_copy_only=False)
    match = pc.fill_null(table["match"], False).to_numpy()
    for code, name in ((1, "genuine"), (0, "impostor")):
        counts[f"pairs.{name}_matches"] = int(np.count_nonzero(match & (labels == code)))
        counts[f"pairs.{name}_failed"] = int(np.count_nonzero(failed & (labels == code)))
    return counts


def _count_folds(column: pa.ChunkedArray, scores: np.ndarray, scored: np.ndarray, labels: np.ndarray) -> Folds | None:
    """Returns the histograms of each fold; rows that name none are in none."""
    text = pc.utf8_slice_codeunits(column.cast(pa.string()), 0, _LONGEST_FOLD)
    named = pc.if_else(pc.equal(text, ""), None, text).combine_chunks().dictionary_encode()
    if len(named.dictionary) > _MOST_FOLDS:
        return None
    code = pc.fill_null(named.indices, -1).to_numpy()
    return {
        name: np.stack([metrics.histogram(scores[scored & (code == number) & (labels == kind)]) for kind in (0, 1)])
        for number, name in enumerate(named.dictionary.to_pylist())
    }


def _merge_folds(parts: Iterable[Folds | None]) -> Folds | None:
    merged: Folds = {}
    for part in parts:
        if part is None:
            return None
        for name, counts in part.items():
            merged[name] = merged[name] + counts if name in merged else counts
    return merged if len(merged) <= _MOST_FOLDS else None


def summarise_images(table: pa.Table, threshold: float) -> Summary:
    """Counts one table of encoded images."""
    statuses = np.bincount(table["status"].to_numpy(), minlength=len(STATUSES))
    counts = collections.Counter({f"images.{word}": int(n) for word, n in zip(STATUSES, statuses, strict=True) if n})
    counts["images.total"] = table.num_rows
    ok = table["status"].to_numpy() == STATUSES.index(ImageStatus.OK)
    if "reused" in table.column_names:
        counts["embeddings.reused"] = pc.sum(table["reused"]).as_py() or 0
        counts["embeddings.encoded"] = int(ok.sum()) - counts["embeddings.reused"]
    identity = table["identity"].to_numpy()[ok]
    identity = identity[np.isfinite(identity)]
    counts["identity.images_below_threshold"] = int(np.count_nonzero(~is_match(identity, threshold)))
    if not len(identity):
        return Summary(counts=counts)
    return Summary(
        counts=counts,
        identity_scores=metrics.histogram(identity),
        identity_range=(float(identity.min()), float(identity.max())),
        identity_sum=float(identity.sum(dtype=np.float64)),
    )
