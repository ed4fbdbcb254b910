"""The reason why an image has no pixels."""

from __future__ import annotations

import dataclasses

from batchverify.schema import ImageStatus


@dataclasses.dataclass(frozen=True)
class ImageFailure:
    """The reason why an image has no pixels.

    Attributes:
        status: The kind of failure.
        error: A description for people, without the URI.
    """

    status: ImageStatus
    error: str
