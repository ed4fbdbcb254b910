"""Calibration against scikit-learn on raw scores, and Cllr by hand."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import batchverify
from batchverify.errors import PreflightError
from batchverify.evaluation import metrics
from batchverify.evaluation.calibration import LabelledRun, cllr, cllr_min, describe_calibration, fit_calibration
from batchverify.evaluation.summary import Summary, summarise_rows
from batchverify.model.calibration import Calibration, posterior
from tests.evaluation.test_summary import scored_rows

METHODS = ("logistic", "isotonic")


def run_of(genuine, impostor) -> LabelledRun:
    histograms = metrics.histogram(np.asarray(genuine)), metrics.histogram(np.asarray(impostor))
    return LabelledRun("run", "m.keras", "sha256:0", "/", {"pixels": "0..1", "batch_size": 8}, *histograms)


@pytest.fixture(scope="module")
def raw() -> tuple[np.ndarray, np.ndarray]:
    """Genuine and impostor scores. By their densities the llr of a score is 4 · logit(score), whatever the numbers of pairs."""
    rng = np.random.default_rng(8)
    return rng.beta(6, 2, 3000).astype(np.float32), rng.beta(2, 6, 40_000).astype(np.float32)


def labelled(raw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores of both kinds, their labels, and weights by which both kinds weigh the same."""
    genuine, impostor = raw
    labels = np.repeat([1, 0], [len(genuine), len(impostor)])
    return np.concatenate(raw).astype(np.float64), labels, np.where(labels, 0.5 / len(genuine), 0.5 / len(impostor))


def test_a_logistic_fit_is_scikit_learns_on_the_raw_scores(raw):
    scores, labels, weights = labelled(raw)
    logits = np.log(scores / (1 - scores))
    twin = LogisticRegression(tol=1e-8).fit(logits[:, None], labels, sample_weight=weights * len(scores))
    middle = (scores > 0.15) & (scores < 0.9)
    found = fit_calibration(run_of(*raw), "logistic").llr(scores[middle])
    np.testing.assert_allclose(found, twin.decision_function(logits[middle, None]), atol=0.01)
    np.testing.assert_allclose(found, 4 * logits[middle], atol=0.5)  # what the densities say


def test_an_isotonic_fit_is_scikit_learns_on_the_raw_scores(raw):
    scores, labels, weights = labelled(raw)
    # A pseudo pair of each kind below all scores, and another above.
    all_scores = np.concatenate([scores, [-1, -1, 2, 2]])
    all_weights = np.concatenate([weights, np.tile([0.5 / len(raw[0]), 0.5 / len(raw[1])], 2)])
    twin = IsotonicRegression().fit(all_scores, np.concatenate([labels, [1, 0, 1, 0]]), sample_weight=all_weights)
    shares = twin.predict(scores)
    found = fit_calibration(run_of(*raw), "isotonic").llr(scores)
    assert np.isfinite(found).all()
    # Pairs of one bin have one llr; only where a step lies within a bin may that differ.
    assert np.mean(np.abs(found - np.log(shares / (1 - shares))) < 0.02) > 0.95
    assert found.max() == pytest.approx(np.log(shares.max() / (1 - shares.max())), abs=0.01)
    assert found.min() == pytest.approx(np.log(shares.min() / (1 - shares.min())), abs=0.01)


def test_cllr_is_scikit_learns_log_loss_on_the_raw_scores(raw):
    scores, labels, weights = labelled(raw)
    # An isotonic mapping has steps, some of which lie within a bin.
    for method, tolerance in (("logistic", 1e-5), ("isotonic", 5e-4)):
        calibration = fit_calibration(run_of(*raw), method)
        twin = log_loss(labels, posterior(calibration.llr(scores), 0.5), sample_weight=weights) / math.log(2)
        run = run_of(*raw)
        assert cllr(run.genuine, run.impostor, calibration.llr(metrics.bin_centres())) == pytest.approx(twin, abs=tolerance)


