"""Nights that tests make up: run directories with a summary of the real shape, and figures that are drawn."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from batchverify.evaluation import metrics
from batchverify.evaluation.summary import Summary
from batchverify.evaluation.summary_version import SUMMARY_VERSION

FIRST = datetime.date(2026, 3, 1)


def draw_summary(rng: np.random.Generator, day: datetime.date, model: str = "a", bins: int = 400) -> dict[str, Any]:
    """Returns the summary of a night without faults, with some failed images, and scores in so many bins."""
    counts = rng.integers(1, 50, bins)
    positions = np.sort(rng.choice(metrics.BINS, bins, replace=False))
    scored, failed = int(counts.sum()), int(rng.integers(1, 9))
    summary = Summary().to_json(0.5)
    summary["rows"] = {"total": scored + failed, "scored": scored, "failed": failed,
                       "matches": int(counts[metrics.EDGES[positions] >= 0.5].sum()), "left.no_uri": 1}  # fmt: skip
    summary["images"] = {"total": 1000 + failed, "ok": 1000, "missing": failed}
    summary["identity"] |= {"sane": scored, "score_min": 0.999, "score_mean": 0.999, "score_max": 0.999}
    summary["score_histograms"]["unlabelled"] = metrics.sparse(np.bincount(positions, counts, metrics.BINS).astype(np.int64))
    summary["embeddings"] = {"path": "store", "stored": 990, "ignored": None, "reused": 990, "encoded": 10}
    summary["profile"] = {"wall_seconds": 1800.0, "seconds": {}, "images_per_second": 50.0, "rows_per_second": 1.0,
                          "device_idle_share": None}  # fmt: skip
    run = {"run_id": str(day), "started": f"{day}T02:15:00+00:00", "threshold": 0.5, "model": f"{model}.keras",
           "model_digest": f"sha256:{model * 64}"}  # fmt: skip
    return {"summary_version": SUMMARY_VERSION, "run": run, **summary, "baseline": None, "gates": []}


def write_night(folder: Path, summary: Any) -> Path:
    """Writes a finished run directory, and returns it. A summary may also be given as text."""
    folder.mkdir(parents=True)
    (folder / "_summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    (folder / "_report.html").write_text("<title>report</title>")
    (folder / "scores-00000-of-00001.parquet").write_bytes(b"nobody reads it")
    (folder / "_SUCCESS").write_text("run")
    return folder


def gate(option: str, limit: str, found: float, rows: int, met: bool) -> dict[str, Any]:
    """Returns an entry of `gates`."""
    return {"option": option, "limit": limit, "found": found, "rows": rows, "met": met}
