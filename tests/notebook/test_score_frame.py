"""`batchverify.score_frame`: whatever a frame holds, the scores are those of a run on files with the same pixels."""

import copy
import html
import importlib.util
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

import batchverify
from batchverify.notebook import progress as progress_module
from batchverify.schema import RESULT_FIELDS

pytestmark = pytest.mark.slow
RESULTS = [field.name for field in RESULT_FIELDS]
QUICK: dict[str, Any] = {"stranger_pairs": 0, "steadiness_images": 0}


@pytest.fixture
def pairs(pictures) -> pd.DataFrame:
    """Eight pairs of pictures by path, with an index of their own."""
    paths = sorted(map(str, pictures.glob("*.png")))
    rng = np.random.default_rng(7)
    left, right = rng.integers(0, len(paths), (2, 8))
    columns = {"left": [paths[i] for i in left], "right": [paths[i] for i in right], "genuine": [1, 0] * 4}
    return pd.DataFrame(columns, index=pd.Index([*"hgfedcba"], name="key"))


@pytest.fixture
def of_files(pairs, small_model, tmp_path, read_scores) -> pd.DataFrame:
    """The scores of these pairs as a run from files to files has them."""
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "scores"), model=small_model, **QUICK
    )
    batchverify.run(config)
    return read_scores(tmp_path / "scores")


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


KINDS: dict[str, Callable[[str], Any]] = {
    "paths": str,
    "Path objects": Path,
    "bytes": lambda path: Path(path).read_bytes(),
    "arrays": pixels,
    "pictures": Image.open,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_image_scores_as_its_file_does(kind, pairs, of_files, small_model):
    frame = pairs.assign(**{side: [KINDS[kind](path) for path in pairs[side]] for side in ("left", "right")})
    before = frame.copy()
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    assert scored.index.equals(pairs.index) and list(scored.columns) == [*pairs.columns, *RESULTS]
    np.testing.assert_array_equal(scored["score"], of_files["score"])
    assert scored["score"].dtype == np.float32 and scored["match"].dtype == "boolean"
    assert scored["match"].tolist() == of_files["match"].tolist()
    assert scored["identity_check"].astype(str).tolist() == of_files["identity_check"].astype(str).tolist()
    assert list(frame.columns) == list(before.columns) and frame.attrs == {}
    for side in ("left", "right"):
        pd.testing.assert_series_equal(scored[side], before[side])


def test_a_mixture_of_kinds_is_scored_and_equal_content_is_encoded_once(pairs, of_files, small_model):
    makers = list(KINDS.values())
    frame = pairs.assign(left=[makers[row % 5](path) for row, path in enumerate(pairs["left"])])
    assert np.array_equal(batchverify.score_frame(frame, model=small_model, **QUICK)["score"], of_files["score"])
    one, other = pixels(pairs["left"].iloc[0]), pixels(pairs["right"].iloc[0])
    frame = pd.DataFrame({"left": [one.copy() for _ in range(30)], "right": [Image.fromarray(other) for _ in range(30)]})
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    assert scored.attrs["batchverify"]["images"]["total"] == 2
    assert scored["score"].nunique() == 1


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 1), (20, 20, 2), (20, 20, 4)])
def test_arrays_of_other_shapes_are_scored_as_their_files(shape, small_model, tmp_path):
    array = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    Image.fromarray(array[..., 0] if shape[-1:] == (1,) else array).save(tmp_path / "image.png")
    frame = pd.DataFrame({"left": [array], "right": [str(tmp_path / "image.png")]})
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    assert scored["score"].tolist() == scored["identity_left"].tolist() == scored["identity_right"].tolist()


def test_an_array_of_bool_is_black_and_white(small_model, tmp_path):
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 2, (20, 20), np.uint8) * np.uint8(255)).convert("1")
    picture.save(tmp_path / "image.png")
    frame = pd.DataFrame({"left": [np.asarray(picture), picture], "right": [str(tmp_path / "image.png")] * 2})
    assert frame["left"].iloc[0].dtype == bool
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    assert scored["score"].tolist() == scored["identity_left"].tolist() == scored["identity_right"].tolist()


