"""A night with a store of embeddings against the same night without one.

    python -m benchmarks.embeddings --case gallery --network full --scale 0.5 --rounds 3

A store is made of all images; then a share of them is replaced. Each round runs the manifest without the store and with it, in
processes of their own, in turn; every run with the store finds it as it was made. Times are of whole processes. The exit code
is 1 if a run fails or the scores of the two are not the same.
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
    """What is run on.

    Attributes:
        manifest: of all pairs.
        model: `.keras` file.
        images: copies of their own, which are replaced.
        made: the store with all images as they were at first.
        folder: to write to.
    """

    manifest: Path
    model: Path
    images: tuple[Path, ...]
    made: Path
    folder: Path

    def run(self, options: list[str]) -> tuple[Measured, np.ndarray, dict[str, Any]]:
        """Runs batchverify once; returns what it took, its answer and its summary.

        Raises:
            RuntimeError: if it fails.
        """
        output = self.folder / "scores"
        contender = dataclasses.replace(CONTENDERS[OURS], options=tuple(options))
        code, measured, words = measure(contender.command(self.manifest, self.model, output))
        if code != 0:
            raise RuntimeError(f"batchverify {' '.join(options)} failed with exit code {code}: {words}")
        return measured, read_answer(output), json.loads((output / "summary.json").read_text())

    def run_with_store(self) -> tuple[Measured, np.ndarray, dict[str, Any]]:
        """Runs with a copy of the store as it was made."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.made, store)
        return self.run(["--embeddings", str(store)])


def main() -> int:
    """Runs the benchmark."""
    options = parse()
    pairs = build_pairs(options.case, options.scale, options.seed)
    with tempfile.TemporaryDirectory(prefix="batchverify-embeddings-") as folder:
        course = prepare(options, pairs, Path(folder))
        making, _, _ = course.run(["--embeddings", str(course.made)])
        _tell(f"making the store: {making.seconds:.1f} s")
        replaced = replace(course.images, options.replaced, options)
        found = compare(course, options.rounds)
    facts = {
        **{name: getattr(options, name) for name in ("case", "network", "image_size", "scale", "rounds", "seed")},
        **{"pairs": len(pairs), "images": pairs.images, "replaced": replaced, "making_s": making.seconds},
        **found,
        "machine": describe_machine(),
    }
    if options.output:
        options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(words(facts))
    return int(found["difference"] > options.tolerance)


def parse() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__.split("\n\n")[0])
    add_course_options(parser, "gallery", "full")
    parser.add_argument("--replaced", type=float, default=0.05, help="share of the images that are replaced")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="how far scores may lie apart (default: 1e-6)")
    options = parser.parse_args()
    if not options.scale > 0 or options.rounds < 1 or not 0 <= options.replaced <= 1:
        parser.error("--scale and --rounds must be more than 0, and --replaced a share.")
    return options


def prepare(options: argparse.Namespace, pairs: Pairs, folder: Path) -> Course:
    """Makes what is missing of images and network, and copies the images."""
    made = ensure_images(options.cache, SIZES[options.image_size], max(pairs.images, CALIBRATION_IMAGES), options.seed)
    model = ensure_network(Path(made[0]).parent, options.network, made)
    (folder / "images").mkdir()
    images = tuple(Path(shutil.copy2(path, folder / "images")) for path in made[: pairs.images])
    pairs.write(folder / "pairs.parquet", [str(path) for path in images])
    return Course(folder / "pairs.parquet", model, images, folder / "made", folder)


def replace(images: tuple[Path, ...], share: float, options: argparse.Namespace) -> int:
    """Replaces a share of the images by new pictures, and returns how many."""
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: round(share * len(images))]
    camera = Camera(SIZES[options.image_size], options.seed + 1)
    for number in chosen:
        camera.save(int(number), images[number])
        os.utime(images[number], (time.time() - _HOUR_S,) * 2)
    for path in images:  # so that both find all of them cached
        path.read_bytes()
    return len(chosen)


def compare(course: Course, rounds: int) -> dict[str, Any]:
    """Runs without and with the store, each round in another order."""
    ways = {"without": lambda: course.run([]), "with": course.run_with_store}
    times: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, np.ndarray] = {}
    counts, most = {}, 0.0
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            measured, answers[name], summary = ways[name]()
            times[name].append(measured.seconds)
            counts[name] = summary["embeddings"]
            _tell(f"round {number + 1}: {name} the store {measured.seconds:.1f} s")
        most = max(most, difference(answers["with"], answers["without"]))
    return {
        "seconds_without": times["without"],
        "seconds_with": times["with"],
        "speedup": dataclasses.asdict(ratio(times["without"], times["with"])),
        "difference": most,
        "reused": counts["with"]["reused"],
        "encoded": counts["with"]["encoded"],
    }


def words(facts: dict[str, Any]) -> str:
    """Returns what was found, for the terminal."""
    without, kept = (statistics.median(facts[f"seconds_{name}"]) for name in ("without", "with"))
    return (
        f"{facts['case']}, network {facts['network']}: {facts['pairs']:,} pairs over {facts['images']:,} images, of which "
        f"{facts['replaced']:,} were replaced; rounds: {facts['rounds']}.\n"
        f"without the store {without:.1f} s, with it {kept:.1f} s ({facts['reused']:,} reused, {facts['encoded']:,} encoded): "
        f"{Ratio(**facts['speedup'])} times faster; scores differ by at most {facts['difference']:.2g}.\n"
        f"{machine_words(facts['machine'])}"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
