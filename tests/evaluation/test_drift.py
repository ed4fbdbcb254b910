"""Drift between two runs, against SciPy and against sums done by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from batchverify.evaluation import metrics
from batchverify.evaluation.drift import (
    RunStatistics,
    compare_runs,
    kolmogorov_smirnov,
    population_stability_index,
    stability_bins,
)


def histogram(**counts: int) -> np.ndarray:
    found = np.zeros(metrics.BINS, np.int64)
    for place, count in counts.items():
        found[int(place.removeprefix("at"))] = count
    return found


@pytest.mark.parametrize(("one", "other"), [(400, 400), (57, 1_000), (1, 9)])
def test_kolmogorov_smirnov_is_scipys_on_binned_scores(one, other):
    rng = np.random.default_rng(one)
    before, now = rng.beta(5, 2, one), rng.beta(4, 2, other)
    binned = [np.searchsorted(metrics.EDGES, scores, side="right") for scores in (before, now)]
    expected = stats.ks_2samp(*binned, method="asymp").statistic
    assert kolmogorov_smirnov(metrics.histogram(before), metrics.histogram(now)) == pytest.approx(expected, abs=1e-12)
    exact = stats.ks_2samp(before, now, method="asymp").statistic
    assert abs(expected - exact) <= max(metrics.histogram(before).max() / one, metrics.histogram(now).max() / other)


def test_the_index_of_two_bins_by_hand():
    # Two heavy bins, so the bins begin at 0, 2000, 2001, 7000, 7001; of these the first, the middle and the last are empty.
    before, now = histogram(at2000=60, at7000=40), histogram(at2000=30, at7000=70)
    assert stability_bins(before).tolist() == [2000, 2001, 7000, 7001]
    shares = [((60.5 / 102.5), (30.5 / 102.5)), ((40.5 / 102.5), (70.5 / 102.5))]
    by_hand = sum((later - earlier) * math.log(later / earlier) for earlier, later in shares)
    assert population_stability_index(before, now) == pytest.approx(by_hand, abs=1e-12)


def test_the_index_of_ten_tenths_by_hand():
    # A hundred scores in each of ten places; tonight the tenth place has lost half of its scores to the first.
    before = histogram(**{f"at{1000 * place + 500}": 100 for place in range(10)})
    now = before.copy()
    now[500], now[9500] = 150, 50
    assert len(stability_bins(before)) == 9
    by_hand = sum(
        (later - earlier) * math.log(later / earlier)
        for earlier, later in [(100.5 / 1005, 150.5 / 1005), (100.5 / 1005, 50.5 / 1005)]
    )
    assert population_stability_index(before, now) == pytest.approx(by_hand, abs=1e-12)


def test_equal_scores_have_not_drifted():
    before = metrics.histogram(np.random.default_rng(3).beta(2, 2, 5_000))
    assert population_stability_index(before, before) == kolmogorov_smirnov(before, before) == 0
    assert population_stability_index(before, 20 * before) < 1e-4


def test_a_shift_away_from_one_common_score_is_seen_on_either_side():
    before = histogram(at9999=1000)
    for place in ("at9998", "at0"):
        assert population_stability_index(before, histogram(**{place: 1000})) > 5
    middle = histogram(at5000=1000)
    assert population_stability_index(middle, histogram(at5001=1000)) > 5


def test_the_index_grows_with_the_shift():
    rng = np.random.default_rng(8)
    before = metrics.histogram(rng.normal(0.5, 0.1, 20_000).clip(0, 1))
    found = [
        population_stability_index(before, metrics.histogram(rng.normal(0.5 + shift, 0.1, 20_000).clip(0, 1)))
        for shift in (0, 0.03, 0.1)
    ]
    # Of two normal distributions of one width the divergence is (shift / width)²; binning loses some of it.
    assert found[0] < 0.002 and found[1] == pytest.approx(0.09, rel=0.1) and found[2] == pytest.approx(1, rel=0.15)


def test_without_scores_there_is_no_index():
    nothing, something = histogram(), histogram(at1=3)
    for before, now in ((nothing, something), (something, nothing), (nothing, nothing)):
        assert math.isnan(population_stability_index(before, now)) and math.isnan(kolmogorov_smirnov(before, now))


def summary(scores: dict[float, int], **changes) -> dict:
    total = sum(scores.values())
    return {
        "run": {"run_id": "r", "threshold": 0.5, "model_digest": "sha256:1"},
        "rows": {"total": total, "scored": total, "matches": sum(n for place, n in scores.items() if place >= 0.5)},
        "images": {"total": 9, "ok": 9},
        "identity": {"score_min": 0.9, "score_mean": 0.9, "score_max": 0.9, "below_threshold": 0, "outscored": 1},
        "score_histograms": {
            "unlabelled": [list(pair) for pair in scores.items()],
            "impostor": [],
            "genuine": [],
            "strangers": [],
        },
        **changes,
    }


def test_two_summaries_are_compared():
    before = RunStatistics.from_summary(summary({0.1: 3, 0.8: 1}, images={"total": 9, "ok": 7, "missing": 2}))
    run = {"run_id": "s", "threshold": 0.6, "model_digest": "sha256:2"}
    rows = {"total": 9, "scored": 4, "matches": 4, "left.no_uri": 1, "right.no_uri": 2, "left.bad_row": 1, "right.bad_row": 1}
    found = compare_runs(before, RunStatistics.from_summary(summary({0.8: 4}, run=run, rows=rows)))
    assert found["match_rate"] == [0.25, 1.0] and found["ks"] == 0.75 and found["run_id"] == "r"
    assert found["score_mean"] == pytest.approx([(3 * 0.10005 + 0.80005) / 4, 0.80005])
    assert found["failures"] == {"bad_row": [0, 1], "missing": [2, 0], "no_uri": [0, 3]}
    assert found["identity"]["outscored"] == [1, 1] and found["identity"]["score_min"] == [0.9, 0.9]
    assert found["model_changed"] is True and found["threshold"] == [0.5, 0.6]
    nothing = compare_runs(before, RunStatistics.from_summary(summary({})))
    assert nothing["psi"] is None and nothing["match_rate"] == [0.25, None] and nothing["model_changed"] is False


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {}},
        {"run": {"run_id": "r", "threshold": None, "model_digest": ""}},
        {"rows": {"total": 4, "scored": 4, "matches": 5}},
        {"rows": {"total": 4, "scored": 3, "matches": 1}},
        {"rows": {"total": 4, "scored": "4", "matches": 1}},
        {"rows": []},
        {"run": {"run_id": "r", "threshold": 10**400, "model_digest": ""}},
        {"images": {"missing": -1}},
        {"identity": {}},
        {"score_histograms": {"unlabelled": [[0.00015, 4]], "impostor": [], "genuine": []}},
        {"score_histograms": {"unlabelled": [[1.5, 4]], "impostor": [], "genuine": []}},
        {"score_histograms": {"unlabelled": [[-1, 4]], "impostor": [], "genuine": []}},
        {"score_histograms": {"unlabelled": [[None, 4]], "impostor": [], "genuine": []}},
        {"score_histograms": {"unlabelled": [[0.8, 4.0]], "impostor": [], "genuine": []}},
        {"score_histograms": {"unlabelled": [4], "impostor": [], "genuine": []}},
    ],
)
def test_what_is_no_summary_is_not_read_as_one(changes):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, ArithmeticError)):
        RunStatistics.from_summary(summary({0.8: 4}, **changes))
