"""Measures the pipeline without its network: rows per second of the two shuffles, and memory.

    python -m benchmarks.shuffle --pairs 1000000 --images 50000
    python -m benchmarks.shuffle --pairs 1000000 --images 50000 --grow 10

The second command also measures ten times as many pairs and images, and prints the ratio of the times. Each size runs in its
own process. No image is fetched: embeddings are computed from URIs. Reading, both shuffles, the comparison (one L1 distance a
row), the identity check, Parquet and the summary are those of a real run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from apache_beam.options.pipeline_options import PipelineOptions

from batchverify.config import VerificationConfig
from batchverify.manifest.plan import plan_manifest
from batchverify.model.facts import ModelFacts
from batchverify.model.sidecar import Sidecar
from batchverify.output.run_directory import RunDirectory
from batchverify.pipeline.build import build
from batchverify.pipeline.encoded_images import encoded_images
from batchverify.pipeline.inference_metrics import InferenceLog
from batchverify.pipeline.network import Network, NetworkLoader
from batchverify.pipeline.plan import RunPlan, image_table, with_bounded_blocks
from batchverify.pipeline.portable import job_server
from batchverify.pipeline.provenance import describe_run
from batchverify.worker_stats import WorkerStats
from benchmarks.carried import Carried, count_carried
from benchmarks.skew import CASES

EMBEDDING_SIZE = 101
NULL_MODEL = ModelFacts(
    path="null network",
    digest="none",
    image_shape=(0, 0, 0),
    embedding_size=EMBEDDING_SIZE,
    embedding_bytes=4 * EMBEDDING_SIZE,
    structure="null network",
    encodings_per_image=1,
    encodings_per_pair=0,
    preprocessing="none",
)


class NullNetwork:
    """A network that computes an embedding from the URI, without the image.

    Args:
        floats: Number of values of an embedding.
    """

    encodings_per_image, encodings_per_pair = 1, 0
    inferences = InferenceLog()

    def __init__(self, floats: int = EMBEDDING_SIZE) -> None:
        self._floats, self.embedding_bytes = floats, 4 * floats

    def encode(self, uris: pa.Array) -> pa.Table:
        """Implements `batchverify.pipeline.network.Network`."""
        names = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False)
        embeddings = np.repeat(((names % 1000) / 1000).astype(np.float32)[:, None], self._floats, axis=1)
        count = len(uris)
        identity = np.ones(count, np.float32)
        return encoded_images(uris, np.zeros(count, np.int8), [None] * count, [None] * count, identity, embeddings)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Implements `batchverify.pipeline.network.Network`."""
        scores: np.ndarray = np.exp(-np.abs(left - right).sum(axis=1) / self._floats)
        return scores


