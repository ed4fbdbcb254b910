"""`MODEL.batchverify.json`: what a model's owner says about it, once, beside the model."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from typing import Any, TypeVar

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason

_SUFFIX = ".batchverify.json"
_MOST_BYTES = 2**20
# A sidecar comes from whoever the model comes from: it may describe, but not name code to import or to trust.
_SETTINGS: dict[str, Any] = {
    "threshold": (int, float), "pixels": str, "color": str, "resize": str, "fit": str, "image_size": list,
    "lambda": (str, list), "custom_object": (str, list), "mend_shared_encoder": bool, "signature": str,
    "compare": str, "output_is": str, "match_column": int,
}  # fmt: skip
_FIELDS = {"lambda": "lambdas", "custom_object": "custom_objects"}

Config = TypeVar("Config", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class GoldenPair:
    """A pair whose score is known.

    Attributes:
        left: path or URI of an image; a relative one starts beside the sidecar.
        right: of the other.
        score: what the model gives.
        tolerance: by how much it may differ.
    """

    left: str
    right: str
    score: float
    tolerance: float = 1e-3


def sidecar_path(model: str) -> str:
    """Returns where the sidecar of `model` lies."""
    return model.rstrip("/") + _SUFFIX


def apply_sidecar(config: Config) -> Config:
    """Returns `config` with what it leaves open taken from the model's sidecar, if there is one.

    Raises:
        PreflightError: if the sidecar cannot be read or says what it may not.
    """
    said = read_sidecar(config.model)
    taken: dict[str, Any] = {}
    for name, value in said.items():
        field = _FIELDS.get(name, name)
        if name != "golden" and _is_open(getattr(config, field)):
            taken[field] = _as_setting(field, value)
    return dataclasses.replace(config, **taken) if taken else config


def golden_pairs(config: ModelConfig) -> list[GoldenPair]:
    """Returns the pairs whose scores the sidecar knows."""
    folder = config.model.rstrip("/").rpartition("/")[0] if config.model else ""
    pairs = []
    for entry in read_sidecar(config.model).get("golden", []):
        left, right = (_beside(folder, entry[side]) for side in ("left", "right"))
        pairs.append(GoldenPair(left, right, float(entry["score"]), float(entry.get("tolerance", 1e-3))))
    return pairs


def read_sidecar(model: str | None) -> dict[str, Any]:
    """Returns what stands in the sidecar of `model`; nothing, if there is none.

    Raises:
        PreflightError: if it cannot be read or says what it may not.
    """
    if model is None:
        beside = importlib.resources.files("batchverify.demo") / f"sane.keras{_SUFFIX}"
        return json.loads(beside.read_text(encoding="utf-8"))
    path = sidecar_path(model)
    try:
        if not FileSystems.exists(path):
            return {}
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            said = json.loads(file.read(_MOST_BYTES))
    except Exception as error:  # Beam wraps whatever the store's client raises, and JSON has errors of its own.
        raise PreflightError(f"{path}: it cannot be read ({short_reason(error)}); mend it, or take it away.") from None
    if problems := _problems(path, said):
        raise PreflightError(problems)
    return said


def _is_open(value: Any) -> bool:
    return value is None or value is False or value == ()


def _as_setting(field: str, value: Any) -> Any:
    if field in _FIELDS.values():
        return tuple([value] if isinstance(value, str) else value)
    return tuple(value) if isinstance(value, list) else value


def _problems(path: str, said: Any) -> list[str]:
    if not isinstance(said, dict):
        return [f"{path}: it holds no JSON object; see the README for its keys."]
    problems = []
    for name, value in said.items():
        if name == "golden":
            if not isinstance(value, list) or not all(_is_golden(entry) for entry in value):
                problems.append(f"{path}: 'golden' is no list of objects with left, right and score.")
        elif name not in _SETTINGS:
            problems.append(f"{path}: '{name}' is no setting; there are {', '.join([*_SETTINGS, 'golden'])}.")
        elif not isinstance(value, _SETTINGS[name]) or isinstance(value, bool) != (_SETTINGS[name] is bool):
            problems.append(f"{path}: '{name}' is {value!r}, which is of the wrong type.")
        elif name == "custom_object" and any(":" in text for text in ([value] if isinstance(value, str) else value)):
            problems.append(f"{path}: 'custom_object' names code to import; only the command line may, with --custom-object.")
    return problems


def _is_golden(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and isinstance(entry.get("left"), str) and isinstance(entry.get("right"), str)
        and isinstance(entry.get("score"), (int, float)) and isinstance(entry.get("tolerance", 0.0), (int, float))
    )  # fmt: skip


def _beside(folder: str, uri: str) -> str:
    return uri if "://" in uri or uri.startswith("/") or not folder else f"{folder}/{uri}"
