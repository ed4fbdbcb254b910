"""The job: a manifest's pairs, each distinct image encoded once, every row scored, checked and written."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

from batchverify.config import WORKER_DIED, Limit, ModelFacts, Refused, RunFailed, ScoringConfig, VerificationConfig
from batchverify.gates import judge
from batchverify.inference import (
    IMAGES,
    ComparePairs,
    EncodeImages,
    KerasNetwork,
    NetworkLoader,
    request_images,
)
from batchverify.manifest import Manifest, ReadManifest, plan_manifest
from batchverify.report import make_report
from batchverify.schema import output_schema
from batchverify.scores import RunDirectory, WriteScores, finish_run
from batchverify.sidecar import complete, golden_pairs
from batchverify.summary import SUMMARY_VERSION, Summarise, Summary
from batchverify.version import VERSION

_IMAGES_PER_BUCKET = 4096
_MOST_BUCKETS = 4096
_EMBEDDING_BYTES_PER_BLOCK = 256 * 2**20
# Beam's own DirectRunner first looks for another runner on the network, without a time-out.
_IN_PROCESS_RUNNER = "FnApiRunner"
_LIBRARIES = ("apache-beam", "keras", "numpy", "pillow", "pyarrow", "tensorflow")
# What the summary says of a run, and the Parquet files need not.
_DETAILS = ("label_column", "fold_column", "working_directory", "options", "versions", "certificate")


class Verified(NamedTuple):
    """What `VerifyPairs` gives.

    Attributes:
        scores: tables, the blocks with the result columns of the output contract.
        images: tables, one row for each distinct image: uri, status, error, digest, identity.
    """

    scores: beam.PCollection[pa.Table]
    images: beam.PCollection[pa.Table]


class VerifyPairs(beam.PTransform):
    """Scores blocks of pairs: `(block key, pa.Table)` to tables with the result columns.

    Each block needs a key of its own and the columns that `config` names; all other columns pass through.
    Blocks of some ten thousand rows serve best. With a `manifest_file` column, relative URIs start from its folder.

    Args:
        config: model, threshold, columns and limits.
        expected_images: about how many distinct images there are; decides how many groups they are encoded in.
        loader: loads the network in each worker process; a Keras model as `config` says, unless given.
    """

    def __init__(self, config: ScoringConfig, expected_images: int = 100_000, loader: NetworkLoader | None = None):
        super().__init__()
        self._config = config = complete(config)
        self._buckets = max(1, min(_MOST_BUCKETS, -(-expected_images // _IMAGES_PER_BUCKET)))
        self._loader = loader or keras_loader(config)

    def expand(self, blocks: beam.PCollection[tuple[str, pa.Table]]) -> Verified:
        encoded = (
            blocks
            | "RequestImages"
            >> beam.FlatMap(request_images, self._config, self._buckets).with_output_types(tuple[int, tuple[str, pa.Table]])
            | beam.GroupByKey()
            | "EncodeImages"
            >> beam.ParDo(EncodeImages(self._loader, self._config))
            .with_outputs(IMAGES, main="answers")
            .with_output_types(tuple[str, pa.Table], **{IMAGES: pa.Table})
        )
        scored = (
            {"blocks": blocks, "images": encoded.answers}
            | beam.CoGroupByKey()
            | "ComparePairs" >> beam.ParDo(ComparePairs(self._loader, self._config)).with_output_types(pa.Table)
        )
        return Verified(scored, encoded[IMAGES])


def keras_loader(config: ScoringConfig) -> NetworkLoader:
    """Returns what loads the network that `config` names."""
    return NetworkLoader(functools.partial(KerasNetwork, config))


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    Attributes:
        output: the run directory.
        summary: what stands in its `summary.json`.
        counters: Beam's counters of the run, by name: `images_encoded`, `images_failed`, `rows_scored`, and
            `encodings`: how often an image went through a tower of the network.
    """

    output: str
    summary: dict[str, Any]
    counters: dict[str, int]


def run(config: VerificationConfig, beam_args: Sequence[str] = ()) -> RunResult:
    """Runs the job and waits for its end.

    Args:
        config: what to do.
        beam_args: Beam's own arguments, `--runner=…` and so on; in this process without them.

    Raises:
        Refused: if manifest, model or output directory cannot be used; nothing has been written.
        RunFailed: if the run cannot be finished; there is no `_SUCCESS`.
    """
    directory = RunDirectory(config.output)
    directory.refuse_taken(config.overwrite)
    config = complete(config)
    manifest = plan_manifest(config)
    # Held to the end of the run: in-process workers share this very network.
    loader = keras_loader(config)
    network = loader.get()
    assert isinstance(network, KerasNetwork)
    network.check_golden(golden_pairs(config))
    network.prove(manifest.sample)
    config = dataclasses.replace(config, block_rows=_bounded_block_rows(config, network.facts))
    provenance = _provenance(config, network, manifest)
    pipeline = beam.Pipeline(options=_options(beam_args))
    build(pipeline, config, manifest, provenance, loader)
    with directory.claimed(config.run_id):
        counters = _run_to_end(pipeline)
    return RunResult(directory.path, directory.read_summary(), counters)