def write_manifest(folder: Path, tables: list[pa.Table]) -> tuple[str, ...]:
    """Writes the files of a CSV manifest, and returns their paths."""
    paths = [str(folder / f"pairs-{number}.csv") for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pa.csv.write_csv(table, path)
    return tuple(paths)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of one run.

    Attributes:
        pairs: Number of rows of the manifest.
        images: Number of images that the rows were drawn from.
        seconds: Seconds from planning the manifest to the finished run.
        peak_gib: Highest resident memory of the process, in GiB.
        carried: Amounts that the shuffles carried, by kind of element; None if the images were in one table.
    """

    pairs: int
    images: int
    seconds: float
    peak_gib: float
    carried: dict[str, Carried] | None = None

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} pairs over {self.images:,} images: {self.seconds:.1f} s, {self.pairs / self.seconds:,.0f} rows/s, "
            f"peak {self.peak_gib:.2f} GiB"
        )


def measure(
    folder: str,
    manifests: tuple[str, ...],
    pairs: int,
    images: int,
    block_rows: int | None = None,
    floats: int = EMBEDDING_SIZE,
) -> Measured:
    """Runs the pipeline once in this process.

    Args:
        folder: Folder to write to.
        manifests: Files of the manifest.
        pairs: Number of rows of the manifest.
        images: Number of images that the rows are drawn from.
        block_rows: Number of rows of a block, if images are sent to blocks as on a distributed runner; None means that the
            images are in one table.
        floats: Number of values of an embedding.
    """
    load = functools.partial(NullNetwork, floats)
    config = VerificationConfig(manifests=manifests, output=f"{folder}/scores")
    carried = None
    started = time.perf_counter()
    if block_rows is None:
        run_null(config, load)
    else:
        config = dataclasses.replace(config, block_rows=block_rows)
        carried = count_carried(lambda: run_null(config, load, shared=False), pairs)
    seconds = time.perf_counter() - started
    return Measured(pairs, images, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, carried)


def run_null(
    config: VerificationConfig,
    load: Callable[[], Network] = NullNetwork,
    shared: bool = True,
    beam_args: Sequence[str] = ("--runner=FnApiRunner",),
    is_bounded: bool = False,
) -> None:
    """Runs the pipeline with another network.

    Args:
        config: The settings of the run.
        load: Function that makes the network.
        shared: Whether workers share one table of encoded images; otherwise images are sent to each block, as on a distributed
            runner.
        beam_args: Beam's arguments.
        is_bounded: Whether blocks are as small as embeddings and the runner need, as those of a run are.
    """
    options = PipelineOptions(list(beam_args))
    with job_server(options):
        pipeline = beam.Pipeline(options=options)
        plan = _plan_null(config, options, load, shared, is_bounded)
        table = plan.table and plan.table.get()  # The table lives as long as something refers to it.
        build(pipeline, plan)
        with RunDirectory(config.output).claimed(plan.run_id):
            pipeline.run().wait_until_finish()
        del table


def measure_alone(
    pairs: int,
    images: int,
    case: str = "uniform",
    block_rows: int | None = None,
    function: Callable[..., Measured] | None = None,
    floats: int = EMBEDDING_SIZE,
) -> Measured:
    """Calls `measure` in a new process, because the peak of memory is that of the whole life of a process.

    The manifest is written by another one, for the same reason.

    Args:
        pairs: Number of rows of the manifest.
        images: Number of images that the rows are drawn from.
        case: Name of a manifest of `benchmarks.skew`.
        block_rows: As that of `measure`.
        function: What is measured, called as `measure` is without the last two arguments; None for `measure`.
        floats: As that of `measure`.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifests = _alone(_write_case, folder, case, pairs, images)
        function = function or functools.partial(measure, block_rows=block_rows, floats=floats)
        measured: Measured = _alone(function, folder, manifests, pairs, images)
    return measured


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _write_case(folder: str, case: str, pairs: int, images: int) -> tuple[str, ...]:
    return write_manifest(Path(folder), CASES[case](pairs, images))


def _plan_null(
    config: VerificationConfig, options: PipelineOptions, load: Callable[[], Network], shared: bool, is_bounded: bool
) -> RunPlan:
    """Plans a run without a model."""
    manifest, loader = plan_manifest(config), NetworkLoader(load)
    if is_bounded:
        config = with_bounded_blocks(config, manifest, loader.get().embedding_bytes, options)
    return RunPlan(
        config=config,
        sidecar=Sidecar(),
        manifest=manifest,
        model=NULL_MODEL,
        loader=loader,
        network=load(),
        provenance=describe_run(config, manifest, NULL_MODEL, None),
        baseline=None,
        options=options,
        table=image_table(options) if shared else None,
        stats=WorkerStats(),
        session=None,
    )


def main() -> None:
    """Measures one size, or two and their ratio."""
    parser = argparse.ArgumentParser(description="Rows a second through the shuffles, with a null network.")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--floats", type=int, default=EMBEDDING_SIZE, metavar="N", help="values of an embedding")
    parser.add_argument("--grow", type=int, metavar="N", help="measure N times as many too, and print the ratio of the times")
    options = parser.parse_args()
    sizes = [(options.pairs * times, options.images * times) for times in (1, *([options.grow] if options.grow else []))]
    runs = []
    for pairs, images in sizes:
        runs.append(measure_alone(pairs, images, floats=options.floats))
        print(runs[-1], flush=True)
    if options.grow:
        print(f"{options.grow} times as many take {runs[1].seconds / runs[0].seconds:.1f} times as long")


if __name__ == "__main__":
    main()
