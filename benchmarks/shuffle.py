"""The pipeline without its network: how many rows a second the two shuffles pass, and in how much memory.

    python -m benchmarks.shuffle --pairs 1000000 --images 50000
    python -m benchmarks.shuffle --pairs 1000000 --images 50000 --grow 10

The second also measures ten times as many of both, each size in a process of its own, and prints the ratio of the times.
Every image gets an embedding made from its URI, nothing is fetched; reading, both shuffles, comparison (one dot
product a row), the identity check, Parquet and the summary are the real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
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
from batchverify.pipeline.network import Network, NetworkLoader
from batchverify.pipeline.plan import RunPlan, image_table
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
    """Embeds an image by its name, without looking at it."""

    encodings_per_image, encodings_per_pair, embedding_bytes = 1, 0, 4 * EMBEDDING_SIZE

    def encode(self, uris: pa.Array) -> pa.Table:
        """See `batchverify.pipeline.network.Network`."""
        names = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False)
        embeddings = np.repeat(((names % 1000) / 1000).astype(np.float32)[:, None], EMBEDDING_SIZE, axis=1)
        count = len(uris)
        identity = np.ones(count, np.float32)
        return encoded_images(uris, np.zeros(count, np.int8), [None] * count, [None] * count, identity, embeddings)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `batchverify.pipeline.network.Network`."""
        scores: np.ndarray = np.exp(-np.abs(left - right).sum(axis=1) / EMBEDDING_SIZE)
        return scores


def write_manifest(folder: Path, tables: list[pa.Table]) -> tuple[str, ...]:
    """Writes the files of a CSV manifest, and returns their paths."""
    paths = [str(folder / f"pairs-{number}.csv") for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pa.csv.write_csv(table, path)
    return tuple(paths)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        pairs: rows of the manifest.
        images: that they were drawn from.
        seconds: from planning the manifest to the finished run.
        peak_gib: resident memory of the process at its most.
        carried: by the shuffles, of each kind of element; None where images are kept in one table.
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


def measure(pairs: int, images: int, case: str = "uniform", block_rows: int | None = None) -> Measured:
    """Runs the pipeline once in this process.

    Args:
        pairs: rows of the manifest.
        images: that they are drawn from.
        case: which of the manifests of `benchmarks.skew`.
        block_rows: of blocks that encoded images are sent to, as to workers elsewhere; None to keep these in one table.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifests = write_manifest(Path(folder), CASES[case](pairs, images))
        config = VerificationConfig(manifests=manifests, output=f"{folder}/scores")
        carried = None
        started = time.perf_counter()
        if block_rows is None:
            run_null(config)
        else:
            config = dataclasses.replace(config, block_rows=block_rows)
            carried = count_carried(lambda: run_null(config, shared=False), pairs)
        seconds = time.perf_counter() - started
    return Measured(pairs, images, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, carried)


def run_null(config: VerificationConfig, load: Callable[[], Network] = NullNetwork, shared: bool = True) -> None:
    """Runs the pipeline in this process with a network of one's own.

    Args:
        config: of the run.
        load: makes the network.
        shared: whether workers keep the encoded images in one table; else they are sent to each block, as to workers elsewhere.
    """
    pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
    plan = _plan_null(config, pipeline.options, load, shared)
    table = plan.table and plan.table.get()  # The table lives as long as something refers to it.
    build(pipeline, plan)
    with RunDirectory(config.output).claimed(config.run_id):
        pipeline.run().wait_until_finish()
    del table


def measure_alone(pairs: int, images: int, **settings: Any) -> Measured:
    """Calls `measure` in a process of its own: what is measured is the most memory that the process ever had."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, pairs, images, **settings).result()


def _plan_null(config: VerificationConfig, options: PipelineOptions, load: Callable[[], Network], shared: bool) -> RunPlan:
    """Plans a run without a model."""
    manifest = plan_manifest(config)
    return RunPlan(
        config=config,
        sidecar=Sidecar(),
        manifest=manifest,
        model=NULL_MODEL,
        loader=NetworkLoader(load),
        network=load(),
        provenance=describe_run(config, manifest, NULL_MODEL, None),
        baseline=None,
        options=options,
        table=image_table(options, manifest) if shared else None,
        stats=WorkerStats(),
        session=None,
    )


def main() -> None:
    """Measures one size, or two and their ratio."""
    parser = argparse.ArgumentParser(description="Rows a second through the shuffles, with a null network.")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--grow", type=int, metavar="N", help="measure N times as many too, and print the ratio of the times")
    options = parser.parse_args()
    sizes = [(options.pairs * times, options.images * times) for times in (1, *([options.grow] if options.grow else []))]
    found = []
    for pairs, images in sizes:
        found.append(measure_alone(pairs, images))
        print(found[-1], flush=True)
    if options.grow:
        print(f"{options.grow} times as many take {found[1].seconds / found[0].seconds:.1f} times as long")


if __name__ == "__main__":
    main()
