"""Measures how the pipeline scales, with a null network on one machine; estimates larger runs by arithmetic.

    python -m benchmarks.scale                              # 1, 3, 10 and 30 million rows
    python -m benchmarks.scale --millions 0.1 0.3 1         # smaller ones
    python -m benchmarks.scale --by-hand --millions 10     # ten million rows, beside a script by hand
    python -m benchmarks.scale --skew                       # a million rows, uniform and skewed
    python -m benchmarks.scale --plan                       # seconds of planning a manifest
    python -m benchmarks.scale --estimate --pairs 1e9 --images 2e8 --embedding-bytes 404 5120 150528

These commands print Markdown tables. Each size runs in its own process. `benchmarks/README.md` and `SCALE.md` have the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchverify.config import VerificationConfig
from batchverify.manifest.plan import plan_manifest
from batchverify.pipeline.memory import available_bytes, process_bytes
from batchverify.pipeline.two_readings import ROWS_AT_ONCE
from benchmarks.by_hand import measure_by_hand
from benchmarks.estimate import DEVICES, Device, Job, distinct, estimate, format_estimates, table
from benchmarks.shuffle import EMBEDDING_SIZE, Measured, measure_alone, write_manifest
from benchmarks.skew import CASES, uniform

Numbers = Sequence[float] | np.ndarray

__all__ = ["estimate", "fit_growth", "main"]

_EMBEDDING_BYTES = 4 * EMBEDDING_SIZE
_LIBRARY_BYTES = 2**29
_PAIRS_PER_IMAGE = 20


@dataclasses.dataclass(frozen=True)
class Growth:
    """A power law: seconds = factor · rows^exponent.

    Attributes:
        factor: Seconds of one row.
        exponent: Exponent; 1 means that twice as many rows take twice as long.
        exponent_error: Standard error of the exponent; infinite if only two sizes were measured.
    """

    factor: float
    exponent: float
    exponent_error: float

    def __str__(self) -> str:
        return f"seconds = {self.factor:.3g} · rows^b, b = {self.exponent:.3f} ± {self.exponent_error:.3f} (standard error)"


def fit_growth(rows: Numbers, seconds: Numbers) -> Growth:
    """Fits a power law to two or more sizes, by least squares of the logarithms."""
    x, y = np.log(rows), np.log(seconds)
    exponent, intercept = np.polyfit(x, y, 1)
    residuals = y - exponent * x - intercept
    free = len(x) - 2
    error = np.sqrt(residuals @ residuals / free / np.sum((x - x.mean()) ** 2)) if free else np.inf
    return Growth(float(np.exp(intercept)), float(exponent), float(error))


def grow(millions: Sequence[float]) -> str:
    """Measures each size in its own process, with the images in one table."""
    return format_growth([measure_alone(pairs, pairs // _PAIRS_PER_IMAGE) for pairs in map(_rows, millions)])


def format_growth(runs: Sequence[Measured]) -> str:
    """Returns the measurements as a table, and the laws that were fitted to them."""
    rows = [
        [
            f"{run.pairs:,}",
            f"{run.images:,}",
            f"{_distinct_images_of_blocks(run) / run.pairs:.2f}",
            f"{run.seconds:.1f}",
            f"{run.pairs / run.seconds:,.0f}",
            f"{run.peak_gib:.2f}",
            f"{run.peak_gib * 2**30 / run.pairs:,.0f}",
        ]
        for run in runs
    ]
    measurements = table(["pairs", "images", "images named a row", "s", "rows/s", "peak GiB", "peak bytes a row"], rows)
    if len(runs) < 2:
        return measurements
    pairs, seconds = [run.pairs for run in runs], [run.seconds for run in runs]
    row, name = fit_parts(pairs, [_distinct_images_of_blocks(run) for run in runs], seconds)
    parts = f"seconds = {row * 1e6:.1f} µs · rows + {name * 1e6:.1f} µs · images that blocks name"
    return f"{measurements}\n\n{fit_growth(pairs, seconds)}\n\n{parts}"


def by_hand(pairs: int, images: int, rounds: int) -> str:
    """Measures a run beside a script that does its rows by hand. They take turns; each round gives a ratio."""
    runs = [(measure_alone(pairs, images), measure_alone(pairs, images, function=measure_by_hand)) for _ in range(rounds)]
    ratios = sorted(script.seconds / run.seconds for run, script in runs)
    rows = [
        [
            name,
            f"{np.median([run.seconds for run in measured]):.1f}",
            f"{np.median([pairs / run.seconds for run in measured]):,.0f}",
            f"{max(run.peak_gib for run in measured):.2f}",
        ]
        for name, measured in zip(("batchverify", "by hand"), zip(*runs, strict=True), strict=True)
    ]
    shown = table([f"{pairs:,} pairs, {images:,} images", "s (median)", "rows/s", "peak GiB"], rows)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {rounds} rounds"
    return f"{shown}\n\nrows/s against the script: {np.median(ratios):.2f} ({spread})"


def _distinct_images_of_blocks(run: Measured) -> float:
    """Returns the number of distinct images in each block of a run, summed over the blocks."""
    rows = min(run.pairs, ROWS_AT_ONCE)
    return run.pairs / rows * distinct(2 * rows, run.images)


def fit_parts(rows: Numbers, named: Numbers, seconds: Numbers) -> tuple[float, float]:
    """Returns the seconds of a row and of an image that a block names, fitted by least squares of the relative errors."""
    weights = np.array([rows, named]).T / np.array(seconds)[:, None]
    row, name = np.linalg.lstsq(weights, np.ones(len(rows)), rcond=None)[0]
    return float(row), float(name)


def carry(millions: Sequence[float]) -> str:
    """Measures the amounts that the shuffles of a distributed run carry, and puts the estimates beside them."""
    rows = []
    for pairs in map(_rows, millions):
        job = Job(pairs, pairs // _PAIRS_PER_IMAGE, _EMBEDDING_BYTES, uri_bytes=len("/images/00000000.jpg"))
        expected = estimate(job)
        measured = measure_alone(job.pairs, job.images, block_rows=expected.block_rows)
        rows.append(
            [
                f"{job.pairs:,}",
                f"{job.images:,}",
                f"{measured.seconds:.1f}",
                *_carried(measured, dataclasses.asdict(expected), pairs),
            ]
        )
    kinds = [f"{kind}: bytes a row (by estimate)" for kind in ("requests", "blocks", "answers")]
    return table(["pairs", "images", "s", "images sent a row", *kinds], rows)


def _carried(measured: Measured, expected: dict[str, float], pairs: int) -> list[str]:
    assert measured.carried is not None
    by_kind = (
        (measured.carried[f"{kind}s"].bytes / pairs, expected[f"{kind}_tb"] * 1e12 / pairs)
        for kind in ("request", "block", "answer")
    )
    return [
        f"{measured.carried['answers'].rows / pairs:.3f}",
        *(f"{counted:.2f} ({estimated:.2f})" for counted, estimated in by_kind),
    ]


def skew(pairs: int, rounds: int = 3) -> str:
    """Measures skewed manifests, with the images in one table and with images that are sent. The cases take turns."""
    images = pairs // _PAIRS_PER_IMAGE
    block_rows = estimate(Job(pairs, images, _EMBEDDING_BYTES)).block_rows
    runs: dict[str, list[list[Measured]]] = {case: [[], []] for case in CASES}
    for _ in range(rounds):
        for case, (shared, sent) in runs.items():
            shared.append(measure_alone(pairs, images, case=case))
            sent.append(measure_alone(pairs, images, case=case, block_rows=block_rows))
    rows = [[case, *(text for group in groups for text in _rate(group))] for case, groups in runs.items()]
    header = [f"{pairs:,} pairs", "one table: rows/s", "peak GiB", "images sent: rows/s", "peak GiB"]
    return table(header, rows)


def _rate(runs: list[Measured]) -> list[str]:
    return [f"{np.median([run.pairs / run.seconds for run in runs]):,.0f}", f"{max(run.peak_gib for run in runs):.2f}"]


def plan(pairs: int, files: int = 20) -> str:
    """Measures the seconds of planning a manifest, for manifests of one file and of many files."""
    rows = []
    whole = uniform(pairs, pairs // _PAIRS_PER_IMAGE)[0]
    step = -(-pairs // files)
    with tempfile.TemporaryDirectory() as folder:
        for name, tables in (("one", [whole]), (f"{files}", [whole.slice(start, step) for start in range(0, pairs, step)])):
            for kind, paths in (
                ("CSV", write_manifest(Path(folder), tables)),
                ("Parquet", _write_parquet(Path(folder), tables)),
            ):
                started = time.perf_counter()
                planned = plan_manifest(VerificationConfig(manifests=paths, output="unused"))
                seconds = time.perf_counter() - started
                rows.append(
                    [kind, name, f"{pairs:,}", f"{planned.expected_rows:,}", f"{len(planned.shards)}", f"{seconds:.1f}"]
                )
    return table(["manifest", "files", "rows", "rows expected", "shards", "s"], rows)


def _write_parquet(folder: Path, tables: list[pa.Table]) -> tuple[str, ...]:
    paths = [str(folder / f"pairs-{number}.parquet") for number in range(len(tables))]
    for path, rows in zip(paths, tables, strict=True):
        pq.write_table(rows, path)
    return tuple(paths)


def _rows(millions: float) -> int:
    return round(millions * 1e6)


def _require_memory(millions: Sequence[float]) -> None:
    pairs = _rows(max(millions))
    needed = _LIBRARY_BYTES + process_bytes(pairs // _PAIRS_PER_IMAGE, _EMBEDDING_BYTES)
    left = available_bytes()
    print(f"{pairs:,} rows need about {needed / 2**30:.1f} GiB.", file=sys.stderr)
    if left is not None and needed > left:
        raise SystemExit(f"{left / 2**30:.1f} GiB are left; give smaller sizes with --millions.")


def _devices(rates: Sequence[str], prices: Sequence[str]) -> tuple[Device, ...]:
    """Returns the devices with the user's own rates and prices, each given as `NAME=VALUE`."""
    devices = {device.name: device for device in DEVICES}
    for name, value in map(_parse, rates):
        devices[name] = dataclasses.replace(devices[name], images_per_s=value, rate_from="given")
    for name, value in map(_parse, prices):
        devices[name] = dataclasses.replace(devices[name], usd_per_hour=value, price_from="given")
    return tuple(devices.values())


