"""Limits that the user sets on a run: beyond one, the results are written all the same and the exit code is 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from batchverify.config import Limit, VerificationConfig

_DRIFT = "--max-drift"


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit, and what the run came to.

    Attributes:
        option: the option that set it.
        limit: as it was set.
        found: how many rows are at fault; of `--max-drift`, the population stability index, or None where there is none.
        rows: of how many; of `--max-drift`, how many were compared.
        met: whether they are within the limit.
    """

    option: str
    limit: str
    found: int | float | None
    rows: int
    met: bool

    def __str__(self) -> str:
        if self.option == _DRIFT:
            found = "no index, as a run has no scores" if self.found is None else f"an index of {self.found:.3g}"
            return f"the drift of {self.rows:,} scores from the baseline's has {found}, where {_DRIFT} allows {self.limit}"
        return f"{self.found:,} of {self.rows:,} rows, where {self.option} allows {self.limit}"


def evaluate_gates(config: VerificationConfig, summary: dict[str, Any]) -> list[Gate]:
    """Returns the gates that `config` sets, each with what `summary` (of `summary.json`) says of it."""
    rows, identity = summary["rows"], summary["identity"]
    total, scored = rows.get("total", 0), rows.get("scored", 0)
    faults = identity["below_threshold"] + identity["outscored"]
    gates = [
        _evaluate_limit("--max-failed-rows", config.max_failed_rows, rows.get("failed", 0), total),
        _evaluate_limit("--max-identity-faults", config.max_identity_faults, faults, scored),
    ]
    if config.max_drift is not None and summary.get("baseline"):
        psi = summary["baseline"]["psi"]
        # What cannot be compared is not known to have stayed: a night without a score must not pass for a quiet one.
        met = psi is not None and psi <= config.max_drift
        gates.append(Gate(_DRIFT, f"{config.max_drift:g}", psi, scored, met))
    return [gate for gate in gates if gate is not None]


def _evaluate_limit(option: str, limit: Limit | None, found: int, rows: int) -> Gate | None:
    return None if limit is None else Gate(option, str(limit), found, rows, limit.allows(found, rows))
