"""Error rates: by hand on five pairs, and against scikit-learn on thousands."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import det_curve, roc_curve

from batchverify.evaluation import metrics
from batchverify.schema import is_match

# By hand: of four genuine pairs one, of five impostors one lies on the wrong side of 0.5.
GENUINE, IMPOSTOR = [0.45, 0.6, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4, 0.7]


def counted(genuine, impostor) -> tuple[np.ndarray, np.ndarray]:
    return metrics.histogram(np.array(genuine)), metrics.histogram(np.array(impostor))


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray]:
    """Genuine and impostor scores, float32, many of them on edges of bins, where float32 and float64 disagree."""
    rng = np.random.default_rng(2)
    genuine, impostor = (rng.beta(*shape) for shape in ((5, 2, 4000), (2, 5, 6000)))
    genuine[::2], impostor[::2] = np.round(genuine[::2], 3), np.round(impostor[::2], 3)
    return genuine.astype(np.float32), impostor.astype(np.float32)


@pytest.fixture(scope="module")
def saturated() -> tuple[np.ndarray, np.ndarray]:
    """Scores of a sigmoid that is saturated on both sides, float32: most lie below 0.0001 or above 0.9999."""
    rng = np.random.default_rng(3)
    logits = rng.normal(15, 4, 20_000), rng.normal(9, 3, 40_000)
    genuine, impostor = (1 / (1 + np.exp(-side.astype(np.float32))) for side in logits)
    return genuine, impostor


def test_a_bin_holds_what_matches_at_its_lower_edge(many, saturated):
    every_edge = np.concatenate([metrics.EDGES.astype(np.float32), np.nextafter(metrics.EDGES.astype(np.float32), 0)])
    smallest = np.array([-0.0, 0.0, 1e-45, 1e-38, 2e-13, 1.0], np.float32)
    for scores in (*many, *saturated, 1 - saturated[1], every_edge, smallest):
        counts = metrics.histogram(scores)
        at_or_above = np.cumsum(counts[::-1])[::-1]
        assert counts.sum() == len(scores)
        for edge in (*range(0, metrics.BINS, 37), *range(10), *range(metrics.BINS - 10, metrics.BINS)):
            assert at_or_above[edge] == np.count_nonzero(is_match(scores, metrics.EDGES[edge]))


def test_a_histogram_survives_the_summary(saturated):
    counts = metrics.histogram(saturated[0])
    assert (metrics.dense(json.loads(json.dumps(metrics.sparse(counts)))) == counts).all()
    with pytest.raises(ValueError, match=r"a bin at 0\.12345"):
        metrics.dense([[0.12345, 3]])


def test_even_bins_hold_what_pandas_counts(many, saturated):
    for scores in (*many, *saturated):
        edges = np.round(np.arange(51) / 50, 2).astype(np.float32)
        edges[-1] = 2
        expected = pd.cut(scores, edges, right=False).value_counts().to_numpy()
        assert metrics.even_bins(metrics.histogram(scores), 50).tolist() == expected.tolist()


def test_rates_equal_scikit_learns_at_every_threshold(many):
    genuine, impostor = many
    labels = np.repeat([1, 0], [len(genuine), len(impostor)])
    edges = metrics.EDGES.astype(np.float32)
    floored = edges[np.searchsorted(edges, np.concatenate(many), side="right") - 1]  # to the histogram's resolution
    false_positives, true_positives, thresholds = roc_curve(labels, floored, drop_intermediate=False)
    hits, misses = counted(*many)
    fmr, fnmr = metrics.false_match_rates(misses), metrics.false_non_match_rates(hits)
    at = np.searchsorted(edges, thresholds[1:])  # the first is infinite
    np.testing.assert_allclose(fmr[at], false_positives[1:])
    np.testing.assert_allclose(1 - fnmr[at], true_positives[1:])
    their_fmr, their_fnmr, _ = det_curve(labels, floored, drop_intermediate=False)
    _, our_fmr, our_fnmr = metrics.det_points(hits, misses)
    theirs = set(zip(their_fmr.round(12), their_fnmr.round(12), strict=True))
    ours = set(zip(our_fmr.round(12), our_fnmr.round(12), strict=True))
    assert theirs <= ours and all(0 in point for point in ours - theirs)  # scikit-learn cuts both ends off


def test_the_equal_error_rate_is_scikit_learns(many):
    genuine, impostor = many
    labels = np.repeat([1, 0], [len(genuine), len(impostor)])
    fmr, fnmr, _ = det_curve(labels, np.concatenate(many))
    nearest = np.argmin(np.abs(fmr - fnmr))
    eer, at = metrics.equal_error_rate(*counted(genuine, impostor))
    assert eer == pytest.approx((fmr[nearest] + fnmr[nearest]) / 2, abs=1e-3)
    assert np.mean(impostor >= at) == pytest.approx(eer, abs=1e-3)


def test_by_hand():
    found = metrics.describe_error_rates(*counted(GENUINE, IMPOSTOR), 0.5, (3, 1), (1, 2))
    assert (found["fmr"], found["fnmr"], found["accuracy"]) == (1 / 5, 1 / 4, 7 / 9)
    # The genuine pair that failed is one more false non-match; the two impostors that failed are no matches.
    assert (found["generalised_fmr"], found["generalised_fnmr"]) == (1 / 7, 2 / 5)
    # FMR and FNMR are nearest where one of five and one of four are wrong: from just above 0.45 (and 0.4) on.
    assert found["eer"] == pytest.approx((1 / 5 + 1 / 4) / 2) and found["eer_threshold"] == 0.4501
    for point in found["at_fmr"]:  # the highest impostor scores 0.7, so no FMR below 1/5 comes before 0.7001
        assert (point["threshold"], point["fmr"], point["fnmr"]) == (0.7001, 0, 2 / 4)
        assert point["evidence"] == "too_few"


@pytest.mark.parametrize(
    ("errors", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_intervals_as_published(errors, trials, low, high):
    # The last one is Newcombe's example (Statistics in Medicine 17, 1998, table I, method 3).
    assert metrics.wilson_interval(errors, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("impostors", "evidence"), [(299, "too_few"), (300, "rough"), (2999, "rough"), (3000, "enough")])
def test_an_fmr_takes_impostors_to_show(impostors, evidence):
    hits, misses = counted([0.9], np.linspace(0, 0.8, impostors))
    assert metrics.operating_point(hits, misses, 0.01).evidence == evidence


def test_the_lowest_threshold_that_keeps_an_fmr(many):
    genuine, impostor = many
    for target in metrics.FMR_TARGETS:
        point = metrics.operating_point(*counted(genuine, impostor), target)
        assert point.threshold is not None and point.fmr.value is not None
        assert np.mean(is_match(impostor, point.threshold)) == point.fmr.value <= target
        assert point.next_lower is not None and point.fmr_at_next_lower.value is not None
        assert point.next_lower == pytest.approx(point.threshold - 1e-4)
        assert np.mean(is_match(impostor, point.next_lower)) == point.fmr_at_next_lower.value
        assert point.fmr_at_next_lower.value > target
        assert np.mean(~is_match(genuine, point.threshold)) == point.fnmr.value


def test_a_threshold_near_1_is_the_lowest_of_all(saturated):
    """Between 0.9999 and 1 a threshold is exact: it is the score after the last impostor that may not match."""
    genuine, impostor = saturated
    for target in (1e-1, 3e-2, 1e-2):
        point = metrics.operating_point(*counted(genuine, impostor), target)
        highest = np.sort(impostor)[::-1]
        last = highest[int(target * len(impostor))]
        assert point.threshold is not None and point.threshold > 0.9999
        assert np.float32(point.threshold) == np.nextafter(last, np.float32(2))
        assert point.fnmr.value == np.mean(genuine < np.float32(point.threshold))
        assert float(metrics.format_threshold(point.threshold)) == point.threshold


def test_where_impostors_score_1_no_threshold_helps():
    point = metrics.operating_point(*counted([1.0], [1.0, 0.2]), 0.01)
    assert point.threshold is None and point.fmr.value is None


def test_folds_by_hand():
    # The first fold is decided by the second, whose best thresholds lie between 0.4 and 0.6, and the other way round.
    folds = {"1": counted([0.8, 0.45], [0.2, 0.1]), "2": counted([0.9, 0.6], [0.4, 0.3])}
    found = metrics.describe_folds(folds)
    assert found
    first, second = found["each"]
    assert first["threshold"] == pytest.approx(0.5, abs=1e-3) and first["accuracy"] == 3 / 4
    assert second["threshold"] == pytest.approx(0.325, abs=1e-3) and second["accuracy"] == 3 / 4
    assert found["accuracy_mean"] == 3 / 4 and found["accuracy_standard_error"] == 0


def test_folds_equal_the_protocol_done_plainly():
    rng = np.random.default_rng(5)
    scores = [(rng.beta(4, 2, 60), rng.beta(2, 4, 60)) for _ in range(10)]
    found = metrics.describe_folds({str(number): counted(*fold) for number, fold in enumerate(scores)})
    assert found
    accuracies = []
    for number, (genuine, impostor) in enumerate(scores):
        others = [np.concatenate([fold[kind] for n, fold in enumerate(scores) if n != number]) for kind in (0, 1)]
        grid = metrics.EDGES
        right = [np.sum(others[0] >= t) + np.sum(others[1] < t) for t in grid]
        best = grid[np.flatnonzero(right == np.max(right))]
        t = best[len(best) // 2]
        accuracies.append((np.sum(genuine >= t) + np.sum(impostor < t)) / 120)
    assert found["accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert found["accuracy_standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(10))


def test_rates_of_one_kind_alone():
    found = metrics.describe_error_rates(*counted([0.9], []), 0.5, (1, 0), (0, 0))
    assert (found["fnmr"], found["fmr"], found["eer"], found["at_fmr"]) == (0, None, None, [])


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.7, 1.0000001, 1e30])
def test_what_is_no_score_is_in_no_bin(score):
    with pytest.raises(ValueError, match="is no score, which is a number in"):
        metrics.histogram(np.array([0.5, score]))
