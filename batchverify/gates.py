"""Limits that the user sets on a run: beyond one, the results are written all the same and the exit code is 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from batchverify.config import Limit, VerificationConfig


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit, and what the run came to.

    Attributes:
        option: the option that set it.
        limit: as it was set.
        found: how many rows are at fault.
        rows: of how many.
        met: whether they are within the limit.
    """

    option: str
    limit: str
    found: int
    rows: int
    met: bool

    def __str__(self) -> str:
        return f"{self.found:,} of {self.rows:,} rows, where {self.option} allows {self.limit}"


def judge(config: VerificationConfig, summary: dict[str, Any]) -> list[Gate]:
    """Returns the gates that `config` sets, each with what `summary` (of `summary.json`) says of it."""
    rows, identity = summary["rows"], summary["identity"]
    total, scored = rows.get("total", 0), rows.get("scored", 0)
    faults = identity["below_threshold"] + identity["outscored"]
    gates = [
        _judge("--max-failed-rows", config.max_failed_rows, rows.get("failed", 0), total),
        _judge("--max-identity-faults", config.max_identity_faults, faults, scored),
    ]
    return [gate for gate in gates if gate is not None]


def _judge(option: str, limit: Limit | None, found: int, rows: int) -> Gate | None:
    return None if limit is None else Gate(option, str(limit), found, rows, limit.allows(found, rows))
