"""The benchmark of one-shot trials tells which classes are alike, and that more images of each help only the others."""

import numpy as np
import pytest

from benchmarks.one_shot import accuracy, confusion

pytestmark = pytest.mark.benchmarks


def _score(left, right):
    return -np.abs(left - right).sum(axis=1)


def _classes(rng, noise):
    """Returns embeddings of six classes by twelve writers; the last two classes have the same mean."""
    means = 3 * rng.standard_normal((6, 8))
    means[5] = means[4]
    return (means[:, None] + noise * rng.standard_normal((6, 12, 8))).astype(np.float32)


def test_two_classes_that_are_the_same_are_named_and_cost_half_of_their_images():
    embeddings = _classes(np.random.default_rng(3), noise=0.1)
    mistakes = confusion(embeddings, _score)
    np.testing.assert_allclose(mistakes.sum(axis=1), 1)
    np.testing.assert_array_equal(mistakes[:4, :4], np.eye(4))
    assert 0.2 < mistakes[4, 5] < 0.8 and mistakes[4, 4] + mistakes[4, 5] == pytest.approx(1)


def test_more_images_of_each_class_average_noise_away_but_do_not_part_what_is_the_same():
    embeddings = _classes(np.random.default_rng(5), noise=2.0)
    one, five = (accuracy(embeddings, _score, shots, 20, np.random.default_rng(0)) for shots in (1, 5))
    assert one + 0.1 < five < 5 / 6


def test_one_image_of_each_class_gives_what_the_confusion_counts():
    embeddings = _classes(np.random.default_rng(5), noise=1.0)
    drawn = accuracy(embeddings, _score, 1, 400, np.random.default_rng(0))
    assert drawn == pytest.approx(np.trace(confusion(embeddings, _score)) / 6, abs=0.01)
