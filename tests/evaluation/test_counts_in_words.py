"""Counts of 1 are told in the singular, wherever a run tells them."""

import pytest

from batchverify.evaluation.candidate import describe_changes, describe_test
from batchverify.evaluation.gates import STRANGERS, Gate
from batchverify.evaluation.steadiness import describe_rejections
from batchverify.evaluation.strangers import describe_rate, describe_shortage
from batchverify.images.variants import CHANGES


def steadiness(rejected: int, images: int) -> str:
    section = {"images": images, "changes": {name: {"rejected": rejected} for name in CHANGES}}
    return describe_rejections(section).split(" when ")[0]


@pytest.mark.parametrize(
    ("rejected", "images", "expected"),
    [
        (0, 1, "0 of 1 image is rejected as itself"),
        (1, 1, "1 of 1 image is rejected as itself"),
        (1, 200, "1 of 200 images is rejected as itself"),
        (0, 200, "0 of 200 images are rejected as themselves"),
        (1200, 2000, "1,200 of 2,000 images are rejected as themselves"),
    ],
)
def test_rejections_of_steadiness(rejected, images, expected):
    assert steadiness(rejected, images) == expected


@pytest.mark.parametrize(
    ("gained", "compared", "expected"),
    [
        (1, 1, "1 of 1 row is decided in another way (1 match gained, 0 lost)"),
        (0, 3, "0 of 3 rows are decided in another way (0 matches gained, 0 lost)"),
    ],
)
def test_changes_of_a_candidate(gained, compared, expected):
    assert describe_changes({"flips": {"gained": gained, "lost": 0, "compared": compared}, "mcnemar": None}) == expected
    right = describe_test({"only_model_right": 2, "only_candidate_right": 1, "p_value": 1})
    assert right.startswith("only the candidate is right on 1 labelled pair, only the model on 2 ")


def test_strangers_and_gates():
    one = {"pairs": 1, "images": 2, "matches": 1, "match_rate": 1.0, "match_rate_interval": (0.1, 1.0)}
    assert "1 of 1 pair of images drawn at random" in describe_rate(one)
    left_out = describe_shortage({**one, "left_out": {"same_subject": 1}})
    assert left_out.endswith("1 pair of 2 images was compared; 1 pair is left out because its images show one subject")
    assert str(Gate(STRANGERS, "0", 1, 1, False)).startswith("1 of 1 pair drawn at random matches, where")
    assert str(Gate("--max-failed-rows", "0", 1, 1, False)) == "1 of 1 row, where --max-failed-rows allows 0"
