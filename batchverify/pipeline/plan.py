"""Everything that a run needs, checked before anything is written."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Iterator, Sequence

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.evaluation.baseline import read_baseline
from batchverify.evaluation.drift import RunStatistics
from batchverify.io.object_store import refuse_unreachable
from batchverify.io.storage_options import set_storage_options
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.shard import Manifest
from batchverify.model.sidecar import apply_sidecar, golden_pairs
from batchverify.output.embedding_store import EmbeddingStoreSession, Generation, differing_settings, embedding_key, open_store
from batchverify.output.run_directory import RunDirectory
from batchverify.pipeline.dataflow import configure_dataflow, is_dataflow, refuse_local_images
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE, available_bytes, process_bytes, worker_bytes
from batchverify.pipeline.network import KerasNetwork, NetworkLoader
from batchverify.pipeline.transforms import bucket_count, keras_loader
from batchverify.worker_stats import WorkerStats

_LOG = logging.getLogger(__name__)
# Beam's own DirectRunner first looks for another runner on the network, without a time-out.
IN_PROCESS_RUNNER = "FnApiRunner"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All that is needed to run, found to be in order.

    Attributes:
        config: what to do, with what the model's sidecar says.
        manifest: looked through.
        loader: of the network. Held to the end of the run: in-process workers share this very network.
        network: loaded and proven.
        baseline: the run to compare with, or None.
        options: Beam's.
        table: what workers that share this process keep the encoded images in; None for other workers.
        stats: is told how far the workers of this machine are.
        session: what is done with a store of embeddings, or None.
    """

    config: VerificationConfig
    manifest: Manifest
    loader: NetworkLoader
    network: KerasNetwork
    baseline: RunStatistics | None
    options: PipelineOptions
    table: ImageTableLoader | None
    stats: WorkerStats
    session: EmbeddingStoreSession | None


def plan_run(config: VerificationConfig, beam_args: Sequence[str] = (), stats: WorkerStats | None = None) -> RunPlan:
    """Looks at everything that a run needs before anything is written.

    Args:
        config: what to do.
        beam_args: Beam's own arguments.
        stats: is told how far the run is.

    Raises:
        PreflightError: if manifest, model, baseline, store of embeddings or output directory cannot be used.
    """
    options = pipeline_options(beam_args)
    configure_dataflow(options, config)
    set_storage_options(options)
    refuse_unreachable(_places(config), config.output)
    RunDirectory(config.output).refuse_taken(config.overwrite)
    baseline = read_baseline(config)
    found = open_store(config.embeddings, config.embeddings_rebuild) if config.embeddings else None
    config = apply_sidecar(config)
    manifest = plan_manifest(config)
    if is_dataflow(options):
        refuse_local_images(manifest.sample)
    stats = stats or WorkerStats()
    loader = keras_loader(config, stats, config.embeddings_version if config.embeddings else None)
    network = loader.get()
    assert isinstance(network, KerasNetwork)
    network.check_golden(golden_pairs(config))
    network.check_split(manifest.sample)
    session = _session(config, network, *found) if found else None
    table = image_table(options, manifest, session.rows if session else 0)
    if table is None:
        config = dataclasses.replace(config, block_rows=bounded_block_rows(config.block_rows, network.embedding_bytes))
    return RunPlan(config, manifest, loader, network, baseline, options, table, stats, session)


def _session(
    config: VerificationConfig, network: KerasNetwork, stored: Generation | None, ignored: str | None
) -> EmbeddingStoreSession:
    """Decides what to do with the store, and says if what it has is not used."""
    assert config.embeddings is not None
    if network.encodings_per_pair:
        raise PreflightError(
            f"--embeddings {config.embeddings}: the network of --model {network.facts.path} runs whole, for each pair anew, so "
            "that there are no embeddings to keep; leave --embeddings out."
        )
    key = embedding_key(config, network.facts, network.preprocessing)
    if stored and (names := differing_settings(stored.key, key)):
        stored, ignored = None, f"made with another {', '.join(names).replace('_', ' ')}"
    if ignored:
        _LOG.warning("--embeddings %s: what is stored is not used, and replaced at the end (%s).", config.embeddings, ignored)
    today = datetime.datetime.now(datetime.UTC).date()
    return EmbeddingStoreSession(
        config.embeddings.rstrip("/") or "/", config.embeddings_version, key, stored, ignored, today, config.embeddings_days
    )


def _places(config: VerificationConfig) -> Iterator[tuple[str, str | None]]:
    """Yields whatever a run reads or writes, after the option that names it."""
    yield from (("--manifest", path) for path in config.manifests)
    yield from (("--model", config.model), ("--baseline", config.baseline), ("--image-root", config.image_root))
    yield from (("--embeddings", config.embeddings), ("--output", config.output))


def report_memory(plan: RunPlan) -> None:
    """Says what workers elsewhere need, and warns of a run in this process that its memory does not hold; estimates both."""
    manifest, left, embedding_bytes = plan.manifest, available_bytes(), plan.network.embedding_bytes
    if plan.table is None:
        rows = min(plan.config.block_rows, manifest.expected_rows)
        row_bytes = manifest.expected_bytes * rows // max(1, manifest.expected_rows)
        needed = worker_bytes(row_bytes, min(2 * rows, manifest.expected_images), embedding_bytes)
        _LOG.info(
            "A worker needs up to %.1f GiB, beside libraries and model, for each block of %s rows that it works on at a time.",
            needed / 2**30, f"{rows:,}",
        )  # fmt: skip
        return
    images = manifest.expected_images + (plan.session.rows if plan.session else 0)
    needed = process_bytes(manifest.expected_bytes, images, embedding_bytes)
    if left is not None and needed > left:
        _LOG.warning(
            "This run needs about %.1f GiB of memory, and %.1f GiB are left: %s rows and %s images are held in this process. "
            "Run the manifest in parts, or on a distributed runner (--runner=DataflowRunner), which holds a block at a time.",
            needed / 2**30, left / 2**30, f"{manifest.expected_rows:,}", f"{manifest.expected_images:,}",
        )  # fmt: skip


def image_table(options: PipelineOptions, manifest: Manifest, stored: int = 0) -> ImageTableLoader | None:
    """Returns the table that the workers of a run with `options` share, or None where they are in several processes.

    Somebody must hold the table itself while the pipeline runs.

    Args:
        options: Beam's.
        manifest: of the run.
        stored: how many embeddings are read from a store.
    """
    if options.view_as(StandardOptions).runner != IN_PROCESS_RUNNER:
        return None
    if options.view_as(DirectOptions).direct_running_mode == "multi_processing":
        return None
    return ImageTableLoader(bucket_count(max(manifest.expected_images, stored)))


def bounded_block_rows(block_rows: int, embedding_bytes: int) -> int:
    """Returns how many rows a block may have so that the embeddings that are sent to it, two a row at most, stay in bounds."""
    return max(1, min(block_rows, EMBEDDING_BYTES_AT_ONCE // (2 * embedding_bytes)))


def pipeline_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options, with the runner that is this process where nobody names another."""
    options = PipelineOptions(list(beam_args), save_main_session=False)
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = IN_PROCESS_RUNNER
    return options
