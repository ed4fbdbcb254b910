"""A run's model and its candidate side by side: the rows of the report's table, and their curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from batchverify.evaluation import metrics
from batchverify.evaluation.strangers import percent
from batchverify.images.variants import CHANGES, JUDGED_CHANGES

_RATES = ("accuracy", "fmr", "fnmr", "eer")


def compare_models(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what is to be compared: its name, and what holds for the model and for the candidate, all as text.

    Args:
        summary: The content of `_summary.json` of a run with a candidate.
    """
    run, candidate = summary["run"], summary["candidate"]
    names = ("model", "model_digest", "threshold", "preprocessing", "certificate")
    model = {name: run.get(name) for name in names} | {name: summary[name] for name in candidate if name in summary}
    theirs = dict(_facts(candidate))
    return [(name, text, theirs.get(name, "–")) for name, text in _facts(model)]


def curves(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what the plot of both DET curves needs, by the name of the curve; empty without labels of both kinds."""
    drawn = {}
    for name, side in (("model", summary), ("candidate", summary["candidate"])):
        rates, histograms = side["error_rates"], side["score_histograms"]
        if not rates or not rates["genuine"] or not rates["impostor"]:
            return {}
        _, fmr, fnmr = metrics.det_points(*(metrics.dense(histograms[kind]) for kind in ("genuine", "impostor")))
        pairs = rates["impostor"], rates["genuine"]
        drawn[name] = {"fmr": fmr, "fnmr": fnmr, "pairs": pairs, "eer": rates["eer"], "point": (rates["fmr"], rates["fnmr"])}
    return drawn


def _facts(side: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", side["model"]
    yield "digest", side["model_digest"].removeprefix("sha256:")[:12]
    yield "pixels", side["preprocessing"]
    yield "threshold", f"{side['threshold']:g}"
    rows = side["rows"]
    yield "rows with a score", f"{rows.get('scored', 0):,}"
    yield "matches", f"{rows.get('matches', 0):,}"
    yield from _identity_facts(side)
    if strangers := side.get("strangers"):
        yield "strangers that match", _share(strangers["match_rate"], strangers["match_rate_interval"])
    steadiness = side.get("steadiness")
    if steadiness and steadiness["images"]:
        for name, change in steadiness["changes"].items():
            judged = "" if name in JUDGED_CHANGES else " (not judged)"
            yield f"rejected when {CHANGES[name]}{judged}", f"{change['rejected']:,} of {steadiness['images']:,}"
    if rates := side["error_rates"]:
        for name in _RATES:
            title = name if name == "accuracy" else name.upper()
            yield title, _share(rates[name], rates[f"{name}_interval"])


def _identity_facts(side: dict[str, Any]) -> Iterator[tuple[str, str]]:
    identity, certificate = side["identity"], side.get("certificate")
    if identity["score_min"] is not None:
        low, high = (f"{identity[name]:.4f}" for name in ("score_min", "score_max"))
        yield "f(x, x)", low if low == high else f"{low} to {high}"
    yield "images whose f(x, x) is below the threshold", f"{identity['images_below_threshold']:,}"
    yield "rows that outscore an f(x, x)", f"{identity['outscored']:,}"
    holds = certificate["holds"] if certificate else None
    words = {True: "holds: no pair can outscore f(x, x)", False: "does not hold: some pairs can outscore f(x, x)", None: "none"}
    yield "certificate", words[holds]


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{percent(float(np.clip(value, 0, 1)))} ({percent(interval[0])} to {percent(interval[1])})"
