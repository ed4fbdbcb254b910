"""`VerifyRows`: rows with a schema, from anywhere, get the scores of a run; in Beam YAML as well."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
from apache_beam.pvalue import Row
from apache_beam.testing.util import assert_that
from apache_beam.utils.timestamp import Timestamp

import batchverify
from batchverify.schema import RESULT_FIELDS

pytestmark = pytest.mark.slow
ROOT = Path(batchverify.__file__).parents[1]


@pytest.fixture
def pairs(pictures) -> list[tuple[str, str]]:
    paths = sorted(map(str, pictures.glob("*.png")))
    return [(paths[i], paths[(3 * i + 1) % 10]) for i in range(10)] + [(paths[0], "/no/such.png"), (paths[0], "")]


def test_rows_get_the_scores_of_a_frame_and_keep_their_columns(pairs, small_model):
    expected = batchverify.score_frame(pd.DataFrame(pairs, columns=["left", "right"]), model=small_model, stranger_pairs=0)
    rows = [Row(n=n, at=Timestamp(n), left=left, right=right) for n, (left, right) in enumerate(pairs)]

    def check(found: list[Any]) -> None:
        found = sorted(found, key=lambda row: row.n)
        assert [row.n for row in found] == list(range(len(pairs)))
        assert [row.at for row in found] == [Timestamp(n) for n in range(len(pairs))]
        assert list(found[0]._asdict()) == ["n", "at", "left", "right", *(field.name for field in RESULT_FIELDS)]
        scores = np.array([np.nan if row.score is None else row.score for row in found], np.float32)
        np.testing.assert_allclose(scores, expected["score"], rtol=1e-6)
        assert [row.match for row in found[:10]] == expected["match"].tolist()[:10] and found[10].match is None
        assert [row.right_status for row in found] == expected["right_status"].astype(str).tolist()
        assert found[10].error.startswith("right image /no/such.png: ") and found[0].error is None

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        scored = pipeline | beam.Create(rows) | batchverify.VerifyRows(expected_images=10, model=small_model)
        assert_that(scored, check)
        assert scored.element_type._fields[-1][0] == "error"


def test_columns_of_other_names_and_a_review(pairs, small_model):
    rows = [Row(a=left, b=right) for left, right in pairs[:4]]
    options = {"model": small_model, "left_column": "a", "right_column": "b", "review": [0.0, 1.0]}

    def check(found: list[Any]) -> None:
        assert [row.review for row in found] == [True] * 4

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create(rows) | batchverify.VerifyRows(**options), check)


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (Row(left="a", right="b"), {"treshold": 1}, "VerifyRows takes no option 'treshold'; did you mean threshold"),
        (Row(left="a", right="b"), {"stranger_pairs": 1}, "takes no option 'stranger_pairs'"),
        (Row(left="a", other="b"), {}, "the rows have no column 'right', only left, other; name the right one"),
        (Row(left="a", right="b", score=1.0), {}, "the rows have score already"),
        ({"left": "a", "right": "b"}, {}, "VerifyRows takes rows with a schema"),
    ],
)
def test_a_mistake_is_one_sentence(row, options, words):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    shutil.rmtree(pipeline.local_tempdir)
    rows = pipeline | beam.Create([row])
    with pytest.raises(batchverify.PreflightError, match=words):
        _ = rows | batchverify.VerifyRows(**options)


@pytest.mark.processes
def test_the_yaml_of_the_documentation_runs(tmp_path, demo):
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "verify.yaml").write_text(text)
    shutil.copytree(demo / "images", tmp_path / "images")
    for suffix in ("", ".batchverify.json"):
        shutil.copy(ROOT / "batchverify" / "demo" / f"sane.keras{suffix}", tmp_path / f"model.keras{suffix}")
    command = [sys.executable, "-m", "apache_beam.yaml.main", "--yaml_pipeline_file=verify.yaml", "--runner=FnApiRunner"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = pd.concat(map(pd.read_parquet, tmp_path.glob("matches.parquet*"))).sort_values("order")
    assert found["order"].tolist() == [17, 19]
    assert found["score"].iloc[0] > 0.9 and found["right_status"].tolist() == ["ok", "missing"]
