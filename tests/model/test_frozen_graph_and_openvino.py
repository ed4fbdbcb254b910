"""The network frozen, or run by OpenVINO: the scores of TensorFlow, faster.

OpenVINO runs in processes of its own here: where both are loaded, TensorFlow's training crashes later in the process.
"""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import batchverify
from batchverify.errors import PreflightError
from batchverify.model.frozen_graph import FrozenFunction
from batchverify.model.pair_model import compare_runtimes
from batchverify.model.runtimes import choose_runtime
from batchverify.model.start_tensorflow import has_nvidia_gpu
from tests.support.processes import start_program

pytestmark = pytest.mark.slow

OPENVINO = """
import numpy as np, tensorflow as tf
from concurrent.futures import ThreadPoolExecutor
from batchverify.model.runtimes import OpenVinoFunction
weights = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)), dtype=tf.float32)
function = lambda left, right: tf.matmul(left, weights) - tf.matmul(tf.cast(right, tf.float32), weights)
for precision, most in (("float32", 1e-5), ("bfloat16", 0.1)):
    call, answers = OpenVinoFunction(function, precision), []
    for rows in (1, 5, 1):
        left, right = np.random.default_rng(rows).integers(0, 3, (2, rows, 4), np.uint8)
        left = left.astype(np.float32)
        answers.append((call(left, right), function(left, right).numpy()))
    # The first answer outlives the calls after it.
    assert all(np.allclose(found, expected, atol=most) for found, expected in answers)
images = np.random.default_rng(0).normal(size=(40, 2, 200, 4)).astype(np.float32)
with ThreadPoolExecutor(8) as threads:
    answers = list(threads.map(lambda pair: call(*pair), images))
assert all(np.allclose(found, function(*pair).numpy(), atol=0.2) for found, pair in zip(answers, images))
print("equal")
"""

FROM_THE_CACHE = """
import sys
import numpy as np
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model import pair_model
from batchverify.model.cache_switch import model_cache
from batchverify.model.load import load_model
from batchverify.model.proven_model import ProvenModel, load_proven
config = ModelConfig(model=sys.argv[1], runtime="openvino", batch_size=8)
with model_cache(True):
    loaded, proven = (load_proven(config, load_model) for _ in range(2))
assert isinstance(proven, ProvenModel) and not isinstance(loaded, ProvenModel)
assert proven.facts == loaded.facts
images = loaded.preprocessing.as_loaded(np.random.default_rng(7).integers(0, 256, (20, 16, 16, 3), np.uint8))
embeddings = loaded.encode(images)
np.testing.assert_array_equal(proven.encode(images), embeddings)
others = np.roll(embeddings, 1, axis=0)
np.testing.assert_array_equal(proven.compare(embeddings, others), loaded.compare(embeddings, others))
proven.check_split(images)
print(proven.describe_runtime(images))
pair_model._MAX_DIFFERENCE_OF_RUNTIMES = -1
try:
    proven.describe_runtime(images)
except PreflightError as error:
    print(error)
"""


def score_pairs(manifest, output, *options):
    """Scores a manifest with the demo's model, in a process of its own."""
    process = start_program(["--manifest", manifest, "--output", output, *options])
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return output


@pytest.fixture(scope="module")
def usual(demo, tmp_path_factory):
    """The demo's scores by TensorFlow."""
    return score_pairs(demo / "demo.csv", tmp_path_factory.mktemp("tensorflow") / "usual")


@pytest.mark.parametrize(
    ("model", "precision", "missing", "runtime"),
    [
        ("a.keras", "float32", "", "openvino"),
        ("a.keras", "bfloat16", "", "tensorflow"),
        ("a.onnx", "float32", "", "tensorflow"),
        ("a.keras", "float32", "openvino", "tensorflow"),
    ],
)
@pytest.mark.skipif(has_nvidia_gpu(), reason="this machine has a GPU")
def test_auto_is_openvino_where_it_computes_the_same(model, precision, missing, runtime, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    config = batchverify.VerificationConfig(
        manifests=("a.csv",), output="out", model=model, runtime="auto", precision=precision
    )
    assert choose_runtime(config).runtime == runtime


@pytest.mark.processes
def test_auto_says_what_it_takes_and_gives_the_same_scores(usual, demo, tmp_path, read_scores):
    process = start_program(["--manifest", demo / "demo.csv", "--output", tmp_path / "auto", "--runtime", "auto"])
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0 and "The network is run by openvino in float32" in said
    found, expected = read_scores(tmp_path / "auto"), read_scores(usual)
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-4)


