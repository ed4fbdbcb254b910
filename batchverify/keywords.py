"""The settings of a run as keywords of a function: an unknown name is refused with the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.errors import PreflightError

Config = TypeVar("Config", bound=ScoringConfig)


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
    if unknown := [name for name in given if name not in names]:
        raise PreflightError([_unknown_name(name, caller, names, field_names(kind)) for name in unknown])
    return kind(**given, **fixed)


def _unknown_name(name: str, caller: str, names: Collection[str], fields: Collection[str]) -> str:
    if name in fields:
        return f"{caller} takes no option '{name}', which is for runs from files to files; leave it out."
    if near := difflib.get_close_matches(name, names, 1):
        return f"{caller} takes no option '{name}'; did you mean {near[0]}?"
    return f"{caller} takes no option '{name}'; it takes {', '.join(sorted(names))}."
