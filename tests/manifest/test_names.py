"""The names of a column's values: the same for the texts that programs write into CSV and for the values in Parquet."""

import io

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from batchverify.manifest.names import column_names

COLUMNS = {
    "booleans": pd.Series([True, False, True]),
    "floats": pd.Series([1.0, 0.1, 1e-5, 1.5e-7, 1e10, 1e15, 1e16, 2.5e300, -0.0, -3.0, np.nan]),
    "single floats": pd.Series([1, 0.1, 1e-5, 1e10, 123456789], dtype="float32"),
    "integers": pd.Series([7, -1, 0, 10**15]),
    "integers with a gap": pd.Series([7, None, 8], dtype="Int64"),
    "days": pd.Series(pd.to_datetime(["2026-11-01", "2026-11-02"])),
    "times": pd.Series(pd.to_datetime(["2026-11-01 00:00:00", "2026-11-02 13:30:00"])),
    "texts": pd.Series(["007", "1.10", "a", "", "12e5", "nan", "None", "1.", "v1.0"]),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_do_not_depend_on_the_format(name, library):
    column = COLUMNS[name]
    if library == "polars" and name in ("days", "times", "floats"):
        pytest.skip("Polars writes NaN as a text, and the whole second with its fraction")
    text = io.StringIO()
    frame = column.to_frame("x")
    _ = frame.to_csv(text, index=False) if library == "pandas" else text.write(pl.from_pandas(frame).write_csv())
    written = pd.read_csv(io.StringIO(text.getvalue()), dtype=str, keep_default_na=False, skip_blank_lines=False)["x"]
    of_csv = column_names(pa.chunked_array([pa.array(written, pa.string())])).to_pylist()
    assert of_csv == column_names(pa.chunked_array([pa.Array.from_pandas(column)])).to_pylist()


def test_numbers_and_booleans_have_one_name_and_other_texts_stay_as_they_are():
    texts = ["1", "1.0", "True", "FALSE", "1e-05", "-0.0", "007", "007.0", "1.10", "1.", "12e5", "e5", "TRUEST", "", None]
    expected = ["1", "1", "true", "false", "0.00001", "0", "007", "007.0", "1.10", "1.", "12e5", "e5", "TRUEST", None, None]
    column = pa.chunked_array([texts[:4], texts[4:]], pa.string())
    assert column_names(column).to_pylist() == expected
    assert column_names(column.dictionary_encode()).to_pylist() == expected
    assert column_names(pa.chunked_array([[1.0, 2.5, float("nan"), None]])).to_pylist() == ["1", "2.5", None, None]
    assert column_names(pa.chunked_array([], pa.string())).to_pylist() == []
