"""The Beam transform that computes a run's summary."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from batchverify.config import ScoringConfig
from batchverify.evaluation.strangers import Strangers
from batchverify.evaluation.summary import Summary, summarise_images, summarise_rows


class Summarise(beam.PTransform[Any, Any]):
    """Reduces `{"scores": tables, "images": tables, "examined": Examined}` to one `Summary`; `examined` may be missing.

    Args:
        config: The settings of the run.
        label_column: The manifest column with labels, or None.
        fold_column: The manifest column with folds, or None.
    """

    def __init__(self, config: ScoringConfig, label_column: str | None, fold_column: str | None = None):
        super().__init__()
        self._config, self._label_column, self._fold_column = config, label_column, fold_column

    def expand(self, pcolls: dict[str, PCollection[Any]]) -> PCollection[Summary]:
        columns = (self._config, self._label_column, self._fold_column)
        rows = pcolls["scores"] | "Rows" >> beam.Map(summarise_rows, *columns)
        config = self._config
        second = None if config.candidate is None else config.candidate_match_threshold()
        images = pcolls["images"] | "Images" >> beam.Map(summarise_images, config.match_threshold(), second)
        parts = [rows, images]
        if "examined" in pcolls:
            parts.append(pcolls["examined"] | "Examined" >> beam.MapTuple(_summarise_examined))
        summary: PCollection[Summary] = parts | beam.Flatten() | beam.CombineGlobally(Summary.merge)
        return summary


def _summarise_examined(strangers: Strangers | None, steadiness: dict[str, Any] | None, candidate: Any) -> Summary:
    return Summary(strangers=strangers, steadiness=steadiness, candidate=candidate and _summarise_examined(*candidate))
