"""The model of an earlier run, found again: by where the run found it or by where it lies now, and by its digest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.local_copy import digest_model, local_model
from batchverify.model.registry import is_registry_name
from batchverify.model.start_tensorflow import start_tensorflow
from batchverify.model.time_limit import within_limit
from batchverify.uris import is_remote


def locate_model(model: str, working_directory: str) -> str:
    """Returns the path or URI of a run's model, as this process can open it.

    Args:
        model: The model, as the key `run.model` of `_summary.json` has it.
        working_directory: The folder that the run was started in.

    Raises:
        PreflightError: If it is the embedded model, which has no sidecar of the user's.
    """
    if model == "embedded":
        raise PreflightError(
            "the run used the embedded model, which has no sidecar of yours: copy batchverify/demo/sane.keras and "
            "its sidecar, run with --model COPY, and calibrate that run, or name a file with --sidecar."
        )
    return model if is_remote(model) or is_registry_name(model) else os.path.join(working_directory, model)


def require_digest(model: str, digest: str, settings: Mapping[str, Any], remedy: str) -> None:
    """Refuses a model that is not the one that a run used.

    Args:
        model: The path or URI of the model.
        digest: The digest of the run's model, as the key `run.model_digest` of `_summary.json` has it.
        settings: The key `run.options` of `_summary.json`.
        remedy: What to do, as the end of a sentence.

    Raises:
        PreflightError: If it is another model, or it is not there.
    """
    with local_model(model) as local:
        is_found = f"sha256:{digest_model(local)}" == digest
    if is_found or f"sha256:{_digest_loaded(model, settings)}" == digest:
        return
    raise PreflightError(f"--model {model} is not the model of that run, whose digest is {digest:.23}…; {remedy}.")


def _digest_loaded(model: str, settings: Mapping[str, Any]) -> str:
    """Returns the digest that a run records; where a file has its architecture or weights in another file, it has both."""
    start_tensorflow()
    from batchverify.model.load_file import load_file
    from batchverify.model.private_copy import private_model

    fields = {field.name for field in dataclasses.fields(ModelConfig)} - {"model"}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items() if name in fields
    }
    config = ModelConfig(model=model, **given)
    with private_model(model) as local:
        return within_limit(model, lambda _: load_file(config, local).digest)
