"""A job on Beam's engines: seconds and memory beside the in-process runner's, and whether rows are the same.

    python -m benchmarks.engines --prism PATH --cluster flink --cluster spark
    python -m benchmarks.engines --prism PATH --pairs 1000000 --images 50000 --block-rows 100000
    python -m benchmarks.engines --cluster flink --case "hot bucket" --block-rows 1000000
    python -m benchmarks.engines --cluster flink --embedding-floats 2048 --pairs 100000 --images 20000
    python -m benchmarks.engines --prism PATH --cluster flink --cluster spark --photos --pairs 6000

A null network takes the place of the model, so that the figures are the engine's: what the shuffles carry through it, and what
it holds. With `--photos` the whole job runs instead: JPEG photos of 250×250, in pairs shaped as those of the LFW protocol,
through the embedded network. Each run has a process of its own. On Prism the workers are threads of the launcher; a cluster of
two machines (see `benchmarks/clusters.py`) has worker processes. Peak memory is that of the launcher, of the largest process of
the engine and of the largest worker. The exit code is 1 if an engine fails, or its rows are not those of the in-process runner.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd

import batchverify
from batchverify.config import VerificationConfig
from benchmarks.clusters import CLUSTERS, TASK_MIB, children
from benchmarks.shuffle import EMBEDDING_SIZE, NullNetwork, run_null, write_manifest
from benchmarks.skew import CASES
from benchmarks.speed.images import ensure_images
from benchmarks.speed.manifests import PAIRS, build_pairs

_HEAD = (
    "| engine | seconds | rows/s | peak GiB, launcher | peak GiB, engine | peak GiB, worker | rows | largest difference |\n|"
    + " --- |" * 8
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run on one engine.

    Attributes:
        seconds: Seconds from planning the manifest to the finished run.
        launcher_gib: Peak memory of the launcher, in GiB.
        engine_gib: Peak memory of the engine's largest process, in GiB; 0 without one.
        worker_gib: Peak memory of the largest worker process, in GiB; 0 without one.
    """

    seconds: float
    launcher_gib: float
    engine_gib: float
    worker_gib: float


def measure(
    config: VerificationConfig, floats: int | None, beam_args: list[str], engine: list[int], pools: list[int]
) -> Measured:
    """Runs the job once in this process.

    Args:
        config: The configuration.
        floats: The size of the embeddings of a null network that takes the place of the model; None for the model.
        beam_args: Beam's arguments.
        engine: The ids of the engine's processes, if it runs already.
        pools: The ids of the processes that start workers.
    """
    peak = _PeakMemory(engine, pools)
    started = time.perf_counter()
    if floats is not None:
        load = functools.partial(NullNetwork, floats)
        run_null(config, load, not beam_args, beam_args or ["--runner=FnApiRunner"], is_bounded=bool(beam_args))
    else:
        batchverify.run(config, beam_args)
    seconds = time.perf_counter() - started
    return Measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, *peak.stop())


class _PeakMemory:
    """Watches the peak memory of an engine's processes, among them those that this process starts, and of workers."""

    def __init__(self, engine: list[int], pools: list[int]) -> None:
        self._engine, self._pools, self._stopped = engine, pools, threading.Event()
        self._engine_kib = self._worker_kib = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> tuple[float, float]:
        """Returns the highest peaks, of the engine and of a worker, in GiB."""
        self._stopped.set()
        return self._engine_kib / 2**20, self._worker_kib / 2**20

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            with suppress(OSError):  # A process or a thread has ended.
                executors = [child for process in self._engine for child in children(process)]
                ours = [*self._engine, *executors, *children(os.getpid())]
                self._engine_kib = max([self._engine_kib, *map(_peak_kib, ours)])
                workers = [worker for pool in self._pools for worker in children(pool)]
                self._worker_kib = max([self._worker_kib, *map(_peak_kib, workers)])


def _peak_kib(process: int) -> int:
    with suppress(OSError, IndexError):  # It has ended.
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])
    return 0


