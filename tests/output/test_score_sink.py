"""Parquet files of scores: each column is stored in the way that suits it, and what cannot be written fails the run."""

import resource
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchverify.output.score_sink import ScoreSink


@pytest.fixture
def rows() -> pa.Table:
    numbers = np.arange(1000)
    columns = {"left": [f"{number % 7}.png" for number in numbers], "right": [f"{number % 800}.png" for number in numbers]}
    return pa.table(
        {
            **columns,
            "tags": [[f"tag {number % 3}"] for number in numbers],
            "manifest_row": numbers,
            "score": numbers.astype(np.float32) % 5,
        }
    )


def test_rows_come_in_their_order_and_columns_have_dictionaries_where_values_repeat(rows, tmp_path):
    sink = ScoreSink(str(tmp_path / "scores"), rows.schema, lambda: None)
    writer = sink.open(str(tmp_path / "part"))
    for start in range(0, 1000, 100):
        sink.write_record(writer, rows.slice(start, 100))
    sink.close(writer)
    assert pq.read_table(tmp_path / "part").equals(rows)
    group = pq.ParquetFile(tmp_path / "part").metadata.row_group(0)
    encodings = {group.column(place).path_in_schema: group.column(place).encodings for place in range(5)}
    plain = {path for path, names in encodings.items() if "RLE_DICTIONARY" not in names}
    assert plain == {"manifest_row", "right"} and len(encodings) == 5


def test_a_few_rows_decide_nothing(rows, tmp_path):
    sink = ScoreSink(str(tmp_path / "scores"), rows.schema, lambda: None)
    writer = sink.open(str(tmp_path / "part"))
    for table in (rows.slice(0, 5), rows.slice(5)):
        sink.write_record(writer, table)
    sink.close(writer)
    group = pq.ParquetFile(tmp_path / "part").metadata.row_group(1)
    assert all("RLE_DICTIONARY" in group.column(place).encodings for place in range(5))


def test_a_file_without_rows_has_its_columns(rows, tmp_path):
    sink = ScoreSink(str(tmp_path / "scores"), rows.schema, lambda: None)
    sink.close(sink.open(str(tmp_path / "part")))
    assert pq.read_table(tmp_path / "part").equals(rows.slice(0, 0))


def test_a_table_that_cannot_be_written_fails_the_next_step(rows, tmp_path):
    sink = ScoreSink(str(tmp_path / "scores"), rows.schema, lambda: None)
    writer = sink.open(str(tmp_path / "part"))
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            for _ in range(2):
                sink.write_record(writer, rows)
            sink.close(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
