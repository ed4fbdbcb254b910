"""The types of a configuration's fields: values are made plain, and a value of another type is told in a sentence."""

from __future__ import annotations

import functools
import numbers
import os
import sys
import typing
from collections.abc import Mapping
from typing import Any

# What the values of a type are called, one and several.
_NAMES = {float: ("a number", "numbers"), int: ("a whole number", "whole numbers"), str: ("a text", "texts")}


def make_plain(config: Any, examples: Mapping[str, str] | None = None) -> list[str]:
    """Gives the fields of a configuration plain values of their types: paths as text, lists as tuples, numbers as Python's.

    Args:
        config: A dataclass, frozen or not. A field whose type has `parse` takes what that reads.
        examples: Values that fields may have, as Python writes them.

    Returns:
        A sentence for each field whose value has another type.
    """
    problems = []
    for name, kind in _field_types(config.__class__).items():
        given = getattr(config, name)
        value = _plain(_in_a_list(given, kind), kind)
        if _is_a(value, kind):
            object.__setattr__(config, name, value)
        else:
            example = f", such as {examples[name]}" if examples and name in examples else ""
            problems.append(f"{name} is {given!r:.60}; {_how_to_save(name, given) or f'give {_wanted(kind)}{example}'}.")
    return problems


def _how_to_save(name: str, given: Any) -> str | None:
    """Returns how a network becomes the path that a field takes; None for what is no network of Keras."""
    if not (callable(getattr(given, "save", None)) and hasattr(given, "layers")):
        return None
    return f"it is a network in memory, and this takes a path; save it first, {name}.save('{name}.keras'), and give that path"


@functools.cache
def _field_types(config: type) -> Mapping[str, Any]:
    return typing.get_type_hints(config)


def _in_a_list(value: Any, kind: Any) -> Any:
    """Returns a single text or path in a list, where the field holds one."""
    kind, *_ = _alternatives(kind)
    return [value] if typing.get_origin(kind) is tuple and isinstance(value, str | os.PathLike) else value


def _plain(value: Any, kind: Any) -> Any:
    kind, *_ = _alternatives(kind)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_plain(element, typing.get_args(kind)[0]) for element in value)
    value = _as_python(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, int):
        return float(value)
    return _parsed(value, kind) if hasattr(kind, "parse") else value


def _as_python(value: Any) -> Any:
    """Returns a number of NumPy's as one of Python's; there is none where NumPy is not loaded."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _parsed(value: Any, kind: Any) -> Any:
    if not isinstance(value, int | str) or isinstance(value, bool):
        return value
    try:
        return kind.parse(str(value))
    except ValueError:
        return value


def _is_a(value: Any, kind: Any) -> bool:
    """Returns whether a plain value is of a type. The lengths of tuples are left to the configuration."""
    kind, *others = _alternatives(kind)
    if value is None and others:
        return True
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(element, typing.get_args(kind)[0]) for element in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, float | int if kind is float else kind)


def _wanted(kind: Any) -> str:
    """Returns what to give for a field of a type."""
    kind, *_ = _alternatives(kind)
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return "a list of " + ("pairs of texts" if typing.get_origin(element) is tuple else _NAMES[element][1])
    if kind is bool:
        return "True or False"
    return _NAMES[kind][0] if kind in _NAMES else "a count such as 100, or a percentage such as '0.5%'"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Returns the type, and that of None where a value may be missing."""
    return typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)
