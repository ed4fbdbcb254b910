"""What a run records about itself."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from typing import Any

from batchverify.config import Limit, VerificationConfig
from batchverify.manifest.shard import Manifest
from batchverify.pipeline.network import KerasNetwork
from batchverify.version import VERSION

_LIBRARIES = ("apache-beam", "keras", "numpy", "pillow", "pyarrow", "tensorflow")
# What the summary says of a run, and the Parquet files need not.
SUMMARY_ONLY = ("label_column", "fold_column", "working_directory", "options", "versions", "certificate")


def describe_run(config: VerificationConfig, network: KerasNetwork, manifest: Manifest) -> dict[str, Any]:
    model = network.facts
    return {
        "version": VERSION,
        "run_id": config.run_id,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "manifest": list(config.manifests),
        "limit": config.limit,
        "model": model.path,
        "model_digest": f"sha256:{model.digest}",
        "threshold": config.match_threshold(),
        "identity_tolerance": config.identity_tolerance,
        "model_structure": model.structure,
        "model_notes": list(model.notes),
        "preprocessing": model.preprocessing,
        "label_column": manifest.label_column,
        "fold_column": manifest.fold_column,
        "working_directory": os.getcwd(),
        "options": _options_given(config),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "certificate": _certificate(network),
    }


def _options_given(config: VerificationConfig) -> dict[str, Any]:
    """Returns what of `config` is not at its default, as JSON has it, but the run id."""
    given = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "run_id" and value != field.default:
            given[field.name] = str(value) if isinstance(value, Limit) else list(value) if isinstance(value, tuple) else value
    return given


def _certificate(network: KerasNetwork) -> dict[str, Any] | None:
    certificate = network.certificate()
    if certificate is None:
        return None
    positive = sum(float(weight) > 0 for weight in certificate.weights)
    return dataclasses.asdict(certificate) | {"weights": len(certificate.weights), "positive_weights": positive}
