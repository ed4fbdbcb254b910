"""A bound on the pixels that all threads of a process decode at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from batchverify.images.prefetch import release_when_abandoned, stopped_clock

# A WebP file with transparency took 22.8 bytes a pixel, and a PNG file 16.1: its pixels, the white ground and the sum.
BYTES_PER_PIXEL = 23


def reserved_pixels(pixels: int, bytes_per_pixel: int) -> int:
    """Returns how many pixels of `BYTES_PER_PIXEL` take as much memory as these."""
    return pixels * bytes_per_pixel // BYTES_PER_PIXEL


class PixelBudget:
    """Lets images be decoded at the same time as long as they have few pixels together; an image above the limit goes alone.

    An image that is abandoned, because its time-out is over, counts no longer, although its decoder cannot be stopped and
    keeps its memory until it ends: otherwise one file that never ends would stop all others. So the memory of such decoders
    comes on top of the limit.

    Args:
        limit: The number of pixels.
    """

    def __init__(self, limit: int):
        self.limit, self._used = limit, 0
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Waits until so many pixels may be decoded, and holds them. The time does not count towards the image's time-out."""
        held = pixels

        def give_back() -> None:
            """Gives the pixels back once: the thread that decodes them calls this, and the one that gives it up may do so."""
            nonlocal held
            with self._changed:
                self._used, held = self._used - held, 0
                self._changed.notify_all()

        # Whoever waits for room keeps its turn, so that no large image starves.
        with stopped_clock(), self._turn, self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + pixels <= self.limit)
            self._used += pixels
            release_when_abandoned(give_back)
        try:
            yield
        finally:
            give_back()
