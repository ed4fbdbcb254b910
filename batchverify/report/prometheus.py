"""The figures of a run in Prometheus' text format, as node_exporter's textfile collector reads it; needs prometheus-client."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from batchverify.evaluation.strangers import MANY_MATCH
from batchverify.version import VERSION


@dataclasses.dataclass(frozen=True)
class Metric:
    """One gauge.

    Attributes:
        name: Its name, without the prefix `batchverify_`.
        text: What it is, in a few words.
        values: Its values by the value of its label; None stands for nothing to tell.
        label: The name of its label; empty for a gauge without one, whose only value has the key "".
    """

    name: str
    text: str
    values: Mapping[str, float | None]
    label: str = ""


def write_metrics(path: str, exit_code: int, seconds: float, summary: dict[str, Any] | None) -> None:
    """Writes the metrics of a run: whoever reads the file meanwhile gets the old one or the new one, whole.

    Args:
        path: The file; node_exporter reads those whose names end in `.prom`.
        exit_code: The exit code of the program.
        seconds: The time from the start of the program to now.
        summary: The content of `_summary.json`; None for a run that has none.

    Raises:
        OSError: If it cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    for metric in (*_metrics_of_end(exit_code, seconds), *(_metrics_of_summary(summary) if summary else ())):
        known = {label: float(value) for label, value in metric.values.items() if value is not None and math.isfinite(value)}
        if not known:
            continue
        gauge = Gauge(f"batchverify_{metric.name}", metric.text, [metric.label] if metric.label else [], registry=registry)
        for label, value in known.items():
            (gauge.labels(label) if metric.label else gauge).set(value)
    write_to_textfile(path, registry)


def _single(name: str, text: str, value: float | None) -> Metric:
    return Metric(name, text, {"": value})


def _metrics_of_end(exit_code: int, seconds: float) -> Iterator[Metric]:
    yield _single("last_run_exit_code", "Exit code of the last run; 0 is done with all gates met.", exit_code)
    yield _single("last_run_timestamp_seconds", "When the last run ended, in seconds since 1970.", time.time())
    yield _single("last_run_duration_seconds", "Time from the start of the program to its end.", seconds)
    yield Metric("build_info", "Version of batchverify.", {VERSION: 1}, "version")


def _metrics_of_summary(summary: dict[str, Any]) -> Iterator[Metric]:
    yield from _metrics_of_rows(summary)
    yield from _metrics_of_images(summary)
    yield from _metrics_of_belief(summary)
    yield from _metrics_of_labels(summary.get("error_rates") or {})
    yield from _metrics_of_baseline(summary.get("baseline") or {})
    yield from _metrics_of_gates(summary)
    yield from _metrics_of_time(summary.get("profile") or {})


def _metrics_of_rows(summary: dict[str, Any]) -> Iterator[Metric]:
    rows, run = summary["rows"], summary["run"]
    scored, matches = rows.get("scored", 0), rows.get("matches", 0)
    yield Metric("rows", "Rows by what became of them.", {"scored": scored, "failed": rows.get("failed", 0)}, "result")
    yield _single("matches", "Scored rows that match.", matches)
    yield _single("match_ratio", "Share of the scored rows that match.", matches / scored if scored else None)
    yield _single("review_rows", "Rows that --review marks.", rows.get("review"))
    yield _single("threshold", "The lowest score of a match.", run["threshold"])
    yield Metric("model_info", "Digest of the model.", {str(run["model_digest"]): 1}, "digest")


def _metrics_of_images(summary: dict[str, Any]) -> Iterator[Metric]:
    images, embeddings = summary["images"], summary.get("embeddings") or {}
    statuses = {"ok": images.get("ok", 0)} | {status: count for status, count in images.items() if status != "total"}
    sources = {"encoded": embeddings.get("encoded", images.get("ok", 0)), "store": embeddings.get("reused", 0)}
    failed = summary.get("failure_to_acquire") or {}
    yield Metric("images", "Distinct images by status.", statuses, "status")
    yield Metric("embedded_images", "Distinct images by where their embedding came from.", sources, "source")
    yield _single("failure_to_acquire_ratio", "Share of the distinct images that could not be read.", failed.get("rate"))