def _write_photos(folder: Path, count: int) -> tuple[str, ...]:
    """Writes photos and a manifest shaped as that of the LFW protocol, and returns its path."""
    pairs = build_pairs("lfw", count / PAIRS, seed=0)
    manifest = folder / "photos.parquet"
    pairs.write(manifest, ensure_images(folder, (250, 250), pairs.images, seed=0))
    return (str(manifest),)


def _read(output: str) -> pd.DataFrame:
    rows = pd.read_parquet(output, columns=["manifest_file", "manifest_row", "score"])
    return rows.sort_values(["manifest_file", "manifest_row"], ignore_index=True)


def _difference(found: pd.DataFrame, expected: pd.DataFrame) -> float:
    """Returns the largest difference of a score; infinite if the rows are not the same."""
    keys = ["manifest_file", "manifest_row"]
    if len(found) != len(expected) or not (found[keys].to_numpy() == expected[keys].to_numpy()).all():
        return float("inf")
    return float((found["score"] - expected["score"]).abs().max())


class Comparison:
    """Runs of the same manifest on one engine after another, each a line of the table."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self._folder, self._options = folder, options
        self._manifests = (
            _write_photos(folder, options.pairs)
            if options.photos
            else write_manifest(folder, CASES[options.case](options.pairs, options.images))
        )
        self._expected: pd.DataFrame | None = None
        self.is_right = True

    def run(self, name: str, beam_args: list[str], engine: list[int], pools: list[int]) -> None:
        """Runs the manifest on an engine, and prints its line."""
        output = f"{self._folder}/{name}"
        config = VerificationConfig(manifests=self._manifests, output=output, block_rows=self._options.block_rows)
        floats = None if self._options.photos else self._options.embedding_floats
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                measured = process.submit(measure, config, floats, beam_args, engine, pools).result()
        except Exception as error:
            self.is_right = False
            print(f"| {name} | failed: {str(error)[:300]} |", flush=True)
            return
        found = _read(output)
        self._expected = found if self._expected is None else self._expected
        difference = _difference(found, self._expected)
        self.is_right = self.is_right and difference <= 1e-6
        print(
            f"| {name} | {measured.seconds:.1f} | {self._options.pairs / measured.seconds:,.0f} | {measured.launcher_gib:.2f} "
            f"| {measured.engine_gib:.2f} | {measured.worker_gib:.2f} | {len(found):,} | {difference:.0e} |",
            flush=True,
        )

    def run_on_cluster(self, engine: str) -> None:
        """Starts a cluster for one run."""
        folder = self._folder / f"{engine}-cluster"
        folder.mkdir()
        modules = str(Path(__file__).resolve().parents[1])
        with CLUSTERS[engine](folder, [Path(sys.executable)] * 2, modules, self._options.task_mib) as cluster:
            pools = [process.pid for name, process in cluster.processes.items() if name.startswith("pool")]
            others = [process.pid for name, process in cluster.processes.items() if not name.startswith("pool")]
            self.run(engine.title(), [*cluster.arguments, "--parallelism=4", "--environment_cache_millis=60000"], others, pools)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prism", metavar="PATH", help="Prism's program")
    parser.add_argument("--cluster", choices=sorted(CLUSTERS), action="append", default=[])
    parser.add_argument("--photos", action="store_true", help="the whole job, with photos and the embedded network")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--block-rows", type=int, default=100_000, help="asked for; embeddings and runner may bound it")
    parser.add_argument(
        "--task-mib", type=int, default=TASK_MIB, help="heap of a task manager's tasks; an executor has twice as much"
    )
    parser.add_argument("--case", choices=list(CASES), default="uniform", help="the manifest (benchmarks/skew.py)")
    parser.add_argument("--embedding-floats", type=int, default=EMBEDDING_SIZE, help="values of an embedding")
    options = parser.parse_args()
    print(_HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(Path(folder), options)
        comparison.run("in process", [], [], [])
        if options.prism:
            comparison.run("Prism", ["--runner=PrismRunner", f"--prism_location={options.prism}"], [], [])
        for engine in options.cluster:
            comparison.run_on_cluster(engine)
    return 0 if comparison.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