def test_a_picture_keeps_its_orientation(small_model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(4).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    path = str(tmp_path / "turned.png")
    frame = pd.DataFrame({"left": [path], "right": [Image.open(path)]})
    for orientation in ("apply", "ignore"):
        scored = batchverify.score_frame(frame, model=small_model, orientation=orientation, **QUICK)
        assert scored["score"].tolist() == scored["identity_left"].tolist()


@pytest.mark.parametrize("library", ["polars", "pyarrow", "duckdb"])
def test_frames_of_other_libraries_are_taken(library, pairs, of_files, small_model):
    table = pa.Table.from_pandas(
        pairs.assign(number=pd.array([1, None, 2**60 + 1, 4, 5, 6, 7, 8], "Int64")), preserve_index=False
    )
    frame = {"polars": pl.from_arrow, "pyarrow": lambda table: table, "duckdb": duckdb.from_arrow}[library](table)
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    np.testing.assert_array_equal(scored["score"], of_files["score"])
    assert scored["number"].tolist()[1:3] == [pd.NA, 2**60 + 1]
    assert scored["left"].tolist() == pairs["left"].tolist()


def test_a_binary_column_of_polars_holds_files(pairs, of_files, small_model):
    frame = pl.DataFrame({side: [Path(path).read_bytes() for path in pairs[side]] for side in ("left", "right")})
    np.testing.assert_array_equal(batchverify.score_frame(frame, model=small_model, **QUICK)["score"], of_files["score"])


def test_images_that_cannot_be_read_are_values(pairs, small_model):
    truncated = Image.open(io.BytesIO(Path(pairs["left"].iloc[0]).read_bytes()[:300]))
    bad = ["/no/such.png", b"no image", b"", np.zeros((0, 5, 3), np.uint8), truncated, None, float("nan"), pd.NA]
    frame = pairs.assign(right=pd.Series(bad, index=pairs.index, dtype=object))
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    expected = ["missing", "unreadable", "empty", "empty", "unreadable", "no_uri", "no_uri", "no_uri"]
    assert scored["right_status"].astype(str).tolist() == expected
    assert scored["score"].isna().all() and scored["match"].isna().all()
    assert set(scored["left_status"]) == {"ok"}
    for row in (1, 2, 3, 4):
        assert scored["error"].iloc[row].startswith("right image in memory: ")
    assert "batchverify-run" not in json.dumps(scored.attrs["batchverify"]) + "".join(scored["error"])


def test_relative_paths_start_from_the_working_directory_or_the_root(pairs, of_files, pictures, small_model, monkeypatch):
    relative = pairs.assign(
        left=[os.path.basename(path) for path in pairs["left"]], right=[Path(path).name for path in pairs["right"]]
    )
    rooted = batchverify.score_frame(relative, model=small_model, image_root=str(pictures), **QUICK)
    monkeypatch.chdir(pictures)
    here = batchverify.score_frame(relative, model=small_model, **QUICK)
    for scored in (rooted, here):
        np.testing.assert_array_equal(scored["score"], of_files["score"])
    outside = batchverify.score_frame(pairs, model=small_model, image_root=str(pictures / "elsewhere"), **QUICK)
    assert set(outside["left_status"]) == {"outside_root"}


def test_nothing_is_left_behind(pairs, small_model, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr("tempfile.tempdir", None)
    frame = pairs.assign(left=[pixels(path) for path in pairs["left"]])
    batchverify.score_frame(frame, model=small_model, **QUICK)
    with pytest.raises(batchverify.PreflightError):
        batchverify.score_frame(frame, model=str(tmp_path / "none.keras"), **QUICK)
    batchverify.load(small_model).score(frame["left"].tolist(), frame["right"].tolist())
    assert list(home.iterdir()) == []


def test_the_options_of_a_run_are_keywords(pairs, small_model):
    frame = pairs.rename(columns={"left": "a", "right": "b"}).assign(region=[*"xxyyxxyy"])
    scored = batchverify.score_frame(
        frame, model=Path(small_model), left_column="a", right_column="b", threshold=np.float32(0.25), review=[0.2, 0.9],
        max_identity_faults=0, max_failed_rows="0.5%", group_columns="region", stranger_pairs=50, steadiness_images=0,
    )  # fmt: skip
    summary = scored.attrs["batchverify"]
    assert summary["run"]["threshold"] == 0.25 and summary["groups"].keys() == {"region"}
    assert {gate["option"]: gate["limit"] for gate in summary["gates"]} == {
        "--max-failed-rows": "0.5%",
        "--max-identity-faults": "0",
    }
    assert scored["review"].tolist() == [0.2 <= score < 0.9 for score in scored["score"]]
    assert summary["error_rates"]["genuine"] == 4


def test_every_column_that_an_option_names_is_read(pairs, small_model):
    frame = pairs.assign(**{name: [*"xxyyxxyy"] for name in ("region", "l", "r", "ls", "rs", "fold")})
    summary = batchverify.score_frame(
        frame,
        model=small_model,
        group_columns=["region"],
        group_column_pairs=[["l", "r"]],
        subject_columns=["ls", "rs"],
        **QUICK,
    ).attrs["batchverify"]
    assert summary["groups"].keys() >= {"region"} and len(summary["groups"]) == 2
    assert summary["error_rates"]["folds"]["each"][0]["fold"] == "x"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"treshold": 0.5}, "score_frame takes no option 'treshold'; did you mean threshold?"),
        ({"output": "scores"}, "'output', which is for runs from files to files"),
        ({"xyz": 1}, "'xyz'; it takes allow_empty, "),
        ({"threshold": "high"}, "threshold is 'high'; give a number"),
        ({"threshold": True}, "threshold is True; give a number"),
        ({"threshold": 2}, "--threshold is 2"),
        ({"batch_size": 1.5}, "batch_size is 1.5; give a whole number"),
        ({"max_failed_rows": "much"}, "max_failed_rows is 'much'; give a count"),
        ({"left_column": "first"}, "the frame has no column 'first', only 'left', 'right', 'genuine'"),
        ({"label_column": "truth"}, "no column 'truth', only 'left', 'right', 'genuine'; name the right one with label_column"),
        ({"fmr": 2.0}, "fmr is 2.0; give a list"),
        ({"label_column": "right"}, "column 'right' is given for two things"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(options, words, pairs, small_model):
    with pytest.raises(batchverify.PreflightError, match=re.escape(words)) as refused:
        batchverify.score_frame(pairs, model=small_model, **options)
    assert len(refused.value.problems) == 1 and "batchverify-run" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "column 'left', row 1 holds an array of float32 (4, 4, 3); give a path"),
        (np.zeros((4, 4, 7), np.uint8), "row 1 holds an array of uint8 (4, 4, 7)"),
        ({"path": "a.png"}, "row 1 holds dict"),
        (3, "row 1 holds int '3', which is no image"),
    ],
)
def test_what_is_no_image_is_refused(value, words, pairs, small_model):
    left = pd.Series([pairs["left"].iloc[0], value, *[None] * 6], index=pairs.index, dtype=object)
    with pytest.raises(batchverify.PreflightError, match=re.escape(words)):
        batchverify.score_frame(pairs.assign(left=left), model=small_model)


