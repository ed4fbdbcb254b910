"""A run directory is a dataset: each reader that people have opens it as it is, and a month of nights in one go."""

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest

import batchverify

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
