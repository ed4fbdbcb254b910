"""The version of `_summary.json`: a program reads the summaries that a program of the same version wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUMMARY_VERSION = 3


def why_unreadable(summary: Mapping[str, Any]) -> str | None:
    """Returns why a summary's version cannot be read, and the remedy; None for one that can."""
    version = summary.get("summary_version")
    if version == SUMMARY_VERSION:
        return None
    is_newer = isinstance(version, int) and version > SUMMARY_VERSION
    remedy = "update batchverify" if is_newer else "run the job again"
    return f"has version {version!r:.40}, and this program reads {SUMMARY_VERSION}; {remedy}"
