"""The settings of a run as keywords of a function: their names, types and the spellings that Python programs use."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from batchverify.config import Limit, ModelConfig, ScoringConfig
from batchverify.errors import PreflightError

Config = TypeVar("Config", bound=ScoringConfig)
# What the values of a field may be, by the first word of its type, and what to give instead of another one.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "float": (numbers.Real, "give a number"),
    "int": (numbers.Integral, "give a whole number"),
    "bool": (bool, "give True or False"),
    "str": (str, "give a text"),
    "Limit": (Limit, "give a count such as 100, or a percentage such as '0.5%'"),
    "tuple": (tuple, "give a list"),
}


def field_names(kind: type[ModelConfig]) -> frozenset[str]:
    """Returns the names of the fields of a configuration."""
    return frozenset(field.name for field in dataclasses.fields(kind))


def make_config(kind: type[Config], caller: str, given: Mapping[str, Any], names: Collection[str], **fixed: Any) -> Config:
    """Returns a configuration made of keywords.

    Args:
        kind: The class of the configuration.
        caller: The function that was called, for messages.
        given: The options that the caller of the function gave, by name.
        names: The names that the function takes.
        fixed: The fields that the function itself decides.

    Raises:
        PreflightError: If a name is none of `names`, or a value cannot be.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise PreflightError([_unknown_name(name, caller, names, fields) for name in unknown])
    values = {name: _plain(value, str(fields[name].type)) for name, value in given.items()}
    if problems := [problem for name, value in values.items() for problem in _problems(name, value, str(fields[name].type))]:
        raise PreflightError(problems)
    return kind(**values, **fixed)


def _unknown_name(name: str, caller: str, names: Collection[str], fields: Collection[str]) -> str:
    if name in fields:
        return f"{caller} takes no option '{name}', which is for runs from files to files; leave it out."
    if near := difflib.get_close_matches(name, names, 1):
        return f"{caller} takes no option '{name}'; did you mean {near[0]}?"
    return f"{caller} takes no option '{name}'; it takes {', '.join(sorted(names))}."


def _plain(value: Any, kind: str) -> Any:
    """Returns a value as the configuration holds it: paths as text, lists as tuples, NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind.startswith("tuple"):
        return (value,) if isinstance(value, str) else _as_tuple(value)
    if kind.startswith("Limit") and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return Limit.parse(str(value))
        except ValueError:
            return value
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _problems(name: str, value: Any, kind: str) -> Iterator[str]:
    types, remedy = _TYPES[kind.split(" ")[0].split("[")[0]]
    is_allowed = isinstance(value, types) and (types is bool or not isinstance(value, bool))
    if not is_allowed and not (value is None and "None" in kind):
        yield f"{name} is {value!r:.60}; {remedy}."
