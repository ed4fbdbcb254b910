"""A second model that scores the same pairs, against runs with each of the two models alone."""

import collections
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import apache_beam as beam
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that
from PIL import Image
from scipy import stats

import batchverify
from batchverify.cli.main import main
from batchverify.images.tensorflow_loader import BatchDecoder
from batchverify.pipeline.check import check_run
from tests.support.processes import SUBPROCESS_WORKERS
from tests.support.two_models import save_siamese, save_whole

pytestmark = pytest.mark.slow
COUNT = 30
_opened: collections.Counter[str] = collections.Counter()


def _note_opened(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith((".png", ".jpg")):
        _opened[os.path.basename(arguments[0])] += 1


sys.addaudithook(_note_opened)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Labelled pairs of thirty pictures and models; some rows are bad, name no image, or one that cannot be read."""
    folder, rng = tmp_path_factory.mktemp("candidate"), np.random.default_rng(8)
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        shade, grain = rng.integers(0, 256, 3), rng.integers(-40, 41, (18 + number % 9, 24, 3))
        picture = Image.fromarray(np.clip(shade + grain, 0, 255).astype(np.uint8))
        picture.save(folder / "pictures" / f"{number}.{'jpg' if number % 2 else 'png'}")
    shutil.copy(folder / "pictures" / "0.png", folder / "pictures" / "copy.png")
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    names = [f"pictures/{number}.{'jpg' if number % 2 else 'png'}" for number in range(COUNT)]
    rows = [f"{names[i]},{names[j]},{(i + j) % 2}" for i, j in rng.integers(0, COUNT, (200, 2))]
    rows += ["pictures/0.png,pictures/copy.png,1", "pictures/broken.png,pictures/1.jpg,0", "pictures/1.jpg,pictures/none.png,1"]
    rows += [",pictures/2.png,1", "too,many,fields,here", "pictures/3.jpg,pictures/3.jpg,"]
    (folder / "pairs.csv").write_text("\n".join(["left,right,genuine", *rows]) + "\n")
    save_siamese(folder / "champion.keras", 3, sidecar={"threshold": 0.62})
    save_siamese(folder / "same_pixels.keras", 4)
    save_siamese(folder / "other_size.keras", 5, size=24)
    save_siamese(folder / "other_loader.keras", 6, sidecar={"loader": "pillow", "resize": "bicubic", "threshold": 0.6})
    save_siamese(folder / "open.keras", 7, scaled=False)
    save_whole(folder / "whole.keras")
    return folder


def configure(folder: Path, output: Path, model: str = "champion", **settings) -> batchverify.VerificationConfig:
    return batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),),
        output=str(output),
        bad_rows="keep",
        model=str(folder / f"{model}.keras"),
        **{"block_rows": 70, "batch_size": 8} | settings,
    )


def words(config: batchverify.VerificationConfig, *more: str) -> list[str]:
    paths = ["--manifest", *config.manifests, "--model", str(config.model), "--output", config.output]
    return [*paths, "--bad-rows", "keep", *more]


@pytest.mark.parametrize(
    ("model", "candidate", "beam_args"),
    [
        ("champion", "same_pixels", []),
        ("champion", "other_size", SUBPROCESS_WORKERS),
        ("champion", "other_loader", []),
        ("other_loader", "champion", []),
        ("champion", "whole", []),
        pytest.param("whole", "champion", SUBPROCESS_WORKERS, marks=pytest.mark.exhaustive),
    ],
    ids=["same pixels", "other size, workers", "other loader", "other loader first", "whole", "whole first, workers"],
)
def test_both_models_columns_are_those_of_runs_with_one_alone(model, candidate, beam_args, folder, tmp_path, read_scores):
    alone = batchverify.run(configure(folder, tmp_path / "alone", model))
    threshold = alone.summary["run"]["threshold"]
    has_own = (folder / f"{candidate}.keras.batchverify.json").exists() and candidate != "whole"
    expected = configure(folder, tmp_path / "second", candidate, **({} if has_own else {"threshold": threshold}))
    second = batchverify.run(expected).summary
    path = str(folder / f"{candidate}.keras")
    both = batchverify.run(configure(folder, tmp_path / "both", model, candidate=path), beam_args).summary

    found, first, other = (read_scores(tmp_path / name) for name in ("both", "alone", "second"))
    assert list(found.columns[-3:]) == ["score_candidate", "match_candidate", "identity_check_candidate"]
    pd.testing.assert_frame_equal(found[first.columns], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["score_candidate"], other["score"], rtol=0, atol=1e-6)
    assert found["match_candidate"].equals(other["match"]) and found["match_candidate"].isna().sum() == 4
    scored = other[other["score"].notna()]
    verdicts = found["identity_check_candidate"].dropna().astype(str)
    pd.testing.assert_series_equal(verdicts, scored["identity_check"].astype(str), check_names=False)

    section = both["candidate"]
    assert section["model"] == path and section["model_digest"] == second["run"]["model_digest"]
    assert section["threshold"] == second["run"]["threshold"] and section["preprocessing"] == second["run"]["preprocessing"]
    assert section["shares_pixels"] == (candidate in ("same_pixels", "whole") or model == "whole")
    assert section["rows"] == {name: second["rows"][name] for name in ("scored", "failed", "matches")}
    for name in ("images", "identity", "error_rates", "score_histograms", "strangers", "steadiness"):
        assert_alike(section[name], second[name])
        assert_alike(both[name], alone.summary[name])


def assert_alike(found, expected) -> None:
    """Compares JSON values, with numbers to the sixth digit: batches and their order may move a score by a rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_alike(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, read_scores):
    """A run with a candidate whose decisions differ: its summary, its scores, and its folder."""
    output = tmp_path_factory.mktemp("flips") / "out"
    candidate = str(folder / "same_pixels.keras")
    summary = batchverify.run(configure(folder, output, candidate=candidate, threshold=0.7, candidate_threshold=0.74)).summary
    return summary, read_scores(output), output


def test_flips_and_their_test_are_those_of_pandas_and_scipy(run):
    section, scores = run[0]["candidate"], run[1].dropna(subset=["score", "score_candidate"])
    match, again = (scores[name].astype(bool) for name in ("match", "match_candidate"))
    table = pd.crosstab(match, again).reindex(index=[False, True], columns=[False, True], fill_value=0)
    flips = section["flips"]
    assert (flips["gained"], flips["lost"]) == (table.loc[False, True], table.loc[True, False])
    assert flips["both_match"] == table.loc[True, True] and flips["neither_matches"] == table.loc[False, False]
    assert flips["gained"] > 0 and flips["lost"] > 0
    assert flips["rate"] == (flips["gained"] + flips["lost"]) / len(scores)
    labelled = scores[scores["genuine"].isin(["0", "1"])]
    is_right = labelled["match"].astype(bool) == (labelled["genuine"] == "1")
    is_right_again = labelled["match_candidate"].astype(bool) == (labelled["genuine"] == "1")
    only_model, only_candidate = int((is_right & ~is_right_again).sum()), int((~is_right & is_right_again).sum())
    test = section["mcnemar"]
    assert (test["only_model_right"], test["only_candidate_right"]) == (only_model, only_candidate)
    assert (
        test["pairs"]
        == len(labelled)
        == sum(test[f"{name}_right"] for name in ("both", "only_model", "only_candidate", "neither"))
    )
    assert test["p_value"] == pytest.approx(stats.binomtest(only_model, only_model + only_candidate).pvalue)


def test_the_largest_changes_come_first(run):
    scores = run[1].dropna(subset=["score", "score_candidate"])
    change = (scores["score_candidate"] - scores["score"]).abs()
    for kind, first, second in (("matches_gained", False, True), ("matches_lost", True, False)):
        flipped = scores[(scores["match"].astype(bool) == first) & (scores["match_candidate"].astype(bool) == second)]
        twin = flipped.assign(change=change).sort_values(["change", "manifest_row"], ascending=[False, True]).head(12)
        assert [pair["manifest_row"] for pair in run[0]["extremes"][kind]] == twin["manifest_row"].tolist()
        assert [pair["score_candidate"] for pair in run[0]["extremes"][kind]] == twin["score_candidate"].tolist()


def test_the_report_and_the_files_tell_of_the_candidate(run):
    page, section = (run[2] / "_report.html").read_text(), run[0]["candidate"]
    assert "The candidate against the model" in page and "DET of both models" in page and "Matches gained" in page
    assert section["model_digest"].removeprefix("sha256:")[:12] in page
    metadata = pq.read_schema(next(run[2].glob("scores-*.parquet"))).metadata
    assert metadata[b"batchverify.candidate_model_digest"].decode() == section["model_digest"]
    assert metadata[b"batchverify.candidate_threshold"] == b"0.74"


def test_the_closing_words_have_a_line_about_flips(folder, tmp_path, capsys):
    candidate = str(folder / "same_pixels.keras")
    config = configure(folder, tmp_path / "out")
    assert main(words(config, "--threshold", "0.7", "--candidate", candidate, "--candidate-threshold", "0.74")) == 0
    flips = json.loads((tmp_path / "out" / "_summary.json").read_text())["candidate"]["flips"]
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Candidate "))
    changed = f"{flips['gained'] + flips['lost']} of {flips['compared']} rows are decided in another way"
    assert candidate in told and f"{changed} ({flips['gained']} matches gained, {flips['lost']} lost)" in told


@pytest.mark.parametrize(
    ("given", "sidecar", "expected"), [(0.7, {"threshold": 0.3}, 0.7), (None, {"threshold": 0.3}, 0.3), (None, None, 0.62)]
)
def test_the_threshold_is_the_options_or_the_sidecars_or_the_champions(given, sidecar, expected, folder, tmp_path, read_scores):
    shutil.copy(folder / "same_pixels.keras", tmp_path / "second.keras")
    if sidecar:
        (tmp_path / "second.keras.batchverify.json").write_text(json.dumps(sidecar))
    config = configure(folder, tmp_path / "out", candidate=str(tmp_path / "second.keras"), candidate_threshold=given)
    summary, scores = batchverify.run(config).summary, read_scores(tmp_path / "out").dropna(subset="score")
    assert summary["run"]["threshold"] == 0.62 and summary["candidate"]["threshold"] == expected
    assert (scores["match_candidate"].astype(bool) == (scores["score_candidate"] >= np.float32(expected))).all()


@pytest.mark.parametrize("candidate", ["same_pixels", "other_size"])
def test_no_file_is_fetched_more_often_than_without_a_candidate(candidate, folder, tmp_path):
    opened: list[dict[str, int]] = []
    for path in (None, str(folder / f"{candidate}.keras")):
        _opened.clear()
        # Without flips, the report shows the same pictures, which are fetched again for it.
        batchverify.run(configure(folder, tmp_path / str(len(opened)), threshold=0.0, candidate=path))
        opened.append(dict(_opened))
    assert opened[0] == opened[1] and set(opened[0]) >= {f"{number}.png" for number in range(0, COUNT, 2)}


@pytest.mark.parametrize(("candidate", "times"), [("same_pixels", 1), ("other_size", 2)])
def test_files_are_decoded_once_where_both_models_take_the_same_pixels(candidate, times, folder, tmp_path, monkeypatch):
    decoded: list[int] = []
    decode = BatchDecoder.__call__

    def count(decoder, files):
        decoded.append(len(files))
        return decode(decoder, files)

    monkeypatch.setattr(BatchDecoder, "__call__", count)
    batchverify.run(configure(folder, tmp_path / "alone"))
    alone = sum(decoded)
    decoded.clear()
    batchverify.run(configure(folder, tmp_path / "both", candidate=str(folder / f"{candidate}.keras")))
    assert alone > 0 and sum(decoded) == times * alone


def test_an_image_that_only_the_candidate_cannot_take_has_no_score_of_it_alone(folder, tmp_path, read_scores):
    """Padded to a square, a long picture has more pixels than are allowed."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 900, 3), np.uint8)).save(tmp_path / "long.png")
    picture = folder / "pictures" / "0.png"
    pd.DataFrame({"left": ["long.png", picture], "right": [picture, picture]}).to_csv(tmp_path / "pairs.csv", index=False)
    candidate = save_siamese(tmp_path / "pads.keras", 9, sidecar={"loader": "pillow", "fit": "pad"})
    config = configure(folder, tmp_path / "out", candidate=candidate, max_image_pixels=10_000)
    config = dataclasses.replace(config, manifests=(str(tmp_path / "pairs.csv"),))
    section, scores = batchverify.run(config).summary["candidate"], read_scores(tmp_path / "out")
    assert scores["score"].notna().all() and scores["left_status"].astype(str).tolist() == ["ok", "ok"]
    assert scores["score_candidate"].isna().tolist() == [True, False]
    assert scores["identity_check_candidate"].isna().tolist() == [True, False]
    assert section["images"] == {"ok": 1, "too_large": 1, "total": 2} and section["flips"]["compared"] == 1


def test_a_candidates_score_that_is_no_number_fails_the_run_or_is_none(folder, tmp_path, read_scores, capsys):
    keras.utils.set_random_seed(3)
    pixels = keras.Input((16, 16, 3))
    x = keras.ops.divide(pixels, keras.ops.mean(pixels, axis=(1, 2, 3), keepdims=True))
    encoder = keras.Model(pixels, keras.layers.Dense(8, activation="sigmoid")(keras.layers.Flatten()(x)))
    left, right = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(keras.ops.abs(encoder(left) - encoder(right)))).save(
        tmp_path / "nan.keras"
    )
    (tmp_path / "nan.keras.batchverify.json").write_text('{"pixels": "0..255"}')
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    picture = folder / "pictures" / "0.png"
    pd.DataFrame({"left": ["black.png", picture], "right": [picture, picture]}).to_csv(tmp_path / "pairs.csv", index=False)
    config = dataclasses.replace(configure(folder, tmp_path / "out"), manifests=(str(tmp_path / "pairs.csv"),))
    arguments = words(config, "--candidate", str(tmp_path / "nan.keras"))
    assert main(arguments) == 1
    assert "the candidate gave a score that is not a number" in capsys.readouterr().err
    assert main([*arguments, "--on-nan", "keep"]) == 0
    scores = read_scores(tmp_path / "out")
    assert scores["score"].notna().all() and scores["score_candidate"].isna().tolist() == [True, False]


@pytest.mark.parametrize(("limit", "code"), [("0", 3), ("1%", 3), ("100%", 0)])
def test_the_gate_on_flips_sets_the_exit_code(limit, code, folder, tmp_path, capsys):
    config = configure(folder, tmp_path / "out")
    options = ["--threshold", "0.7", "--candidate", str(folder / "same_pixels.keras"), "--candidate-threshold", "0.74"]
    assert main(words(config, *options, "--max-flips", limit)) == code
    assert ("rows in another way, where --max-flips allows" in capsys.readouterr().err) == (code == 3)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_run_in_which_no_row_can_be_compared_does_not_pass_the_gate(folder, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("left,right\nnone.png,none.png\n")
    config = dataclasses.replace(configure(folder, tmp_path / "out"), manifests=(str(tmp_path / "pairs.csv"),))
    options = ["--candidate", str(folder / "same_pixels.keras"), "--max-flips", "5%", "--allow-empty"]
    assert main(words(config, *options)) == 3
    assert "no row has a score of both models, so nobody knows whether --max-flips 5% is met" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--candidate-threshold", "0.5"], "--candidate-threshold needs a candidate"),
        (["--max-flips", "5"], "--max-flips needs a candidate"),
        (["--candidate", "CANDIDATE", "--candidate-threshold", "1.5"], "--candidate-threshold is 1.5; a score lies in [0, 1]"),
        (["--candidate", "CANDIDATE", "--embeddings", "store"], "--embeddings keeps the embeddings of one model"),
        (["--candidate", "/nowhere/none.keras"], "--candidate /nowhere/none.keras"),
    ],
)
def test_what_cannot_be_is_refused(options, told, folder, tmp_path, capsys):
    given = [str(folder / "same_pixels.keras") if option == "CANDIDATE" else option for option in options]
    assert main(words(configure(folder, tmp_path / "out"), *given)) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said and "--model /nowhere" not in said and not (tmp_path / "out").exists()


def test_what_the_candidates_file_leaves_open_is_asked_before_any_work(folder, tmp_path, capsys):
    """The options about pixels are the champion's; they do not answer for the candidate."""
    candidate = str(folder / "open.keras")
    arguments = words(configure(folder, tmp_path / "out"), "--candidate", candidate)
    assert main([*arguments, "--pixels", "0..255"]) == 2
    said = capsys.readouterr().err
    assert f"--candidate {candidate}: nothing in its graph shows on what scale of pixels it was trained" in said
    assert f'in its sidecar, {candidate}.batchverify.json: {{"pixels": "SCALE"}}.' in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sidecar", "told"),
    [
        ({"resize": "lanczos4"}, "--resize is 'lanczos4', which --loader tf does not have"),
        ({"no_setting": 1}, "'no_setting' is not a setting"),
        ({"golden": [{"left": "0.png", "right": "0.png", "score": 0.1}]}, "should score 0.1, but scores 0.92"),
    ],
)
def test_a_sidecar_of_the_candidate_that_is_wrong_is_refused(sidecar, told, folder, tmp_path, capsys):
    shutil.copy(folder / "pictures" / "0.png", tmp_path)
    candidate = save_siamese(tmp_path / "second.keras", 4, sidecar=sidecar)
    assert main(words(configure(folder, tmp_path / "out"), "--candidate", candidate)) == 2
    said = capsys.readouterr().err
    assert told in said and (f"--candidate {candidate}" in said or f"{candidate}.batchverify.json" in said)
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_a_column_of_the_candidate_is_refused_only_with_one(folder, tmp_path, capsys):
    picture = str(folder / "pictures" / "0.png")
    pd.DataFrame({"left": [picture], "right": [picture], "Score_Candidate": ["x"]}).to_csv(tmp_path / "pairs.csv", index=False)
    config = dataclasses.replace(configure(folder, tmp_path / "out"), manifests=(str(tmp_path / "pairs.csv"),))
    assert main(words(config)) == 0
    assert main(words(config, "--overwrite", "--candidate", str(folder / "same_pixels.keras"))) == 2
    assert "column 'Score_Candidate' is one that the output adds" in capsys.readouterr().err


