"""The whole job as a Beam pipeline."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection

from batchverify.evaluation.calibration import describe_calibration
from batchverify.evaluation.drift import RunStatistics, compare_runs
from batchverify.evaluation.gates import evaluate_gates
from batchverify.evaluation.summary import Summary
from batchverify.evaluation.summary_transform import Summarise
from batchverify.evaluation.summary_version import SUMMARY_VERSION
from batchverify.io.storage_options import with_storage_options
from batchverify.manifest.read import ReadManifest
from batchverify.output.run_directory import RunDirectory
from batchverify.output.write_scores import FinishRun, WriteScores
from batchverify.pipeline.plan import RunPlan
from batchverify.pipeline.provenance import file_metadata
from batchverify.pipeline.transforms import Verified, VerifyPairs
from batchverify.pipeline.two_readings import VerifiedManifest, VerifyManifest
from batchverify.report.render import make_report
from batchverify.schema import CANDIDATE_FIELDS, optional_fields, output_schema
from batchverify.worker_stats import WorkerStats, profile_run


def build(pipeline: beam.Pipeline, plan: RunPlan) -> None:
    """Adds the whole job to `pipeline`, after the run directory has been claimed."""
    directory = RunDirectory(plan.config.output).for_run(plan.run_id)
    config, calibration = plan.config, plan.sidecar.calibration
    optional = optional_fields(config.review is not None, calibration is not None, config.prior is not None)
    optional += CANDIDATE_FIELDS if config.candidate is not None else ()
    schema = output_schema(plan.manifest.schema, file_metadata(plan.provenance, plan.candidate), optional)
    blocks, verified = _verify(pipeline, plan)
    files = verified.scores | "WriteScores" >> WriteScores(directory, plan.run_id, schema)
    summary = _summarise(verified, plan)
    report = summary | "MakeReport" >> beam.Map(with_storage_options(make_report))
    rows_read = blocks | "RowsRead" >> beam.MapTuple(_row_count) | beam.CombineGlobally(sum)
    finish = beam.ParDo(
        FinishRun(directory, plan.run_id, plan.session),
        AsSingleton(summary), AsSingleton(report), AsSingleton(rows_read), AsIter(files),
        *([] if verified.stored_files is None else [AsIter(verified.stored_files)]),
    )  # fmt: skip
    _ = pipeline | "Once" >> beam.Create([None]) | "FinishRun" >> finish


def _verify(pipeline: beam.Pipeline, plan: RunPlan) -> VerifiedManifest:
    """Returns the blocks of the manifest, and what becomes of them."""
    options: dict[str, Any] = {
        "loader": plan.loader, "stats": plan.stats, "session": plan.session, "sidecar": plan.sidecar,
        "candidate_sidecar": plan.candidate_sidecar,
    }  # fmt: skip
    if plan.table is not None:
        verified: VerifiedManifest = pipeline | "VerifyPairs" >> VerifyManifest(
            plan.manifest, plan.config, plan.table, expected_images=plan.expected_images, **options
        )
        return verified
    blocks = pipeline | "ReadManifest" >> ReadManifest(plan.manifest, plan.config, plan.stats)
    return VerifiedManifest(blocks, blocks | "VerifyPairs" >> VerifyPairs(plan.config, plan.expected_images, **options))


def _summarise(verified: Verified, plan: RunPlan) -> PCollection[dict[str, Any]]:
    """Returns the one element that becomes `_summary.json`."""
    examined = {} if verified.examined is None else {"examined": verified.examined}
    summary: PCollection[dict[str, Any]] = (
        {"scores": verified.scores, "images": verified.images, **examined}
        | "Summarise" >> Summarise(plan.config, plan.manifest.label_column, plan.manifest.fold_column)
        | "WriteSummary" >> beam.ParDo(CompleteSummary(plan))
    )
    return summary


def _row_count(_key: str, block: pa.Table) -> int:
    return cast(int, block.num_rows)


class CompleteSummary(beam.DoFn):
    """Turns the `Summary` of all rows and images into the content of `_summary.json`.

    Args:
        plan: The plan of the run. Only some parts of it are stored here: the plan holds a network, which must not be sent to
            workers.
    """

    def __init__(self, plan: RunPlan):
        self._config, self._provenance, self._baseline = plan.config, plan.provenance, plan.baseline
        self._candidate = plan.candidate
        self._session, self._stats, self._is_one_process = plan.session, plan.stats, plan.table is not None
        self._calibration = plan.sidecar.calibration
        self._started = time.time()

    def process(self, element: Summary) -> Iterator[dict[str, Any]]:
        candidate = self._candidate
        second = None if candidate is None else candidate["threshold"]
        summary: dict[str, Any] = {
            "summary_version": SUMMARY_VERSION,
            "run": self._provenance,
            **element.to_json(self._provenance["threshold"], self._config.fmr, second),
        }
        summary["candidate"] = candidate and {**candidate, **summary["candidate"]}
        summary["baseline"] = self._compare_with_baseline(summary)
        if self._session is not None:
            summary["embeddings"] = self._describe_store(element)
        if self._calibration is not None:
            _, impostor, genuine = element.scores
            summary["calibration"] = describe_calibration(self._calibration, genuine, impostor)
        summary["profile"] = profile_workers(self._stats, time.time() - self._started, self._is_one_process)
        summary["gates"] = [dataclasses.asdict(gate) for gate in evaluate_gates(self._config, summary)]
        yield summary

    def _compare_with_baseline(self, summary: dict[str, Any]) -> dict[str, Any] | None:
        if self._baseline is None:
            return None
        return {"path": self._config.baseline, **compare_runs(self._baseline, RunStatistics.from_summary(summary))}

    def _describe_store(self, summary: Summary) -> dict[str, Any]:
        assert self._session is not None
        return {
            "path": self._session.path,
            "stored": self._session.rows,
            "unfinished": self._session.unfinished_rows,
            "written_anew": self._session.writes_all,
            "ignored": self._session.ignored,
            "reused": summary.counts["embeddings.reused"],
            "encoded": summary.counts["embeddings.encoded"],
        }


def profile_workers(stats: WorkerStats, seconds: float, is_one_process: bool) -> dict[str, Any] | None:
    """Returns where the time of a run went, or None if the workers are not on this machine.

    Args:
        stats: The counts and times of the workers on this machine.
        seconds: The time since the run began.
        is_one_process: Whether all workers share one process.
    """
    if stats.folder is None or not os.path.isdir(stats.folder):
        return None
    try:
        return profile_run(stats.folder, seconds, is_one_process)
    except OSError:  # A container may share the folder's name, and not its files.
        return None
