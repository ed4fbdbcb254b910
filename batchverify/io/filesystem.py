"""Files on any file system that Beam opens."""

from __future__ import annotations

from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, short_reason
from batchverify.io.uri import URI_PATTERN, is_remote

__all__ = ["URI_PATTERN", "is_remote", "open_for_reading"]


def open_for_reading(path: str) -> Any:
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be opened ({short_reason(error)}); check the path and your access.") from None