def test_a_check_tells_of_the_candidate(folder, tmp_path, capsys):
    config = configure(folder, tmp_path / "out")
    candidate = str(folder / "other_size.keras")
    assert main(words(config, "--candidate", candidate, "--check")) == 0
    assert f"Candidate {candidate}: one encoder for both images" in capsys.readouterr().out
    with_it, without = (check_run(dataclasses.replace(config, candidate=path)) for path in (candidate, None))
    assert with_it.memory > 0 and with_it.candidate is not None and without.candidate is None


def test_a_transform_of_ones_own_has_the_candidates_columns(folder):
    names = [str(folder / "pictures" / f"{number}.png") for number in (0, 2)]
    config = batchverify.ScoringConfig(
        model=str(folder / "champion.keras"),
        candidate=str(folder / "other_loader.keras"),
        stranger_pairs=0,
        steadiness_images=0,
    )

    def check(tables: list[pa.Table]) -> None:
        (table,) = tables
        assert table.column_names[-3:] == ["score_candidate", "match_candidate", "identity_check_candidate"]
        scores = table["score_candidate"].to_numpy()
        # The sidecar of the candidate has the threshold 0.6.
        assert table["match_candidate"].to_pylist() == (scores >= np.float32(0.6)).tolist()

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create([("only", pa.table({"left": names, "right": names[::-1]}))])
        assert_that((blocks | batchverify.VerifyPairs(config, expected_images=2)).scores, check)