def test_frames_that_cannot_be_joined_are_refused(pairs, small_model):
    scored = batchverify.score_frame(pairs, model=small_model, **QUICK)
    with pytest.raises(batchverify.PreflightError, match=r"the frame has 'score', 'match', .* already"):
        batchverify.score_frame(scored, model=small_model)
    again = batchverify.score_frame(scored.drop(columns=RESULTS), model=small_model, **QUICK)
    pd.testing.assert_frame_equal(again, scored)
    with pytest.raises(batchverify.PreflightError, match="'genuine' 2 times"):
        batchverify.score_frame(pd.concat([pairs, pairs[["genuine"]]], axis=1), model=small_model)
    with pytest.raises(batchverify.PreflightError, match="the frame is list; give a pandas DataFrame"):
        batchverify.score_frame([1], model=small_model)
    in_memory = pairs.assign(left=[pixels(path) for path in pairs["left"]])
    with pytest.raises(batchverify.PreflightError, match="image_root and embeddings are for paths"):
        batchverify.score_frame(in_memory, model=small_model, image_root="/")


def test_an_index_with_equal_labels_is_kept(pairs, of_files, small_model):
    frame = pairs.set_axis([1, 1, 2, 2, 1, 1, 2, 2])
    scored = batchverify.score_frame(frame, model=small_model, **QUICK)
    assert scored.index.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    np.testing.assert_array_equal(scored["score"], of_files["score"])


