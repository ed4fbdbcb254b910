"""Everything that a run needs, checked before anything is written."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from batchverify.config import VerificationConfig, split_threshold_source
from batchverify.errors import PreflightError
from batchverify.evaluation.baseline import EarlierThreshold, read_baseline, read_threshold
from batchverify.evaluation.drift import RunStatistics
from batchverify.io.object_store import refuse_unreachable
from batchverify.io.storage_options import set_storage_options
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.shard import Manifest
from batchverify.model.calibration import config_settings
from batchverify.model.candidate import apply_candidate_sidecar, read_candidate_sidecar
from batchverify.model.facts import ModelFacts
from batchverify.model.registry import resolve_models
from batchverify.model.sidecar import Sidecar, apply_sidecar, read_sidecar
from batchverify.output.embedding_key import differing_settings, embedding_key
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import EmbeddingStore, Published, open_store
from batchverify.output.run_directory import RunDirectory
from batchverify.pipeline.calibration import plan_calibration
from batchverify.pipeline.dataflow import configure_dataflow, is_dataflow, refuse_local_images
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.keras_network import KerasNetwork
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE, worker_bytes
from batchverify.pipeline.network import Network, NetworkLoader
from batchverify.pipeline.parsed_options import ParsedOptions
from batchverify.pipeline.portable import absolute_paths, configure_portable, max_block_bytes, max_element_bytes
from batchverify.pipeline.provenance import describe_candidate, describe_run
from batchverify.pipeline.two_networks import TwoNetworks, network_loader
from batchverify.pipeline.worker_paths import worker_paths
from batchverify.report.render import prepare_report
from batchverify.tracing import span
from batchverify.worker_stats import WorkerStats

_LOG = logging.getLogger(__name__)
# Beam's own DirectRunner first looks for another runner on the network, without a time-out.
IN_PROCESS_RUNNER = "FnApiRunner"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Everything that a run needs, checked.

    Attributes:
        config: The configuration, completed by the model's sidecar.
        sidecar: The content of the model's sidecar, without a calibration that does not fit the model.
        manifest: The manifest, checked file by file.
        model: The facts about the model.
        loader: The loader of the network. Workers in this process share `network`, as long as this plan lives.
        network: The network, loaded and checked.
        provenance: What the run records about itself: the section `run` of `_summary.json`.
        baseline: The run to compare with, or None.
        options: Beam's options.
        table: The table of encoded images for workers that share this process; None for other workers.
        stats: The counts and times of the workers on this machine.
        session: The use of a store of embeddings in this run, or None.
        candidate_sidecar: The content of the candidate's sidecar; empty without a candidate.
        candidate: What the run records about its candidate: the first keys of the section `candidate` of `_summary.json`.
    """

    config: VerificationConfig
    sidecar: Sidecar
    manifest: Manifest
    model: ModelFacts
    loader: NetworkLoader
    network: Network
    provenance: Mapping[str, Any]
    baseline: RunStatistics | None
    options: PipelineOptions
    table: ImageTableLoader | None
    stats: WorkerStats
    session: EmbeddingStoreSession | None
    candidate_sidecar: Sidecar = dataclasses.field(default_factory=Sidecar)
    candidate: Mapping[str, Any] | None = None

    @property
    def run_id(self) -> str:
        """The name of this run in its own output, which no other run has."""
        return str(self.provenance["run_id"])

    @property
    def stored_embeddings(self) -> int:
        """The number of embeddings that are read from a store."""
        return self.session.rows if self.session else 0

    @property
    def expected_images(self) -> int:
        """The number of images that buckets are planned for: those of the manifest, or of the store if it has more."""
        return max(self.manifest.expected_images, self.stored_embeddings)


