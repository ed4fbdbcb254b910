"""The shuffles of a job on Beam's engines: seconds and memory beside the in-process runner's, and whether rows are the same.

    python -m benchmarks.engines --prism PATH
    python -m benchmarks.engines --prism PATH --pairs 1000000 --images 50000 --block-rows 100000

A null network takes the place of the model, so that the figures are the engine's: what the shuffles carry through it, and what
it holds. Each run has a process of its own. Peak memory is that of the launcher, in which the workers are threads, and of the
engine's own process. The exit code is 1 if the rows of an engine are not those of the in-process runner.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd

from batchverify.config import VerificationConfig
from benchmarks.shuffle import run_null, write_manifest
from benchmarks.skew import CASES

_HEAD = (
    "| engine | seconds | rows/s | peak GiB, launcher and workers | peak GiB, engine | rows | largest difference |\n|"
    + " --- |" * 7
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run on one engine.

    Attributes:
        seconds: Seconds from planning the manifest to the finished run.
        launcher_gib: Peak memory of the launcher, in GiB.
        engine_gib: Peak memory of the largest process that the launcher started, in GiB; 0 without one.
    """

    seconds: float
    launcher_gib: float
    engine_gib: float


def measure(config: VerificationConfig, beam_args: list[str]) -> Measured:
    """Runs the shuffles once in this process."""
    peak = _ChildMemory()
    started = time.perf_counter()
    run_null(config, shared=not beam_args, beam_args=beam_args or ["--runner=FnApiRunner"])
    seconds = time.perf_counter() - started
    return Measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, peak.stop())


class _ChildMemory:
    """Watches the peak memory of the processes that this one has started."""

    def __init__(self) -> None:
        self._peak, self._stopped = 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> float:
        """Returns the highest peak, in GiB."""
        self._stopped.set()
        return self._peak / 2**20

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            for tasks in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # The thread has ended.
                    self._peak = max([self._peak, *map(_peak_kib, (tasks / "children").read_text().split())])


def _peak_kib(process: str) -> int:
    with suppress(OSError, IndexError):  # It has ended.
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])
    return 0


def _read(output: str) -> pd.DataFrame:
    rows = pd.read_parquet(output, columns=["manifest_file", "manifest_row", "score"])
    return rows.sort_values(["manifest_file", "manifest_row"], ignore_index=True)


def _difference(found: pd.DataFrame, expected: pd.DataFrame) -> float:
    """Returns the largest difference of a score; infinite if the rows are not the same."""
    keys = ["manifest_file", "manifest_row"]
    if len(found) != len(expected) or not (found[keys].to_numpy() == expected[keys].to_numpy()).all():
        return float("inf")
    return float((found["score"] - expected["score"]).abs().max())


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prism", metavar="PATH", help="Prism's program; without it, only the in-process runner is measured")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--block-rows", type=int, default=100_000)
    options = parser.parse_args()
    engines: dict[str, list[str]] = {"in process": []}
    if options.prism:
        engines["Prism"] = ["--runner=PrismRunner", f"--prism_location={options.prism}"]
    print(_HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        manifests = write_manifest(Path(folder), CASES["uniform"](options.pairs, options.images))
        expected, is_same = None, True
        for name, beam_args in engines.items():
            output = f"{folder}/{name}"
            config = VerificationConfig(manifests=manifests, output=output, block_rows=options.block_rows)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                measured = process.submit(measure, config, beam_args).result()
            found = _read(output)
            expected = found if expected is None else expected
            difference = _difference(found, expected)
            is_same = is_same and difference <= 1e-6
            print(
                f"| {name} | {measured.seconds:.1f} | {options.pairs / measured.seconds:,.0f} | {measured.launcher_gib:.2f} "
                f"| {measured.engine_gib:.2f} | {len(found):,} | {difference:.0e} |",
                flush=True,
            )
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
