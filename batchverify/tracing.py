"""Spans of a run for OpenTelemetry, where `opentelemetry-api` is installed and somebody has configured it; nothing otherwise.

The spans of threads have the run's span as their parent. Workers in other processes have a parent of their own, if any.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_FLUSH_WITHIN_MS = 5_000
# The context of the span that new spans belong to; None takes the one that is current in the caller's thread.
_parent: Any = None

# Adds an attribute to a span, given its name and its value.
SetAttribute = Callable[[str, str | int | float | bool], None]


@contextmanager
def span(name: str, is_parent: bool = False, **attributes: str | int) -> Iterator[SetAttribute]:
    """Records the time that its block takes as the span `batchverify.NAME`, and an exception that leaves it.

    It is not made the current span of the thread, because Beam suspends generators within such blocks.

    Args:
        name: The name.
        is_parent: Whether spans that begin within the block, in any thread, belong to this one.
        attributes: What to record with it.
    """
    global _parent
    api = _api()
    if api is None:
        yield _ignore
        return
    before, named = _parent, {f"batchverify.{key}": value for key, value in attributes.items()}
    one = api.get_tracer("batchverify").start_span(f"batchverify.{name}", context=before, attributes=named)
    if is_parent:
        _parent = api.set_span_in_context(one, before)
    try:
        yield lambda key, value: one.set_attribute(f"batchverify.{key}", value)
    except Exception as error:
        one.record_exception(error)
        one.set_status(api.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        if is_parent:
            _parent = before
        one.end()


def flush_spans() -> None:
    """Sends what is recorded: the program may end without Python's own clean-up."""
    provider = _api() and _api().get_tracer_provider()
    if hasattr(provider, "force_flush"):  # The one that only the interface has sends nothing.
        provider.force_flush(_FLUSH_WITHIN_MS)


@functools.cache
def _api() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace


def _ignore(key: str, value: str | int | float | bool) -> None:
    pass
