"""Lambda layers in a config: what they join, what they seem to compute, and how the user can say it."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from typing import Any

from batchverify.errors import OpenQuestion, PreflightError
from batchverify.model.config_graph import joined_layers, name_of
from batchverify.model.safe_layers import KINDS, PAIR_KINDS, SINGLE_KINDS

# Names that code may mention, and the kind that they hint at; the first one found counts.
_HINTS = {
    "l2_normalize": "l2_normalize", "normalize": "l2_normalize", "cosine": "cosine", "euclid": "euclidean",
    "manhattan": "manhattan",
    "sqrt": "euclidean", "abs": "l1", "l1": "l1", "square": "squared",
}  # fmt: skip
# What a hint means where the code sums. A name is marshalled behind its length, which keeps other words that contain it out.
_SUMS = {"l1": "manhattan", "squared": "squared_euclidean"}
_SUM = re.compile(rb"\x03sum|\x0areduce_sum")

# Types in marshalled code, with or without the flag of a reference: TYPE_BINARY_FLOAT, which 8 bytes follow, and TYPE_CODE
# (Python/marshal.c).
_FLOAT, _CODE = re.compile(rb"[g\xe7]", re.S), (b"c", b"\xe3")
# Other bytes that look like a number are hardly ever within these bounds.
_SMALLEST_GUARD, _LARGEST_GUARD, _KERAS_EPSILON = 1e-20, 1e-3, 1e-7


def parse_lambda_option(text: str) -> tuple[str, str]:
    """Returns name and kind for `NAME=KIND`, or an empty name for `KIND`.

    Raises:
        PreflightError: If there is no such kind.
    """
    name, _, kind = text.rpartition("=")
    if kind not in KINDS:
        raise PreflightError(f"--lambda names '{kind}', which is not known; give one of {', '.join(KINDS)}.")
    return name, kind


def ask_about_lambda(model: str, layer: dict[str, Any]) -> OpenQuestion:
    """Returns the question that a Lambda layer raises about which the options say nothing."""
    joined, name = joined_layers(layer), name_of(layer)
    sources = " and ".join(f"'{source}'" for source in joined) or "the layer before it"
    position = f"joins {sources}" if len(joined) > 1 else f"follows {sources}"
    kinds = list(PAIR_KINDS if len(joined) > 1 else SINGLE_KINDS)
    hint = _guess_kind(layer)
    choices = f"--lambda {name}=KIND, KIND being one of {', '.join(kinds)},"
    if hint in kinds:
        others = ", ".join(kind for kind in kinds if kind != hint)
        choices = f"--lambda {name}={hint}, as its code seems to do (or {others}),"
    problem = (
        f"--model {model}: layer '{name}' is a Lambda that {position}; it is code inside the model file, and is not run. "
        f"Say what it computes, {choices} "
        "or add --trust-model-code if you trust whoever made the file."
    )
    is_shown = hint in kinds
    kind = hint if is_shown else kinds[0]
    option = ("--lambda", f"{name}={kind if is_shown else 'KIND'}")
    return OpenQuestion(problem, option, {"lambdas": (f"{name}={kind}",)}, is_guess=not is_shown)


def guess_kind_by_name(class_name: str) -> str:
    """Guesses what a custom class computes from its name; l1 if the name shows nothing."""
    name = class_name.lower()
    if "cos" in name:
        return "cosine_distance" if "dist" in name else "cosine"
    return next((kind for hint, kind in _HINTS.items() if hint in name and kind in PAIR_KINDS), "l1")


def find_factor(layer: dict[str, Any]) -> float | None:
    """Returns the one number among a Lambda's arguments, such as `arguments={"scale": 0.17}`; None if there is none."""
    arguments = layer["config"].get("arguments")
    values = arguments.values() if isinstance(arguments, dict) else ()
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return numbers[0] if len(numbers) == 1 else None


def find_guard(layer: dict[str, Any]) -> list[Any] | None:
    """Returns what the code of a Euclidean distance keeps its gradient at 0 finite with, and whether it adds that.

    Returns None where the file holds no code, but a name.

    The code is marshalled. Its constants and the names that it mentions are looked for, and nothing is unmarshalled.
    """
    code = _decode_code(layer["config"].get("function"))
    if code[:1] not in _CODE:
        return None
    numbers = [struct.unpack_from("<d", code, found.end())[0] for found in _FLOAT.finditer(code, 0, max(0, len(code) - 8))]
    guard = next((number for number in numbers if _SMALLEST_GUARD <= number <= _LARGEST_GUARD), None)
    if guard is None:
        guard = _KERAS_EPSILON if b"epsilon" in code else 0.0
    return [guard, not any(name in code for name in (b"maximum", b"clip"))]


def _guess_kind(layer: dict[str, Any]) -> str | None:
    """Guesses a kind from the names that a Lambda's code mentions; nothing is unmarshalled."""
    if find_factor(layer) is not None:
        return "scaled_add" if len(joined_layers(layer)) > 1 else "scale"
    settings = layer.get("config")
    function = settings.get("function") if isinstance(settings, dict) else None
    code = (_decode_code(function) or json.dumps(function).encode()).lower()  # Marshalled code in base64 holds any short word.
    kind = next((kind for name, kind in _HINTS.items() if name.encode() in code), None)
    return _SUMS[kind] if kind in _SUMS and _SUM.search(code) else kind


def _decode_code(function: Any) -> bytes:
    """Returns the marshalled code of a function in a config; empty if there is none."""
    if isinstance(function, dict):
        function = function.get("config", function)
        function = function.get("code", "") if isinstance(function, dict) else function
    if isinstance(function, list) and function:
        function = function[0]
    try:
        return base64.b64decode(function, validate=False) if isinstance(function, str) else b""
    except (binascii.Error, ValueError):
        return b""
