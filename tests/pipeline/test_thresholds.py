"""Thresholds for an FMR: further targets, and those of an earlier run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchverify
from batchverify.cli.job import parse
from batchverify.cli.main import main
from batchverify.evaluation import metrics
from batchverify.evaluation.baseline import read_threshold
from batchverify.output.run_directory import RunDirectory
from batchverify.report.verdict import judge_run
from tests.support.manifests import draw_shades

pytestmark = pytest.mark.slow
COUNT = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of one colour each, and pairs of them that are genuine where the colours are near each other."""
    rng = np.random.default_rng(11)
    folder = tmp_path_factory.mktemp("thresholds")
    shades = draw_shades(folder, rng, COUNT, noise=20)
    left, right = rng.integers(0, COUNT, (2, 600))
    genuine = (np.abs(shades[left] - shades[right]).sum(axis=1) < 150).astype(int)
    frame = pd.DataFrame({"left": [f"{n}.png" for n in left], "right": [f"{n}.png" for n in right], "genuine": genuine})
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.drop(columns="genuine").to_csv(folder / "tonight.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def labelled(folder, small_model, tmp_path_factory):
    """A finished run with labels."""
    output = str(tmp_path_factory.mktemp("labelled") / "run")
    manifests = (str(folder / "pairs.csv"),)
    batchverify.run(batchverify.VerificationConfig(manifests=manifests, output=output, model=small_model, fmr=(0.2, 0.05)))
    return output


def lowest_threshold(scores, rate):
    """The lowest multiple of 0.0001 at which at most a share `rate` of impostor pairs match, the plain way."""
    impostors = scores.loc[scores["genuine"].astype(str) == "0", "score"].to_numpy(np.float32)
    for step in range(10_000):
        if np.mean(impostors >= np.float32(step / 10_000)) <= rate:
            return step / 10_000
    raise AssertionError


def test_further_targets_stand_beside_the_three_by_falling_rate(labelled, read_scores):
    points = RunDirectory(labelled).read_summary()["error_rates"]["at_fmr"]
    assert [point["target"] for point in points] == [0.2, 0.05, 0.01, 0.001, 0.0001]
    scores = read_scores(labelled)
    for point in points[:2]:
        assert point["threshold"] == lowest_threshold(scores, point["target"])


def test_tonights_threshold_is_that_of_the_earlier_run(folder, labelled, small_model, read_scores, tmp_path, capsys):
    words = ["--manifest", str(folder / "tonight.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    source = f"{labelled}:fmr=0.1"
    assert main([*words, "--threshold-from", source]) == 0
    expected = lowest_threshold(read_scores(labelled), 0.1)
    run = json.loads((tmp_path / "out" / "_summary.json").read_text())["run"]
    assert (run["threshold"], run["threshold_from"]) == (expected, source)
    assert f"at threshold {expected:g} (from {source})" in capsys.readouterr().out
    scores = read_scores(tmp_path / "out")
    assert (scores["match"] == (scores["score"] >= np.float32(expected))).all()


def test_labels_the_wrong_way_round_are_said_so_and_suggest_no_threshold(folder, small_model, tmp_path, capsys):
    frame = pd.read_csv(folder / "pairs.csv")
    frame.assign(genuine=1 - frame["genuine"]).to_csv(folder / "reversed.csv", index=False)
    output = tmp_path / "out"
    words = ["--manifest", str(folder / "reversed.csv"), "--model", small_model, "--candidate", small_model]
    assert main([*words, "--output", str(output)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "REVERSED. Genuine pairs score lower than impostor pairs, by more than chance, so no threshold" in out
    assert "the labels mean the opposite" in out and "--output-is is wrong" in out and "Suggest" not in out
    assert "Don’t trust the candidate as it is: " in out and "its genuine pairs score lower than impostor pairs" in out
    page = (output / "_report.html").read_text()
    assert "Labels: genuine pairs score lower than impostor pairs" in page and "Suggested thresholds" not in page
    summary = json.loads((output / "_summary.json").read_text())
    sane = {**summary, "strangers": None, "identity": summary["identity"] | {"images_below_threshold": 0, "outscored": 0}}
    verdict = judge_run(sane)
    assert verdict.level == "bad" and verdict.headline.startswith("Don’t trust these scores, or their labels: genuine pairs")
    rates = summary["error_rates"]
    assert rates["is_reversed"] is True and rates["eer"] > 0.5
    with pytest.raises(batchverify.PreflightError, match="genuine pairs score lower than impostor pairs in that run"):
        read_threshold(f"{output}:fmr=0.1")


def test_an_eer_above_a_half_by_chance_is_no_reversal():
    rng = np.random.default_rng(2)
    for draw in range(40):
        genuine, impostor = (metrics.histogram(rng.random(60).astype(np.float32)) for _ in range(2))
        rates = metrics.describe_error_rates(genuine, impostor, 0.5, (30, 30), (0, 0))
        assert not rates["is_reversed"], (draw, rates["eer"])


def test_a_rate_may_be_a_percentage(labelled):
    job = ["--manifest=m", "--output=o"]
    assert parse([*job, "--fmr", "5%", "--fmr=0.001%", "--fmr", "1e-4"]).config.fmr == (0.05, 1e-5, 1e-4)
    assert read_threshold(f"{labelled}:fmr=10%").point == read_threshold(f"{labelled}:fmr=0.1").point
    assert parse([*job, "--prior", "2.5%"]).config.prior == 0.025


def test_it_counts_more_than_the_threshold_of_a_sidecar(folder, labelled, small_model, read_scores, tmp_path):
    model = tmp_path / "model.keras"
    model.write_bytes(Path(small_model).read_bytes())
    (tmp_path / "model.keras.batchverify.json").write_text('{"threshold": 0.123}')
    words = ["--manifest", str(folder / "tonight.csv"), "--model", str(model), "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold-from", f"{labelled}:fmr=0.1"]) == 0
    threshold = json.loads((tmp_path / "out" / "_summary.json").read_text())["run"]["threshold"]
    assert threshold == lowest_threshold(read_scores(labelled), 0.1) != 0.123


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold-from", "{run}"], "give RUN:fmr=RATE"),
        (
            ["--threshold-from", "{run}:fmr=2"],
            ":fmr=2'; give a false match rate between 0 and 1, such as 1e-5, or a",
        ),
        (
            ["--threshold-from", "{run}:fmr=0"],
            ":fmr=0'; no number of pairs shows that none would match; give a false match",
        ),
        (["--threshold-from", "{run}:fmr=0%"], ":fmr=0%'; no number of pairs shows that none would match"),
        (["--threshold-from", "{run}:fmr=x"], "the FMR 'x' is no number; give one such as fmr=1e-3 or fmr=0.1%"),
        (["--threshold-from", "{run}:fmr=0.1", "--threshold", "0.5"], "--threshold and --threshold-from are both given"),
        (["--threshold-from", "/nowhere:fmr=0.1"], "--threshold-from /nowhere does not exist; name an earlier run"),
        (["--fmr", "0"], "--fmr is 0; no number of pairs shows that none would match; give a false match rate above 0"),
        (["--fmr", "150%"], "--fmr is 1.5; give a false match rate between 0 and 1, such as 1e-5, or a percentage such as"),
        (["--fmr", "a%"], "argument --fmr: 'a%' is no share; give a number such as 1e-3, or a percentage such as 0.1%"),
        (["--fmr", "1e-3", "--fmr", "1"], "--fmr is 1; give a false match rate between 0 and 1"),
    ],
    ids=[
        "no rate",
        "above 1",
        "zero of a run",
        "0%",
        "no number",
        "two thresholds",
        "no run",
        "zero",
        "150%",
        "no share",
        "one",
    ],
)
def test_what_cannot_be_is_refused(words, message, folder, labelled, small_model, tmp_path, capsys):
    where = ["--manifest", str(folder / "tonight.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*where, *(word.format(run=labelled) for word in words)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["run", "check"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "{other}"], "another model, sha256:"),
        (["--model", "{same}", "--color", "bgr"], "another color, so for scores"),
    ],
    ids=["model", "meaning"],
)
def test_a_threshold_for_other_scores_is_refused(words, reason, check, folder, labelled, small_model, tmp_path, capsys):
    other = Path(batchverify.__file__).parent / "demo" / "faulty.keras"
    given = [word.format(other=other, same=small_model) for word in words]
    where = ["--manifest", str(folder / "tonight.csv"), "--output", str(tmp_path / "out"), *check]
    assert main([*where, *given, "--threshold-from", f"{labelled}:fmr=0.1"]) == 2
    said = capsys.readouterr().err
    assert reason in said and "name a labelled run of this model" in said and not (tmp_path / "out").exists()


def test_the_report_names_the_run_of_the_threshold(folder, labelled, small_model, tmp_path):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold-from", f"{labelled}:fmr=0.1"]) == 0
    assert f"taken from {labelled}:fmr=0.1" in (tmp_path / "out" / "_report.html").read_text()


def test_a_run_without_labels_gives_no_threshold(folder, labelled, small_model, tmp_path, capsys):
    words = ["--manifest", str(folder / "tonight.csv"), "--model", small_model]
    assert main([*words, "--output", str(tmp_path / "first")]) == 0
    assert main([*words, "--output", str(tmp_path / "out"), "--threshold-from", f"{tmp_path / 'first'}:fmr=0.1"]) == 2
    assert "that run has no impostor pairs, so no FMR; name one with labels." in capsys.readouterr().err
