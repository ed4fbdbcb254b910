"""Why an image has no pixels."""

from __future__ import annotations

import dataclasses

from batchverify.schema import ImageStatus


@dataclasses.dataclass(frozen=True)
class ImageFailure:
    """Why there are no pixels.

    Attributes:
        status: the kind of failure.
        error: the same in words, without the URI.
    """

    status: ImageStatus
    error: str
