"""Pillow's settings, which are global to the process, and what decoding needs of them.

A program that uses this package as a library keeps its own settings. Where one of them could change a result, it is
overridden while at least one thread decodes under it, and then put back. With Pillow's default settings this happens only
for an image that exceeds `PIL.Image.MAX_IMAGE_PIXELS` and, where the program turns warnings into errors, for one that Pillow
warns about.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from PIL import Image, ImageFile

# With this setting a truncated file would be decoded to an image that is partly grey, without an error.
_TRUNCATED = (ImageFile, "LOAD_TRUNCATED_IMAGES", False)
# Pillow's limit is a guess; `decode` checks the header against --max-image-pixels before it allocates anything.
_MAX_PIXELS = (Image, "MAX_IMAGE_PIXELS", None)


# Pillow allocates the pixels of an image in blocks. Those of its own size, 16 MiB, come from the C library's heaps of each
# thread, which keep what is freed: 8 threads that decoded one large image after another held 6.5 GiB, and 1.9 GiB with blocks
# that are too large for a heap and go back to the system.
_BLOCK_BYTES = 64 * 2**20


def configure_pillow() -> None:
    """Sets Pillow's settings for the whole process and for good; for a process that is ours alone."""
    for module, name, value in (_TRUNCATED, _MAX_PIXELS):
        setattr(module, name, value)
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined]  # It has no other name.
    _ignore_warnings()


class _SharedContext:
    """A context that many threads may be in at the same time: the first one enters it, the last one leaves it.

    Args:
        make: Makes the context anew each time that a first thread enters.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]):
        self._make = make
        self._lock = threading.Lock()
        self._threads = 0
        self._context: AbstractContextManager[None] = contextlib.nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self._threads == 0:
                self._context = self._make()
                self._context.__enter__()
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._context.__exit__(None, None, None)


@contextlib.contextmanager
def _overridden(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    yield
    if getattr(module, name) is value:  # The program may have set another value meanwhile.
        setattr(module, name, before)


@contextlib.contextmanager
def _without_limit_and_warnings() -> Iterator[None]:
    with _overridden(*_MAX_PIXELS):
        before = set(warnings.filters)
        entry = _ignore_warnings()
        yield
        if entry in before:  # `configure_pillow` has set it for good.
            return
        # Another thread's `warnings.catch_warnings` may have removed the entry already.
        with contextlib.suppress(ValueError):
            warnings.filters.remove(entry)  # type: ignore[attr-defined]


def _ignore_warnings() -> Any:
    """Ignores what Pillow warns about, large images and odd metadata; returns the entry in `warnings.filters`."""
    warnings.filterwarnings("ignore", module=r"PIL\.(?#batchverify)")  # The comment keeps it apart from a program's own entry.
    return warnings.filters[0]


whole_files_only = _SharedContext(lambda: _overridden(*_TRUNCATED))
"""Truncated files fail to decode while a thread is in this context."""

no_limit_or_warnings = _SharedContext(_without_limit_and_warnings)
"""Pillow neither refuses large images nor warns while a thread is in this context."""
