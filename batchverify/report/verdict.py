"""The verdict on a run: whether its scores can be trusted, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from batchverify.evaluation.candidate import describe_changes, describe_faults
from batchverify.evaluation.drift import Shift, describe_shift
from batchverify.evaluation.gates import EMPTY, STRANGERS, Gate
from batchverify.evaluation.groups import describe_differential
from batchverify.evaluation.identity import explain_fault
from batchverify.evaluation.metrics import REVERSED, WHY_REVERSED
from batchverify.evaluation.steadiness import UNSTEADY, describe_rejections
from batchverify.evaluation.strangers import (
    FEW_MATCH,
    MANY_MATCH,
    REMEDY,
    describe_causes,
    describe_mates,
    describe_rate,
    describe_shortage,
    percent,
)  # fmt: skip
from batchverify.words import agree, counted, counted_of

_COMPARED = "were compared with themselves"
_MARKS = {"good": "✓", "warn": "!", "bad": "✗", "plain": "–"}
_SHIFTS = {Shift.LITTLE: "good", Shift.SOME: "warn", Shift.LARGE: "bad"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fact about a run, and whether it is good or bad.

    Attributes:
        level: One of `good`, `warn`, `bad` and `plain`.
        text: The fact, in one or more sentences.
    """

    level: str
    text: str

    @property
    def mark(self) -> str:
        """The character that shows the level."""
        return _MARKS[self.level]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the scores of a run can be trusted.

    Attributes:
        level: One of `good`, `warn` and `bad`.
        headline: The verdict in one sentence.
        findings: The reasons for the verdict; the identity check is the first.
    """

    level: str
    headline: str
    findings: tuple[Finding, ...]

    @property
    def mark(self) -> str:
        """The character that shows the level."""
        return _MARKS[self.level]


def judge_run(summary: dict[str, Any]) -> Verdict:
    """Returns the verdict on a run, in words for readers who have never heard of the identity check.

    Args:
        summary: The content of `_summary.json`.
    """
    identity = _judge_identity(summary)
    findings = (
        identity,
        *_judge_strangers(summary),
        *_judge_steadiness(summary),
        *_judge_labels(summary),
        *(Finding("plain", f"Groups by {describe_differential(*item)}.") for item in (summary.get("groups") or {}).items()),
        *_judge_calibration(summary),
        *_judge_certificate(summary),
        *_judge_candidate(summary),
        *_judge_gates(summary),
        *_judge_rows(summary),
        *_judge_drift(summary),
    )
    return Verdict(_level(summary, findings), _headline(summary, identity), findings)


def _level(summary: dict[str, Any], findings: tuple[Finding, ...]) -> str:
    levels = {finding.level for finding in findings}
    if not summary["rows"].get("total", 0):
        return "warn"
    if findings[0].level == "bad" or _too_many_match(summary) or _is_reversed(summary) or not _gates_met(summary):
        return "bad"
    return "warn" if levels & {"warn", "bad"} else "good"


def _headline(summary: dict[str, Any], identity: Finding) -> str:
    if not summary["rows"].get("total", 0):
        return "The manifest had no rows, so there is nothing to judge."
    if identity.level == "bad":
        return "Don’t trust these scores: the model fails the identity check."
    if identity.level == "warn":
        return "Nothing could be judged: no image could be read."
    if _too_many_match(summary):
        return f"Don’t trust these scores: {percent(summary['strangers']['match_rate'])} of strangers match."
    if _is_reversed(summary):
        return f"Don’t trust these scores, or their labels: {REVERSED}."
    if not _gates_met(summary):
        return "The model is sane, but a limit that you set is not met."
    if failed := summary["rows"].get("failed", 0):
        rows = "1 row has" if failed == 1 else f"{failed:,} rows have"
        return f"The model is sane, and the run is complete, but {rows} no score."
    return "The model is sane, and the run is complete."


def _gates_met(summary: dict[str, Any]) -> bool:
    return all(gate["met"] for gate in summary["gates"])


def _judge_identity(summary: dict[str, Any]) -> Finding:
    identity, threshold = summary["identity"], summary["run"]["threshold"]
    compared = identity["images_compared"]
    if not compared:
        return Finding("warn", "Identity check: no image could be encoded, so none was compared with itself.")
    was_compared = f"{counted(compared, 'image')} {agree(compared, 'was compared with itself', _COMPARED)}"
    if identity["score_min"] is None:
        return Finding("bad", f"Identity check failed: {was_compared}, and no score is a number. Check the model’s weights.")
    low, high = identity["score_min"], identity["score_max"]
    span = f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"
    below, outscored = identity["images_below_threshold"], identity["outscored"]
    if not below and not outscored:
        return Finding(
            "good",
            f"Identity check passed: {was_compared} and scored {span}. None fell below the threshold {threshold:g}, and no "
            "pair scored higher than its images score against themselves.",
        )
    faults = []
    if below:
        verb = agree(below, "itself, falls", "themselves, fall", compared)
        faults.append(f"{counted_of(below, compared, 'image')}, compared with {verb} below the threshold {threshold:g}")
    if outscored:
        scored = summary["rows"].get("scored", 0)
        verb = agree(outscored, "scores", "score", scored)
        faults.append(f"{counted_of(outscored, scored, 'pair')} {verb} higher than an image against itself")
    why, remedy = explain_fault(summary)
    return Finding(
        "bad",
        f"Identity check failed: {'; '.join(faults)}. An image compared with itself scores {span}. Nothing can be more "
        f"alike, so the score should be near 1. The model is at fault, not the images: {why} {remedy}",
    )


def _too_many_match(summary: dict[str, Any]) -> bool:
    return (summary.get("strangers") or {}).get("verdict") == MANY_MATCH


def _judge_strangers(summary: dict[str, Any]) -> Iterator[Finding]:
    strangers = summary.get("strangers")
    if not strangers:
        return
    rate, mates = describe_rate(strangers), describe_mates(strangers)
    if strangers["verdict"] == MANY_MATCH:
        yield Finding(
            "bad",
            f"Strangers: {rate}. That is too many. The limit is {strangers['limit']}. Likely causes: "
            f"{describe_causes(strangers)} What to do: {REMEDY}",
        )
    elif strangers["verdict"] == FEW_MATCH:
        yield Finding("good", f"Strangers: {rate}. Without labels, this estimates the false match rate. {mates}")
    else:
        yield Finding("plain", f"Strangers were not judged: {describe_shortage(strangers)}; {rate}.")


def _judge_steadiness(summary: dict[str, Any]) -> Iterator[Finding]:
    steadiness = summary.get("steadiness")
    if not steadiness or not steadiness["verdict"]:
        return
    counts = describe_rejections(steadiness)
    if steadiness["verdict"] == UNSTEADY:
        yield Finding("warn", f"The model is not steady. Changes that people don’t see decide: {counts}.")
    else:
        yield Finding("good", f"The model is steady: {counts}.")


def _is_reversed(summary: dict[str, Any]) -> bool:
    return bool((summary.get("error_rates") or {}).get("is_reversed"))


def _judge_labels(summary: dict[str, Any]) -> Iterator[Finding]:
    if _is_reversed(summary):
        eer = percent(summary["error_rates"]["eer"])
        yield Finding("bad", f"Labels: {REVERSED}, by more than chance: the EER is {eer}. {WHY_REVERSED}")


def _judge_calibration(summary: dict[str, Any]) -> Iterator[Finding]:
    if ignored := summary["run"].get("calibration_ignored"):
        yield Finding("warn", f"The calibration of the model’s sidecar is not used: {ignored}. Calibrate again.")
    if not (calibration := summary.get("calibration")):
        return
    cost, lowest = calibration["cllr"], calibration["cllr_min"]
    best = "" if lowest is None else f"; these scores, calibrated perfectly, would have {lowest:.3f}"
    if cost >= 1:
        text = f"The log-likelihood ratios mislead: their Cllr is {cost:.3f} bits, and to know nothing costs 1{best}."
        yield Finding("warn", f"{text} Calibrate again.")
    else:
        yield Finding("plain", f"Log-likelihood ratios: Cllr {cost:.3f} bits, where 0 is perfect and 1 tells nothing{best}.")


def _judge_certificate(summary: dict[str, Any]) -> Iterator[Finding]:
    certificate = summary["run"].get("certificate")
    if certificate and certificate["holds"] is False and not summary["identity"]["outscored"]:
        weights, positive = certificate["weights"], certificate["positive_weights"]
        # A cosine is high for a match, and a distance is low.
        number, sign = (weights - positive, "negative") if certificate["comparison"] == "cosine" else (positive, "positive")
        yield Finding(
            "warn",
            f"{number:,} of {counted(weights, 'weight')} of the head {agree(number, 'is', 'are', weights)} {sign}. A pair can "
            "therefore outscore an image against itself, though none did in this run.",
        )


def judge_model(summary: dict[str, Any]) -> Finding:
    """Returns the verdict on the model that this run allows, in the words of `batchverify doctor`.

    Args:
        summary: The content of `_summary.json`.
    """
    identity, certificate = _judge_identity(summary), summary["run"].get("certificate")
    if identity.level == "warn":
        return Finding("warn", "Unknown: no image could be encoded.")
    if identity.level == "good" and _too_many_match(summary):
        return Finding("bad", "Not trustworthy on these images: images that were drawn at random match each other.")
    if identity.level == "bad" or (certificate and certificate["holds"] is False):
        return Finding(
            "bad",
            "Not sane: another pair can score higher than an image compared with itself, or that image can score too low.",
        )
    if certificate and certificate["holds"]:
        return Finding("good", "Sane, and its weights prove it: no pair can outscore an image compared with itself.")
    return Finding("good", "Sane on all pairs of this run. Its weights don’t prove it for other pairs.")


def _judge_gates(summary: dict[str, Any]) -> Iterator[Finding]:
    if not summary["gates"]:
        yield Finding("plain", "No gates were set (--max-failed-rows, --max-identity-faults).")
    for gate in summary["gates"]:
        if gate["option"] == EMPTY:
            yield Finding("bad", f"Gate not met: {Gate(**gate)}.")
            continue
        measured = f"{gate['option']} {gate['limit']}: found {format_value(gate['found'])}"
        kind = "stranger pair" if gate["option"] == STRANGERS else "row"
        measured += f" of {counted(gate['rows'], kind)}" if gate.get("rows") and isinstance(gate["found"], int) else ""
        yield Finding("good" if gate["met"] else "bad", f"Gate {'met' if gate['met'] else 'not met'}: {measured}.")


def _judge_candidate(summary: dict[str, Any]) -> Iterator[Finding]:
    if candidate := summary.get("candidate"):
        text = f"The candidate {candidate['model']}: {describe_changes(candidate)}. {describe_faults(candidate)}"
        yield Finding("plain", text.strip())


def _judge_rows(summary: dict[str, Any]) -> Iterator[Finding]:
    rows = summary["rows"]
    total, failed = rows.get("total", 0), rows.get("failed", 0)
    yield Finding("good", f"Rows in = rows out: {total:,} read, {total:,} written.")
    if failed:
        yield Finding(
            "warn",
            f"{counted_of(failed, total, 'row')} ({failed / total:.2%}) {agree(failed, 'has', 'have')} no score, and "
            f"{agree(failed, 'counts', 'count')} as neither match nor non-match.",
        )
    elif total:
        yield Finding("good", "Every row has a score.")


def _judge_drift(summary: dict[str, Any]) -> Iterator[Finding]:
    baseline = summary.get("baseline")
    if not baseline:
        return
    if baseline.get("model_changed"):
        yield Finding("warn", "The model differs from the model of the earlier run.")
    psi = baseline.get("psi")
    yield Finding("warn" if psi is None else _SHIFTS[Shift.from_psi(psi)], f"Against the earlier run, {describe_shift(psi)}.")
    strangers_psi = baseline.get("strangers_psi")
    if strangers_psi is not None and Shift.from_psi(strangers_psi) is not Shift.LITTLE:
        yield Finding(
            _SHIFTS[Shift.from_psi(strangers_psi)],
            f"Among images drawn at random, too, {describe_shift(strangers_psi)}: the images or the model have changed.",
        )


def format_value(value: Any) -> str:
    """Returns a value of `_summary.json` as the report shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
