"""Lambda layers: what they join, what they seem to compute, and how to say it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from batchverify.errors import PreflightError
from batchverify.model.config_graph import iterate_layers, joined_layers, name_of
from batchverify.model.safe_layers import KINDS, PAIR_KINDS, SINGLE_KINDS


def lambda_layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what is known of each Lambda in a config: `name`, `joins` (layer names) and `hint` (a kind, or None)."""
    return [
        {"name": name_of(layer), "joins": joined_layers(layer), "hint": _hint(layer)}
        for layer in iterate_layers(config)
        if layer["class_name"] == "Lambda"
    ]


def split_option(option: str, text: str) -> tuple[str, str]:
    """Returns name and kind of `NAME=KIND`, or an empty name for `KIND`."""
    name, _, kind = text.rpartition("=")
    if kind not in KINDS:
        raise PreflightError(f"--{option} names '{kind}', which is not known; give one of {', '.join(KINDS)}.")
    return name, kind


def lambda_refusal(name: str, layer: dict[str, Any]) -> str:
    joined, own = joined_layers(layer), name_of(layer)
    sources = " and ".join(f"'{one}'" for one in joined) or "the layer before it"
    joins = f"joins {sources}" if len(joined) > 1 else f"follows {sources}"
    kinds = list(PAIR_KINDS if len(joined) > 1 else SINGLE_KINDS)
    hint = _hint(layer)
    choices = f"--lambda {own}=KIND, KIND being one of {', '.join(kinds)},"
    if hint in kinds:
        others = ", ".join(kind for kind in kinds if kind != hint)
        choices = f"--lambda {own}={hint}, as its code seems to do (or {others}),"
    return (
        f"--model {name}: layer '{own}' is a Lambda that {joins}; it is code inside the model file, and is not run. "
        f"Say what it computes, {choices} "
        "or add --trust-model-code if you trust whoever made the file."
    )


def _hint(layer: dict[str, Any]) -> str | None:
    """Guesses a kind from the names that a Lambda's code mentions; nothing is unmarshalled."""
    inner = layer.get("config")
    text = json.dumps(inner.get("function")).lower() if isinstance(inner, dict) else ""
    code = text.encode() + _decoded(inner.get("function") if isinstance(inner, dict) else None)
    marks = {"l2_normalize": "l2_normalize", "normalize": "l2_normalize", "cosine": "cosine", "euclid": "euclidean",
             "sqrt": "euclidean", "abs": "l1", "l1": "l1", "square": "squared"}  # fmt: skip
    return next((kind for mark, kind in marks.items() if mark.encode() in code), None)


def _decoded(function: Any) -> bytes:
    if isinstance(function, dict):
        function = function.get("config", function)
        function = function.get("code", "") if isinstance(function, dict) else function
    if isinstance(function, list) and function:
        function = function[0]
    try:
        return base64.b64decode(function, validate=False).lower() if isinstance(function, str) else b""
    except (binascii.Error, ValueError):
        return b""
