"""The baseline: the earlier run that a run is compared with. It is read and validated before the run starts."""

from __future__ import annotations

import json
import logging
from typing import Any

from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.evaluation.drift import RunStatistics
from batchverify.io.filesystem import read_bytes
from batchverify.output.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)
_READABLE_VERSIONS = (1, 2)
_MAX_SUMMARY_BYTES = 64 * 2**20


def read_baseline(config: VerificationConfig) -> RunStatistics | None:
    """Returns the statistics of the run that `config.baseline` names.

    Returns:
        None without `config.baseline`, and where `config.baseline_optional` allows that there is no such run yet.

    Raises:
        PreflightError: if the run does not exist, is not finished, or has an unusable summary.
    """
    path = config.baseline
    if path is None:
        return None
    if problem := _why_absent(path):
        if not config.baseline_optional:
            raise PreflightError(
                f"--baseline {path} {problem}; name an earlier run, or add --baseline-optional for the first run."
            )
        _LOG.warning(
            "--baseline %s %s: this run is not compared with any other%s.",
            path, problem, "" if config.max_drift is None else ", and --max-drift is not checked",
        )  # fmt: skip
        return None
    summary = _read_summary(_summary_path(path))
    version = summary.get("summary_version")
    if version not in _READABLE_VERSIONS:
        raise PreflightError(
            f"--baseline {path}: its summary has version {version!r:.40}, and this program reads "
            f"{' and '.join(map(str, _READABLE_VERSIONS))}; update batchverify, or name another run."
        )
    try:
        return RunStatistics.from_summary(summary)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PreflightError(
            f"--baseline {path}: it is not the summary of a finished run ({reason:.200}); name another run."
        ) from None


def _summary_path(path: str) -> str:
    return path if path.endswith(".json") else FileSystems.join(path, "_summary.json")


def _why_absent(path: str) -> str | None:
    """Returns why there is no finished run at `path`; None if there is one.

    A path that ends in `.json` names a summary, which only a finished run has.
    """
    try:
        if path.endswith(".json"):
            return None if FileSystems.exists(path) else "does not exist"
        if RunDirectory(path).is_finished():
            return None
        return "holds no finished run" if FileSystems.exists(path) else "does not exist"
    except Exception as error:  # Beam wraps any exception of the store's client.
        raise PreflightError(f"--baseline {path} cannot be looked up ({short_reason(error)}); check the path.") from None


def _read_summary(path: str) -> dict[str, Any]:
    try:
        summary = json.loads(read_bytes(path, _MAX_SUMMARY_BYTES))
    except RecursionError:
        raise PreflightError(f"--baseline {path} cannot be read (it is nested too deeply); name another run.") from None
    except Exception as error:  # Beam wraps any exception of the store's client, and JSON has errors of its own.
        raise PreflightError(
            f"--baseline {path} cannot be read ({short_reason(error)}); it may be truncated: name another run."
        ) from None
    if not isinstance(summary, dict):
        raise PreflightError(f"--baseline {path} does not hold a JSON object; name a run directory or its _summary.json.")
    return summary
