"""Compares scores of OpenVINO and of bfloat16 with those of TensorFlow in float32, on your own pairs and model.

    python -m benchmarks.precision --manifest manifests/demo.csv
    python -m benchmarks.precision --manifest pairs.csv --model model.keras --pixels 0..1 --threshold 0.7
    python -m benchmarks.precision --images classes/ --pairs 2000

The command runs `python -m batchverify` once for each variant, each in its own process, and compares the scores row by row.
With `--images`, it draws pairs from class folders: half of them from one class, and half from two. It passes unknown options
on to batchverify. Seconds are those of a single run; the first run may be slower, because later runs find the files in the
cache. The exit code is 1 if a run fails, and 2 if nothing was run.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchverify.images.formats import IMAGE_ENDINGS
from benchmarks.speed.report import describe_machine, machine_words
from benchmarks.speed.runner import measure

_VARIANTS = {
    "TensorFlow, float32": [],
    "OpenVINO, float32": ["--runtime", "openvino"],
    "OpenVINO, bfloat16": ["--runtime", "openvino", "--precision", "bfloat16"],
}
# This command sets these options itself, or needs the files that they would move or leave out.
_NOT_PASSED_ON = ("--runtime", "--precision", "--output", "--embeddings", "--check", "--no-wait")
_GATE_NOT_MET = 3
_ORDER = ["manifest_file", "manifest_row"]
_COMPARED = ["match", "identity_check"]
_HEAD = (
    "| | s | images/s without start-up | largest difference of a score | mean | scores that only one has | matches changed "
    "| verdicts changed |\n|" + " --- |" * 8
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with one variant.

    Attributes:
        seconds: Seconds of the whole process.
        summary: Content of `_summary.json`.
        rows: Rows with the columns `score`, `match` and `identity_check`, in the manifest's order.
    """

    seconds: float
    summary: dict[str, Any]
    rows: pa.Table


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", action="append", help="as for batchverify; may be given several times")
    source.add_argument("--images", type=Path, metavar="DIR", help="class folders to draw pairs from")
    parser.add_argument("--pairs", type=int, default=2000, help="number of pairs to draw from --images (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()
    if refused := [argument for argument in more if argument.split("=")[0] in _NOT_PASSED_ON]:
        parser.error(f"{' '.join(refused)}: this command decides that itself; leave it out.")
    if importlib.util.find_spec("openvino") is None:
        parser.error("the package openvino is not installed, and there is nothing to compare; pip install '.[openvino]'.")
    with tempfile.TemporaryDirectory(prefix="batchverify-precision-") as path:
        folder = Path(path)
        try:
            drawn = options.images and draw_manifest(options.images, options.pairs, options.seed, folder / "pairs.csv")
        except ValueError as error:
            parser.error(str(error))
        manifests = [part for path in options.manifest or [str(drawn)] for part in ("--manifest", path)]
        runs = {name: _run([*manifests, *arguments, *more], folder / name) for name, arguments in _VARIANTS.items()}
    print("\n".join(table(runs)))
    print(f"\n{machine_words(describe_machine())}")
    return int(any(isinstance(run, str) for run in runs.values()))


def draw_manifest(images: Path, pairs: int, seed: int, path: Path) -> Path:
    """Writes a manifest of `pairs` rows with two different files each; impostor and genuine pairs take turns.

    Raises:
        ValueError: if there are no two classes of two images.
    """
    classes = collections.defaultdict(list)
    for image in sorted(file for file in images.resolve().rglob("*") if file.suffix.lower() in IMAGE_ENDINGS):
        classes[image.parent].append(image)
    drawn = [files for files in classes.values() if len(files) > 1]
    if len(drawn) < 2:
        raise ValueError(f"--images {images}: it has no two folders with two images each; give a folder of class folders.")
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["left", "right", "genuine"])
        for number in range(pairs):
            first, second = rng.choice(len(drawn), 2, replace=False)
            genuine = number % 2
            left, right = rng.choice(len(drawn[first]), 2, replace=False)
            lines.writerow([drawn[first][left], drawn[first][right] if genuine else rng.choice(drawn[second]), genuine])
    return path


def _run(options: list[str], output: Path) -> Run | str:
    """Runs batchverify and returns the run, or the reason why it failed."""
    code, measured, message = measure([sys.executable, "-m", "batchverify", "--output", str(output), *options])
    if code not in (0, _GATE_NOT_MET):
        return f"failed with exit code {code}: {message}"
    summary = json.loads((output / "_summary.json").read_text(encoding="utf-8"))
    columns = [*_ORDER, "score", *_COMPARED]
    rows = pa.concat_tables([pq.read_table(path, columns=columns) for path in output.glob("scores-*.parquet")])
    return Run(measured.seconds, summary, rows.sort_by([(name, "ascending") for name in _ORDER]))


def table(runs: dict[str, Run | str]) -> Iterator[str]:
    """Yields the lines of a Markdown table, in which each run is compared with the first one.

    Args:
        runs: Runs by name of the variant; a string is the reason why a run failed.
    """
    reference, *_ = runs.values()
    if isinstance(reference, Run):
        scored, images = reference.summary["rows"]["scored"], reference.summary["images"]["total"]
        yield f"{scored:,} pairs with scores over {images:,} images\n"
    yield _HEAD
    for name, run in runs.items():
        if isinstance(run, str):
            yield f"| {name} | {run} |" + " |" * 6
            continue
        rate = (run.summary["profile"] or {}).get("images_per_second")
        differences = _differences(run.rows, reference.rows) if isinstance(reference, Run) else [""] * 5
        yield f"| {name} | {run.seconds:.1f} | {'' if rate is None else f'{rate:,.0f}'} | {' | '.join(differences)} |"


def _differences(rows: pa.Table, reference: pa.Table) -> Iterator[str]:
    """Yields the cells of the table that compare a run with the reference."""
    scores, reference_scores = (each["score"].to_numpy().astype(float) for each in (rows, reference))
    differences = np.abs(scores - reference_scores)
    differences = differences[np.isfinite(differences)]
    yield f"{differences.max():.2g}" if len(differences) else ""
    yield f"{differences.mean():.2g}" if len(differences) else ""
    yield str(np.sum(np.isfinite(scores) != np.isfinite(reference_scores)))
    for column in _COMPARED:
        # The two columns have different dictionaries, so they are compared as strings.
        values, expected = (each[column].cast(pa.string()) for each in (rows, reference))
        yield str(pc.sum(pc.not_equal(values, expected)).as_py() or 0)


if __name__ == "__main__":
    sys.exit(main())
