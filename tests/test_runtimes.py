"""The network frozen, or run by OpenVINO: the scores of TensorFlow, faster."""

import logging

import numpy as np
import pytest
import tensorflow as tf

import batchverify
from batchverify.config import PRECISIONS
from batchverify.freezing import FrozenFunction
from batchverify.runtimes import OpenVinoFunction


def run(demo, output, **settings) -> batchverify.RunResult:
    return batchverify.run(batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(output), **settings))


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_openvino_gives_tensorflows_scores_and_says_how_near(precision, most, demo, tmp_path, read_scores):
    run(demo, tmp_path / "usual")
    result = run(demo, tmp_path / "other", runtime="openvino", precision=precision)
    usual, other = read_scores(tmp_path / "usual"), read_scores(tmp_path / "other")
    for column in ("score", "identity_left", "identity_right"):
        assert np.allclose(usual[column], other[column], atol=most, equal_nan=True)
    assert result.counters["encodings"] == 85
    (note,) = [note for note in result.summary["run"]["model_notes"] if "openvino" in note]
    assert precision in note and "its scores differ from TensorFlow's by" in note


def test_less_precision_is_refused_where_it_would_change_nothing():
    with pytest.raises(batchverify.Refused, match="is for --runtime openvino"):
        batchverify.ScoringConfig(precision="bfloat16")


def layer() -> tf.keras.layers.Layer:
    dense = tf.keras.layers.Dense(3)
    dense.build((None, 4))
    return dense


@pytest.mark.parametrize("make", [FrozenFunction, *(lambda f, p=p: OpenVinoFunction(f, p) for p in PRECISIONS)])
def test_calls_of_several_shapes_and_inputs_equal_the_function(make):
    dense = layer()
    call = make(lambda left, right: dense(left) - dense(tf.cast(right, tf.float32)))
    for rows in (1, 5, 1):
        left, right = np.random.default_rng(rows).integers(0, 3, (2, rows, 4), np.uint8)
        left = left.astype(np.float32)
        assert np.allclose(call(left, right), dense(left) - dense(right.astype(np.float32)), atol=0.05)


def test_answers_outlive_the_next_call():
    call = OpenVinoFunction(lambda x: x + 1.0, "float32")
    first = call(np.zeros((2, 1), np.float32))
    call(np.ones((2, 1), np.float32))
    assert first.tolist() == [[1.0], [1.0]]


def test_what_changes_when_it_is_called_is_not_frozen(caplog):
    """As dropout left on counts its calls."""
    counter = tf.Variable(0.0)
    call = FrozenFunction(lambda x: x + counter.assign_add(1.0))
    with caplog.at_level(logging.INFO, logger="batchverify"):
        assert [call(np.zeros(1, np.float32)).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert "it changes some when it is called" in caplog.text


def test_what_is_frozen_no_longer_reads_its_weights():
    weight = tf.Variable(2.0)
    call = FrozenFunction(lambda x: x * weight)
    assert call(np.ones(1, np.float32)).item() == 2.0
    weight.assign(3.0)
    assert call(np.ones(1, np.float32)).item() == 2.0
