"""The figures about a candidate against SciPy, a hand-computed value, and pandas."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from batchverify.evaluation.candidate import count_flips, describe_flips, mcnemar


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 12), (12, 3), (40, 41), (0, 60), (900, 1100), (200_000, 201_000)])
def test_the_exact_test_is_the_two_sided_binomial_one(first, second):
    p_value, method = mcnemar(first, second)
    assert p_value == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)
    assert method == "exact"


def test_three_pairs_against_none_by_hand():
    """Three heads in a row: 1/8, and three tails: 1/8."""
    p_value, method = mcnemar(0, 3)
    assert p_value == pytest.approx(0.25) and method == "exact"


@pytest.mark.parametrize("pairs", [0, 2, 500])
def test_models_that_are_right_equally_often_do_not_differ(pairs):
    assert mcnemar(pairs, pairs) == (1.0, "exact")


def test_more_pairs_than_the_exact_test_adds_are_approximated_by_chi_square():
    first, second = 1_200_000, 1_203_000
    p_value, method = mcnemar(first, second)
    statistic = (abs(first - second) - 1) ** 2 / (first + second)
    assert method == "chi_square" and p_value == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)
    assert p_value == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-3)


def test_flips_are_counted_where_both_models_have_a_score():
    # match, match of the candidate, label; null without a score.
    rows = [(1, 1, 1), (1, 0, 1), (1, 0, 0), (0, 1, 1), (0, 1, -1), (0, 0, 0), (0, 0, 1), (None, 1, 1), (1, None, 1), (1, 1, 0)]
    first, second, labels = zip(*rows, strict=True)
    table = pa.table({"match": pa.array(first).cast(pa.bool_()), "match_candidate": pa.array(second).cast(pa.bool_())})
    counts = count_flips(table, np.array(labels, np.int8))
    found = describe_flips({name.removeprefix("flips."): count for name, count in counts.items()})
    assert found["flips"] == {
        "compared": 8, "both_match": 2, "gained": 2, "lost": 2, "neither_matches": 2, "rate": 0.5,
    }  # fmt: skip
    assert found["mcnemar"] == {
        "pairs": 7, "both_right": 2, "only_model_right": 1, "only_candidate_right": 2, "neither_right": 2, "p_value": 1.0,
        "method": "exact",
    }  # fmt: skip


def test_without_labels_there_is_no_test_and_without_rows_no_rate():
    table = pa.table({"match": pa.array([True]), "match_candidate": pa.array([None], pa.bool_())})
    counts = count_flips(table, np.array([-1], np.int8))
    found = describe_flips({name.removeprefix("flips."): count for name, count in counts.items()})
    assert found["mcnemar"] is None and found["flips"]["rate"] is None and found["flips"]["compared"] == 0
