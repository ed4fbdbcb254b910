"""Batch verification of image pairs with a trained Siamese network, in Apache Beam.

result = batchverify.run(batchverify.VerificationConfig(manifests=("pairs.csv",), output="scores/"))
scored = blocks | batchverify.VerifyPairs(batchverify.ScoringConfig(model="model.keras"))
"""

from __future__ import annotations

import importlib
from typing import Any

from batchverify.version import VERSION as __version__

# Every public name, and the module that it comes from. Beam takes two seconds to import and `--help` must not wait for it, so a
# name is looked up when it is first used.
_EXPORTS = {
    "BatchverifyError": "errors",
    "JobDetachedError": "errors",
    "Limit": "config",
    "PreflightError": "errors",
    "RunError": "errors",
    "RunResult": "pipeline.run",
    "ScoringConfig": "config",
    "Submission": "pipeline.run",
    "VerificationConfig": "config",
    "Verified": "pipeline.transforms",
    "VerifyPairs": "pipeline.transforms",
    "run": "pipeline.run",
    "submit": "pipeline.run",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    # Beam takes two seconds to import and `--help` must not wait for it; so names are looked up when they are used.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'batchverify' has no attribute '{name}'")
    return getattr(importlib.import_module(f"batchverify.{_EXPORTS[name]}"), name)
