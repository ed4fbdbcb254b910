"""Whether a run can be believed, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from batchverify.evaluation.drift import Shift, describe_shift

_MARKS = {"good": "✓", "warn": "!", "bad": "✗", "plain": "–"}
_SHIFTS = {Shift.LITTLE: "good", Shift.SOME: "warn", Shift.LARGE: "bad"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a verdict rests on.

    Attributes:
        level: `good`, `warn`, `bad` or `plain`.
        text: the same in words.
    """

    level: str
    text: str

    @property
    def mark(self) -> str:
        return _MARKS[self.level]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether to believe a run.

    Attributes:
        level: as of a `Point`.
        headline: one short sentence.
        points: what it rests on.
    """

    level: str
    headline: str
    points: tuple[Finding, ...]

    @property
    def mark(self) -> str:
        return _MARKS[self.level]


def judge_run(summary: dict[str, Any]) -> Verdict:
    """Returns whether a run is to be believed, in words for somebody who never heard of the identity check."""
    identity = _identity_point(summary)
    points = [
        identity,
        *_certificate_points(summary),
        *_gate_points(summary),
        *_row_points(summary),
        *_baseline_points(summary),
    ]
    broken = any(not gate["met"] for gate in summary["gates"])
    if summary["rows"].get("total", 0) == 0:
        return Verdict("warn", "The manifest had no rows, so there is nothing to judge.", tuple(points))
    if identity.level == "bad":
        headline = "Don’t trust these scores: the model fails the identity check."
    elif identity.level == "warn":
        headline = "Nothing could be judged: no image could be read."
    elif broken:
        headline = "The model is sane, but a limit that you set is not met."
    elif failed := summary["rows"].get("failed", 0):
        headline = f"The model is sane, and the run is complete, but {_counted(failed, 'row has', 'rows have')} no score."
    else:
        headline = "The model is sane, and the run is complete."
    level = (
        "bad" if broken or identity.level == "bad" else "warn" if any(p.level in ("warn", "bad") for p in points) else "good"
    )
    return Verdict(level, headline, tuple(points))


def _identity_point(summary: dict[str, Any]) -> Finding:
    identity, threshold = summary["identity"], summary["run"]["threshold"]
    compared = summary["images"].get("ok", 0)
    if identity["score_min"] is None:
        return Finding("warn", "Identity check: no image could be encoded, so none was compared with itself.")
    low, high = identity["score_min"], identity["score_max"]
    scale = f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"
    refused, outscored = identity["images_below_threshold"], identity["outscored"]
    if not refused and not outscored:
        return Finding(
            "good",
            f"Identity check passed: each of {compared:,} images, compared with itself, scored {scale}; none fell below the "
            f"threshold {threshold:g}, and no pair scored higher than its own images do.",
        )
    seen = []
    if refused:
        seen.append(f"{refused:,} of {compared:,} images, compared with themselves, fall below the threshold {threshold:g}")
    if outscored:
        seen.append(f"{outscored:,} of {summary['rows'].get('scored', 0):,} pairs score higher than an image against itself")
    return Finding(
        "bad",
        f"Identity check failed: {'; '.join(seen)}. An image compared with itself scores {scale}; nothing can be more "
        "alike, so it should be near 1. The model is at fault, not the images: retrain its head with weights that can’t be "
        "positive and with identity pairs.",
    )


def _certificate_points(summary: dict[str, Any]) -> Iterator[Finding]:
    certificate = summary["run"].get("certificate")
    if certificate and certificate["holds"] is False and not summary["identity"]["outscored"]:
        yield Finding(
            "warn",
            f"{certificate['positive_weights']:,} of {certificate['weights']:,} weights of the head are positive, so that a "
            "pair can outscore an image against itself, though none did in this run.",
        )


def judge_model(summary: dict[str, Any]) -> Finding:
    """Returns the doctor's verdict on the model, from what this run saw of it."""
    identity, certificate = _identity_point(summary), summary["run"].get("certificate")
    if identity.level == "warn":
        return Finding("warn", "Not to be told: no image could be encoded.")
    if identity.level == "bad" or (certificate and certificate["holds"] is False):
        return Finding("bad", "Not sane: an image compared with itself is not, or need not be, the most alike that there is.")
    if certificate and certificate["holds"]:
        return Finding("good", "Sane, and proven so by its weights: no pair can outscore an image compared with itself.")
    return Finding("good", "Sane on all pairs of this run; its weights don’t prove it for others.")


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _gate_points(summary: dict[str, Any]) -> Iterator[Finding]:
    if not summary["gates"]:
        yield Finding("plain", "No gates were set (--max-failed-rows, --max-identity-faults).")
    for gate in summary["gates"]:
        words = f"{gate['option']} {gate['limit']}: found {format_value(gate['found'])}"
        words += f" of {gate['rows']:,} rows" if gate.get("rows") and isinstance(gate["found"], int) else ""
        yield Finding("good" if gate["met"] else "bad", f"Gate {'met' if gate['met'] else 'not met'}: {words}.")


def _row_points(summary: dict[str, Any]) -> Iterator[Finding]:
    rows = summary["rows"]
    total, failed = rows.get("total", 0), rows.get("failed", 0)
    yield Finding("good", f"Rows in = rows out: {total:,} read, {total:,} written.")
    if failed:
        yield Finding(
            "warn",
            f"{failed:,} of {total:,} rows ({failed / total:.2%}) have no score; they count as neither match nor non-match.",
        )
    elif total:
        yield Finding("good", "Every row has a score.")


def _baseline_points(summary: dict[str, Any]) -> Iterator[Finding]:
    baseline = summary.get("baseline")
    if not baseline:
        return
    if baseline.get("model_changed"):
        yield Finding("warn", "The model is another one than in the run that this one is compared with.")
    psi = baseline.get("psi")
    yield Finding("warn" if psi is None else _SHIFTS[Shift.from_psi(psi)], f"Against the earlier run, {describe_shift(psi)}.")


def format_value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
