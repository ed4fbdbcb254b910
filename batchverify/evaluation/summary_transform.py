"""The Beam transform that computes a run's summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

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
        # Beam's own runner keeps what enters a Flatten. That is a part for each bundle, and not for each block or bucket.
        rows = pcolls["scores"] | "Rows" >> beam.Map(summarise_rows, *columns) | "MergeRows" >> beam.ParDo(_MergeBundle())
        config = self._config
        second = None if config.candidate is None else config.candidate_match_threshold()
        images = (
            pcolls["images"]
            | "Images" >> beam.Map(summarise_images, config.match_threshold(), second)
            | "MergeImages" >> beam.ParDo(_MergeBundle())
        )
        parts = [rows, images]
        if "examined" in pcolls:
            parts.append(pcolls["examined"] | "Examined" >> beam.MapTuple(_summarise_examined))
        summary: PCollection[Summary] = parts | beam.Flatten() | beam.CombineGlobally(Summary.merge)
        return summary


class _MergeBundle(beam.DoFn):
    """Turns the summaries of a bundle into one."""

    def __init__(self) -> None:
        self._merged: Summary | None = None

    def start_bundle(self) -> None:
        """Forgets what a bundle has left that failed."""
        self._merged = None

    def process(self, part: Summary) -> None:
        """Adds a part."""
        self._merged = part if self._merged is None else Summary.merge([self._merged, part])

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Yields the summary of the bundle."""
        if self._merged is not None:
            yield GlobalWindows.windowed_value(self._merged)


def _summarise_examined(strangers: Strangers | None, steadiness: dict[str, Any] | None, candidate: Any) -> Summary:
    return Summary(strangers=strangers, steadiness=steadiness, candidate=candidate and _summarise_examined(*candidate))
