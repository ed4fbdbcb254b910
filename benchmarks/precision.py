"""What another runtime and less precision gain, and what they do to scores: of your own pairs and model.

    python -m benchmarks.precision --manifest manifests/demo.csv
    python -m benchmarks.precision --manifest pairs.csv --model model.keras --pixels 0..1 --threshold 0.7
    python -m benchmarks.precision --images classes/ --pairs 2000

Runs `python -m batchverify` once for each way, in processes of their own. Scores are compared row by row with those of
TensorFlow in float32. Of `--images`, class folders, half of the pairs are drawn from one class and half from two. What this
command does not know goes to batchverify.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.speed.report import describe_machine, machine_words
from benchmarks.speed.runner import measure

WAYS = {
    "TensorFlow, float32": [],
    "OpenVINO, float32": ["--runtime", "openvino"],
    "OpenVINO, bfloat16": ["--runtime", "openvino", "--precision", "bfloat16"],
}
_HEAD = (
    "| | s | images/s without start-up | largest difference of a score | mean | matches changed | verdicts changed |",
    "|" + " --- |" * 7,
)


def main() -> int:
    """Prints a table; the exit code is 1 if a run fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, help="of batchverify's")
    source.add_argument("--images", type=Path, metavar="DIR", help="class folders to draw pairs from")
    parser.add_argument("--pairs", type=int, default=2000, help="that are drawn from --images")
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="batchverify-precision-") as folder:
        manifest = options.manifest or draw_manifest(options.images, options.pairs, options.seed, Path(folder) / "pairs.csv")
        try:
            found = {name: _run([*arguments, *more], manifest, Path(folder) / name) for name, arguments in WAYS.items()}
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    print("\n".join(table(found)))
    print(f"\n{machine_words(describe_machine())}")
    return 0


def draw_manifest(images: Path, pairs: int, seed: int, path: Path) -> Path:
    """Writes a manifest of `pairs` distinct files each, in turn of one class and of two."""
    classes = collections.defaultdict(list)
    known = Image.registered_extensions()
    for image in sorted(file for file in images.resolve().rglob("*") if file.suffix.lower() in known):
        classes[image.parent].append(image)
    drawn = [files for files in classes.values() if len(files) > 1]
    if len(drawn) < 2:
        raise SystemExit(f"--images {images}: it has no two folders with two images; give a folder of class folders.")
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["left", "right", "genuine"])
        for number in range(pairs):
            one, other = rng.choice(len(drawn), 2, replace=False)
            genuine = number % 2
            left, right = rng.choice(len(drawn[one]), 2, replace=False)
            lines.writerow([drawn[one][left], drawn[one][right] if genuine else rng.choice(drawn[other]), genuine])
    return path


def _run(options: list[str], manifest: Path, output: Path) -> tuple[float, dict[str, Any], pa.Table]:
    """Returns the seconds of the whole process, the summary, and the rows in the manifest's order.

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", "batchverify", "--manifest", str(manifest), "--output", str(output), *options]
    code, measured, words = measure(command)
    if code != 0:
        raise RuntimeError(f"batchverify {' '.join(options)} failed with exit code {code}: {words}")
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("scores-*.parquet"))])
    rows = rows.sort_by([("manifest_file", "ascending"), ("manifest_row", "ascending")])
    return measured.seconds, json.loads((output / "summary.json").read_text(encoding="utf-8")), rows


def table(found: dict[str, tuple[float, dict[str, Any], pa.Table]]) -> Iterable[str]:
    """Yields the lines of a Markdown table; the first way is what the others are compared with."""
    (_, summary, reference), *_ = found.values()
    yield f"{summary['rows']['scored']:,} pairs with scores over {summary['images']['total']:,} images\n"
    yield from _HEAD
    for name, (seconds, summary, rows) in found.items():
        rate = summary["profile"]["images_per_second"]
        yield f"| {name} | {seconds:.1f} | {rate:,.0f} | {' | '.join(_drift(rows, reference))} |"


def _drift(rows: pa.Table, reference: pa.Table) -> Iterator[str]:
    differences = np.abs(rows["score"].to_numpy() - reference["score"].to_numpy())
    yield f"{np.nanmax(differences, initial=0):.2g}"
    yield f"{np.nanmean(differences):.2g}"
    for column in ("match", "identity_check"):
        yield str(sum(one != other for one, other in zip(rows[column].to_pylist(), reference[column].to_pylist(), strict=True)))


if __name__ == "__main__":
    sys.exit(main())
