"""A model that somebody exchanges while it is loaded."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exchanged_once_copied(path: Path, other: Path, copy: str) -> Iterator[None]:
    """Puts another file in the place of a model's file as soon as the program has begun to copy that one.

    Args:
        path: The file.
        other: The other file.
        copy: The path of the copy in a temporary folder of the program.
    """
    is_over, is_exchanged = threading.Event(), threading.Event()

    def exchange() -> None:
        while not is_over.is_set():
            if any(Path(tempfile.gettempdir()).glob(f"batchverify-run-*/{copy}")):
                os.replace(other, path)
                is_exchanged.set()
                return
            time.sleep(0.001)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert is_exchanged.is_set()
