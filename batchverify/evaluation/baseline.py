"""The earlier run that a run is compared with: found, read and believed before anything starts."""

from __future__ import annotations

import json
import logging
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.evaluation.drift import RunStatistics
from batchverify.output.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)
_READABLE_VERSIONS = (1, 2)
_MOST_BYTES = 64 * 2**20


def read_baseline(config: VerificationConfig) -> RunStatistics | None:
    """Returns what `config.baseline` says of its run; None if there is no baseline, or none yet and that may be.

    Raises:
        PreflightError: if it isn't there, isn't finished, or can't be compared with.
    """
    path = config.baseline
    if path is None:
        return None
    if problem := _why_absent(path):
        if not config.baseline_optional:
            raise PreflightError(
                f"--baseline {path} {problem}; name an earlier run, or add --baseline-optional for the first night."
            )
        _LOG.warning(
            "--baseline %s %s: this run is compared with nothing%s.",
            path, problem, "" if config.max_drift is None else ", and --max-drift is not judged",
        )  # fmt: skip
        return None
    summary = _read(_summary_path(path))
    version = summary.get("summary_version")
    if version not in _READABLE_VERSIONS:
        raise PreflightError(
            f"--baseline {path}: its summary is of version {version!r:.40}, and this program reads "
            f"{' and '.join(map(str, _READABLE_VERSIONS))}; name a run of this program's own."
        )
    try:
        return RunStatistics.of(summary)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        words = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PreflightError(
            f"--baseline {path}: it is no summary of a finished run ({words:.200}); name another run."
        ) from None


def _summary_path(path: str) -> str:
    return path if path.endswith(".json") else FileSystems.join(path, "summary.json")


def _why_absent(path: str) -> str | None:
    """Returns why there is no finished run at `path`, or None. A summary that lies on its own was finished once."""
    try:
        if path.endswith(".json"):
            return None if FileSystems.exists(path) else "does not exist"
        if RunDirectory(path).is_finished():
            return None
        return "holds no finished run" if FileSystems.exists(path) else "does not exist"
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"--baseline {path} cannot be looked up ({short_reason(error)}); check the path.") from None


def _read(path: str) -> dict[str, Any]:
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            summary = json.loads(file.read(_MOST_BYTES))
    except RecursionError:
        raise PreflightError(f"--baseline {path} cannot be read (it is nested too deeply); name another run.") from None
    except Exception as error:  # Beam wraps whatever the store's client raises, and JSON has errors of its own.
        raise PreflightError(
            f"--baseline {path} cannot be read ({short_reason(error)}); it may be truncated: name another run."
        ) from None
    if not isinstance(summary, dict):
        raise PreflightError(f"--baseline {path} holds no JSON object; name a run directory or its summary.json.")
    return summary
