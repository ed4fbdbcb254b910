"""The key of a store of embeddings: everything that decides an embedding, except the image itself."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.model.facts import ModelFacts
from batchverify.version import VERSION

# Fields of the model's configuration that the key has in another form, or that change only the last bits of an embedding.
_FIELDS_NOT_IN_KEY = {"model", "threshold", "batch_size", "pixels", "color", "loader", "resize", "orientation", "alpha",
                      "preprocess", "fit", "image_size"}  # fmt: skip
_LIBRARIES = ("keras", "pillow", "tensorflow")
_LOADER_MODULES = {"opencv": "cv2", "skimage": "skimage"}


def embedding_key(config: ScoringConfig, facts: ModelFacts, preprocessing: Any) -> dict[str, Any]:
    """Returns everything that decides an embedding, except the image, as JSON values.

    The key has the model, the preprocessing, each option that says how the model runs or what counts as an image, and the
    versions of the libraries that decode and compute. The batch size is not in it, because it changes scores by rounding alone.

    Args:
        config: The configuration of the run, completed by the model's sidecar.
        facts: The facts about the model.
        preprocessing: A dataclass. Its field `source` says who decided on it, and is not in the key.
    """
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    optional = {facts.runtime: facts.runtime_version()} if facts.runtime not in _LIBRARIES else {}
    key = {
        "model_digest": facts.digest,
        "embedding_size": facts.embedding_size,
        "preprocessing": {name: value for name, value in dataclasses.asdict(preprocessing).items() if name != "source"},
        **{name: value for name, value in options.items() if name not in _FIELDS_NOT_IN_KEY},
        "custom_code": [_code_digest(option) for option in config.custom_objects],
        "max_image_pixels": config.max_image_pixels,
        "max_image_bytes": config.max_image_bytes,
        "version of batchverify": VERSION,
        **{f"version of {name}": importlib.metadata.version(name) for name in _LIBRARIES},
        **{f"version of {name}": version for name, version in optional.items()},
        "version of the loader": _loader_version(config.loader),
    }
    return dict(json.loads(json.dumps(key)))


def _loader_version(loader: str | None) -> str | None:
    """Returns the version of an optional loader's library; OpenCV's packages have several names."""
    return importlib.import_module(_LOADER_MODULES[loader]).__version__ if loader in _LOADER_MODULES else None


def differing_settings(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns the names of the settings in which two keys differ."""
    return [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]


def _code_digest(option: str) -> str | None:
    """Returns the digest of the file that `CLASS=module:attribute` takes its class from; None for `CLASS=KIND`."""
    module = option.partition("=")[2].partition(":")[0]
    if ":" not in option:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=16).hexdigest()