def _metrics_of_belief(summary: dict[str, Any]) -> Iterator[Metric]:
    identity, strangers, steadiness = (summary.get(name) or {} for name in ("identity", "strangers", "steadiness"))
    verdicts = {name: identity.get(name, 0) for name in ("sane", "below_threshold", "outscored", "not_checked")}
    rejected = {name: change["rejected"] for name, change in steadiness.get("changes", {}).items()}
    yield Metric("identity_checks", "Rows by the verdict of the identity check.", verdicts, "verdict")
    yield _single(
        "identity_images_below_threshold", "Images that don't match themselves.", identity.get("images_below_threshold")
    )
    yield _single("identity_score_min", "Lowest score of an image against itself.", identity.get("score_min"))
    yield _single("stranger_pairs", "Pairs of images drawn at random.", strangers.get("pairs"))
    yield _single("stranger_matches", "Pairs drawn at random that match.", strangers.get("matches"))
    yield _single("stranger_match_ratio", "Share of the pairs drawn at random that match.", strangers.get("match_rate"))
    too_many = strangers and strangers.get("verdict") == MANY_MATCH
    yield _single(
        "strangers_trustworthy", "0 where too many strangers match, else 1.", float(not too_many) if strangers else None
    )
    yield _single(
        "steadiness_images", "Images that were compared with themselves after a small change.", steadiness.get("images")
    )
    yield Metric("steadiness_rejected_images", "Images that don't match themselves after a change.", rejected, "change")


def _metrics_of_labels(rates: Mapping[str, Any]) -> Iterator[Metric]:
    pairs = {kind: rates.get(kind) for kind in ("genuine", "impostor")}
    yield Metric("labelled_pairs", "Labelled pairs with a score.", pairs, "kind")
    yield _single("false_match_ratio", "Share of the impostor pairs that match (FMR).", rates.get("fmr"))
    yield _single("false_non_match_ratio", "Share of the genuine pairs that don't match (FNMR).", rates.get("fnmr"))
    yield _single("equal_error_ratio", "FMR and FNMR where they are equal (EER).", rates.get("eer"))


def _metrics_of_baseline(baseline: Mapping[str, Any]) -> Iterator[Metric]:
    drift = {"pairs": baseline.get("psi"), "strangers": baseline.get("strangers_psi")}
    changed = float(baseline["model_changed"]) if "model_changed" in baseline else None
    yield Metric("drift_population_stability_index", "Drift of the scores since the baseline.", drift, "scores")
    yield _single("drift_kolmogorov_smirnov", "Largest distance of the two distributions of scores.", baseline.get("ks"))
    yield _single("model_changed", "1 where the model is not that of the baseline, else 0.", changed)


def _metrics_of_gates(summary: dict[str, Any]) -> Iterator[Metric]:
    gates = summary.get("gates") or ()
    met = {gate["option"].removeprefix("--"): float(gate["met"]) for gate in gates}
    found = {gate["option"].removeprefix("--"): gate["found"] for gate in gates}
    yield Metric("gate_met", "1 where the run is within the limit, else 0.", met, "gate")
    yield Metric("gate_found", "The run's value: rows at fault, pairs, or an index.", found, "gate")


def _metrics_of_time(profile: Mapping[str, Any]) -> Iterator[Metric]:
    yield _single(
        "pipeline_duration_seconds", "Time from the start of the pipeline to its summary.", profile.get("wall_seconds")
    )
    yield Metric("work_seconds", "Time of all threads and workers, by what they did.", profile.get("seconds") or {}, "work")
    yield _single("images_per_second", "Distinct images over the time of the pipeline.", profile.get("images_per_second"))
    yield _single("rows_per_second", "Rows over the time of the pipeline.", profile.get("rows_per_second"))
    yield _single("device_idle_ratio", "Share of the time in which the encoder did nothing.", profile.get("device_idle_share"))
