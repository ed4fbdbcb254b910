"""Intervals of rates whose pairs share subjects: against sums over all two pairs, and against the truth in simulations."""

import itertools

import numpy as np
import pytest
from scipy import stats

from batchverify.evaluation.clusters import COARSE, ClusteredCounts, Resolution, effective_sample_sizes
from batchverify.evaluation.metrics import Rate, t_quantile, wilson_interval
from benchmarks.interval_coverage import Case, coverage, ratio_coverage

PAIRS = 240


@pytest.fixture(params=["impostor", "genuine", "both"])
def drawn(request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subjects of pairs, which of them are known, and which pairs are errors; some dyads occur several times."""
    rng = np.random.default_rng(4)
    left, right = rng.integers(0, 18, (2, PAIRS))
    right = {"impostor": (left + 1 + right % 17) % 18, "genuine": left, "both": right}[request.param]
    subjects = np.stack([left, right], axis=1).astype(np.uint64) * np.uint64(1_000_003)
    return subjects, rng.random((PAIRS, 2)) < 0.9, rng.random(PAIRS) < 0.2 + 0.6 * (left % 3 == 0)


def rate_of(is_error: np.ndarray) -> Rate:
    return Rate(int(is_error.sum()), len(is_error))


def test_the_variance_is_the_sum_over_all_two_pairs_that_share_a_subject(drawn):
    subjects, is_known, is_error = drawn
    residuals = is_error - is_error.mean()
    known = [set(subjects[row][is_known[row]].tolist()) for row in range(PAIRS)]
    by_hand = 0.0
    for one, other in itertools.product(range(PAIRS), repeat=2):
        if known[one] & known[other]:
            by_hand += residuals[one] * residuals[other]
    # A pair without a known subject is a stranger to all others.
    by_hand += sum(not known[row] for row in range(PAIRS)) * is_error.mean() * (1 - is_error.mean())
    count = len(set.union(*known))
    found = ClusteredCounts.count(subjects, is_known, is_error).variance(rate_of(is_error))
    assert found == pytest.approx(max(0, by_hand) * count / (count - 1) / PAIRS**2)


@pytest.mark.parametrize("kind", ["impostor", "genuine"])
def test_the_covariance_is_the_sum_over_all_pairs_of_both_that_share_a_subject(kind):
    """Many pairs of the two rates share both subjects, and count once."""
    rng = np.random.default_rng(6)
    left, shift = rng.integers(0, 12, (2, 60)), rng.integers(1, 12, (2, 60)) * (kind == "impostor")
    subjects = np.stack([left, (left + shift) % 12], axis=2).astype(np.uint64)
    errors = rng.random((2, 60)) < 0.3 + 0.5 * (left % 2 == 0)
    parts = [ClusteredCounts.count(s, np.ones((60, 2), bool), e) for s, e in zip(subjects, errors, strict=True)]
    residuals = errors - errors.mean(axis=1, keepdims=True)
    shares = np.any(subjects[0][:, None, :, None] == subjects[1][None, :, None, :], axis=(2, 3))
    by_hand = np.sum(np.outer(*residuals)[shares]) / 60**2
    rates = [rate_of(e) for e in errors]
    assert parts[0].covariance(rates[0], parts[1], rates[1]) == pytest.approx(by_hand)


@pytest.mark.parametrize("resolution", [Resolution(2**16, 2**16), Resolution(7, 20)])
def test_counts_of_parts_are_those_of_the_whole(drawn, resolution):
    subjects, is_known, is_error = drawn
    parts = [
        ClusteredCounts.count(subjects[rows], is_known[rows], is_error[rows], resolution)
        for rows in np.array_split(range(PAIRS), 7)
    ]
    whole = ClusteredCounts.count(subjects, is_known, is_error, resolution)
    for order in (parts, parts[::-1], [ClusteredCounts.merge(parts[:3]), ClusteredCounts.merge(parts[3:])]):
        merged = ClusteredCounts.merge(order)
        for name in ("total", "clusters", "by_cluster", "dyads", "by_dyad", "dyads_to", "subjects", "subjects_to"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert len(whole.dyads) <= resolution.kept and len(whole.clusters) <= resolution.clusters
    assert len(whole.subjects) <= resolution.kept


def test_a_coarse_count_has_nearly_the_same_interval():
    rng = np.random.default_rng(7)
    left = rng.integers(0, 3_000, 60_000)
    right = (left + rng.integers(1, 3_000, 60_000)) % 3_000
    subjects = stats.rankdata(rng.random(3_000)).astype(np.uint64)[np.stack([left, right], axis=1)] * np.uint64(
        0x9E3779B97F4A7C15
    )
    likeness = rng.beta(1, 4, 3_000)
    is_error = rng.random(60_000) < likeness[left] * likeness[right]
    rate, known = rate_of(is_error), np.ones((60_000, 2), bool)
    widths = []
    for resolution in (Resolution(2**16, 2**16), Resolution(2**8, 2**9)):
        interval = ClusteredCounts.count(subjects, known, is_error, resolution).effective_sample_size(rate).interval(rate)
        widths.append(np.ptp(interval or (0, 0)))
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


@pytest.mark.parametrize(
    ("case", "wilson_covers"),
    [
        (Case("impostor", 200, 20, 0.7, 0.16), 0.55),
        (Case("impostor", 200, 20, 0.7, 0.01), 0.80),
        (Case("genuine", 200, 20, 0.7, 0.16), 0.75),
        (Case("impostor", 200, 20, 0.3, 0.16), 0.80),
    ],
)
def test_95_percent_intervals_cover_the_truth_in_95_percent_of_rounds(case, wilson_covers):
    known, simple = coverage(case, rounds=1_000, seed=3)
    # The share of a thousand rounds has a standard error of 0.7%.
    assert abs(known - 0.95) <= 0.02 and simple < wilson_covers


def test_the_interval_of_a_ratio_covers_the_truth_where_few_subjects_are_in_both_groups():
    to_best, to_all = ratio_coverage(Case("impostor", 10, 20, 0.7, 0.16), rounds=150, seed=3)
    assert to_best >= 0.95 and to_all >= 0.95


def test_without_a_known_subject_the_interval_is_wilsons(drawn):
    subjects, _, is_error = drawn
    counts = ClusteredCounts.count(subjects, np.zeros((PAIRS, 2), bool), is_error)
    rate = rate_of(is_error)
    assert counts.effective_sample_size(rate).interval(rate) == wilson_interval(rate.errors, PAIRS)
    assert effective_sample_sizes({"impostor": counts, "genuine": counts}, (PAIRS, PAIRS), (3, 3)) is None


@pytest.mark.parametrize(("right", "independent"), [(0, 100), (1, 50)])
def test_without_an_error_a_subject_counts_once(right, independent):
    left = np.tile(np.arange(100), 30)
    subjects = np.stack([left, (left + right) % 100], axis=1).astype(np.uint64)
    counts = ClusteredCounts.count(subjects, np.ones((3_000, 2), bool), np.zeros(3_000, bool))
    assert counts.effective_sample_size(Rate(0, 3_000)).interval(Rate(0, 3_000)) == wilson_interval(0, independent)


@pytest.mark.parametrize("subjects", [50, 400, 2_000, 20_000])
@pytest.mark.parametrize("parts", [1, 9])
def test_without_an_error_a_coarse_count_knows_how_many_subjects_there_are(subjects, parts):
    rng = np.random.default_rng(8)
    hashes, rate = rng.integers(0, 2**64, subjects, np.uint64), Rate(0, 50_000)
    pairs = hashes[rng.permutation(np.arange(100_000) % subjects).reshape(-1, 2)]
    none = np.zeros(50_000, bool)
    counted = ClusteredCounts.merge(
        ClusteredCounts.count(pairs[rows], np.ones((len(rows), 2), bool), none[rows], COARSE)
        for rows in np.array_split(np.arange(50_000), parts)
    )
    bound = (counted.effective_sample_size(rate).interval(rate) or (0, 1))[1]
    assert bound == pytest.approx(wilson_interval(0, subjects / 2)[1], rel=0.02 if subjects <= COARSE.kept else 0.15)


@pytest.mark.parametrize("freedom", [3, 4.5, 10, 40, 1e6])
def test_the_quantile_is_students(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.004)
