"""The verdict on a row, and the error rates."""

import collections
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchverify.cli.messages import identity_message
from batchverify.evaluation import metrics
from batchverify.evaluation.identity import check_identity
from batchverify.evaluation.summary import Summary, summarise_images
from batchverify.pipeline.encoded_images import encoded_images
from batchverify.report.verdict import judge_model, judge_run
from batchverify.schema import STATUSES, VERDICTS, ImageStatus, is_match


@pytest.mark.parametrize(
    ("score", "left", "right", "verdict"),
    [
        (0.8, 0.99, 0.99, "sane"),
        (0.8, 0.5, 0.5, "outscored"),
        (0.8, 0.99, 0.7, "outscored"),
        (0.3, 0.4, 0.9, "below_threshold"),
        (0.8, 0.4, 0.9, "below_threshold"),
        (0.90005, 0.9, 0.9, "sane"),
        (0.9002, 0.9, 0.9, "outscored"),
        (np.nan, 0.9, 0.9, "not_checked"),
        (np.nan, np.nan, 0.1, "not_checked"),
    ],
)
def test_verdicts(score, left, right, verdict):
    scores, lefts, rights = (np.array([value], np.float32) for value in (score, left, right))
    code = check_identity(scores, lefts, rights, 0.5, 1e-4)
    assert VERDICTS[code[0]] == verdict


def test_a_score_at_the_threshold_is_a_match():
    assert is_match(np.array([0.7, 0.6999999], np.float32), 0.7).tolist() == [True, False]


def test_error_rates_equal_those_of_the_scores():
    rng = np.random.default_rng(2)
    genuine, impostor = rng.beta(5, 2, 4000), rng.beta(2, 5, 6000)
    counted = metrics.histogram(genuine), metrics.histogram(impostor)
    edge = 6500
    assert metrics.false_match_rates(counted[1])[edge] == pytest.approx(np.mean(impostor >= metrics.EDGES[edge]))
    assert metrics.false_non_match_rates(counted[0])[edge] == pytest.approx(np.mean(genuine < metrics.EDGES[edge]))
    eer, at = metrics.equal_error_rate(*counted)
    assert abs(np.mean(impostor >= at) - np.mean(genuine < at)) < 1e-3
    assert eer == pytest.approx(np.mean(genuine < at), abs=1e-3)


def test_without_labels_there_is_no_error_rate():
    assert np.isnan(metrics.equal_error_rate(metrics.histogram(np.array([])), metrics.histogram(np.array([0.5])))).all()


@pytest.mark.parametrize(
    ("identity", "below", "told"),
    [
        ([0.9, np.nan, np.nan], 2, "2 of 3 images, compared with themselves, fall below the threshold 0.5"),
        ([np.nan] * 3, 3, "3 images were compared with themselves, and no score is a number"),
    ],
)
def test_images_whose_identity_score_is_no_number_are_at_fault(identity, below, told):
    names, codes = pa.array(["a", "b", "c"]), np.full(3, STATUSES.index(ImageStatus.OK), np.int8)
    images = encoded_images(names, codes, [None] * 3, [None] * 3, np.array(identity, np.float32), np.zeros((3, 1), np.float32))
    parts = [summarise_images(images, 0.5), Summary(collections.Counter({"rows.total": 1, "rows.failed": 1}))]
    summary: dict[str, Any] = Summary.merge(parts).to_json(0.5) | {"run": {"threshold": 0.5}, "gates": []}
    assert summary["identity"]["images_compared"] == 3 and summary["identity"]["images_below_threshold"] == below
    verdict = judge_run(summary)
    assert verdict.level == "bad" and told in verdict.findings[0].text and "fails the identity check" in verdict.headline
    assert identity_message(summary).startswith("FAULT. ") and judge_model(summary).text.startswith("Not sane")
