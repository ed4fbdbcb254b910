"""A run directory is a dataset: each reader that people have opens it as it is, and a month of nights in one go."""

import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

import batchverify
from benchmarks.clusters import MissingPartError, fetch_spark

PAGE = Path(batchverify.__file__).parents[1] / "docs" / "output.md"
NIGHTS = ("2026-11-24", "2026-11-25", "2026-11-26")


@pytest.fixture(scope="module")
def nights(small_model, tmp_path_factory, demo):
    """A folder of three nights; the manifest of the last one has another column."""
    folder = tmp_path_factory.mktemp("nights")
    pairs = pd.read_csv(demo / "demo.csv", dtype=str, keep_default_na=False).head(8)
    for number, night in enumerate(NIGHTS):
        rows = pairs.head(6 + number).assign(**({"camera": "front"} if number == 2 else {}))
        rows.to_csv(folder / "pairs.csv", index=False)
        config = batchverify.VerificationConfig(
            manifests=(str(folder / "pairs.csv"),), output=str(folder / "scores" / f"dt={night}"), model=small_model,
            image_root=str(demo),
        )  # fmt: skip
        batchverify.run(config)
    return folder / "scores"


@pytest.fixture(scope="module")
def one(nights):
    return nights / f"dt={NIGHTS[0]}"


READERS = {
    "pandas": pd.read_parquet,
    "pyarrow": lambda folder: ds.dataset(folder).to_table().to_pandas(),
    "polars": lambda folder: pl.read_parquet(f"{folder}/*.parquet").to_pandas(),
    "duckdb": lambda folder: duckdb.execute(f"SELECT * FROM '{folder}/**/*.parquet'").df(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_run_directory_is_read_as_it_is(name, one, read_scores):
    found = READERS[name](one)
    assert {path.name[:1] for path in one.iterdir() if not path.name.endswith(".parquet")} == {"_"}
    expected = read_scores(one)
    assert found["manifest_row"].tolist() == expected["manifest_row"].tolist() == list(range(6))
    pd.testing.assert_series_equal(found["score"].astype("float32"), expected["score"].astype("float32"))
    assert found["identity_check"].astype(str).tolist() == expected["identity_check"].astype(str).tolist()


@pytest.mark.slow
def test_a_month_of_nights_is_read_as_one(nights):
    by_pandas = pd.read_parquet(nights)
    by_pyarrow = ds.dataset(nights, partitioning="hive").to_table().to_pandas()
    by_duckdb = duckdb.execute(f"SELECT * FROM read_parquet('{nights}/*/*.parquet', union_by_name=true)").df()
    for found in (by_pandas, by_pyarrow, by_duckdb):
        assert found["dt"].astype(str).value_counts().to_dict() == dict(zip(NIGHTS, (6, 7, 8), strict=True))
        assert found["score"].notna().any()
    assert by_duckdb["camera"].count() == 8


def snippet(library: str) -> str:
    """Returns what the page says about a month of nights, for one library."""
    month = PAGE.read_text(encoding="utf-8").split("## Reading a month of nights")[1]
    (found,) = (text for text in re.findall(r"^```python\n(.*?)^```$", month, re.M | re.S) if library in text)
    return str(found)


def month_by(library: str) -> Any:
    names: dict[str, Any] = {}
    exec(snippet(library), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("library", ["pyarrow", "duckdb", "polars"])
def test_the_page_reads_a_month_with_the_columns_of_all_nights(library, nights, monkeypatch):
    monkeypatch.chdir(nights.parent)
    month = month_by(library)["month"]
    assert month["dt"].astype(str).str[:10].value_counts().to_dict() == dict(zip(NIGHTS, (6, 7, 8), strict=True))
    assert month["camera"].count() == 8 and set(month["camera"].dropna()) == {"front"}
    assert month[month["camera"].notna()]["dt"].astype(str).str[:10].unique().tolist() == [NIGHTS[2]]
    assert month["left"].notna().all() and month["score"].notna().any()


@pytest.mark.slow
def test_polars_reads_the_columns_of_the_first_night(nights):
    month = pl.scan_parquet(f"{nights}/*/*.parquet", hive_partitioning=True, extra_columns="ignore").collect()
    assert month.height == 21 and "camera" not in month.columns


@pytest.mark.slow
def test_polars_takes_a_folder_only_without_what_begins_with_an_underscore(one):
    for path in (one, f"{one}/"):
        with pytest.raises(pl.exceptions.PolarsError, match="different file extensions"):
            pl.read_parquet(path)
        with pytest.raises(pl.exceptions.PolarsError, match="different file extensions"):
            pl.scan_parquet(path).collect()
    for pattern in ("*.parquet", "scores-*.parquet", "**/*.parquet"):
        assert pl.read_parquet(f"{one}/{pattern}").height == 6
    if "hidden_file_prefix" in inspect.signature(pl.scan_parquet).parameters:
        assert pl.scan_parquet(one, hidden_file_prefix="_").collect().height == 6


@pytest.fixture
def spark_package(monkeypatch):
    """Makes the distribution of Spark importable that the tests of clusters fetch, too."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    try:
        package = fetch_spark().parent
    except MissingPartError as missing:
        pytest.skip(str(missing))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.syspath_prepend(str(next((package / "python" / "lib").glob("py4j-*.zip"))))
    # Spark starts a shell script of its own with this interpreter.
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)


@pytest.mark.slow
@pytest.mark.processes
def test_spark_reads_a_run_and_a_month(spark_package, one, nights, read_scores, monkeypatch):
    monkeypatch.chdir(nights.parent)
    names = month_by("pyspark")
    try:
        rows = names["month"].collect()
        assert [sum(str(row.dt) == night for row in rows) for night in NIGHTS] == [6, 7, 8]
        assert sum(row.camera == "front" for row in rows) == 8
        found = names["spark"].read.parquet(str(one)).orderBy("manifest_row").collect()
        expected = read_scores(one)
        assert [row.identity_check for row in found] == expected["identity_check"].astype(str).tolist()
        assert [row.score for row in found] == [None if pd.isna(score) else score for score in expected["score"]]
    finally:
        names["spark"].stop()
