"""What a run records about itself."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchverify.config import Limit, VerificationConfig
from batchverify.manifest.shard import Manifest
from batchverify.model.calibration import Calibration
from batchverify.model.facts import ModelFacts
from batchverify.version import VERSION

if TYPE_CHECKING:
    from batchverify.model.identity_bound import IdentityBound

_LIBRARIES = ("apache-beam", "keras", "numpy", "pillow", "pyarrow", "tensorflow")
# What the metadata of the Parquet files have about the candidate.
_CANDIDATE_KEYS = ("model", "model_digest", "threshold", "preprocessing")
# Keys that stand in the summary, and not in the metadata of the Parquet files.
_SUMMARY_ONLY = ("label_column", "fold_column", "working_directory", "options", "versions", "certificate", "model_version")


def describe_run(
    config: VerificationConfig,
    manifest: Manifest,
    model: ModelFacts,
    bound: IdentityBound | None,
    threshold_from: str | None = None,
    calibration: Calibration | None = None,
    calibration_ignored: str | None = None,
    version: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the section `run` of `_summary.json`.

    Args:
        config: The configuration, completed by the model's sidecar.
        manifest: The manifest.
        model: The facts about the model.
        bound: What the weights of the head prove; None where the model could not be split.
        threshold_from: The earlier run that the threshold was taken from, as `--threshold-from` names it; None if it was not.
        calibration: What turns scores into log-likelihood ratios, or None.
        calibration_ignored: The reason why the calibration of the model's sidecar is not used, or None.
        version: The version that a registry's name stood for, or None.
    """
    return {
        "version": VERSION,
        "run_id": uuid.uuid4().hex,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "manifest": list(config.manifests),
        "limit": config.limit,
        "model": model.path,
        "model_digest": f"sha256:{model.digest}",
        "model_version": None if version is None else dict(version),
        "threshold": config.match_threshold(),
        "threshold_from": threshold_from,
        "calibration": None if calibration is None else str(calibration),
        "calibration_ignored": calibration_ignored,
        "identity_tolerance": config.identity_tolerance,
        "model_structure": model.structure,
        "model_notes": list(model.notes),
        "preprocessing": model.preprocessing,
        "label_column": manifest.label_column,
        "fold_column": manifest.fold_column,
        "working_directory": os.getcwd(),
        "options": _changed_options(config),
        "versions": _versions(model),
        "certificate": _describe_bound(bound),
    }


def describe_candidate(
    config: VerificationConfig,
    model: ModelFacts,
    bound: IdentityBound | None,
    shares_pixels: bool,
    version: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Returns what a run knows about its candidate before it starts: the first keys of the section `candidate`.

    Args:
        config: The configuration, completed by both sidecars.
        model: The facts about the candidate.
        bound: What the weights of its head prove; None where it could not be split.
        shares_pixels: Whether it takes the same pixels as the first model.
        version: The version that a registry's name stood for, or None.
    """
    return {
        "model": model.path,
        "model_digest": f"sha256:{model.digest}",
        "model_version": None if version is None else dict(version),
        "threshold": config.candidate_match_threshold(),
        "model_structure": model.structure,
        "model_notes": list(model.notes),
        "preprocessing": model.preprocessing,
        "shares_pixels": shares_pixels,
        "certificate": _describe_bound(bound),
    }


def _versions(model: ModelFacts) -> dict[str, str]:
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return versions if model.runtime in versions else {**versions, model.runtime: model.runtime_version()}


def file_metadata(provenance: Mapping[str, Any], candidate: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns what the Parquet files record of the results of `describe_run` and of `describe_candidate`."""
    known = {key: str(value) for key, value in provenance.items() if key not in _SUMMARY_ONLY and value is not None}
    return known | {f"candidate_{key}": str(candidate[key]) for key in _CANDIDATE_KEYS if candidate}


def _changed_options(config: VerificationConfig) -> dict[str, Any]:
    """Returns the fields of `config` that are not at their defaults as JSON values."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            changed[field.name] = _to_json(value)
    return changed


def _to_json(value: Any) -> Any:
    if isinstance(value, Limit):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _describe_bound(bound: IdentityBound | None) -> dict[str, Any] | None:
    if bound is None:
        return None
    positive = sum(float(weight) > 0 for weight in bound.weights)
    return dataclasses.asdict(bound) | {"weights": len(bound.weights), "positive_weights": positive}
