"""What a URI is. Nothing here imports Beam."""

from __future__ import annotations

import re

# A URI, as Beam knows one; `/folder/a://b` is a path.
URI_PATTERN = re.compile(r"([A-Za-z][-A-Za-z0-9+.]*)://")


def is_remote(uri: str) -> bool:
    """Returns whether a URI is one of a store, and not a path on this machine."""
    return URI_PATTERN.match(uri) is not None