def test_the_lowest_cllr_is_that_of_scikit_learns_isotonic_fit(raw):
    scores, labels, weights = labelled(raw)
    twin = IsotonicRegression().fit(scores, labels, sample_weight=weights).predict(scores)
    run = run_of(*raw)
    found = cllr_min(run.genuine, run.impostor)
    assert found == pytest.approx(log_loss(labels, twin, sample_weight=weights) / math.log(2), abs=5e-4)
    for method in METHODS:
        described = describe_calibration(fit_calibration(run, method), run.genuine, run.impostor)
        assert described is not None and found == described["cllr_min"] < described["cllr"] < found + 0.01


def test_cllr_by_hand():
    # Two genuine pairs with the llrs log 3 and 0, one impostor pair with -log 3:
    # ½ · (log2(1 + 1/3) + log2(2)) / 2 + ½ · log2(1 + 1/3) = ¾ · log2(4/3) + ¼.
    genuine, impostor, llrs = np.array([0, 1, 1, 0]), np.array([1, 0, 0, 0]), np.array([-math.log(3), 0, math.log(3), np.inf])
    assert cllr(genuine, impostor, llrs) == pytest.approx(0.75 * math.log2(4 / 3) + 0.25)
    assert cllr(genuine, impostor, np.zeros(4)) == 1  # to say nothing
    # Genuine at 0.2, 0.8, impostor at 0.1, 0.5: PAV pools 0.2 and 0.5, so half of the pairs cost log2(2), and the others none.
    run = run_of([0.2, 0.8], [0.1, 0.5])
    assert cllr_min(run.genuine, run.impostor) == pytest.approx(0.5)
    apart = run_of([0.8, 0.9], [0.1])
    assert cllr_min(apart.genuine, apart.impostor) == 0