def plan_run(config: VerificationConfig, beam_args: Sequence[str] = (), stats: WorkerStats | None = None) -> RunPlan:
    """Checks everything that a run needs, and writes nothing.

    Args:
        config: The configuration of the run.
        beam_args: Beam's own arguments.
        stats: The counts and times of the workers on this machine.

    Raises:
        PreflightError: If the manifest, model, baseline, store of embeddings or output directory cannot be used.
    """
    config, resolved = resolve_models(config)
    options = _checked_options(config, beam_args)
    config = absolute_paths(options, config)
    RunDirectory(config.output).refuse_taken(config.overwrite)
    baseline = read_baseline(config)
    published = open_store(config.embeddings, config.embeddings_rebuild) if config.embeddings else None
    sidecar = read_sidecar(config.model)
    earlier = read_threshold(config.threshold_from) if config.threshold_from else None
    candidate_sidecar = read_candidate_sidecar(config)
    config = apply_candidate_sidecar(apply_sidecar(_with_threshold(config, earlier), sidecar), candidate_sidecar)
    manifest = plan_manifest(config)
    if config.max_group_ratio is not None and manifest.label_column is None:
        raise PreflightError(
            "--max-group-ratio compares error rates, and the manifest has no labels; name them with --label-column."
        )
    if is_dataflow(options):
        refuse_local_images(manifest.sample)
    stats = stats or WorkerStats()
    versions = config.embeddings_version if config.embeddings else None
    loader = network_loader(config, sidecar, candidate_sidecar, stats, versions)
    with span("load"):
        network = _load_checked(loader, manifest)
    if earlier:
        earlier.refuse_other_scores(f"sha256:{network.facts.digest}", config_settings(config))
    session = _plan_session(config, network, published) if config.embeddings else None
    calibration = plan_calibration(config, sidecar, network.facts, manifest, options)
    table = image_table(options)
    if table is None:
        config = with_bounded_blocks(config, manifest, network.embedding_bytes, options)
    return RunPlan(
        config=config,
        sidecar=dataclasses.replace(sidecar, calibration=calibration.used),
        manifest=manifest,
        model=network.facts,
        loader=loader,
        network=network,
        provenance=describe_run(
            config,
            manifest,
            network.facts,
            network.identity_bound(),
            earlier.source if earlier else None,
            calibration.used,
            calibration.ignored,
            resolved.get("model"),
        ),
        baseline=baseline,
        options=options,
        table=table,
        stats=stats,
        session=session,
        candidate_sidecar=candidate_sidecar,
        candidate=_describe_candidate(config, network, resolved.get("candidate")),
    )


def read_store_again(plan: RunPlan) -> RunPlan:
    """Returns the plan with what the store of embeddings holds now; for a run that has claimed the store.

    Another run may have published embeddings after this run looked at the store, and before it claimed the store.

    Raises:
        PreflightError: If the store cannot be used any more.
    """
    if plan.session is None:
        return plan
    store, session = EmbeddingStore(plan.session.path), plan.session
    looked_at = session.published.folder if session.published else None
    if not session.is_rebuild and (looked_at is None or looked_at != store.published_folder()):
        session = dataclasses.replace(session, **_readable(plan.config, session.key, store.read_published()))
    session = dataclasses.replace(session, unfinished=store.unfinished_files(session.key, session.published))
    if session.unfinished_rows:
        _LOG.info(
            "--embeddings %s: %s embeddings of runs that did not finish are used, too.",
            session.path, f"{session.unfinished_rows:,}",
        )  # fmt: skip
    return dataclasses.replace(plan, session=session)


def report_memory(plan: RunPlan) -> None:
    """Logs an estimate of the memory that workers need, each of which is a process of its own."""
    if plan.table is None:
        _report_worker_memory(plan)


def image_table(options: PipelineOptions) -> ImageTableLoader | None:
    """Returns the table of encoded images for workers that share one process, or None where they are in several."""
    if options.view_as(StandardOptions).runner != IN_PROCESS_RUNNER:
        return None
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        return None
    return ImageTableLoader()


def with_bounded_blocks(
    config: VerificationConfig, manifest: Manifest, embedding_bytes: int, options: PipelineOptions
) -> VerificationConfig:
    """Returns the configuration with blocks that the runner can send between its steps.

    Args:
        config: The configuration.
        manifest: The manifest of the run.
        embedding_bytes: The size of one embedding.
        options: Beam's options.
    """
    row_bytes = manifest.expected_bytes / max(1, manifest.expected_rows)
    bounds = max_element_bytes(options), max_block_bytes(options)
    rows = bounded_block_rows(config.block_rows, embedding_bytes, row_bytes, *bounds)
    return dataclasses.replace(config, block_rows=rows)


