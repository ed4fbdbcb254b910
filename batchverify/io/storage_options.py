"""Beam's options that say how object stores are reached, and how they are sent to workers."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, S3Options
from apache_beam.options.value_provider import ValueProvider


@dataclasses.dataclass(frozen=True)
class StorageOptions:
    """Beam's options for object stores, as a value: it can be compared, hashed and sent to workers.

    Attributes:
        settings_json: The options that differ from their defaults, as a JSON object with sorted keys.
    """

    settings_json: str = "{}"

    @classmethod
    def from_beam(cls, options: PipelineOptions) -> StorageOptions:
        """Returns the part of Beam's options that says how stores are reached."""
        kinds: tuple[type[PipelineOptions], ...] = (GoogleCloudOptions, S3Options)
        names = {name for kind in kinds for name in PipelineOptions([]).view_as(kind).get_all_options(current_only=True)}
        settings = {name: value for name, value in options.get_all_options(drop_default=True).items() if name in names}
        return cls(json.dumps(settings, sort_keys=True, default=str))

    def to_beam(self) -> PipelineOptions:
        """Returns Beam's options with these settings."""
        options: PipelineOptions = PipelineOptions.from_dictionary(json.loads(self.settings_json))
        return options


_current = StorageOptions()


def current_storage_options() -> StorageOptions:
    """Returns the options with which this process opens object stores."""
    return _current


def set_storage_options(options: PipelineOptions) -> None:
    """Makes this process open all object stores with these options.

    They are process-wide, because Beam's `FileSystems` offers no other way. Before a pipeline is made, and on workers in
    processes of their own, `FileSystems` has no options. Clients are kept for the value that this call makes: credentials and
    addresses may also come from the environment, so a new call leads to new clients even if the options are equal.
    """
    global _current
    FileSystems.set_options(options)
    _current = StorageOptions.from_beam(options)


def _use(options: StorageOptions) -> None:
    if options != _current:
        set_storage_options(options.to_beam())


def beam_options() -> dict[str, bool]:
    """Returns all options that are Beam's, and whether each of them has a value."""
    parser: Any = argparse.ArgumentParser(add_help=False)
    for kind in PipelineOptions.__subclasses__():
        try:
            kind._add_argparse_args(parser)
        except argparse.ArgumentError:  # Two of Beam's own classes share an option.
            continue
    return {option: action.nargs != 0 for action in parser._actions for option in action.option_strings}


def with_storage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that first sets the options of this process on the worker that calls it."""
    options = _current

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _use(options)
        return function(*args, **kwargs)

    return call


class PathWithStorageOptions(ValueProvider):
    """A path for Beam's own transforms that also sets the options of this process on the worker that reads it.

    Args:
        path: The path of a file, or the beginning of one.
    """

    def __init__(self, path: str):
        self._path, self._options = path, _current

    def is_accessible(self) -> bool:
        return True

    def get(self) -> str:
        _use(self._options)
        return self._path

    def __str__(self) -> str:
        return self._path
