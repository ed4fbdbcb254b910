"""What a job does with the images that it draws at random: it compares strangers, and measures steadiness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, PCollection

from batchverify.config import ScoringConfig, with_candidate_threshold
from batchverify.evaluation.strangers import Strangers
from batchverify.pipeline.drawn_images import DrawnImages
from batchverify.pipeline.network import Network, NetworkLoader, NetworkWithCandidate
from batchverify.pipeline.steadiness import measure_steadiness
from batchverify.pipeline.strangers import KnownMates, compare_strangers
from batchverify.pipeline.wrong_scores import CANDIDATE, MODEL
from batchverify.worker_stats import WorkerStats


class Examined(NamedTuple):
    """What the images that a run draws at random say about its model.

    Attributes:
        strangers: The comparisons of these images with each other; None without `ScoringConfig.stranger_pairs`.
        steadiness: The section `steadiness` of `_summary.json`; None without `ScoringConfig.steadiness_images`.
        candidate: What the same images say about the candidate; None without one.
    """

    strangers: Strangers | None
    steadiness: dict[str, Any] | None
    candidate: Examined | None = None


class ExamineDrawn(beam.PTransform[Any, Any]):
    """Turns `{"drawn": DrawnImages of buckets, "blocks": blocks of the manifest}` into one `Examined`.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        base: The result of `base_of_draw`.
        stats: The counts and times of this process.
    """

    def __init__(self, loader: NetworkLoader, config: ScoringConfig, base: str, stats: WorkerStats):
        super().__init__()
        self._loader, self._config, self._base, self._stats = loader, config, base, stats

    def expand(self, pcolls: dict[str, PCollection[Any]]) -> PCollection[Examined]:
        drawn = pcolls["drawn"] | "Draw" >> beam.CombineGlobally(DrawnImages.merge)
        mates = (
            pcolls["blocks"]
            | "ReadMates" >> beam.Map(_read_mates, self._config, self._base)
            | "MergeMates" >> beam.CombineGlobally(KnownMates.merge)
        )
        examine = beam.ParDo(_Examine(self._loader, self._config, self._stats), AsSingleton(drawn), AsSingleton(mates))
        examined: PCollection[Examined] = drawn.pipeline | "Once" >> beam.Create([None], reshuffle=False) | examine
        return examined


def _read_mates(element: tuple[str, pa.Table], config: ScoringConfig, base: str) -> KnownMates:
    return KnownMates.read(element[1], config, base)


class _Examine(beam.DoFn):
    def __init__(self, loader: NetworkLoader, config: ScoringConfig, stats: WorkerStats):
        self._loader, self._config, self._stats = loader, config, stats

    def setup(self) -> None:
        self._network = self._loader.get()

    def process(self, _: None, drawn: DrawnImages, mates: KnownMates) -> Iterator[Examined]:
        config, candidate = self._config, None
        with self._stats.timed("examine"):
            if config.candidate is not None:
                network = cast(NetworkWithCandidate, self._network).candidate
                candidate = _examine(drawn.of_candidate(), mates, network, with_candidate_threshold(config), CANDIDATE)
            yield _examine(drawn, mates, self._network, config, MODEL)._replace(candidate=candidate)


def _examine(drawn: DrawnImages, mates: KnownMates, network: Network, config: ScoringConfig, who: str) -> Examined:
    strangers = compare_strangers(drawn, mates, network, config, who) if config.stranger_pairs else None
    steadiness = measure_steadiness(drawn, network, config) if config.steadiness_images else None
    return Examined(strangers, steadiness)
