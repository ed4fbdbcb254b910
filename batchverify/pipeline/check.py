"""`--check`: everything that a run does before its work, the whole manifest read, and a sample of its images tried."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Sequence
from typing import Any, cast

from apache_beam.options.pipeline_options import StandardOptions

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.evaluation.drift import RunStatistics
from batchverify.model.facts import ModelFacts
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.pipeline.buckets import bucket_count
from batchverify.pipeline.manifest_scan import ManifestCounts, scan_manifest
from batchverify.pipeline.memory import process_bytes, worker_bytes
from batchverify.pipeline.network import EmbeddingLookupNetwork, Network
from batchverify.pipeline.plan import RunPlan, plan_run
from batchverify.pipeline.sample import SampleResult, count_unchanged, measure_sample
from batchverify.pipeline.two_networks import TwoNetworks
from batchverify.schema import ImageStatus
from batchverify.words import counted


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The results of a check that found no mistake.

    Attributes:
        config: The configuration, completed by the model's sidecar.
        manifest: The counts over the whole manifest.
        model: The facts about the model.
        golden: The number of golden pairs, whose scores are as they should be.
        sample: The results of encoding and comparing a sample of the images.
        baseline: The run to compare with, or None.
        buckets: The number of groups in which the images are encoded.
        runner: Beam's name of the runner.
        seconds: An estimate of the time of a run in one process like this, without shuffling and writing; None if no image of
            the sample could be encoded.
        memory: An estimate in bytes of the memory of the run in this process, or of each worker of another runner.
        session: The use of a store of embeddings in the run, or None.
        calibration: The calibration of the model in words, or None.
        candidate: The facts about the candidate; None without one.
        candidate_shares_pixels: Whether the candidate takes the same pixels as the model, so that files are decoded once.
    """

    config: VerificationConfig
    manifest: ManifestCounts
    model: ModelFacts
    golden: int
    sample: SampleResult
    baseline: RunStatistics | None
    buckets: int
    runner: str
    seconds: float | None
    memory: int
    session: EmbeddingStoreSession | None
    calibration: str | None
    candidate: ModelFacts | None = None
    candidate_shares_pixels: bool = False


def check_run(config: VerificationConfig, beam_args: Sequence[str] = ()) -> CheckResult:
    """Does everything that a run does before its work, and reads the whole manifest; writes nothing.

    Raises:
        PreflightError: If `plan_run` would raise it, there is a mistake anywhere in the manifest, or no image of the sample can
            be read.
    """
    plan = plan_run(config, beam_args)
    manifest = scan_manifest(plan.manifest, plan.config)
    sample = _try_sample(plan, manifest.images.sample())
    if not plan.config.allow_empty and (problem := _find_nothing_to_score(manifest, sample)):
        raise PreflightError(problem)
    return CheckResult(
        config=plan.config,
        manifest=manifest,
        model=plan.model,
        golden=len(plan.sidecar.golden_pairs),
        sample=sample,
        baseline=plan.baseline,
        buckets=bucket_count(plan.expected_images),
        runner=str(plan.options.view_as(StandardOptions).runner),
        seconds=_estimate_seconds(manifest, sample),
        memory=_estimate_memory(plan, manifest),
        session=plan.session,
        calibration=plan.provenance["calibration"],
        **_describe_candidate(plan.network),
    )


def _describe_candidate(network: Network) -> dict[str, Any]:
    if not isinstance(network, TwoNetworks):
        return {}
    return {"candidate": network.candidate.facts, "candidate_shares_pixels": network.share_pixels}


def _find_nothing_to_score(manifest: ManifestCounts, sample: SampleResult) -> str | None:
    """Returns a sentence if the run would score nothing, with the likely cause; None if it would score something."""
    if not manifest.rows:
        return "the manifest has no rows, so there is nothing to score; name another, or allow that with --allow-empty."
    tried = sum(sample.statuses.values())
    if ImageStatus.OK in sample.statuses:
        return None
    if not tried:
        return (
            f"no row names an image ({counted(manifest.rows, 'row')}); name the columns with --left-column and --right-column."
        )
    failures = ", ".join(f"{number:,} {status}" for status, number in sample.statuses.items())
    example = next(iter(sample.examples.values()))
    return f"no image of {tried:,} that were tried can be read: {failures}; for instance {example}; {_likely_cause(sample)}."


def _likely_cause(sample: SampleResult) -> str:
    examples = " ".join(sample.examples.values())
    if ImageStatus.MISSING in sample.statuses and "\\" in examples:
        return "paths on this system have / where these have a backslash; write / in the manifest"
    if ImageStatus.MISSING in sample.statuses:
        return "relative paths start from the manifest's folder, or from the folder that --image-root names"
    return "repair the images, or name others"


def _try_sample(plan: RunPlan, uris: list[str]) -> SampleResult:
    sample = measure_sample(plan.network, uris)
    if plan.session is None:
        return sample
    unchanged = count_unchanged(cast(EmbeddingLookupNetwork, plan.network), plan.session, uris)
    return dataclasses.replace(sample, unchanged=unchanged)


def _estimate_seconds(manifest: ManifestCounts, sample: SampleResult) -> float | None:
    if not sample.images_per_second or not sample.pairs_per_second:
        return None
    encode = manifest.images.count() * sample.encoded_share() / sample.images_per_second
    return manifest.seconds + encode + manifest.rows / sample.pairs_per_second


def _estimate_memory(plan: RunPlan, manifest: ManifestCounts) -> int:
    """Returns the estimated memory in bytes: what this process has needed at its peak, and what rows and images add."""
    used, embedding_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, plan.network.embedding_bytes
    if plan.table is None:
        return used + worker_bytes(manifest.largest_block, manifest.max_images_per_block, embedding_bytes)
    images = manifest.images.count() + plan.stored_embeddings
    return used + process_bytes(images, embedding_bytes)