def build(
    pipeline: beam.Pipeline,
    config: VerificationConfig,
    manifest: Manifest,
    provenance: dict[str, Any],
    loader: NetworkLoader,
) -> None:
    """Adds the whole job to `pipeline`."""
    directory = RunDirectory(config.output)
    schema = output_schema(manifest.schema, {key: str(value) for key, value in provenance.items() if key not in _DETAILS})
    blocks = pipeline | "ReadManifest" >> ReadManifest(manifest, config)
    verified = blocks | "VerifyPairs" >> VerifyPairs(config, manifest.expected_images, loader)
    files = verified.scores | "WriteScores" >> WriteScores(directory, schema)
    summary = (
        {"scores": verified.scores, "images": verified.images}
        | "Summarise" >> Summarise(config, manifest.label_column, manifest.fold_column)
        | "WriteSummary" >> beam.Map(_complete_summary, provenance, config)
    )
    report = summary | "MakeReport" >> beam.Map(make_report)
    rows_read = blocks | "RowsRead" >> beam.Map(_rows) | beam.CombineGlobally(sum)
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "FinishRun"
        >> beam.Map(
            finish_run,
            directory,
            config.run_id,
            beam.pvalue.AsSingleton(summary),
            beam.pvalue.AsSingleton(report),
            beam.pvalue.AsSingleton(rows_read),
            beam.pvalue.AsIter(files),
        )
    )


def _rows(element: tuple[str, pa.Table]) -> int:
    return element[1].num_rows


def _complete_summary(found: Summary, provenance: dict[str, Any], config: VerificationConfig) -> dict[str, Any]:
    summary = {"summary_version": SUMMARY_VERSION, "run": provenance, **found.to_json(provenance["threshold"])}
    return summary | {"gates": [dataclasses.asdict(gate) for gate in judge(config, summary)]}


def _bounded_block_rows(config: VerificationConfig, model: ModelFacts) -> int:
    """Returns how many rows a block may have so that the embeddings it asks for, two a row at most, stay in bounds."""
    return max(1, min(config.block_rows, _EMBEDDING_BYTES_PER_BLOCK // (2 * model.embedding_bytes)))


def _provenance(config: VerificationConfig, network: KerasNetwork, manifest: Manifest) -> dict[str, Any]:
    model = network.facts
    return {
        "version": VERSION,
        "run_id": config.run_id,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "manifest": list(config.manifests),
        "model": model.path,
        "model_digest": f"sha256:{model.digest}",
        "threshold": config.match_threshold(),
        "identity_tolerance": config.identity_tolerance,
        "model_structure": model.structure,
        "model_notes": list(model.notes),
        "preprocessing": model.preprocessing,
        "label_column": manifest.label_column,
        "fold_column": manifest.fold_column,
        "working_directory": os.getcwd(),
        "options": _options_given(config),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "certificate": _certificate(network),
    }


def _options_given(config: VerificationConfig) -> dict[str, Any]:
    """Returns what of `config` is not at its default, as JSON has it, but the run id."""
    given = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "run_id" and value != field.default:
            given[field.name] = str(value) if isinstance(value, Limit) else list(value) if isinstance(value, tuple) else value
    return given


def _certificate(network: KerasNetwork) -> dict[str, Any] | None:
    certificate = network.certificate()
    if certificate is None:
        return None
    positive = sum(float(weight) > 0 for weight in certificate.weights)
    return dataclasses.asdict(certificate) | {"weights": len(certificate.weights), "positive_weights": positive}


def _options(beam_args: Sequence[str]) -> PipelineOptions:
    options = PipelineOptions(list(beam_args), save_main_session=False)
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = _IN_PROCESS_RUNNER
    return options


def _run_to_end(pipeline: beam.Pipeline) -> dict[str, int]:
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as error:  # A runner raises whatever its workers raised, in its own wrapping.
        raise RunFailed(_root_cause(error)) from error
    if state not in (None, PipelineState.DONE):
        raise RunFailed(f"the runner ended in state {state}; its own log says why.")
    ours = MetricsFilter().with_namespace("batchverify")
    totals: collections.Counter[str] = collections.Counter()
    for counter in result.metrics().query(ours)["counters"]:  # one for each step that counts
        totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def _root_cause(error: BaseException) -> str:
    """Returns what went wrong in a worker in a sentence, out of the traceback that the runner made of it."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r" \[while running.*", "", text, flags=re.S)
    if ours := re.findall(rf"(?:{RunFailed.__name__}|{Refused.__name__}): (.+)", text):
        return ours[-1]
    if WORKER_DIED in text:
        return "a worker process died, killed or out of memory; its own log says why, and the run can be started again."
    if systems := re.findall(r"\[Errno \d+\] (.+)", text):
        return f"{systems[-1]}; check --output, its free space, and the space for temporary files."
    return text.splitlines()[-1 if "Traceback" in text else 0]
