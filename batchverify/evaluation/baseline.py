"""The baseline: the earlier run that a run is compared with, or takes its threshold from. It is read before the run starts."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig, split_threshold_source
from batchverify.errors import PreflightError, short_reason
from batchverify.evaluation import metrics
from batchverify.evaluation.calibration import LabelledRun
from batchverify.evaluation.drift import RunStatistics
from batchverify.evaluation.summary_version import why_unreadable
from batchverify.io.filesystem import read_bytes
from batchverify.model.calibration import score_settings, why_other_scores
from batchverify.output.run_directory import RunDirectory

_LOG = logging.getLogger(__name__)
MAX_SUMMARY_BYTES = 64 * 2**20


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
    if problem := _why_absent("--baseline", path):
        if not config.baseline_optional:
            raise PreflightError(
                f"--baseline {path} {problem}; name an earlier run, or add --baseline-optional for the first run."
            )
        _LOG.warning(
            "--baseline %s %s: this run is not compared with any other%s.",
            path, problem, "" if config.max_drift is None else ", and --max-drift is not checked",
        )  # fmt: skip
        return None
    return _read_statistics(path)


def read_finished_run(path: str) -> RunStatistics:
    """Returns the statistics of the finished run that `--baseline` names, a run directory or its `_summary.json`.

    Raises:
        PreflightError: if the run does not exist, is not finished, or has an unusable summary.
    """
    if problem := _why_absent("--baseline", path):
        raise PreflightError(f"--baseline {path} {problem}; name an earlier run.")
    return _read_statistics(path)


def _read_statistics(path: str) -> RunStatistics:
    summary = _read_summary("--baseline", path)
    with _refusing_other_files("--baseline", path):
        return RunStatistics.from_summary(summary)


@dataclasses.dataclass(frozen=True)
class EarlierThreshold:
    """A threshold that keeps an FMR on the labels of an earlier run.

    Attributes:
        source: The run and the FMR, as `RUN:fmr=RATE`.
        point: The operating point.
        model_digest: The digest of that run's model.
        settings: The settings of that run that decide what a score means (see `score_settings`).
    """

    source: str
    point: metrics.OperatingPoint
    model_digest: str
    settings: Mapping[str, Any]

    def refuse_other_scores(self, model_digest: str, settings: Mapping[str, Any]) -> None:
        """Refuses the threshold for scores of another model, or of another meaning.

        Args:
            model_digest: The digest of the model that it is for.
            settings: The settings that it is for.

        Raises:
            PreflightError: If they differ.
        """
        if reason := why_other_scores(self.model_digest, self.settings, model_digest, settings):
            raise PreflightError(
                f"--threshold-from {self.source}: that run was for another {reason}; name a labelled run of this model and "
                "these settings, or give --threshold."
            )


def read_threshold(source: str) -> EarlierThreshold:
    """Returns the threshold of an earlier run that `--threshold-from` names.

    Args:
        source: A run and the FMR to keep, as `RUN:fmr=RATE`.

    Raises:
        PreflightError: If there is no such run, it has no labels or reversed ones, or no threshold keeps such an FMR.
    """
    path, rate = split_threshold_source(source)
    option = "--threshold-from"
    if problem := _why_absent(option, path):
        raise PreflightError(f"{option} {path} {problem}; name an earlier run, or give --threshold.")
    summary = _read_summary(option, path)
    with _refusing_other_files(option, path):
        run = LabelledRun.from_summary(summary)
        is_reversed = bool((summary.get("error_rates") or {}).get("is_reversed"))
    if is_reversed:
        raise PreflightError(
            f"{option} {path}: {metrics.REVERSED} in that run; mend its labels or --output-is, and run it again."
        )
    if not run.impostor.sum():
        raise PreflightError(f"{option} {path}: that run has no impostor pairs, so no FMR; name one with labels.")
    point = metrics.operating_point(run.genuine, run.impostor, rate)
    if point.threshold is None:
        raise PreflightError(
            f"{option} {path}: no threshold has an FMR of {rate:g} there; too many impostor pairs score 1. Name a higher rate."
        )
    return EarlierThreshold(source, point, run.model_digest, score_settings(run.options))


def read_labelled_run(path: str) -> LabelledRun:
    """Returns what a calibration needs of a finished run.

    Args:
        path: The run directory, or its `_summary.json`.

    Raises:
        PreflightError: If there is no such run, or its summary is unusable.
    """
    option = "the run"
    if problem := _why_absent(option, path):
        raise PreflightError(f"{option} {path} {problem}; name the --output of a finished run.")
    summary = _read_summary(option, path)
    with _refusing_other_files(option, path):
        return LabelledRun.from_summary(summary)


@contextmanager
def _refusing_other_files(option: str, path: str) -> Iterator[None]:
    """Refuses a file that is no summary where its content does not fit."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PreflightError(
            f"{option} {path}: it is not the summary of a finished run ({reason:.200}); name another run."
        ) from None


def _summary_path(path: str) -> str:
    return path if path.endswith(".json") else FileSystems.join(path, "_summary.json")


def _why_absent(option: str, path: str) -> str | None:
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
        raise PreflightError(f"{option} {path} cannot be looked up ({short_reason(error)}); check the path.") from None


def _read_summary(option: str, path: str) -> dict[str, Any]:
    """Returns the summary of a run, of a version that this program reads."""
    file = _summary_path(path)
    try:
        summary = json.loads(read_bytes(file, MAX_SUMMARY_BYTES))
    except RecursionError:
        raise PreflightError(f"{option} {file} cannot be read (it is nested too deeply); name another run.") from None
    except Exception as error:  # Beam wraps any exception of the store's client, and JSON has errors of its own.
        raise PreflightError(
            f"{option} {file} cannot be read ({short_reason(error)}); it may be truncated: name another run."
        ) from None
    if not isinstance(summary, dict):
        raise PreflightError(f"{option} {file} does not hold a JSON object; name a run directory or its _summary.json.")
    if problem := why_unreadable(summary):
        raise PreflightError(f"{option} {path}: its summary {problem}, or name another run.")
    return summary
