"""Whether this process uses the cache of models; the program does, and a call of the library does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_is_used = False


@contextlib.contextmanager
def model_cache(is_used: bool) -> Iterator[None]:
    """Has models be taken from the cache, and be kept there, in its block.

    Args:
        is_used: Whether it does that at all.
    """
    global _is_used
    earlier, _is_used = _is_used, is_used
    try:
        yield
    finally:
        _is_used = earlier


def is_cache_used() -> bool:
    """Returns whether models are taken from the cache, and kept there."""
    return _is_used