@pytest.mark.processes
@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_openvino_gives_tensorflows_scores_and_says_how_near(precision, most, usual, demo, tmp_path, read_scores):
    score_pairs(demo / "demo.csv", tmp_path / "other", "--runtime", "openvino", "--precision", precision)
    expected, found = read_scores(usual), read_scores(tmp_path / "other")
    for column in ("score", "identity_left", "identity_right"):
        assert np.allclose(expected[column], found[column], atol=most, equal_nan=True)
    notes = json.loads((tmp_path / "other" / "_summary.json").read_text())["run"]["model_notes"]
    (note,) = [note for note in notes if "openvino" in note]
    assert precision in note and "its scores differ from TensorFlow's in float32 by" in note


@pytest.mark.parametrize("precision", ["float16", "tensorfloat32"])
def test_a_precision_that_openvino_does_not_have_is_refused(precision):
    with pytest.raises(batchverify.PreflightError, match="OpenVINO computes in float32 or bfloat16"):
        batchverify.ScoringConfig(precision=precision, runtime="openvino")


@pytest.mark.processes
def test_openvino_takes_several_shapes_inputs_and_threads():
    done = subprocess.run([sys.executable, "-c", OPENVINO], capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.processes
def test_openvino_computes_a_model_from_the_cache_as_one_from_its_file(small_model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_CACHE, small_model], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    note, refusal = done.stdout.splitlines() or [done.stderr, ""]
    assert note.startswith("The network is run by openvino in float32: on 20 images its scores differ from TensorFlow's"), note
    assert re.match(r"--runtime openvino: its scores differ .* leave --runtime out\.", refusal)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_runtime_that_gives_no_number_where_tensorflow_gives_one_is_refused(precision, is_swapped):
    def compare(left, right):
        return np.mean(np.abs(left - right), axis=1)

    def compare_but_fail_for_equals(left, right):
        return compare(left, right) / np.where(compare(left, right) == 0, np.nan, 1)

    images = np.random.default_rng(0).uniform(size=(4, 2, 2, 3)).astype(np.float32)
    sides = [(None, compare), (None, compare_but_fail_for_equals)]
    parts, reference = sides if is_swapped else sides[::-1]
    with pytest.raises(PreflightError, match="is a number either with it or without it, but not both"):
        compare_runtimes("openvino", precision, images, parts, reference)
    assert "differ from TensorFlow's in float32 by 0" in compare_runtimes("openvino", precision, images, sides[1], sides[1])


def test_frozen_calls_of_several_shapes_and_inputs_equal_the_function():
    weights = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)), dtype=tf.float32)

    def function(left, right):
        return tf.matmul(left, weights) - tf.matmul(tf.cast(right, tf.float32), weights)

    call = FrozenFunction(function)
    for rows in (1, 5, 1):
        left, right = np.random.default_rng(rows).integers(0, 3, (2, rows, 4), np.uint8)
        left = left.astype(np.float32)
        assert np.allclose(call(left, right), function(left, right), atol=1e-5)


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


_FIRST_CALLS = """
import os, sys, threading
import numpy as np, tensorflow as tf
from batchverify.model.runtimes import OpenVinoFunction
call = OpenVinoFunction(tf.function(lambda x: tf.nn.relu(x), autograph=False), "float32")
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(2)
def first_call():
    barrier.wait()
    call(np.zeros((1, 4), np.float32))
threads = [threading.Thread(target=first_call, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
os._exit(any(thread.is_alive() for thread in threads))
"""


@pytest.mark.processes
def test_the_first_calls_of_two_threads_do_not_wait_for_each_other(tmp_path):
    """OpenVINO fills its tables of types at its first inference; two threads that did so at once waited for ever."""
    pytest.importorskip("openvino")
    for _ in range(3):
        done = subprocess.run(  # A process that hangs may hold the lock of Python, so that its own limit does nothing.
            [sys.executable, "-c", _FIRST_CALLS], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-500:]
