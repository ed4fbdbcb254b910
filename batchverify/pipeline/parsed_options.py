"""Beam's options, with each kind of them parsed once."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from apache_beam.options.pipeline_options import PipelineOptions

_VIEWS = "_views"
Kind = TypeVar("Kind", bound=PipelineOptions)


class ParsedOptions(PipelineOptions):
    """Beam's options.

    Beam parses all arguments again each time that it looks at a kind of options, which is some five hundred times for one
    pipeline. All views of one object share their values, so that a view can be kept.
    """

    def view_as(self, cls: type[Kind]) -> Kind:
        """Returns these options as those of one kind."""
        views = self.__dict__.setdefault(_VIEWS, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(Kind, views[cls])

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to workers: what Beam sends, without the views."""
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != _VIEWS}
