"""Batch verification of image pairs with a trained Siamese network, in Apache Beam.

The names in `__all__` are the public API. Every module of this package is internal, and may change without notice.

    result = batchverify.run(batchverify.VerificationConfig(manifests=("pairs.csv",), output="scores/"))
    scored = blocks | batchverify.VerifyPairs(batchverify.ScoringConfig(model="model.keras"))
    scored = batchverify.score_frame(frame, model="model.keras")
    score = batchverify.load("model.keras").score("left.png", "right.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from batchverify import version as _version

# Each public name, and the module that defines it. Beam takes two seconds to import, and `--help` must not wait for it, so a
# module is imported when one of its names is first used.
_EXPORTS = {
    "BatchverifyError": "errors",
    "JobDetachedError": "errors",
    "Limit": "config",
    "ManifestMissingError": "errors",
    "PreflightError": "errors",
    "RunError": "errors",
    "RunResult": "pipeline.run",
    "RunSummary": "notebook.run_summary",
    "Scorer": "notebook.scorer",
    "ScoringConfig": "config",
    "Submission": "pipeline.run",
    "VerificationConfig": "config",
    "Verified": "pipeline.transforms",
    "VerifyPairs": "pipeline.transforms",
    "VerifyRows": "pipeline.verify_rows",
    "load": "notebook.scorer",
    "run": "pipeline.run",
    "score_frame": "notebook.score_frame",
    "submit": "pipeline.run",
}
__all__ = [*_EXPORTS, "__version__"]
__version__ = _version.VERSION

if TYPE_CHECKING:  # The same names for type checkers, which cannot follow the table; a test compares the two.
    from batchverify.config import Limit as Limit
    from batchverify.config import ScoringConfig as ScoringConfig
    from batchverify.config import VerificationConfig as VerificationConfig
    from batchverify.errors import BatchverifyError as BatchverifyError
    from batchverify.errors import JobDetachedError as JobDetachedError
    from batchverify.errors import ManifestMissingError as ManifestMissingError
    from batchverify.errors import PreflightError as PreflightError
    from batchverify.errors import RunError as RunError
    from batchverify.notebook.run_summary import RunSummary as RunSummary
    from batchverify.notebook.score_frame import score_frame as score_frame
    from batchverify.notebook.scorer import Scorer as Scorer
    from batchverify.notebook.scorer import load as load
    from batchverify.pipeline.run import RunResult as RunResult
    from batchverify.pipeline.run import Submission as Submission
    from batchverify.pipeline.run import run as run
    from batchverify.pipeline.run import submit as submit
    from batchverify.pipeline.transforms import Verified as Verified
    from batchverify.pipeline.transforms import VerifyPairs as VerifyPairs
    from batchverify.pipeline.verify_rows import VerifyRows as VerifyRows
else:  # A type checker that saw this function would accept every name.

    def __getattr__(name: str) -> object:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'batchverify' has no attribute '{name}'")
        return getattr(importlib.import_module(f"batchverify.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
