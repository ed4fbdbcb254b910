"""`MODEL.batchverify.json`: what the owner of a model states about it once, in a file beside the model.

A launch calls `read_sidecar` once. The configuration that `apply_sidecar` completes travels to the workers, which read nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from apache_beam.io.filesystems import FileSystems

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.io.atomic_output import atomic_output
from batchverify.io.filesystem import read_bytes, write_text
from batchverify.model.calibration import Calibration, find_calibration_problem, parse_calibration
from batchverify.model.registry import is_registry_name, read_beside
from batchverify.uris import is_remote

_SUFFIX = ".batchverify.json"
_MAX_BYTES = 2**20
_GOLDEN, _TOLERANCE, _CALIBRATION = "golden", 1e-3, "calibration"
# A sidecar comes from whoever made the model. It may describe the model, but it may not name code to import, nor trust any.
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "threshold": (int, float), "pixels": str, "color": str, "loader": str, "resize": str, "orientation": str, "alpha": str,
    "fit": str, "image_size": list,
    "lambda": (str, list), "custom_object": (str, list), "mend_shared_encoder": bool, "signature": str,
    "compare": str, "output_is": str, "match_column": int,
}  # fmt: skip
_KEYS = (*_SETTINGS, _GOLDEN, _CALIBRATION)
# Keys that have another name than the field of `ModelConfig` that they set. Both fields hold several texts.
_FIELDS = {"lambda": "lambdas", "custom_object": "custom_objects"}

Config = TypeVar("Config", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class GoldenPair:
    """A pair whose score is known.

    Attributes:
        left: The path or URI of the first image.
        right: The path or URI of the second image.
        score: The score that the model gives, in [0, 1].
        tolerance: The largest difference that is accepted.
    """

    left: str
    right: str
    score: float
    tolerance: float = _TOLERANCE


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The content of a sidecar; without arguments, that of a model that has none.

    Attributes:
        settings: Values of fields of `ModelConfig`, by the name of the field.
        golden_pairs: Pairs whose scores are known.
        calibration: What turns scores into log-likelihood ratios; None without. Whether it fits the model is not known here.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    golden_pairs: tuple[GoldenPair, ...] = ()
    calibration: Calibration | None = None


def sidecar_path(model: str) -> str:
    """Returns the path of the sidecar of `model`."""
    return model.rstrip("/") + _SUFFIX


def read_sidecar(model: str | None) -> Sidecar:
    """Reads the sidecar of a model.

    Args:
        model: The path or URI of the model, or None for the embedded one.

    Raises:
        PreflightError: If the sidecar cannot be read, or states what it may not.
    """
    path, content = _read_embedded() if model is None else _read_beside(model)
    if problems := list(_find_problems(path, content)):
        raise PreflightError(problems)
    settings = {_FIELDS.get(key, key): _to_setting(key, value) for key, value in content.items() if key in _SETTINGS}
    folder = path.rpartition("/")[0] if model is not None else ""
    golden_pairs = tuple(_to_golden_pair(entry, folder) for entry in content.get(_GOLDEN, []))
    calibration = parse_calibration(content[_CALIBRATION]) if _CALIBRATION in content else None
    return Sidecar(settings, golden_pairs, calibration)


def is_setting(key: str) -> bool:
    """Returns whether a sidecar may have this key."""
    return key in _SETTINGS


def apply_sidecar(config: Config, sidecar: Sidecar) -> Config:
    """Returns `config` with the settings that it leaves open taken from `sidecar`; to apply it twice changes nothing."""
    settings = {field: value for field, value in sidecar.settings.items() if _is_open(getattr(config, field))}
    return dataclasses.replace(config, **settings) if settings else config


def write_calibration(path: str, calibration: Calibration) -> None:
    """Writes a calibration into a sidecar, which keeps its other keys and their order. It is made if it does not exist.

    Args:
        path: The path or URI of the sidecar.
        calibration: The calibration; it takes the place of an earlier one.

    Raises:
        PreflightError: If there is a sidecar that cannot be read or states what it may not, or it cannot be written.
    """
    content = _read_json(path)
    others = {key: value for key, value in content.items() if key != _CALIBRATION} if isinstance(content, dict) else content
    if problems := list(_find_problems(path, others)):
        raise PreflightError(problems)
    text = json.dumps({**content, _CALIBRATION: calibration.to_json()}, indent=2, ensure_ascii=False) + "\n"
    try:
        if is_remote(path):
            write_text(path, text)
            return
        with atomic_output(os.path.realpath(path)) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be written ({short_reason(error)}); check the path and your rights.") from None


def _read_embedded() -> tuple[str, Any]:
    resource = importlib.resources.files("batchverify.demo") / f"sane.keras{_SUFFIX}"
    return str(resource), json.loads(resource.read_text(encoding="utf-8"))


def _read_beside(model: str) -> tuple[str, Any]:
    """Returns the path of a model's sidecar and its JSON value."""
    path = sidecar_path(model)
    if is_registry_name(model):
        return path, _parse(path, lambda: read_beside(model, _SUFFIX))
    return path, _read_json(path)