def test_a_frame_without_rows_has_the_columns(pairs, small_model):
    scored = batchverify.score_frame(pairs.head(0), model=small_model, **QUICK)
    assert list(scored.columns) == [*pairs.columns, *RESULTS] and len(scored) == 0


def test_two_models_in_one_process(pairs, of_files, small_model, demo):
    first = batchverify.score_frame(pairs, model=small_model, **QUICK)
    other = batchverify.score_frame(pairs, model=None, **QUICK)
    again = batchverify.score_frame(pairs, model=small_model, **QUICK)
    np.testing.assert_array_equal(first["score"], again["score"])
    assert not np.allclose(first["score"], other["score"])
    assert other.attrs["batchverify"]["run"]["model"] != first.attrs["batchverify"]["run"]["model"]


def test_the_summary_survives_what_pandas_does(pairs, small_model, tmp_path):
    scored = batchverify.score_frame(pairs, model=small_model, **QUICK)
    summary = scored.attrs["batchverify"]
    assert summary["rows"] | {"scored": 8, "total": 8} == summary["rows"]
    for kept in (
        scored.copy(),
        scored.head(3),
        scored[scored["match"]],
        scored.sort_values("score"),
        pd.concat([scored, scored]),
    ):
        assert kept.attrs["batchverify"] == summary
    assert isinstance(scored.head(2).attrs["batchverify"], batchverify.RunSummary)
    assert pickle.loads(pickle.dumps(summary)) == copy.deepcopy(summary) == summary
    scored.to_parquet(tmp_path / "scored.parquet")
    assert pd.read_parquet(tmp_path / "scored.parquet").attrs["batchverify"]["rows"] == summary["rows"]


def test_the_verdict_is_shown_as_html(pairs, small_model):
    summary = batchverify.score_frame(pairs, model=small_model, max_identity_faults=0, **QUICK).attrs["batchverify"]
    page = summary._repr_html_()
    assert summary.verdict.headline in page and "8 of 8 rows scored" in page
    assert all(f"</span>{html.escape(finding.text)}" in page for finding in summary.verdict.findings)
    assert "<script" not in page and "http" not in page
    assert repr(summary).startswith(f"<RunSummary: {summary.verdict.headline}")


def test_the_verdict_does_not_show_a_name_as_html(pairs, small_model):
    frame = pairs.assign(**{"<b>region</b>": [*"xxyyxxyy"]})
    summary = batchverify.score_frame(frame, model=small_model, group_columns="<b>region</b>", **QUICK).attrs["batchverify"]
    assert "<b>" not in summary._repr_html_() and "&lt;b&gt;region" in summary._repr_html_()


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_a_bar_is_shown_where_it_is_asked_for(has_tqdm, pairs, small_model, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "_DELAY_S", 0.0)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "tqdm" and not has_tqdm else find(name))
    batchverify.score_frame(pairs, model=small_model, progress=True, **QUICK)
    assert "Images encoded" in capsys.readouterr().err
    batchverify.score_frame(pairs, model=small_model, **QUICK)
    assert "Images encoded" not in capsys.readouterr().err


def test_the_log_of_a_bar_is_replaced_in_place(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "_DELAY_S", 0.0)
    line = progress_module._Line()
    totals = {"images_encoded": 3.0, "images_reused": 0.0, "images_failed": 1.0, "rows_scored": 1.0, "rows_failed": 1.0}
    line(totals, 10, 20)
    line.close()
    shown = "Images encoded: 4 of 10, 2 of 20 rows scored"
    assert capsys.readouterr().err == f"\r{shown}\r{' ' * len(shown)}\r"
