"""What came of an image: what was wanted of it, or a failure."""

from typing import TypeVar

from batchverify.images.failure import ImageFailure

T = TypeVar("T")


def succeeded(outcome: T | ImageFailure) -> T:
    """Returns what was wanted, which it must be."""
    assert not isinstance(outcome, ImageFailure), outcome
    return outcome


def failed(outcome: object) -> ImageFailure:
    """Returns the failure, which it must be."""
    assert isinstance(outcome, ImageFailure), outcome
    return outcome