def _parse(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    known = [device.name for device in DEVICES]
    if name not in known:
        raise SystemExit(f"{text}: there is no device '{name}'; give one of {', '.join(known)}.")
    return name, float(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables that the options select."""
    parser = argparse.ArgumentParser(description="How the pipeline scales: measurements, and estimates for larger runs.")
    parser.add_argument(
        "--millions", type=float, nargs="+", metavar="N", default=[1, 3, 10, 30], help="millions of rows to measure"
    )
    parser.add_argument(
        "--sent",
        type=float,
        nargs="*",
        metavar="N",
        default=[1, 3],
        help="millions of rows whose shuffled bytes are counted; no number skips this",
    )
    parser.add_argument("--skew", action="store_true", help="measure skewed manifests, with the first size of --millions")
    parser.add_argument("--by-hand", action="store_true", help="measure the first size of --millions beside a script by hand")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --skew and --by-hand")
    parser.add_argument("--plan", action="store_true", help="measure planning, with the first size of --millions")
    parser.add_argument("--estimate", action="store_true", help="measure nothing, and print the arithmetic")
    job = parser.add_argument_group("--estimate")
    for field in dataclasses.fields(Job):
        nargs = "+" if field.name == "embedding_bytes" else None
        option = f"--{field.name.replace('_', '-')}"
        job.add_argument(option, type=float, nargs=nargs, metavar="N", help=f"default {field.default:,}")
    job.add_argument("--rate", action="append", default=[], metavar="DEVICE=IMAGES/S")
    job.add_argument("--price", action="append", default=[], metavar="DEVICE=USD/HOUR")
    options = parser.parse_args(argv)
    if options.estimate:
        print(format_estimates(_jobs(options), _devices(options.rate, options.price)))
    elif options.by_hand:
        pairs = _rows(options.millions[0])
        print(by_hand(pairs, pairs // _PAIRS_PER_IMAGE, options.rounds))
    elif options.skew:
        print(skew(_rows(options.millions[0]), options.rounds))
    elif options.plan:
        print(plan(_rows(options.millions[0])))
    else:
        _require_memory(options.millions)
        print(grow(options.millions), flush=True)
        if options.sent:
            print(f"\n{carry(options.sent)}")


def _jobs(options: argparse.Namespace) -> list[Job]:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Job)}
    sizes = given.pop("embedding_bytes") or [Job.embedding_bytes]
    settings = {name: type(getattr(Job, name))(value) for name, value in given.items() if value is not None}
    return [Job(embedding_bytes=int(size), **settings) for size in sizes]


if __name__ == "__main__":
    main()
