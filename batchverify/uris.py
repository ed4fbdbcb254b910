"""What a URI is: the only place that tells a URI from a path on this machine."""

from __future__ import annotations

import re

# Anchored by `match`: Beam takes `gs://bucket/a` for a URI and `/folder/a://b` for a path.
URI_PATTERN = re.compile(r"([A-Za-z][-A-Za-z0-9+.]*)://")


def is_remote(uri: str) -> bool:
    """Returns whether `uri` names a file in a store, and not a path on this machine."""
    return URI_PATTERN.match(uri) is not None


def scheme_of(uri: str) -> str | None:
    """Returns the scheme of `uri`, such as `gs`; None for a path on this machine."""
    match = URI_PATTERN.match(uri)
    return match[1] if match else None
