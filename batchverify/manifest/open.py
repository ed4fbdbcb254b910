"""Opens the files of a manifest."""

from __future__ import annotations

from typing import Any

from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_for_reading


def open_manifest_file(path: str) -> Any:
    """Returns a binary file of the stored bytes.

    Raises:
        PreflightError: if it cannot be opened.
    """
    try:
        return open_for_reading(path)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be opened ({short_reason(error)}); check the path and your access.") from None
