"""Gates: limits that the user sets on a run. A run that exceeds one writes its results as usual and exits with code 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from batchverify.config import Limit, VerificationConfig
from batchverify.evaluation.groups import largest_ratio
from batchverify.words import agree, counted_of

_DRIFT, _GROUPS, STRANGERS = "--max-drift", "--max-group-ratio", "--max-stranger-matches"
FLIPS = "--max-flips"
EMPTY = "--allow-empty"


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit, and the run's value.

    Attributes:
        option: The option that set the limit.
        limit: The limit as the user wrote it.
        found: The number of rows at fault, or without a score, or that a candidate decides in another way, or of strangers
            that match; for `--max-drift`, the population
            stability index; for `--max-group-ratio`, the ratio. None where there is none.
        rows: The number of rows, or pairs of strangers, that the limit applies to; for `--max-drift`, the number of scores.
        met: Whether the value is within the limit.
    """

    option: str
    limit: str
    found: int | float | None
    rows: int
    met: bool

    def __str__(self) -> str:
        if self.option == EMPTY:
            missing = "no row has a score" if self.rows else "the manifest has no rows"
            return f"{missing}, which only {EMPTY} allows; check the manifest, and --image-root"
        if self.option == _DRIFT:
            index = "no index, as a run has no scores" if self.found is None else f"an index of {self.found:.3g}"
            return f"the drift of {self.rows:,} scores from the baseline's has {index}, where {_DRIFT} allows {self.limit}"
        if self.option == _GROUPS:
            found = "cannot be told, as pairs or labels are too few," if self.found is None else f"is {self.found:.3g}"
            return f"the ratio of the worst group to the best {found} where {_GROUPS} allows {self.limit}"
        if self.option == STRANGERS and not self.rows:
            return f"no two images could be drawn at random, so nobody knows whether {STRANGERS} {self.limit} is met"
        if self.option == STRANGERS:
            drawn = counted_of(int(self.found or 0), self.rows, "pair")
            verb = agree(int(self.found or 0), "matches", "match")
            return f"{drawn} drawn at random {verb}, where {STRANGERS} allows {self.limit}"
        if self.option == FLIPS and not self.rows:
            return f"no row has a score of both models, so nobody knows whether {FLIPS} {self.limit} is met"
        if self.option == FLIPS:
            return (
                f"the candidate decides {counted_of(int(self.found or 0), self.rows, 'row')} in another way, where {FLIPS} "
                f"allows {self.limit}"
            )
        return f"{counted_of(int(self.found or 0), self.rows, 'row')}, where {self.option} allows {self.limit}"


def evaluate_gates(config: VerificationConfig, summary: dict[str, Any]) -> list[Gate]:
    """Returns the gates of a run, each with the run's value: those that `config` sets, and one where no row has a score.

    Args:
        config: The configuration of the run.
        summary: The content of `_summary.json`.
    """
    rows, identity = summary["rows"], summary["identity"]
    total, scored = rows.get("total", 0), rows.get("scored", 0)
    faults = identity["below_threshold"] + identity["outscored"]
    gates = [
        _evaluate_limit("--max-failed-rows", config.max_failed_rows, rows.get("failed", 0), total),
        _evaluate_limit("--max-identity-faults", config.max_identity_faults, faults, scored),
    ]
    if config.max_stranger_matches is not None and (strangers := summary.get("strangers")):
        pairs, matches = strangers["pairs"], strangers["matches"]
        # Without a pair, nobody knows. Such a run must not pass the gate.
        met = pairs > 0 and config.max_stranger_matches.allows(matches, pairs)
        gates.append(Gate(STRANGERS, str(config.max_stranger_matches), matches if pairs else None, pairs, met))
    if config.max_flips is not None and (candidate := summary.get("candidate")):
        flips = candidate["flips"]
        compared, flipped = flips["compared"], flips["gained"] + flips["lost"]
        # Without a row that both models score, nobody knows. Such a run must not pass the gate.
        met = compared > 0 and config.max_flips.allows(flipped, compared)
        gates.append(Gate(FLIPS, str(config.max_flips), flipped if compared else None, compared, met))
    if config.max_group_ratio is not None:
        ratio = largest_ratio(summary.get("groups"))
        # Where no group can be told, nobody knows that one is much worse; but a run without labels must not pass the gate.
        met = ratio is not None and ratio <= config.max_group_ratio
        gates.append(Gate(_GROUPS, f"{config.max_group_ratio:g}", ratio, scored, met))
    if config.max_drift is not None and summary.get("baseline"):
        psi = summary["baseline"]["psi"]
        # Without an index, nobody knows whether the scores have drifted. A run without scores must not pass the gate.
        met = psi is not None and psi <= config.max_drift
        gates.append(Gate(_DRIFT, f"{config.max_drift:g}", psi, scored, met))
    # A run that scored nothing is most often a wrong path, and nobody notices it where only the exit code is read.
    if not scored and not config.allow_empty:
        gates.append(Gate(EMPTY, "not given", total, total, met=False))
    return [gate for gate in gates if gate is not None]


def _evaluate_limit(option: str, limit: Limit | None, faults: int, rows: int) -> Gate | None:
    return None if limit is None else Gate(option, str(limit), faults, rows, limit.allows(faults, rows))