def test_probability_is_bayes_rule():
    assert posterior(np.array([math.log(99)]), 0.01)[0] == pytest.approx(0.5)
    assert posterior(np.array([0.0]), 0.3)[0] == pytest.approx(0.3)
    extreme = posterior(np.array([-800.0, 800.0, np.nan]), 0.5)
    assert extreme[0] == 0 and extreme[1] == 1 and np.isnan(extreme[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", ["apart", "at the ends", "one value each"])
def test_each_mapping_is_finite_and_never_falls(method, scores):
    rng = np.random.default_rng(3)
    genuine, impostor = {
        "apart": (rng.uniform(0.7, 1, 500), rng.uniform(0, 0.3, 900)),
        "at the ends": (np.repeat([0, 1], [1, 499]), np.repeat([0, 1], [898, 2])),
        "one value each": (np.full(500, 0.9), np.full(900, 0.2)),
    }[scores]
    llrs = fit_calibration(run_of(genuine, impostor), method).llr(np.linspace(0, 1, 1001, dtype=np.float32))
    assert np.isfinite(llrs).all() and (np.diff(llrs) >= 0).all() and llrs[0] < 0 < llrs[-1]
    # So many pairs cannot show more: one pseudo pair against 900 impostor pairs at one end, and 500 genuine ones at the other.
    assert llrs[-1] <= math.log(900 * 501 / 500) + 1e-6 and llrs[0] >= -math.log(500 * 901 / 900) - 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_of_pairs_make_no_difference(method, raw):
    genuine, impostor = raw
    scores = np.linspace(0.2, 0.85, 50)
    few, many = (fit_calibration(run_of(genuine, np.repeat(impostor, times)), method).llr(scores) for times in (1, 5))
    np.testing.assert_allclose(few, many, atol=0.1)


@pytest.mark.parametrize(
    ("method", "genuine", "told"),
    [
        (
            "logistic",
            29,
            "it has 29 labelled genuine pairs with a score, and --method logistic takes 30 at least; label more pairs.",
        ),
        ("isotonic", 99, "--method isotonic takes 100 at least; label more pairs, or give --method logistic."),
        ("logistic", 0, "it has 0 labelled genuine pairs"),
    ],
)
def test_too_few_pairs_are_refused_with_their_number(method, genuine, told):
    with pytest.raises(PreflightError) as refusal:
        fit_calibration(run_of(np.full(genuine, 0.9), np.full(500, 0.1)), method)
    assert told in str(refusal.value)


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_tell_nothing_are_refused(method):
    with pytest.raises(PreflightError, match="genuine pairs do not score higher than impostor pairs"):
        fit_calibration(run_of(np.linspace(0.1, 0.4, 200), np.linspace(0.6, 0.9, 200)), method)


def test_reliability_is_what_the_raw_pairs_show(raw):
    genuine, impostor = raw
    run = run_of(*raw)
    calibration = fit_calibration(run, "logistic")
    described = describe_calibration(calibration, run.genuine, run.impostor)
    assert described is not None
    covered = 0
    for entry in described["reliability"]:
        shares = [
            np.mean((p >= entry["predicted_from"]) & (p < entry["predicted_below"]))
            for p in (posterior(calibration.llr(scores), 0.5) for scores in raw)
        ]
        assert entry["observed"] == pytest.approx(shares[0] / (shares[0] + shares[1]), abs=0.01)
        low, high = entry["observed_interval"]
        assert low <= entry["observed"] <= high and entry["predicted_from"] <= entry["predicted"] <= entry["predicted_below"]
        covered += low <= entry["predicted"] <= high
    assert len(described["reliability"]) == 10 and covered >= 8
    assert sum(entry["genuine"] for entry in described["reliability"]) == len(genuine)
    assert sum(entry["impostor"] for entry in described["reliability"]) == len(impostor)
    # A calibration that claims too much is found out: most of its points lie off the diagonal.
    bold = Calibration("logistic", ((0.1, -15.0), (0.9, 15.0)), "run", "sha256:0", {}, 1, 1)
    off = describe_calibration(bold, run.genuine, run.impostor)
    assert off is not None and off["cllr"] > described["cllr"] + 0.03
    wrong = [
        entry
        for entry in off["reliability"]
        if not entry["observed_interval"][0] <= entry["predicted"] <= entry["observed_interval"][1]
    ]
    assert len(wrong) >= 5


def test_parts_in_any_order_give_what_the_whole_gives():
    rng = np.random.default_rng(4)
    tables = [scored_rows(rng, 300, first) for first in range(0, 1200, 300)]
    config = batchverify.ScoringConfig()
    parts = [summarise_rows(table, config, "genuine", None) for table in tables]
    whole = summarise_rows(pa.concat_tables(tables), config, "genuine", None)
    calibration = Calibration("logistic", ((0.1, -3.0), (0.9, 3.0)), "run", "sha256:0", {}, 1, 1)

    def described(summary: Summary):
        _, impostor, genuine = summary.scores
        return describe_calibration(calibration, genuine, impostor)

    assert described(whole)["reliability"]
    for order in itertools.islice(itertools.permutations(parts), 0, 24, 5):
        assert described(Summary.merge([Summary.merge(order[:1]), Summary.merge(order[1:])])) == described(whole)


def test_scores_close_to_one_are_told_apart():
    """A saturated sigmoid has most of its scores there: each float32 is a bin, and the score 1 one more."""
    rng = np.random.default_rng(5)
    near = np.float32(1) - np.arange(5, dtype=np.float32) * np.float32(2**-24)  # falling from 1
    genuine, impostor = (
        near[rng.choice(5, 2000, p=[0.6, 0.2, 0.1, 0.05, 0.05])],
        near[rng.choice(5, 3000, p=[0.05, 0.1, 0.15, 0.2, 0.5])],
    )
    calibration = fit_calibration(run_of(genuine, impostor), "isotonic")
    shares = [np.log(np.mean(genuine == score) / np.mean(impostor == score)) for score in near]
    np.testing.assert_allclose(calibration.llr(near), shares, atol=0.02)
    assert (np.diff(fit_calibration(run_of(genuine, impostor), "logistic").llr(near)) < 0).all()
