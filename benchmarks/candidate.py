"""Compares a run of two models, a model and its candidate, with the runs of each of them alone.

    python -m benchmarks.candidate --images 3000 --rounds 3

The images are JPEG files of 250×250 pixels, each in two pairs. In the case `same pixels` the candidate takes the pixels that
the model takes, and each file is decoded once; in the other cases its loader or its size is another, and each file is decoded
twice. Each round runs the model, the candidate and both, each in its own process. `encode` are seconds in which at
least one thread uses an encoder, and `run` those of the whole run without the start of the process, both as `_summary.json` has
them. `CPU` is the processor time of the process, less that of a run of 64 rows; it hardly depends on what else the machine
does.
The exit code is 1 if a run fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.images import SIZES, ensure_images
from benchmarks.speed.manifests import Pairs
from benchmarks.speed.networks import CALIBRATION_IMAGES, ensure_network
from benchmarks.speed.report import describe_machine, machine_words
from benchmarks.speed.runner import measure

_EMBEDDED = Path(__file__).resolve().parents[1] / "batchverify" / "demo" / "sane.keras"
_FIELDS = ("encode", "run", "cpu")
_FIRST_ROWS = "64"
_HEAD = (
    "| candidate | model: encode, run, CPU | candidate: encode, run, CPU | both: encode, run, CPU "
    "| both by the sum of the two: encode | run | CPU |\n|" + " --- |" * 7
)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """The seconds of a run.

    Attributes:
        encode: Seconds in which at least one thread used an encoder.
        run: Seconds of the whole run.
        cpu: Processor time, without the start of the process.
    """

    encode: float
    run: float
    cpu: float


def main() -> int:
    """Prints the table."""
    options = parse()
    options.cache.mkdir(parents=True, exist_ok=True)
    images = ensure_images(options.cache, SIZES["250x250"], options.images, options.seed)
    model = ensure_network(options.cache, "demo", images[:CALIBRATION_IMAGES])
    order = np.arange(len(images))
    with tempfile.TemporaryDirectory(prefix="batchverify-candidate-") as path:
        folder = Path(path)
        Pairs(order, np.roll(order, 1), len(images)).write(folder / "pairs.parquet", images)
        same = Path(shutil.copy(model, folder / "same.keras"))
        full = ensure_network(options.cache, "full", images[:CALIBRATION_IMAGES])
        print(_HEAD)
        for name, candidate in (("same pixels", same), ("other loader", _EMBEDDED), ("other size", full)):
            try:
                print(describe(name, list(_rounds(folder, model, candidate, options.rounds))), flush=True)
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
    print(f"\n{len(images):,} images; {machine_words(describe_machine())}")
    return 0


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.candidate", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--images", type=int, default=3000, help="number of images (default: 3000)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; medians are printed (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "batchverify-speed", help="folder of the images"
    )
    return parser.parse_args()


def describe(name: str, rounds: list[tuple[Seconds, Seconds, Seconds]]) -> str:
    """Returns a line of the table: the medians of rounds, each of the model, of the candidate, and of both."""
    columns = [name]
    for runs in zip(*rounds, strict=True):
        columns.append(", ".join(f"{statistics.median(getattr(run, field) for run in runs):.1f}" for field in _FIELDS) + " s")
    for field in _FIELDS:
        values = [[getattr(run, field) for run in runs] for runs in rounds]
        columns.append(f"{statistics.median(both / (model + candidate) for model, candidate, both in values):.2f}")
    return f"| {' | '.join(columns)} |"


def _rounds(folder: Path, model: Path, candidate: Path, rounds: int) -> Iterator[tuple[Seconds, Seconds, Seconds]]:
    for _ in range(rounds):
        first, second = _run(folder, model), _run(folder, candidate)
        yield first, second, _run(folder, model, "--candidate", str(candidate))


def _run(folder: Path, model: Path, *more: str) -> Seconds:
    """Runs batchverify on the first rows, and then on all.

    Raises:
        RuntimeError: If it fails.
    """
    start, _ = _measure(folder, model, "--limit", _FIRST_ROWS, *more)
    cpu, profile = _measure(folder, model, *more)
    return Seconds(profile["seconds"]["encode"], profile["wall_seconds"], cpu - start)


def _measure(folder: Path, model: Path, *more: str) -> tuple[float, dict[str, Any]]:
    output = folder / "scores"
    command = [sys.executable, "-m", "batchverify", "--manifest", str(folder / "pairs.parquet"), "--model", str(model)]
    code, measured, message = measure([*command, "--output", str(output), "--overwrite", *more])
    if code != 0:
        raise RuntimeError(f"batchverify --model {model} failed with exit code {code}: {message}")
    profile = json.loads((output / "_summary.json").read_text(encoding="utf-8"))["profile"]
    return measured.cpu_seconds, profile


if __name__ == "__main__":
    sys.exit(main())
