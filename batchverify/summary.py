"""What a run found, from mergeable counts: computed inside the pipeline, written as `summary.json`."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify import metrics
from batchverify.config import ScoringConfig
from batchverify.identity import is_match
from batchverify.manifest import parse_labels
from batchverify.schema import STATUSES, IdentityCheck, ImageStatus

SUMMARY_VERSION = 1
KINDS = ("unlabelled", "impostor", "genuine")


def _no_scores() -> dict[str, np.ndarray]:
    return {kind: np.zeros(metrics.BINS, np.int64) for kind in KINDS}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts that add up, in any order.

    Attributes:
        counts: how many of what; names are those of `summary.json`, with dots.
        scores: histogram of scores for each kind of pair.
        identity_range: lowest and highest identity score.
        identity_sum: sum of all identity scores.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=_no_scores)
    identity_range: tuple[float, float] = (float("inf"), float("-inf"))
    identity_sum: float = 0.0

    @classmethod
    def merge(cls, parts: Iterable[Summary]) -> Summary:
        """Adds up; of nothing it is the summary of no rows."""
        counts: collections.Counter[str] = collections.Counter()
        scores, low, high, total = _no_scores(), float("inf"), float("-inf"), 0.0
        for part in parts:
            counts.update(part.counts)
            for kind in KINDS:
                scores[kind] += part.scores[kind]
            low, high = min(low, part.identity_range[0]), max(high, part.identity_range[1])
            total += part.identity_sum
        return cls(counts, scores, (low, high), total)

    def to_json(self, threshold: float) -> dict[str, Any]:
        """Returns what `summary.json` says of the rows and images."""
        compared = self.counts["images.ok"]
        low, high = self.identity_range
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
            "error_rates": self._error_rates(threshold),
            "score_histograms": {
                "bins": metrics.BINS,
                **{kind: [[int(i), int(found[i])] for i in np.flatnonzero(found)] for kind, found in self.scores.items()},
            },
        }

    def _section(self, name: str) -> dict[str, int]:
        return {key.removeprefix(f"{name}."): n for key, n in sorted(self.counts.items()) if key.startswith(f"{name}.")}

    def _error_rates(self, threshold: float) -> dict[str, float | int | None] | None:
        genuine, impostor = (int(self.scores[kind].sum()) for kind in ("genuine", "impostor"))
        if not genuine and not impostor:
            return None
        eer, at = metrics.equal_error_rate(self.scores["genuine"], self.scores["impostor"])
        return {
            "threshold": threshold,
            "genuine": genuine,
            "impostor": impostor,
            "fmr": self.counts["pairs.impostor_matches"] / impostor if impostor else None,
            "fnmr": 1 - self.counts["pairs.genuine_matches"] / genuine if genuine else None,
            "eer": eer if genuine and impostor else None,
            "eer_threshold": at if genuine and impostor else None,
        }


class Summarise(beam.PTransform):
    """`{"scores": tables, "images": tables}` to one `Summary`."""

    def __init__(self, config: ScoringConfig, label_column: str | None):
        super().__init__()
        self._config, self._label_column = config, label_column

    def expand(self, pcolls: dict[str, beam.PCollection[pa.Table]]) -> beam.PCollection[Summary]:
        rows = pcolls["scores"] | "Rows" >> beam.Map(summarise_rows, self._label_column)
        images = pcolls["images"] | "Images" >> beam.Map(summarise_images, self._config.match_threshold())
        return (rows, images) | beam.Flatten() | beam.CombineGlobally(Summary.merge)


def summarise_rows(table: pa.Table, label_column: str | None) -> Summary:
    """Counts one table of scored rows."""
    counts = collections.Counter({"rows.total": table.num_rows, "rows.failed": table["score"].null_count})
    counts["rows.scored"] = counts["rows.total"] - counts["rows.failed"]
    counts["rows.matches"] = pc.sum(table["match"]).as_py() or 0
    both = pc.and_(*(pc.equal(table[column].cast(pa.string()), "ok") for column in ("left_status", "right_status")))
    counts["rows.not_a_number"] = pc.sum(pc.and_(both, table["score"].is_null())).as_py() or 0
    counts["rows.same_image"] = pc.sum(table["same_image"]).as_py() or 0
    for column, name in (("identity_check", "identity"), ("left_status", "rows.left"), ("right_status", "rows.right")):
        for found in pc.value_counts(table[column].cast(pa.string())).to_pylist():
            counts[f"{name}.{found['values']}"] += found["counts"]
    labels = parse_labels(table[label_column])[0] if label_column else np.full(table.num_rows, -1)
    scored = table["score"].is_valid().to_numpy()
    scores, match = table["score"].to_numpy(), pc.fill_null(table["match"], False).to_numpy()
    counts["pairs.genuine_matches"] = int(np.count_nonzero(match & (labels == 1)))
    counts["pairs.impostor_matches"] = int(np.count_nonzero(match & (labels == 0)))
    kinds = {kind: metrics.histogram(scores[scored & (labels == code - 1)]) for code, kind in enumerate(KINDS)}
    return Summary(counts=counts, scores=kinds)


def summarise_images(table: pa.Table, threshold: float) -> Summary:
    """Counts one table of encoded images."""
    statuses = np.bincount(table["status"].to_numpy(), minlength=len(STATUSES))
    counts = collections.Counter({f"images.{word}": int(n) for word, n in zip(STATUSES, statuses, strict=True) if n})
    counts["images.total"] = table.num_rows
    ok = table["status"].to_numpy() == STATUSES.index(ImageStatus.OK)
    identity = table["identity"].to_numpy()[ok]
    identity = identity[np.isfinite(identity)]
    counts["identity.images_below_threshold"] = int(np.count_nonzero(~is_match(identity, threshold)))
    if not len(identity):
        return Summary(counts=counts)
    return Summary(
        counts=counts,
        identity_range=(float(identity.min()), float(identity.max())),
        identity_sum=float(identity.sum(dtype=np.float64)),
    )