def bounded_block_rows(
    block_rows: int,
    embedding_bytes: int,
    row_bytes: float = 0,
    element_bytes: int = EMBEDDING_BYTES_AT_ONCE,
    block_bytes: int = EMBEDDING_BYTES_AT_ONCE,
) -> int:
    """Returns how many rows a block may have so that itself, and the embeddings that are sent to it, stay in bounds.

    Args:
        block_rows: The number of rows that was asked for.
        embedding_bytes: The size of one embedding; a row has two at most.
        row_bytes: The size of one row of the manifest, as an Arrow table.
        element_bytes: The size of the largest element that the runner takes.
        block_bytes: The size of all embeddings that may be sent to one block.
    """
    by_rows = int(element_bytes / max(1, row_bytes))
    return max(1, min(block_rows, by_rows, block_bytes // (2 * embedding_bytes)))


def pipeline_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options; without a `--runner` the run takes place in this process."""
    options = ParsedOptions(list(beam_args), save_main_session=False)
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = IN_PROCESS_RUNNER
    return options


def _checked_options(config: VerificationConfig, beam_args: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options, completed for the runner, after all stores have been reached with them."""
    options = pipeline_options(beam_args)
    configure_dataflow(options, config)
    configure_portable(options, config)
    set_storage_options(options)
    refuse_unreachable([*worker_paths(config), *_read_here(config)], config.output)
    return options


def _read_here(config: VerificationConfig) -> Iterator[tuple[str, str]]:
    """Yields each path that the launcher alone reads, after the option that names it."""
    if config.baseline:
        yield "--baseline", config.baseline
    if config.threshold_from:
        yield "--threshold-from", split_threshold_source(config.threshold_from)[0]


def _with_threshold(config: VerificationConfig, earlier: EarlierThreshold | None) -> VerificationConfig:
    """Returns the configuration with the threshold of the earlier run that it names, which is then like one that was given."""
    if earlier is None:
        return config
    point = earlier.point
    assert point.threshold is not None
    evidence = {"enough": "enough to trust it", "rough": "so few that it is rough"}.get(point.evidence, "too few to show it")
    _LOG.info(
        "Threshold %g from %s: FMR %.3g there, among %s impostor pairs, which are %s.",
        point.threshold, earlier.source, point.fmr.value, f"{point.fmr.trials:,}", evidence,
    )  # fmt: skip
    return dataclasses.replace(config, threshold=point.threshold, threshold_from=None)


def _load_checked(loader: NetworkLoader, manifest: Manifest) -> KerasNetwork:
    network = loader.get()
    assert isinstance(network, KerasNetwork)
    prepare_report()
    network.check_split(manifest.sample)
    return network


def _describe_candidate(
    config: VerificationConfig, network: KerasNetwork, version: dict[str, str] | None
) -> dict[str, Any] | None:
    if not isinstance(network, TwoNetworks):
        return None
    candidate = network.candidate
    return describe_candidate(config, candidate.facts, candidate.identity_bound(), network.share_pixels, version)


def _plan_session(config: VerificationConfig, network: KerasNetwork, published: Published | None) -> EmbeddingStoreSession:
    """Decides how the store is used, and logs a warning if what it holds is not.

    Args:
        config: The configuration, completed by the model's sidecar.
        network: The network.
        published: What the store holds, or None.
    """
    assert config.embeddings is not None
    if network.encodings_per_pair:
        raise PreflightError(
            f"--embeddings {config.embeddings}: the network of --model {network.facts.path} runs whole, once more for each "
            "pair, so that there are no embeddings to store; leave --embeddings out."
        )
    key = embedding_key(config, network.facts, network.preprocessing)
    session = EmbeddingStoreSession(
        path=config.embeddings.rstrip("/") or "/",
        version=config.embeddings_version,
        key=key,
        today=datetime.datetime.now(datetime.UTC).date(),
        days=config.embeddings_days,
        is_rebuild=config.embeddings_rebuild,
        **_readable(config, key, published),
    )
    unfinished = EmbeddingStore(session.path).unfinished_files(key, session.published)
    return dataclasses.replace(session, unfinished=unfinished)


def _readable(config: VerificationConfig, key: dict[str, Any], published: Published | None) -> dict[str, Any]:
    """Returns the fields `published` and `ignored` of a session."""
    ignored = "--embeddings-rebuild" if config.embeddings_rebuild else None
    if published and (names := differing_settings(published.key, key)):
        published, ignored = None, f"made with another {', '.join(names).replace('_', ' ')}"
    if ignored:
        _LOG.warning("--embeddings %s: what is stored is not used, and replaced at the end (%s).", config.embeddings, ignored)
    return {"published": published, "ignored": ignored}


def _report_worker_memory(plan: RunPlan) -> None:
    manifest = plan.manifest
    rows = min(plan.config.block_rows, manifest.expected_rows)
    row_bytes = manifest.expected_bytes * rows // max(1, manifest.expected_rows)
    needed = worker_bytes(row_bytes, min(2 * rows, manifest.expected_images), plan.network.embedding_bytes)
    _LOG.info(
        "A worker needs up to %.1f GiB, beside libraries and model, for each block of %s rows that it works on at a time, and "
        "up to %.1f GiB to decode images.", needed / 2**30, f"{rows:,}", _decoding_bytes(plan) / 2**30,
    )  # fmt: skip


def _decoding_bytes(plan: RunPlan) -> int:
    return plan.network.decoding_bytes(plan.manifest.sample) if isinstance(plan.network, KerasNetwork) else 0
