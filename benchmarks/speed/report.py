"""What the measurements say: medians, ratios with their spread, a Markdown table, and a JSON file with the machine."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from batchverify.version import VERSION
from benchmarks.speed.contenders import OURS
from benchmarks.speed.manifests import Pairs
from benchmarks.speed.runner import Record

_PACKAGES = ("apache-beam", "keras", "numpy", "openvino", "pillow", "pyarrow", "pyspark", "ray", "tensorflow")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The ratio of two contenders' times, round by round.

    Attributes:
        median: The median of the rounds' ratios.
        least: The least of them.
        most: The greatest of them.
    """

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.most:.2f})"


def ratio(times: list[float], others: list[float]) -> Ratio:
    """Returns `times / others`; both were measured in the same rounds."""
    ratios = [time / other for time, other in zip(times, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def seconds(record: Record) -> list[float]:
    """Returns a contender's wall time in each round."""
    return [measured.seconds for measured in record.rounds]


def find_limit(records: list[Record]) -> Record | None:
    """Returns the faster of the two scripts that were tuned by hand, by their medians."""
    limits = [record for record in records if record.contender.is_limit and not record.problem and record.rounds]
    return min(limits, key=lambda record: statistics.median(seconds(record)), default=None)


def beyond_start_up(record: Record | None) -> float | None:
    """Returns the seconds that a contender took, by their median, more than for two pairs; None where that is not known."""
    if record is None or record.start_up is None or not record.rounds:
        return None
    return statistics.median(seconds(record)) - record.start_up.seconds


def summarise(records: list[Record], pairs: Pairs) -> list[dict[str, Any]]:
    """Returns a row for each contender: medians, and its ratios to batchverify and to the limit."""
    ours = next((record for record in records if record.contender.name == OURS and not record.problem), None)
    limits = [beyond_start_up(record) for record in records if record.contender.is_limit and not record.problem]
    least = min((beyond for beyond in limits if beyond is not None), default=None)
    return [_row(record, pairs, ours, find_limit(records), least) for record in records]


def _row(record: Record, pairs: Pairs, ours: Record | None, limit: Record | None, least_beyond: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "contender": record.contender.name,
        "meaning": record.contender.meaning,
        "problem": record.problem,
        "difference": record.difference if record.rounds else None,
        "scores": record.scores,
    }
    if record.problem or not record.rounds:
        return row
    median = statistics.median(seconds(record))
    return row | {
        "start_up_s": record.start_up.seconds if record.start_up else None,
        "seconds": median,
        "seconds_by_round": seconds(record),
        "images_per_s": pairs.images / median,
        "pairs_per_s": len(pairs) / median,
        "cpu_s": statistics.median(measured.cpu_seconds for measured in record.rounds),
        "peak_gib": max(measured.peak_gib for measured in record.rounds),
        "time_by_batchverify": dataclasses.asdict(ratio(seconds(record), seconds(ours))) if ours else None,
        "throughput_by_limit": dataclasses.asdict(ratio(seconds(limit), seconds(record))) if limit else None,
        "beyond_by_batchverify": _quotient(beyond_start_up(record), beyond_start_up(ours)),
        "beyond_by_limit": _quotient(least_beyond, beyond_start_up(record)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    head = (
        "| contender | s | of which start-up | images/s | pairs/s | CPU s | peak GiB "
        "| time / batchverify's | throughput / the limit's | beyond start-up: time / batchverify's "
        "| beyond start-up: throughput / the limit's | largest difference |"
    )
    return "\n".join([head, "|" + " --- |" * 12, *map(_line, rows)])


def _line(row: dict[str, Any]) -> str:
    if "seconds" not in row:
        return f"| {row['contender']} | {row['problem'] or 'no times'} |" + " |" * 9 + f" {_number(row['difference'], '.1g')} |"
    cells = [
        f"{row['seconds']:.1f}", _number(row["start_up_s"], ".1f"), f"{row['images_per_s']:,.0f}", f"{row['pairs_per_s']:,.0f}",
        f"{row['cpu_s']:.0f}", f"{row['peak_gib']:.2f}", _spread(row["time_by_batchverify"]),
        _spread(row["throughput_by_limit"]), _number(row["beyond_by_batchverify"], ".2f"),
        _number(row["beyond_by_limit"], ".2f"), f"{row['difference']:.1g}",
    ]  # fmt: skip
    return f"| {row['contender']} | " + " | ".join(cells) + " |"


def _quotient(seconds: float | None, others: float | None) -> float | None:
    return None if seconds is None or others is None or others <= 0 else seconds / others


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _spread(found: dict[str, float] | None) -> str:
    return "" if found is None else str(Ratio(**found))


def describe_machine() -> dict[str, Any]:
    """Returns processor, cores, memory, GPUs, versions and date."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "batchverify": VERSION,
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine_words(machine: dict[str, Any]) -> str:
    """Returns the same as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpus}; Python {machine['python']}, "
        f"batchverify {machine['batchverify']}, {versions}; {machine['date']}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[:-1]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
