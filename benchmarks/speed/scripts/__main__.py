"""Runs one contender in this process: `python -m benchmarks.speed.scripts published --manifest … --model … --output …`."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.speed.scripts.work import Task, write_scores


def main() -> None:
    """Scores a manifest's pairs and writes a Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", help="module of this package")
    parser.add_argument("--manifest", required=True, help="Parquet file with the columns pair, left and right")
    parser.add_argument("--model", required=True, help=".keras file")
    parser.add_argument("--output", required=True, help="Parquet file to write")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    contender = importlib.import_module(f"benchmarks.speed.scripts.{options.contender}")
    write_scores(options.output, contender.score(Task(options.manifest, options.model, options.batch_size)))


if __name__ == "__main__":
    main()
