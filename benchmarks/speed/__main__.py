"""batchverify side by side with what people use, and with the limit of the machine.

    python -m benchmarks.speed --case lfw --network demo --scale 0.2 --rounds 3

Each contender decodes, resizes and scores the same pairs and gives both identity scores, in a process of its own. They
take turns; times are of whole processes, medians over the rounds. A contender whose scores differ by more than 1e-3 from
the first one's is reported as such, without a time. benchmarks/README.md says more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed import report
from benchmarks.speed.contenders import CONTENDERS, OURS, Contender, with_options
from benchmarks.speed.images import SIZES, ensure_images
from benchmarks.speed.manifests import Pairs, build_pairs
from benchmarks.speed.networks import CALIBRATION_IMAGES, ensure_network
from benchmarks.speed.options import add_course_options
from benchmarks.speed.runner import Course, compete

_USUAL = ("published", "runinference", "limit-tfdata", "limit-threads", OURS)


def main() -> int:
    """Runs the benchmark; the exit code is 1 if a contender failed or its scores differ."""
    options = parse()
    pairs = build_pairs(options.case, options.scale, options.seed)
    words = (
        f"{options.case}: {len(pairs):,} pairs over {pairs.images:,} images of {options.image_size}, network "
        f"{options.network}; six encodings a pair against one for each image: {pairs.arithmetic:.2f}"
    )
    print(words, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="batchverify-speed-") as folder:
        course = prepare(options, pairs, Path(folder))
        records = compete(options.contenders, course, options.rounds, options.tolerance, not options.check_only, _tell)
    rows = report.summarise(records, pairs)
    machine = report.describe_machine()
    if options.output:
        options.output.write_text(json.dumps(_facts(options, pairs, machine, rows), indent=2) + "\n", encoding="utf-8")
    if options.check_only:
        for row in rows:
            print(f"{row['contender']}:", row["problem"] or f"differs by {row['difference']:.1g}")
    else:
        print(f"{words}; rounds: {options.rounds}.\n\n{report.table(rows)}\n\n{report.machine_words(machine)}")
    return int(any(record.problem and not record.contender.missing() for record in records))


def parse() -> argparse.Namespace:
    """Returns the options, with `contenders` as a list of `Contender`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n\n")[0])
    add_course_options(parser, "lfw", "demo")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help=f"of {', '.join(CONTENDERS)} and the variants")
    parser.add_argument("--options", default="", metavar="'…'", help="more options of batchverify and its variants")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME='…'", help="batchverify once more, with options of its own"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="how far scores may lie apart (default: 1e-3); the table shows how far they do",
    )
    parser.add_argument("--check-only", action="store_true", help="compare the answers, and quote no time")
    options = parser.parse_args()
    if not options.scale > 0 or options.rounds < 1:
        parser.error(f"--scale is {options.scale:g} and --rounds {options.rounds}; give more than 0 of both.")
    try:
        options.contenders = _chosen(options.contenders, with_options(options.options, options.variant))
    except ValueError as error:
        parser.error(str(error))
    return options


def _chosen(names: list[str] | None, known: dict[str, Contender]) -> list[Contender]:
    names = names or [name for name in known if name in _USUAL or name not in CONTENDERS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no contender {', '.join(unknown)}; give some of {', '.join(known)}.")
    return [known[name] for name in names]


def prepare(options: argparse.Namespace, pairs: Pairs, folder: Path) -> Course:
    """Makes what is missing of images and network, and the manifests; reads all images once, so that all find them cached."""
    images = ensure_images(options.cache, SIZES[options.image_size], max(pairs.images, CALIBRATION_IMAGES), options.seed)
    model = ensure_network(Path(images[0]).parent, options.network, images)
    for path in images[: pairs.images]:
        Path(path).read_bytes()
    course = Course(folder / "pairs.parquet", folder / "two.parquet", model, folder)
    pairs.write(course.manifest, images)
    pairs.first(2).write(course.short_manifest, images)
    return course


def _facts(options: argparse.Namespace, pairs: Pairs, machine: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    asked = {name: getattr(options, name) for name in ("case", "network", "image_size", "scale", "rounds", "seed")}
    counts = {"pairs": len(pairs), "images": pairs.images, "arithmetic": pairs.arithmetic}
    return {**asked, "command": sys.argv[1:], **counts, "machine": machine, "contenders": rows}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
