"""The draw of strangers, and the interval of the share that matches."""

import numpy as np
import pytest

from batchverify.config import Limit
from batchverify.evaluation.metrics import wilson_interval
from batchverify.evaluation.strangers import describe_mates, describe_rate, describe_strangers, draw_pairs, match_interval

NONE = np.zeros(0, np.int64)


@pytest.mark.parametrize("images", [2, 3, 4, 7, 30])
def test_all_pairs_are_drawn_once_where_enough_are_asked_for(images):
    left, right = draw_pairs(images, 10_000, NONE)
    assert sorted(zip(left, right, strict=True)) == [(a, b) for a in range(images) for b in range(a + 1, images)]


def test_images_are_in_about_as_many_pairs_each():
    left, right = draw_pairs(101, 1_000, NONE)
    assert len(left) == 1_000
    of_image = np.bincount(np.concatenate([left, right]), minlength=101)
    assert of_image.max() - of_image.min() <= 2


def test_pairs_that_are_left_out_are_not_drawn_and_others_take_their_place():
    mates = np.array([0 * 50 + 1, 3 * 50 + 4, 10 * 50 + 11])
    left, right = draw_pairs(50, 60, mates)
    assert len(left) == 60 and not np.isin(left * 50 + right, mates).any()


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_give_no_pair(images):
    assert [len(side) for side in draw_pairs(images, 10, NONE)] == [0, 0]


def test_the_interval_covers_the_true_rate_where_images_differ_and_the_simple_one_does_not():
    rng = np.random.default_rng(8)
    left, right = draw_pairs(200, 4_000, NONE)
    covered = simple = 0
    for _ in range(300):
        # Some images look like many others. The expected share of matches is E[a]² for a pair of independent images.
        likeness = rng.beta(0.5, 2.0, 200)
        matches = rng.random(4_000) < likeness[left] * likeness[right]
        low, high = match_interval(matches, left, right) or (1, 0)
        covered += low <= 0.2**2 <= high
        low, high = wilson_interval(matches.sum(), len(matches))
        simple += low <= 0.2**2 <= high
    assert covered / 300 > 0.9 > 0.75 > simple / 300


def test_without_a_match_only_pairs_without_common_images_count():
    left, right = draw_pairs(100, 4_000, NONE)
    assert match_interval(np.zeros(4_000, bool), left, right) == wilson_interval(0, 50)


def describe(share, images=30, limit=None, **more):
    left, right = draw_pairs(images, 1_000, NONE)
    scores = np.where(np.arange(len(left)) < share * len(left), 0.9, 0.1).astype(np.float32)
    settings = {"run_images": 1_001, "mates_known_by": None, "left_out": {}, "threshold": 0.5, "limit": limit} | more
    return describe_strangers(scores, left, right, **settings).section


@pytest.mark.parametrize(
    ("share", "images", "limit", "verdict"),
    [
        (0.05, 30, None, "few_match"),
        (0.15, 30, None, "many_match"),
        (0.15, 30, "20%", "few_match"),
        (0.05, 30, "1%", "many_match"),
        (1.0, 19, None, "too_few_images"),
    ],
)
def test_the_verdict_depends_on_share_limit_and_number(share, images, limit, verdict):
    assert describe(share, images, limit and Limit.parse(limit))["verdict"] == verdict


def test_a_score_that_is_no_number_counts_as_no_pair():
    left, right = draw_pairs(30, 1_000, NONE)
    scores = np.full(len(left), np.nan, np.float32)
    scores[:10] = 0.7
    described = describe_strangers(scores, left, right, 30, None, {}, 0.5, None)
    assert (described.section["pairs"], described.section["matches"], described.histogram.sum()) == (10, 10, 10)


def test_quantiles_are_scores_that_occur():
    low, high = float(np.float32(0.1)), float(np.float32(0.9))
    assert describe(0.05)["score_quantiles"] == [[0.5, low], [0.9, low], [0.99, high], [0.999, high], [1, high]]


def test_words_say_what_one_mate_does_to_the_rate():
    assert "adds" not in describe_mates(describe(0.05)) and "by 0.1 percentage points at most" in describe_mates(describe(0.05))
    assert "labelled genuine are left out" in describe_mates(describe(0.05, mates_known_by="labels"))
    assert describe_mates(describe(0.05, mates_known_by="subjects")) == "Images of one subject are left out."


def test_a_rate_near_one_is_not_rounded_to_one():
    section = {"pairs": 60_000, "matches": 59_928, "match_rate": 59_928 / 60_000, "match_rate_interval": (0.998, 0.9995)}
    assert describe_rate(section).startswith("99.9% of strangers match: 59,928 of 60,000 pairs")
    assert describe_rate(section).endswith("(95% interval 99.8% to 99.95%)")
