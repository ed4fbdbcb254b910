"""Files on any file system that Beam opens."""

from __future__ import annotations

import re
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, short_reason

# A URI, as Beam knows one; `/folder/a://b` is a path.
URI_PATTERN = re.compile(r"([A-Za-z][-A-Za-z0-9+.]*)://")


def is_remote(uri: str) -> bool:
    """Returns whether a URI is one of a store, and not a path on this machine."""
    return URI_PATTERN.match(uri) is not None


def open_for_reading(path: str) -> Any:
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be opened ({short_reason(error)}); check the path and your access.") from None
