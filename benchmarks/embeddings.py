"""Compares a run that reuses a store of embeddings with the same run without a store.

    python -m benchmarks.embeddings --case gallery --network full --scale 0.5 --rounds 3

First a store is made with all images, and then a share of the images is replaced. Each round runs the manifest with and without
the store, each in its own process; every run with the store starts from a copy of the first store. Times are those of whole
processes. The exit code is 1 if a run fails, or if the scores of the two runs differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.contenders import CONTENDERS, OURS, difference, read_answer
from benchmarks.speed.images import SIZES, Camera, ensure_images
from benchmarks.speed.manifests import Pairs, build_pairs
from benchmarks.speed.networks import CALIBRATION_IMAGES, ensure_network
from benchmarks.speed.options import add_course_options
from benchmarks.speed.report import Ratio, describe_machine, machine_words, ratio
from benchmarks.speed.runner import Measured, measure

_HOUR_S = 3600


@dataclasses.dataclass(frozen=True)
class Course:
    """The inputs of the runs.

    Attributes:
        manifest: Manifest of all pairs.
        model: The `.keras` file.
        images: Copies of the images; some of them are replaced.
        first_store: Store with all images before any was replaced.
        folder: Folder to write to.
    """

    manifest: Path
    model: Path
    images: tuple[Path, ...]
    first_store: Path
    folder: Path

    def run(self, options: list[str]) -> tuple[Measured, np.ndarray, dict[str, Any]]:
        """Runs batchverify once, and returns its time and memory, its scores and its summary.

        Raises:
            RuntimeError: if it fails.
        """
        output = self.folder / "scores"
        contender = dataclasses.replace(CONTENDERS[OURS], options=tuple(options))
        code, measured, message = measure(contender.command(self.manifest, self.model, output))
        if code != 0:
            raise RuntimeError(f"batchverify {' '.join(options)} failed with exit code {code}: {message}")
        return measured, read_answer(output), json.loads((output / "_summary.json").read_text())

    def run_with_store(self) -> tuple[Measured, np.ndarray, dict[str, Any]]:
        """Runs batchverify with a copy of the first store."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.first_store, store)
        return self.run(["--embeddings", str(store)])


def main() -> int:
    """Runs the benchmark."""
    options = parse()
    pairs = build_pairs(options.case, options.scale, options.seed)
    with tempfile.TemporaryDirectory(prefix="batchverify-embeddings-") as folder:
        course = prepare(options, pairs, Path(folder))
        making, _, _ = course.run(["--embeddings", str(course.first_store)])
        _print_progress(f"making the store: {making.seconds:.1f} s")
        replaced = replace(course.images, options.replaced, options)
        comparison = compare(course, options.rounds)
    facts = {
        **{name: getattr(options, name) for name in ("case", "network", "image_size", "scale", "rounds", "seed")},
        **{"pairs": len(pairs), "images": pairs.images, "replaced": replaced, "making_s": making.seconds},
        **comparison,
        "machine": describe_machine(),
    }
    if options.output:
        options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(format_facts(facts))
    return int(comparison["difference"] > options.tolerance)


def parse() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__.split("\n\n")[0])
    add_course_options(parser, "gallery", "full")
    parser.add_argument("--replaced", type=float, default=0.05, help="share of the images that are replaced")
    parser.add_argument(
        "--tolerance", type=float, default=1e-6, help="largest difference of scores that is allowed (default: 1e-6)"
    )
    options = parser.parse_args()
    if not options.scale > 0 or options.rounds < 1 or not 0 <= options.replaced <= 1:
        parser.error("--scale and --rounds must be more than 0, and --replaced a share.")
    return options


def prepare(options: argparse.Namespace, pairs: Pairs, folder: Path) -> Course:
    """Makes images and network if they are missing, and copies the images."""
    cached = ensure_images(options.cache, SIZES[options.image_size], max(pairs.images, CALIBRATION_IMAGES), options.seed)
    model = ensure_network(Path(cached[0]).parent, options.network, cached)
    (folder / "images").mkdir()
    images = tuple(Path(shutil.copy2(path, folder / "images")) for path in cached[: pairs.images])
    pairs.write(folder / "pairs.parquet", [str(path) for path in images])
    return Course(folder / "pairs.parquet", model, images, folder / "made", folder)


def replace(images: tuple[Path, ...], share: float, options: argparse.Namespace) -> int:
    """Replaces a share of the images by new pictures, and returns the number of replaced images."""
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: round(share * len(images))]
    camera = Camera(SIZES[options.image_size], options.seed + 1)
    for number in chosen:
        camera.save(int(number), images[number])
        os.utime(images[number], (time.time() - _HOUR_S,) * 2)
    for path in images:  # Both runs then find all images in the cache of the file system.
        path.read_bytes()
    return len(chosen)


def compare(course: Course, rounds: int) -> dict[str, Any]:
    """Runs batchverify without and with the store; the order changes from round to round."""
    variants = {"without": lambda: course.run([]), "with": course.run_with_store}
    times: dict[str, list[float]] = {name: [] for name in variants}
    answers: dict[str, np.ndarray] = {}
    counts, largest_difference = {}, 0.0
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            measured, answers[name], summary = variants[name]()
            times[name].append(measured.seconds)
            counts[name] = summary["embeddings"]
            _print_progress(f"round {number + 1}: {name} the store {measured.seconds:.1f} s")
        largest_difference = max(largest_difference, difference(answers["with"], answers["without"]))
    return {
        "seconds_without": times["without"],
        "seconds_with": times["with"],
        "speedup": dataclasses.asdict(ratio(times["without"], times["with"])),
        "difference": largest_difference,
        "reused": counts["with"]["reused"],
        "encoded": counts["with"]["encoded"],
    }


def format_facts(facts: dict[str, Any]) -> str:
    """Returns the results as text for the terminal."""
    seconds_without, seconds_with = (statistics.median(facts[f"seconds_{name}"]) for name in ("without", "with"))
    return (
        f"{facts['case']}, network {facts['network']}: {facts['pairs']:,} pairs over {facts['images']:,} images, of which "
        f"{facts['replaced']:,} were replaced; rounds: {facts['rounds']}.\n"
        f"without the store {seconds_without:.1f} s, with it {seconds_with:.1f} s "
        f"({facts['reused']:,} reused, {facts['encoded']:,} encoded): {Ratio(**facts['speedup'])} times faster; "
        f"scores differ by at most {facts['difference']:.2g}.\n"
        f"{machine_words(facts['machine'])}"
    )


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