def _read_json(path: str) -> Any:
    """Returns the JSON value of a sidecar; an empty object where there is no such file."""
    return _parse(path, lambda: read_bytes(path, _MAX_BYTES + 1) if FileSystems.exists(path) else None)


def _parse(path: str, read: Callable[[], bytes | None]) -> Any:
    try:
        data = read()
        if data is None:
            return {}
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES // 2**20} MiB")
        return json.loads(data)
    except PreflightError:
        raise
    except Exception as error:  # Beam wraps whatever the store's client raises, and JSON has errors of its own.
        raise PreflightError(f"{path}: it cannot be read ({short_reason(error)}); repair or remove it.") from None


def _find_problems(path: str, content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"{path}: it holds no JSON object; its keys are {', '.join(_KEYS)}."
        return
    for key, value in content.items():
        if problem := _find_problem(key, value):
            yield f"{path}: {problem}."


def _find_problem(key: str, value: Any) -> str | None:
    if key == _GOLDEN:
        is_valid = isinstance(value, list) and all(map(_is_golden_pair, value))
        return None if is_valid else "'golden' is not a list of objects with left, right and score"
    if key == _CALIBRATION:
        return find_calibration_problem(value)
    if key not in _SETTINGS:
        return f"'{key}' is not a setting; the settings are {', '.join(_KEYS)}"
    # In Python a bool is an int.
    if not isinstance(value, _SETTINGS[key]) or isinstance(value, bool) != (_SETTINGS[key] is bool):
        return f"'{key}' is {value!r}, which has the wrong type"
    if isinstance(value, list) and not all(type(item) is (int if key == "image_size" else str) for item in value):
        return f"'{key}' is {value!r}, which has the wrong type"
    if isinstance(value, (int, float)) and not _is_finite(value):
        return f"'{key}' is {value!r:.20}, which is no setting"
    if key == "custom_object" and any(":" in str(text) for text in _to_texts(value)):
        return "'custom_object' names code to import; only the command line may do that, with --custom-object"
    return None


def _is_golden_pair(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(side), str) for side in ("left", "right"))
        and _is_number(entry.get("score"))
        and _is_number(entry.get("tolerance", _TOLERANCE))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: float) -> bool:
    """Returns whether a number is one that a sidecar may state; Python reads NaN, Infinity and endless integers in JSON too."""
    return abs(value) <= sys.float_info.max


def _to_golden_pair(entry: dict[str, Any], folder: str) -> GoldenPair:
    left, right = (_resolve(entry[side], folder) for side in ("left", "right"))
    return GoldenPair(left, right, float(entry["score"]), float(entry.get("tolerance", _TOLERANCE)))


def _resolve(uri: str, folder: str) -> str:
    """Returns the URI of an image; a relative path starts from the folder of the model."""
    return uri if is_remote(uri) or uri.startswith("/") or not folder else f"{folder}/{uri}"


def _to_setting(key: str, value: Any) -> Any:
    if key in _FIELDS:
        return tuple(_to_texts(value))
    return tuple(value) if isinstance(value, list) else value


def _to_texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_open(value: Any) -> bool:
    """Returns whether a field of a configuration has the value that means "not stated"."""
    return value is None or value is False or value == ()
