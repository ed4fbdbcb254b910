"""Lambda layers in a config: what they join, what they seem to compute, and how the user can say it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from batchverify.errors import PreflightError
from batchverify.model.config_graph import joined_layers, name_of
from batchverify.model.safe_layers import KINDS, PAIR_KINDS, SINGLE_KINDS

# Names that code may mention, and the kind that they hint at; the first one found counts.
_HINTS = {
    "l2_normalize": "l2_normalize", "normalize": "l2_normalize", "cosine": "cosine", "euclid": "euclidean",
    "sqrt": "euclidean", "abs": "l1", "l1": "l1", "square": "squared",
}  # fmt: skip


def parse_lambda_option(text: str) -> tuple[str, str]:
    """Returns name and kind for `NAME=KIND`, or an empty name for `KIND`.

    Raises:
        PreflightError: If there is no such kind.
    """
    name, _, kind = text.rpartition("=")
    if kind not in KINDS:
        raise PreflightError(f"--lambda names '{kind}', which is not known; give one of {', '.join(KINDS)}.")
    return name, kind


def lambda_refusal(model: str, layer: dict[str, Any]) -> str:
    """Returns the message that refuses a Lambda layer about which the options say nothing."""
    joined, name = joined_layers(layer), name_of(layer)
    sources = " and ".join(f"'{source}'" for source in joined) or "the layer before it"
    position = f"joins {sources}" if len(joined) > 1 else f"follows {sources}"
    kinds = list(PAIR_KINDS if len(joined) > 1 else SINGLE_KINDS)
    hint = _guess_kind(layer)
    choices = f"--lambda {name}=KIND, KIND being one of {', '.join(kinds)},"
    if hint in kinds:
        others = ", ".join(kind for kind in kinds if kind != hint)
        choices = f"--lambda {name}={hint}, as its code seems to do (or {others}),"
    return (
        f"--model {model}: layer '{name}' is a Lambda that {position}; it is code inside the model file, and is not run. "
        f"Say what it computes, {choices} "
        "or add --trust-model-code if you trust whoever made the file."
    )


def guess_kind_by_name(class_name: str) -> str:
    """Guesses what a custom class computes from its name; l1 if the name shows nothing."""
    name = class_name.lower()
    if "cos" in name:
        return "cosine_distance" if "dist" in name else "cosine"
    return next((kind for hint, kind in _HINTS.items() if hint in name and kind in PAIR_KINDS), "l1")


def _guess_kind(layer: dict[str, Any]) -> str | None:
    """Guesses a kind from the names that a Lambda's code mentions; nothing is unmarshalled."""
    settings = layer.get("config")
    function = settings.get("function") if isinstance(settings, dict) else None
    code = json.dumps(function).lower().encode() + _decode_code(function)
    return next((kind for name, kind in _HINTS.items() if name.encode() in code), None)


def _decode_code(function: Any) -> bytes:
    """Returns the marshalled code of a function in a config, in lower case; empty if there is none."""
    if isinstance(function, dict):
        function = function.get("config", function)
        function = function.get("code", "") if isinstance(function, dict) else function
    if isinstance(function, list) and function:
        function = function[0]
    try:
        return base64.b64decode(function, validate=False).lower() if isinstance(function, str) else b""
    except (binascii.Error, ValueError):
        return b""
