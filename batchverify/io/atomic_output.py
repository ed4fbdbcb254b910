"""A file or folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def atomic_output(path: str) -> Iterator[str]:
    """Gives a name beside `path` to write to; at the end what is written replaces `path`, and after an error it is deleted.

    Args:
        path: A file or folder on this machine, which may exist.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".batchverify-", dir=folder) as temporary:
        unfinished = os.path.join(temporary, "unfinished")
        yield unfinished
        if os.path.isdir(path) and not os.path.islink(path):  # os.replace does not replace a folder
            shutil.move(path, os.path.join(temporary, "replaced"))
        os.replace(unfinished, path)
