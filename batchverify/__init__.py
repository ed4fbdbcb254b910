"""Batch verification of image pairs with a trained Siamese network, in Apache Beam.

result = batchverify.run(batchverify.VerificationConfig(manifests=("pairs.csv",), output="scores/"))
scored = blocks | batchverify.VerifyPairs(batchverify.ScoringConfig(model="model.keras"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from batchverify.version import VERSION as __version__

if TYPE_CHECKING:
    from batchverify.config import Limit, Refused, RunFailed, ScoringConfig, VerificationConfig
    from batchverify.pipeline import RunResult, Verified, VerifyPairs, run

__all__ = [
    "Limit",
    "Refused",
    "RunFailed",
    "RunResult",
    "ScoringConfig",
    "VerificationConfig",
    "Verified",
    "VerifyPairs",
    "__version__",
    "run",
]

_HOMES = {
    "Limit": "config",
    "Refused": "config",
    "RunFailed": "config",
    "ScoringConfig": "config",
    "VerificationConfig": "config",
    "RunResult": "pipeline",
    "Verified": "pipeline",
    "VerifyPairs": "pipeline",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    # Beam takes two seconds to import and `--help` must not wait for it; so names are looked up when they are used.
    if name not in _HOMES:
        raise AttributeError(f"module 'batchverify' has no attribute '{name}'")
    return getattr(importlib.import_module(f"batchverify.{_HOMES[name]}"), name)
