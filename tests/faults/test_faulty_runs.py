"""Runs that are killed, stopped, starved or doubled: an exact account, or nothing."""

import json
import os
import re
import resource
import signal
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import batchverify
from batchverify.cli.main import main
from batchverify.output.run_directory import RunDirectory
from batchverify.report.render import list_failed
from tests.support.processes import start_program, wait_for

pytestmark = pytest.mark.slow

FINISHED = ["_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00001.parquet"]


@pytest.fixture
def arguments(small_model, pictures, tmp_path) -> list[str]:
    """The arguments of a run of 200 pairs over ten pictures into `out`."""
    rng = np.random.default_rng(1)
    names = [f"pictures/p{number}.png" for number in range(10)]
    frame = pd.DataFrame({side: [names[i] for i in rng.integers(10, size=200)] for side in ("left", "right")})
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    return ["--manifest", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "out"), "--model", small_model]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_leaves_nothing(number, arguments, tmp_path):
    process = start_program([*arguments, "--block-rows", "1"], os.environ | {"TMPDIR": str(tmp_path)})
    wait_for(tmp_path / "out" / "_RUNNING", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said and "Traceback" not in said
    assert names(tmp_path / "out") == []


@pytest.mark.processes
def test_a_killed_run_is_swept_and_redone(arguments, tmp_path, read_scores):
    process = start_program([*arguments, "--block-rows", "1"], os.environ | {"TMPDIR": str(tmp_path)})
    wait_for(tmp_path / "out" / "_RUNNING", process)
    process.kill()
    process.wait()
    assert "_RUNNING" in names(tmp_path / "out") and "_SUCCESS" not in names(tmp_path / "out")
    assert main(arguments) == 0
    assert names(tmp_path / "out") == FINISHED
    assert read_scores(tmp_path / "out")["manifest_row"].tolist() == list(range(200))


def test_a_second_run_into_one_directory_is_refused(arguments, tmp_path, capsys):
    with RunDirectory(str(tmp_path / "out")).claimed("first"):
        assert main(arguments) == 2
        assert "another run writes there now" in capsys.readouterr().err
        assert names(tmp_path / "out") == ["_RUNNING"]
    assert main(arguments) == 0


def test_in_a_store_the_run_whose_directory_was_taken_fails(arguments, tmp_path, capsys, monkeypatch):
    # A store knows no locks; here the marker changes hands while the first run is under way.
    directory = RunDirectory(str(tmp_path / "out"))
    finish = RunDirectory.finish

    def finish_late(self, *rest):
        directory._write("_RUNNING", "of another run")
        finish(self, *rest)

    monkeypatch.setattr(RunDirectory, "finish", finish_late)
    assert main(arguments) == 1
    assert "another run has written to" in capsys.readouterr().err
    assert "_SUCCESS" not in names(tmp_path / "out") and directory._read("_RUNNING") == "of another run"


def test_scores_of_a_stranger_are_not_finished_with(arguments, tmp_path, capsys, monkeypatch):
    count_rows = RunDirectory.count_rows

    def count_late(self, run_id):
        pq.write_table(pa.table({"score": [0.5]}), tmp_path / "out" / "scores-00001-of-00002.parquet")
        return count_rows(self, run_id)

    monkeypatch.setattr(RunDirectory, "count_rows", count_late)
    assert main(arguments) == 1
    assert "another run has written to" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


def fill_the_disk() -> None:
    """Limits the size of files, which is the full disk that a test can have without being root.

    The private copy of the model fits, and the report does not.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


@pytest.mark.processes
def test_a_full_disk_fails_the_run_in_a_sentence(arguments, tmp_path):
    process = start_program(arguments, before=fill_the_disk)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "the run failed: " in said and "File too large" in said and "Traceback" not in said
    assert names(tmp_path / "out") == []


def test_bundles_that_run_twice_change_nothing(arguments, tmp_path, read_scores):
    # Beam runs every bundle, its writes and all, once more than it needs; so does a runner whose worker dies after it emitted.
    assert main(arguments) == 0
    once = read_scores(tmp_path / "out")
    assert main([*arguments[:3], str(tmp_path / "twice"), *arguments[4:], "--direct_runner_bundle_repeat=1"]) == 0
    assert names(tmp_path / "twice") == FINISHED
    pd.testing.assert_frame_equal(once, read_scores(tmp_path / "twice"))


def test_an_output_that_may_not_be_written_fails_in_a_sentence(arguments, capsys):
    # /proc takes no new folders, from root neither.
    assert main([*arguments, "--output", "/proc/batchverify"]) == 1
    said = capsys.readouterr().err
    assert "--output /proc/batchverify cannot be written" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("gates", "broken"),
    [
        (["--max-failed-rows", "1", "--max-identity-faults", "0"], []),
        (["--max-failed-rows", "0.5%", "--threshold", "1", "--max-identity-faults", "100%"], []),
        (["--max-failed-rows", "0", "--max-identity-faults", "0"], ["--max-failed-rows"]),
        (["--max-failed-rows", "1", "--threshold", "1", "--max-identity-faults", "198"], ["--max-identity-faults"]),
        (["--max-failed-rows", "0.4%"], ["--max-failed-rows"]),
    ],
)
def test_gates_set_the_exit_code_and_results_are_written(gates, broken, arguments, tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "pictures/none.png,pictures/p1.png", *lines[2:]]))
    assert main([*arguments, *gates]) == (3 if broken else 0)
    assert names(tmp_path / "out") == FINISHED
    unmet = [line for line in capsys.readouterr().err.splitlines() if "gate not met: " in line]
    assert len(unmet) == len(broken) and all(gate in line for gate, line in zip(broken, unmet, strict=True))


@pytest.mark.parametrize("limit", ["-1", "1.5", "101%", "many", "%", "nan"])
def test_a_gate_that_is_no_limit_is_refused(limit, arguments, capsys):
    assert main([*arguments, f"--max-failed-rows={limit}"]) == 2
    assert f"'{limit}' is no limit" in capsys.readouterr().err


def test_gates_stand_in_the_summary(arguments, tmp_path):
    config = batchverify.VerificationConfig(
        manifests=(arguments[1],), output=arguments[3], model=arguments[5], max_failed_rows=batchverify.Limit.parse("2%")
    )
    assert batchverify.run(config).summary["gates"] == [
        {"option": "--max-failed-rows", "limit": "2%", "found": 0, "rows": 200, "met": True}
    ]


def test_bad_rows_are_rows_of_the_output(arguments, tmp_path, read_scores, capsys):
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    lines[3:3] = ["pictures/p1.png", "pictures/p1.png,pictures/p2.png,more"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert main(arguments) == 2 and "row 2: there are 1 fields" in capsys.readouterr().err
    assert main([*arguments, "--bad-rows", "keep", "--max-failed-rows", "2"]) == 0
    scores = read_scores(tmp_path / "out")
    assert scores["manifest_row"].tolist() == list(range(202)) and "batchverify.bad_row" not in scores.columns
    bad = scores[scores["left_status"] == "bad_row"]
    assert bad["manifest_row"].tolist() == [2, 3] and bad["right_status"].tolist() == ["bad_row"] * 2
    assert bad["error"].tolist() == [f"there are {n} fields where the header has 2" for n in (1, 3)]
    assert bad["score"].isna().all() and scores["score"].notna().sum() == 200


@pytest.fixture
def nan_model(tmp_path) -> str:
    """A network that divides by the brightness of an image, and so by zero for a black one."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((16, 16, 3))
    x = keras.ops.divide(pixels, keras.ops.mean(pixels, axis=(1, 2, 3), keepdims=True))
    x = keras.layers.Dense(8, activation="sigmoid")(keras.layers.Flatten()(x))
    encoder = keras.Model(pixels, x)
    left, right = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    score = keras.layers.Dense(1, activation="sigmoid")(keras.ops.abs(encoder(left) - encoder(right)))
    keras.Model([left, right], score).save(tmp_path / "nan.keras")
    return str(tmp_path / "nan.keras")


def test_a_score_that_is_no_number_fails_the_run_or_is_an_error_of_its_row(arguments, nan_model, tmp_path, read_scores, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "p3.png")
    arguments = [*arguments[:5], nan_model, "--pixels", "0..255"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "p3.png against itself; check its weights, or see --on-nan keep" in said and "Traceback" not in said
    assert main([*arguments, "--on-nan", "keep"]) == 0
    scores = read_scores(tmp_path / "out")
    odd = scores["left"].str.endswith("p3.png") | scores["right"].str.endswith("p3.png")
    assert 20 < odd.sum() < 100
    assert (scores["error"].eq("the model gave a score that is not a number") == odd).all()
    assert (scores["score"].isna() == odd).all() and (scores["identity_check"].eq("not_checked") == odd).all()
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["rows"]["not_a_number"] == summary["rows"]["failed"] == odd.sum()
    assert 0 <= summary["identity"]["score_mean"] <= 1


def save_comparison(path: Path, compare) -> str:
    """Writes a network whose embedding is the pixels in [0, 1], and whose output is what `compare` makes of two of them."""
    pixels, left, right = (keras.Input((16, 16, 3)) for _ in range(3))
    encoder = keras.Model(pixels, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
    keras.Model([left, right], compare(encoder(left), encoder(right))).save(path)
    return str(path)


def mean_of(values):
    return keras.ops.mean(values, axis=-1, keepdims=True)


@pytest.fixture
def black_and_white(pictures, small_model, tmp_path) -> list[str]:
    """The arguments of a run in which no pair of the manifest has the black picture p3 and the white one p4."""
    Image.new("RGB", (16, 16)).save(pictures / "p3.png")
    Image.new("RGB", (16, 16), "white").save(pictures / "p4.png")
    names = [f"pictures/p{number}.png" for number in range(10)]
    rows = [(left, right) for left in names for right in names if {left[-5], right[-5]} != {"3", "4"}]
    pd.DataFrame(rows, columns=["left", "right"]).to_csv(tmp_path / "pairs.csv", index=False)
    return ["--manifest", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "out"), "--overwrite", "--model"]


def test_a_score_outside_0_to_1_fails_the_run_or_is_an_error_of_its_row(black_and_white, tmp_path, read_scores, capsys):
    """Of black and white the distance is 1.5, and of no two generated images of the trial more than 1."""
    model = save_comparison(tmp_path / "far.keras", lambda left, right: 1.5 * mean_of(keras.ops.abs(left - right)))
    arguments = [*black_and_white, model, "--output-is", "dissimilarity", "--pixels", "0..255"]
    told = r"the model gave the score -0\.5 to \S+p[34]\.png and \S+p[34]\.png, and a score lies in \[0, 1\]; say what"
    assert main(arguments) == 1  # for two strangers
    assert re.search(told, said := capsys.readouterr().err) and "Traceback" not in said
    (tmp_path / "pairs.csv").open("a").write("pictures/p3.png,pictures/p4.png\npictures/p4.png,pictures/p3.png\n")
    assert main([*arguments, "--stranger-pairs", "0"]) == 1
    assert re.search(told, capsys.readouterr().err)
    assert main([*arguments, "--on-nan", "keep"]) == 0
    scores, summary = read_scores(tmp_path / "out"), json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert scores["error"].dropna().tolist() == ["the model gave a score outside [0, 1]"] * 2
    assert scores["score"].isna().tolist() == [False] * 98 + [True] * 2 and summary["rows"]["not_a_number"] == 2
    assert summary["strangers"]["pairs"] == 44  # 45 but for black and white
    assert len(eval(list_failed("not_a_number"), {"scores": scores})) == 2


def test_a_score_that_rounding_puts_above_1_is_1(black_and_white, tmp_path, read_scores):
    model = save_comparison(tmp_path / "near.keras", lambda left, right: 1.0000005 - mean_of(keras.ops.abs(left - right)))
    assert main([*black_and_white, model, "--pixels", "0..255"]) == 0
    scores = read_scores(tmp_path / "out")
    assert (scores["score"][scores["left"] == scores["right"]] == 1).all() and (scores["identity_left"] == 1).all()
    assert scores["score"].between(0, 1).all()


def test_an_image_without_an_identity_score_is_a_fault(black_and_white, tmp_path, read_scores, capsys):
    """Bray and Curtis' dissimilarity of black to itself is 0 / 0, and of black to all others 1."""

    def likeness(left, right):
        return 1 - mean_of(keras.ops.abs(left - right)) / (mean_of(left) + mean_of(right))

    model = save_comparison(tmp_path / "curtis.keras", likeness)
    assert main([*black_and_white, model, "--pixels", "0..255", "--on-nan", "keep"]) == 0
    scores, summary = read_scores(tmp_path / "out"), json.loads((tmp_path / "out" / "_summary.json").read_text())
    black = scores["left"].str.endswith("p3.png") | scores["right"].str.endswith("p3.png")
    assert scores["identity_check"].eq("below_threshold").sum() == black.sum() - 1 == 16
    assert (summary["identity"]["images_compared"], summary["identity"]["images_below_threshold"]) == (10, 1)
    faults = summary["extremes"]["identity_faults"]
    assert len(faults) == 12 and all(None in (fault["identity_left"], fault["identity_right"]) for fault in faults)
    assert "FAULT. 1 of 10 images, compared with itself, falls below the threshold" in capsys.readouterr().out
    page = (tmp_path / "out" / "_report.html").read_text()
    assert "against itself: – left, 1.0000 right" in page and "Don’t trust these scores" in page


GREEDY = """
import keras
import tensorflow as tf


def _hold(pixels):
    if len(pixels) > 16:
        raise MemoryError("out of memory")  # of which TensorFlow makes a ResourceExhaustedError, as of a full GPU
    return pixels


class Greedy(keras.layers.Layer):
    def call(self, pixels):
        held = tf.numpy_function(_hold, [pixels], tf.float32)
        return tf.ensure_shape(held, pixels.shape)
"""


def test_a_device_out_of_memory_gets_smaller_batches_and_completes(arguments, tmp_path, monkeypatch, read_scores, caplog):
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)
    from greedy import Greedy

    model = keras.models.load_model(arguments[5])
    pixels, left, right = (keras.Input((16, 16, 3)) for _ in range(3))
    encoder = keras.Model(pixels, model.get_layer("encoder")(Greedy()(pixels)))
    head = model.layers[-1]
    keras.Model([left, right], head(keras.ops.abs(encoder(left) - encoder(right)))).save(tmp_path / "greedy.keras")
    assert main(arguments) == 0
    greedy = [*arguments[:3], str(tmp_path / "greedy"), "--model", str(tmp_path / "greedy.keras"), "--pixels", "0..255"]
    assert main([*greedy, "--custom-object", "Greedy=greedy:Greedy"]) == 0
    assert "out of memory; from now on it computes 16 rows at once" in caplog.text
    usual, halved = (read_scores(tmp_path / name)["score"] for name in ("out", "greedy"))
    np.testing.assert_allclose(usual, halved, atol=1e-6)


@pytest.mark.processes
@pytest.mark.parametrize("command", ["false", "exec kill -9 $$"])
def test_a_worker_that_dies_before_it_connects_fails_the_run_in_a_sentence(command, arguments, tmp_path):
    workers = [
        "--runner=PortableRunner",
        "--job_endpoint=embed",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config=sh -c '{command}'",
    ]
    process = start_program([*arguments, *workers], os.environ | {"TMPDIR": str(tmp_path)})
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the run failed: a worker process died" in said and "Traceback" not in said
    assert names(tmp_path / "out") == []
