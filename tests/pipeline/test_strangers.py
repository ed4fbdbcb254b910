"""Strangers in a job, against pandas and Keras on the same images."""

import itertools
import json
import shutil

import apache_beam as beam
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.transforms.window import FixedWindows
from PIL import Image, ImageDraw, ImageFilter

import batchverify
from batchverify.cli.main import main
from tests.support.processes import SUBPROCESS_WORKERS

pytestmark = pytest.mark.slow
COUNT = 60
LEFT_OUT = {"same_content": 0, "genuine": 0, "same_subject": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty pictures, of which 58 and 59 have the same bytes, and a manifest that labels some pairs."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("strangers")
    for number in range(COUNT):
        shade = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(shade).resize((16, 16)).save(folder / f"{number}.png")
    (folder / "59.png").write_bytes((folder / "58.png").read_bytes())
    rows = [
        (f"{n}.png", f"{(n * 7 + 1) % COUNT}.png", int(n % 3 == 0), f"s{n // 2}", f"s{(n * 7 + 1) % COUNT // 2}")
        for n in range(COUNT)
    ]
    frame = pd.DataFrame(rows, columns=["left", "right", "genuine", "who_left", "who_right"])
    frame.loc[len(frame)] = ["missing.png", "0.png", 1, "", ""]
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def scores(folder, small_model):
    """The score of each pair of the pictures, by their numbers."""
    model = keras.models.load_model(small_model)
    pixels = np.stack([np.asarray(Image.open(folder / f"{number}.png")) for number in range(COUNT)]).astype(np.float32)
    pairs = list(itertools.combinations(range(COUNT), 2))
    left, right = np.transpose(pairs)
    return dict(zip(pairs, model.predict([pixels[left], pixels[right]], verbose=0)[:, 0], strict=True))


@pytest.fixture(scope="module")
def threshold(scores):
    return round(float(np.quantile(list(scores.values()), 0.93)), 3)


def run(folder, small_model, output, *beam_args, **settings):
    manifests = (str(folder / "pairs.csv"),)
    config = batchverify.VerificationConfig(manifests=manifests, output=str(output), model=small_model, **settings)
    return batchverify.run(config, beam_args).summary


def expected(scores, left_out, threshold):
    kept = [score for pair, score in scores.items() if pair not in left_out]
    return len(kept), sum(score >= np.float32(threshold) for score in kept)


def genuine_pairs(folder):
    rows = pd.read_csv(folder / "pairs.csv")[:COUNT].query("genuine == 1 and left != right")
    numbers = rows[["left", "right"]].map(lambda name: int(name.removesuffix(".png")))
    return {tuple(sorted(pair)) for pair in numbers.itertuples(index=False)}


def test_strangers_are_all_other_images_but_copies_and_labelled_mates(folder, small_model, scores, threshold, tmp_path):
    found = run(folder, small_model, tmp_path / "out", threshold=threshold)["strangers"]
    mates = genuine_pairs(folder)
    pairs, matches = expected(scores, mates | {(58, 59)}, threshold)
    assert (found["images"], found["pairs"], found["matches"]) == (COUNT, pairs, matches)
    assert 0 < matches < pairs and found["left_out"] == LEFT_OUT | {"same_content": 1, "genuine": len(mates)}
    assert found["mates_known_by"] == "labels" and found["share_of_one_mate"] == 1 / (COUNT - 1)


def test_images_of_one_subject_are_left_out(folder, small_model, scores, threshold, tmp_path):
    columns = ("who_left", "who_right")
    found = run(folder, small_model, tmp_path / "out", threshold=threshold, subject_columns=columns, label_column="")
    same = {(number, number + 1) for number in range(0, COUNT, 2)}
    assert (found["strangers"]["pairs"], found["strangers"]["matches"]) == expected(scores, same, threshold)
    assert found["strangers"]["left_out"]["same_subject"] == COUNT // 2
    assert found["strangers"]["mates_known_by"] == "subjects"


def test_quantiles_and_histogram_are_those_of_the_scores(folder, small_model, scores, tmp_path):
    summary = run(folder, small_model, tmp_path / "out", label_column="")
    kept = np.sort([score for pair, score in scores.items() if pair != (58, 59)])
    for share, score in summary["strangers"]["score_quantiles"]:
        assert score == pytest.approx(np.quantile(kept, share, method="lower"), abs=1e-5)
    lowest, counts = np.transpose(summary["score_histograms"]["strangers"])
    edges = np.repeat(lowest, counts.astype(int))
    np.testing.assert_allclose(np.sort(edges), kept, atol=2e-4)


@pytest.mark.parametrize(
    ("beam_args", "settings"),
    [
        ([], {"block_rows": 7, "batch_size": 3}),
        ([], {"block_rows": 10_000}),
        (SUBPROCESS_WORKERS, {"block_rows": 7, "batch_size": 3}),
        pytest.param(SUBPROCESS_WORKERS, {"block_rows": 10_000}, marks=pytest.mark.exhaustive),
    ],
    ids=["small blocks", "one block", "workers, small blocks", "workers, one block"],
)
def test_the_draw_does_not_depend_on_blocks_batches_or_workers(beam_args, settings, folder, small_model, tmp_path):
    reference = run(folder, small_model, tmp_path / "reference", stranger_pairs=200)["strangers"]
    found = run(folder, small_model, tmp_path / "out", *beam_args, stranger_pairs=200, **settings)["strangers"]
    assert reference["pairs"] == 200
    inexact = ("score_quantiles", "match_rate_interval")
    assert {key: value for key, value in found.items() if key not in inexact} == {
        key: value for key, value in reference.items() if key not in inexact
    }
    np.testing.assert_allclose(found["score_quantiles"], reference["score_quantiles"], atol=1e-6)


def test_the_draw_does_not_depend_on_the_number_of_buckets(folder, small_model, tmp_path):
    block = pa.Table.from_pandas(pd.read_csv(folder / "pairs.csv", dtype=str, keep_default_na=False))
    config = batchverify.ScoringConfig(model=small_model, image_root=str(folder), stranger_pairs=150)
    for expected_images in (10, 40_000, 10_000_000):
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            blocks = pipeline | beam.Create([("block", block)])
            examined = (blocks | batchverify.VerifyPairs(config, expected_images=expected_images)).examined
            _ = examined | beam.Map(write_section, str(tmp_path / f"{expected_images}.json"))
    first, *others = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert first["pairs"] == 150 and others == [first, first]


def test_the_draw_does_not_depend_on_where_the_folder_lies(folder, small_model, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    here, there = (
        run(place, small_model, tmp_path / name, stranger_pairs=150)["strangers"]
        for place, name in ((folder, "here"), (elsewhere, "there"))
    )
    assert here == there and here["pairs"] == 150


def test_blocks_in_windows_are_scored_and_draw_no_strangers(folder, small_model, tmp_path):
    block = pa.Table.from_pandas(pd.read_csv(folder / "pairs.csv", dtype=str, keep_default_na=False))
    config = batchverify.ScoringConfig(model=small_model, image_root=str(folder))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create([("block", block)]) | beam.WindowInto(FixedWindows(60))
        verified = blocks | batchverify.VerifyPairs(config, expected_images=60)
        _ = verified.scores | beam.Map(lambda scores, path: pq.write_table(scores, path), str(tmp_path / "scores.parquet"))
    assert verified.examined is None
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == COUNT + 1


def test_a_manifest_with_more_mates_than_can_be_kept_draws_fewer_images(folder, small_model, scores, monkeypatch, tmp_path):
    """What is drawn ends where the knowledge of mates ends, so that no mate is taken for a stranger."""
    monkeypatch.setattr("batchverify.pipeline.strangers._MAX_GENUINE", 5)
    found = run(folder, small_model, tmp_path / "out", threshold=0.5)["strangers"]
    whole = COUNT * (COUNT - 1) // 2
    assert 1 < found["images"] < COUNT and found["left_out"]["genuine"] <= 5
    drawn = found["images"]
    assert found["pairs"] + sum(found["left_out"].values()) == drawn * (drawn - 1) // 2 < whole


def write_section(examined, path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dict(examined.strangers.section), file)


def test_a_limit_that_strangers_exceed_gives_exit_code_3(folder, small_model, tmp_path, capsys):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--max-stranger-matches", "0%", "--threshold", "0.01"]) == 3
    assert "pairs drawn at random match, where --max-stranger-matches allows 0%" in capsys.readouterr().err
    assert main([*words, "--max-stranger-matches", "100%", "--threshold", "0.01", "--overwrite"]) == 0


def test_without_the_option_too_many_matches_end_with_exit_code_0_and_a_verdict(folder, small_model, tmp_path, capsys):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "NOT TRUSTWORTHY: 100% of strangers match" in said and "SANE" not in said
    report = (tmp_path / "out" / "_report.html").read_text()
    assert "Don’t trust these scores: 100% of strangers match." in report and "Strangers: images drawn at random" in report


def test_strangers_can_be_turned_off(folder, small_model, tmp_path, capsys):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--stranger-pairs", "0"]) == 0
    assert "Strangers" not in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["strangers"] is None and summary["score_histograms"]["strangers"] == []


def test_a_run_with_two_images_says_that_it_cannot_judge(folder, small_model, tmp_path, capsys):
    (folder / "two.csv").write_text("left,right\n1.png,2.png\n")
    words = ["--manifest", str(folder / "two.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.01"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Strangers Not judged: it takes 100 pairs of 20 images, and 1 pair of 2 images was compared. 100% of" in said


def test_the_reason_is_said_where_images_are_not_what_is_missing(folder, small_model, tmp_path, capsys):
    left = [f"{number}.png" for number in range(0, 40, 2)]
    frame = pd.DataFrame({"left": left, "right": [f"{number}.png" for number in range(1, 41, 2)], "a": "x", "b": "x"})
    frame.to_csv(folder / "same.csv", index=False)
    words = ["--manifest", str(folder / "same.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--subject-columns", "a", "b"]) == 0
    assert "pairs are left out because they show one subject." in " ".join(capsys.readouterr().out.split())


def test_subjects_that_are_unknown_or_contradict_each_other_are_told(folder, small_model, tmp_path, capsys):
    numbers = np.arange(40)
    frame = pd.DataFrame({"left": [f"{n}.png" for n in numbers], "right": [f"{(n + 1) % 40}.png" for n in numbers]})
    frame = frame.assign(a=numbers, b=(numbers + 1) % 40, none=np.nan, some=np.where(numbers < 30, numbers, np.nan))
    frame.to_csv(folder / "subjects.csv", index=False)
    words = ["--manifest", str(folder / "subjects.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    told = []
    # The columns of each side; that of the left side alone; swapped; and columns that name nobody.
    for columns in (("a", "b"), ("some", "none"), ("b", "a"), ("none", "none")):
        assert main([*words, "--overwrite", "--subject-columns", *columns, "--max-stranger-matches", "100%"]) == 0
        section = json.loads((tmp_path / "out" / "_summary.json").read_text())["strangers"]
        told.append((section["mates_known_by"], section["without_subject"], section["of_several_subjects"]))
        said = " ".join(capsys.readouterr().out.split())
        assert ("in the right order?" in said) == (columns == ("b", "a"))
        assert ("Images of one subject are left out" in said) == (columns != ("none", "none"))
    assert told == [("subjects", 0, 0), ("subjects", 10, 0), ("subjects", 0, 40), (None, 40, 0)]


def test_a_gate_on_strangers_is_not_met_where_none_can_be_drawn(folder, small_model, tmp_path, capsys):
    (folder / "one.csv").write_text("left,right\n1.png,1.png\n")
    words = ["--manifest", str(folder / "one.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--max-stranger-matches", "10%"]) == 3
    assert "no two images could be drawn at random" in capsys.readouterr().err


def test_a_baseline_shows_how_strangers_moved(folder, small_model, tmp_path, capsys):
    run(folder, small_model, tmp_path / "before", threshold=0.5)
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.01", "--baseline", str(tmp_path / "before")]) == 0
    baseline = json.loads((tmp_path / "out" / "_summary.json").read_text())["baseline"]
    assert baseline["strangers_psi"] == 0 and baseline["strangers_match_rate"][1] == 1
    assert f"of strangers {baseline['strangers_match_rate'][0]:.2%} before, 100.00% now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subject-columns", "who", "who_right"], "there is no column 'who', only"),
        (["--subject-columns", "", "who_right"], "--subject-columns is '' 'who_right'; name two columns"),
        (["--stranger-pairs", "-1"], "--stranger-pairs is -1; give a number from 0"),
        (["--stranger-pairs", "0", "--max-stranger-matches", "1%"], "leave one of them out"),
    ],
    ids=["no such column", "empty name", "negative", "a limit without strangers"],
)
def test_what_cannot_be_is_refused(words, message, folder, small_model, tmp_path, capsys):
    where = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*where, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_embedded_model_is_not_trusted_with_pictures_that_are_no_characters(tmp_path, capsys):
    """A model trained on characters takes most photos for the same thing, and each photo for itself."""
    rng = np.random.default_rng(1)
    for number in range(40):
        draw_scene(rng).save(tmp_path / f"{number}.jpg")
    rows = "".join(f"{number}.jpg,{number + 1}.jpg\n" for number in range(0, 40, 2))
    (tmp_path / "pairs.csv").write_text(f"left,right\n{rows}")
    assert main(["--manifest", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["identity"]["sane"] == 20 and summary["strangers"]["verdict"] == "many_match"
    assert "NOT TRUSTWORTHY" in capsys.readouterr().out


def test_the_doctor_asks_for_strangers_among_the_images_that_it_is_given(tmp_path, capsys):
    rng = np.random.default_rng(1)
    for number in range(60):
        draw_scene(rng).save(tmp_path / f"{number}.jpg")
    assert main(["doctor", "--images", str(tmp_path)]) == 3
    assert "pairs of images drawn at random match at the threshold 0.5" in capsys.readouterr().out


def draw_scene(rng):
    """Draws coloured shapes before a blurred background, as a photo has them."""
    background = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(background).resize((160, 160), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 7)):
        (x, y), (width, height) = rng.integers(0, 140, 2), rng.integers(15, 90, 2)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + width, y + height), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return picture.filter(ImageFilter.GaussianBlur(1.5))
