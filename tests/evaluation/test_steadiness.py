"""What is said about images that are compared with themselves after small changes."""

import numpy as np
import pytest

from batchverify.evaluation.steadiness import describe_rejections, describe_steadiness
from batchverify.images.variants import CHANGES


def describe(**rejected):
    scores = {name: np.full(10, 0.9, np.float32) for name in CHANGES}
    for name, count in rejected.items():
        scores[name][:count] = 0.2
    return describe_steadiness(scores, 0.5)


@pytest.mark.parametrize(
    ("rejected", "verdict"),
    [
        ({}, "steady"),
        ({"jpeg": 1}, "unsteady"),
        ({"shift": 1}, "unsteady"),
        ({"brighten": 1}, "unsteady"),
        ({"mirror": 9}, "steady"),
    ],
    ids=str,
)
def test_any_rejection_but_that_of_a_mirrored_image_is_unsteady(rejected, verdict):
    assert describe(**rejected)["verdict"] == verdict


def test_counts_and_scores_are_told_by_change():
    section = describe(jpeg=2, mirror=5)
    assert section["changes"]["jpeg"] == {"rejected": 2, "score_min": pytest.approx(0.2), "score_mean": pytest.approx(0.76)}
    assert describe_rejections(section) == (
        "2 of 10 images are rejected as themselves when saved as JPEG of quality 75, 0 when shifted by one pixel, "
        "0 when brightened by 5%, 5 when mirrored (not judged)"
    )


def test_without_an_image_nothing_is_judged():
    assert describe_steadiness({name: np.zeros(0, np.float32) for name in CHANGES}, 0.5)["verdict"] is None


def test_a_score_that_is_no_number_is_a_rejection():
    scores = {name: np.array([np.nan, 0.9], np.float32) for name in CHANGES}
    assert describe_steadiness(scores, 0.5)["changes"]["jpeg"] == {"rejected": 1, "score_min": None, "score_mean": None}
