"""Beam's options that say how object stores are reached, and their way to workers."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, S3Options
from apache_beam.options.value_provider import ValueProvider

_options = PipelineOptions([])


def current_options() -> PipelineOptions:
    """Returns the options with which this process opens object stores."""
    return _options


def set_storage_options(options: PipelineOptions) -> None:
    """Has this process open all stores with these options of Beam's.

    Before there is a pipeline, and on the workers of a pool, Beam's file systems know of none.
    """
    global _options
    FileSystems.set_options(options)
    _options = options


def beam_option_names() -> list[str]:
    """Returns the names of all options that are Beam's."""
    parser: Any = argparse.ArgumentParser(add_help=False)
    for kind in PipelineOptions.__subclasses__():
        try:
            kind._add_argparse_args(parser)
        except argparse.ArgumentError:  # Two of Beam's own classes share an option.
            continue
    return [option for action in parser._actions for option in action.option_strings]


def with_storage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, which brings the options in use here to whatever worker calls it."""
    settings = _store_settings(_options)

    @functools.wraps(function)
    def with_settings(*args: Any, **kwargs: Any) -> Any:
        _use_settings(settings)
        return function(*args, **kwargs)

    return with_settings


class PathWithStorageOptions(ValueProvider):
    """A path for Beam's own transforms that brings the options in use here along.

    Args:
        path: of a file, or the beginning of one.
    """

    def __init__(self, path: str):
        self._path, self._settings = path, _store_settings(_options)

    def is_accessible(self) -> bool:
        return True

    def get(self) -> str:
        _use_settings(self._settings)
        return self._path

    def __str__(self) -> str:
        return self._path


def _store_settings(options: PipelineOptions) -> dict[str, Any]:
    """Returns the options that say how stores are reached, where they are not at their defaults."""
    given = options.get_all_options(drop_default=True)
    kinds: tuple[type[PipelineOptions], ...] = (GoogleCloudOptions, S3Options)
    names = {name for kind in kinds for name in PipelineOptions([]).view_as(kind).get_all_options(current_only=True)}
    return {name: value for name, value in given.items() if name in names}


def _use_settings(settings: dict[str, Any]) -> None:
    if settings != _store_settings(_options):
        set_storage_options(PipelineOptions.from_dictionary(settings))
