"""Rows that people should look at."""

import json

import numpy as np
import pandas as pd
import pytest

from batchverify.cli.main import main
from tests.support.manifests import write_pairs

pytestmark = pytest.mark.slow


@pytest.fixture
def words(small_model, pictures, tmp_path):
    manifest = write_pairs(tmp_path, pictures, 40)
    with manifest.open("a") as file:
        file.write("pictures/p1.png,pictures/none.png\n")
    return ["--manifest", str(manifest), "--model", small_model, "--output", str(tmp_path / "out")]


def test_rows_between_the_two_scores_are_marked_and_counted(words, tmp_path, read_scores, capsys):
    assert main(words) == 0
    scores = read_scores(tmp_path / "out")
    assert "review" not in scores and "Review" not in capsys.readouterr().out
    low, high = np.sort(scores["score"].dropna().unique())[[3, 9]]
    assert main([*words, "--overwrite", "--review", str(low), str(high)]) == 0
    marked = read_scores(tmp_path / "out")
    assert marked.columns[-1] == "review" and pd.isna(marked["review"].iloc[-1])
    scored = marked[marked["score"].notna()]
    assert (scored["review"].astype(bool) == ((scored["score"] >= low) & (scored["score"] < high))).all()
    count = int(scored["review"].sum())
    assert 0 < count < 40
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["rows"]["review"] == count
    assert f"Review    {count} rows ({count / 40:.2%} of those with a score)" in capsys.readouterr().out
    assert "to be reviewed" in (tmp_path / "out" / "_report.html").read_text()


@pytest.mark.parametrize("scores", [("0.6", "0.4"), ("0.4", "0.4"), ("0.4", "1.5")], ids=str)
def test_scores_that_are_no_range_are_refused(scores, words, tmp_path, capsys):
    assert main([*words, "--review", *scores]) == 2
    assert "give two scores from 0 to 1, the lower one first." in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_manifest_with_such_a_column_is_refused_only_with_the_option(words, tmp_path, read_scores, capsys):
    manifest = tmp_path / "pairs.csv"
    pd.read_csv(manifest).assign(review="later").to_csv(manifest, index=False)
    assert main(words) == 0
    assert set(read_scores(tmp_path / "out")["review"]) == {"later"}
    assert main([*words, "--overwrite", "--review", "0.4", "0.6"]) == 2
    assert "column 'review' is one that the output adds; rename it in the manifest." in capsys.readouterr().err
