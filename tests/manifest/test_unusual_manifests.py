"""Manifests as other programs write them: separators, labels, folders, types, and sizes that their files do not show."""

import datetime
import decimal
import gzip
import logging
import os
import resource
import time
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import batchverify
from batchverify.manifest.csv import read_csv_batches
from batchverify.manifest.csv_header import read_header
from batchverify.manifest.labels import parse_labels
from batchverify.manifest.plan import plan_manifest
from tests.manifest.test_manifest import problems, read, write
from tests.support.processes import start_program

# Separators


@pytest.mark.parametrize(("character", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_a_separator_that_is_plain_from_the_header_is_taken_and_said(character, word, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = 'left,right,note\na.png,b.png,"x,y"\nc.png,d.png,\n'.replace(",", character)
    found = read(write(tmp_path / "p.csv", text))
    assert found.select(["left", "right"]).to_pylist() == [
        {"left": "a.png", "right": "b.png"}, {"left": "c.png", "right": "d.png"}
    ]  # fmt: skip
    assert f"The columns of the manifest are separated by {word}." in caplog.text


def test_a_separator_that_is_given_is_used_for_every_file(tmp_path):
    first, second = write(tmp_path / "1.csv", "left^right\na^b,c\n"), write(tmp_path / "2.csv", "right^left\ne^d\n")
    found = read(first, second, separator="^")
    assert found["left"].to_pylist() == ["a", "d"] and found["right"].to_pylist() == ["b,c", "e"]


def test_bad_rows_of_a_file_with_another_separator_are_kept(tmp_path):
    found = read(write(tmp_path / "p.csv", "left;right\na;b;c\nd;e\n"), bad_rows="keep")
    assert found["left"].to_pylist() == ["a", "d"] and found["right"].to_pylist() == ["b", "e"]


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n", "é"])
def test_what_cannot_separate_columns_is_refused(separator):
    with pytest.raises(batchverify.PreflightError, match="give one character"):
        batchverify.VerificationConfig(manifests=("p.csv",), output="out", separator=separator)


# Labels


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1", "-1", "", "NaN"], "'1' is genuine and '-1' is impostor"),
        (["Yes", "NO ", "", "nan"], "'yes' is genuine and 'no' is impostor"),
        (["y", "n", "", ""], "'y' is genuine and 'n' is impostor"),
        (["t", "f", "", ""], "'t' is genuine and 'f' is impostor"),
        (["genuine", "impostor", "", ""], "'genuine' is genuine and 'impostor' is impostor"),
    ],
)
def test_labels_whose_meaning_is_plain_are_understood_and_said(words, said, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = read(write(tmp_path / "p.csv", "left,right,genuine\n" + "".join(f"a,b,{word}\n" for word in words)))
    labels, bad = parse_labels(found["genuine"])
    assert labels.tolist() == [1, 0, -1, -1] and not bad.any()
    assert f"Labels: in column 'genuine', {said}." in caplog.text


def test_numbers_and_missing_numbers_are_labels(tmp_path):
    frame = pd.DataFrame({"left": ["a"] * 3, "right": ["b"] * 3, "genuine": [1.0, -1.0, np.nan]})
    pq.write_table(pa.table({name: frame[name].to_numpy() for name in frame}), tmp_path / "p.parquet")
    labels, bad = parse_labels(read(tmp_path / "p.parquet")["genuine"])
    assert labels.tolist() == [1, 0, -1] and not bad.any()


@pytest.mark.parametrize("words", [["1", "0", "-1"], ["yes", "no", "1"], ["-1", "yes"], ["yes", "perhaps"]])
def test_labels_of_several_spellings_are_refused(words, tmp_path):
    (problem,) = problems(write(tmp_path / "p.csv", "left,right,genuine\n" + "".join(f"a,b,{word}\n" for word in words)))
    assert f"row {len(words) - 1 if words[0] != '-1' else 1}: the label is '{words[-1]}'" in problem


def test_files_that_spell_labels_differently_are_refused(tmp_path):
    files = [write(tmp_path / f"{word}.csv", f"left,right,genuine\na,b,{word}\n") for word in ("no", "-1", "0")]
    told = problems(*files)
    assert len(told) == 1 and "writes its labels otherwise than the files before it" in told[0]


# Folders


def test_the_columns_that_folders_state_pass_through(tmp_path):
    for day, zone in (("2026-11-24", "a%20b"), ("2026-11-25", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"dt={day}" / f"zone={zone}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"left": ["a"], "right": ["b"]}), folder / "0.parquet")
    found = read(tmp_path / "dt=*" / "*" / "*.parquet")
    assert found["dt"].to_pylist() == ["2026-11-24", "2026-11-25"] and found["zone"].to_pylist() == ["a b", None]
    (one,) = read(tmp_path / "dt=2026-11-25" / "*" / "*.parquet")["dt"].to_pylist()
    assert one == "2026-11-25"


def test_a_column_of_the_file_takes_precedence_over_its_folder(tmp_path):
    (tmp_path / "dt=2026-11-25").mkdir()
    found = read(write(tmp_path / "dt=2026-11-25" / "p.csv", "left,right,DT\na,b,x\n"))
    assert found["DT"].to_pylist() == ["x"] and "dt" not in found.column_names


def test_the_label_may_stand_in_the_folder(tmp_path):
    for label in ("0", "1"):
        (tmp_path / f"genuine={label}").mkdir()
        write(tmp_path / f"genuine={label}" / "p.csv", "left,right\na,b\n")
    labels, _ = parse_labels(read(tmp_path)["genuine"])
    assert labels.tolist() == [0, 1]


def test_a_folder_as_spark_writes_it_is_a_manifest(tmp_path):
    pairs = pa.table({"left": ["a", "b"], "right": ["c", "d"]})
    for day in ("2026-11-24", "2026-11-25"):
        (tmp_path / f"dt={day}").mkdir()
        pq.write_table(pairs, tmp_path / f"dt={day}" / "part-00000-c000.snappy.parquet")
        write(tmp_path / f"dt={day}" / ".part-00000-c000.snappy.parquet.crc", b"crc")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / "._SUCCESS.crc", b"crc")
    (tmp_path / "_temporary").mkdir()
    pq.write_table(pairs, tmp_path / "_temporary" / "part-00001.parquet")
    assert read(tmp_path)["dt"].to_pylist() == read(f"{tmp_path}/")["dt"].to_pylist() == ["2026-11-24"] * 2 + ["2026-11-25"] * 2
    assert read(tmp_path / "dt=*").num_rows == 4


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    write(tmp_path / "notes.txt", "left,right\n")
    assert "the folder has no file that ends in .csv, .tsv or .parquet" in problems(tmp_path)[0]


# Types

STAMPS = pa.array([5, None, 6], pa.timestamp("us"))
TYPES = {
    "null": pa.nulls(3),
    "bool": pa.array([True, None, False]),
    **{str(kind): pa.array([1, None, 2], kind) for kind in (pa.int8(), pa.uint16(), pa.uint64(), pa.float16(), pa.float64())},
    "decimal": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-2.25")], pa.decimal128(25, 2)),
    "large decimal": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-2.25")], pa.decimal256(50, 2)),
    "date": pa.array([datetime.date(2026, 1, 1), None, None]),
    "time": pa.array([5, None, 6], pa.time64("ns")),
    "timestamp": pa.array([5, None, 6], pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([5, None, 6], pa.duration("s")),
    "binary": pa.array([b"\xff", None, b""]),
    "fixed binary": pa.array([b"\xff1", None, b"ab"], pa.binary(2)),
    "binary view": pa.array([b"\xff", None, b"a long value, which no view holds itself"], pa.binary_view()),
    "large string": pa.array(["a", None, ""], pa.large_string()),
    "string view": pa.array(["a", None, "a long value, which no view holds itself"], pa.string_view()),
    "list": pa.array([[1], None, []], pa.list_(pa.int32())),
    "list of views": pa.array([["x"], None, []], pa.list_(pa.string_view())),
    "list view": pa.array([[1], None, [2, 3]], pa.list_view(pa.int32())),
    "large list view": pa.array([[1], None, [2, 3]], pa.large_list_view(pa.int32())),
    "fixed list": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2)),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "map to views": pa.array([[("a", "x")], None, []], pa.map_(pa.string(), pa.string_view())),
    "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
    "ordered": pa.DictionaryArray.from_arrays(pa.array([0, None, 1], pa.int8()), pa.array(["x", "y"]), ordered=True),
    "dictionary of stamps": STAMPS.dictionary_encode(),
    "uuid": pa.array([uuid.UUID(int=7).bytes, None, uuid.UUID(int=8).bytes], pa.uuid()),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, "1"])),
}


@pytest.mark.slow
def test_every_type_that_parquet_holds_goes_from_door_to_output(small_model, pictures, tmp_path):
    pairs = {"left": ["p0.png", "p1.png", "none.png"], "right": ["p1.png", "p2.png", "p0.png"]}
    pq.write_table(pa.table({**pairs, **TYPES}), pictures / "p.parquet", row_group_size=2)
    config = batchverify.VerificationConfig(
        manifests=(str(pictures / "p.parquet"),), output=str(tmp_path / "out"), model=small_model, block_rows=2
    )
    batchverify.run(config)
    given = pq.read_table(pictures / "p.parquet")
    files = sorted((tmp_path / "out").glob("scores-*.parquet"))
    scored = pa.concat_tables(map(pq.read_table, files)).sort_by("manifest_row")
    for name in TYPES:
        assert scored[name].to_pylist() == given[name].to_pylist(), name
        if "view" not in str(given[name].type):
            assert scored[name].type.equals(given[name].type) or pa.types.is_dictionary(given[name].type), name


def test_bytes_that_are_not_utf_8_are_found_in_every_column(tmp_path):
    path = write(tmp_path / "p.csv", b"left,right,note\na,b,fine\nc,d,Z\xfcrich\n")
    assert "row 1: column 'note' is not UTF-8" in problems(path)[0]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xfc")])
    pq.write_table(pa.table({"left": ["a"], "right": ["b"], "note": broken}), tmp_path / "p.parquet")
    assert "p.parquet: the Parquet file is damaged" in problems(tmp_path / "p.parquet")[0]


# Sizes


def plan(path, **settings):
    return plan_manifest(batchverify.VerificationConfig(manifests=(str(path),), output="out", **settings))


def test_the_rows_of_a_compressed_file_are_estimated_from_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr("batchverify.manifest.plan._VALIDATION_BYTES", 2**20)
    monkeypatch.setattr("batchverify.manifest.csv._CSV_BLOCK_BYTES", 2**18)
    rng = np.random.default_rng(2)
    rows = "".join(f"faces/image_{a:07d}.png,faces/image_{b:07d}.png\n" for a, b in rng.integers(0, 10**6, (300_000, 2)))
    text = f"left,right\n{rows}".encode()
    for name, data in (("p.csv", text), ("p.csv.gz", gzip.compress(text, 3)), ("p.csv.zst", zstandard.compress(text))):
        assert plan(write(tmp_path / name, data)).expected_rows == pytest.approx(300_000, rel=0.1), name


def test_text_that_expands_absurdly_is_refused(tmp_path):
    block = gzip.compress(b"a,b\n" * 2**22, 9)
    path = write(tmp_path / "p.csv.gz", gzip.compress(b"left,right\n") + block * 80)
    (problem,) = problems(path)
    assert "p.csv.gz: its 1.2 MiB expand to about 1." in problem and "GiB, as no list of pairs does" in problem


def test_parquet_that_expands_absurdly_is_refused(tmp_path):
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array(["x" * 2**20]))
    table = pa.table({"left": ["a"] * 2000, "right": ["b"] * 2000, "note": long})
    pq.write_table(table, tmp_path / "p.parquet", store_schema=False, dictionary_pagesize_limit=2**26)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (problem,) = problems(tmp_path / "p.parquet")
    assert "expand to about 2.0 GiB, as no list of pairs does" in problem
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**20  # KiB


@pytest.mark.parametrize("columns", [2_500, 9_998])
def test_a_header_of_many_columns_is_read_in_time_that_grows_with_it(columns, tmp_path):
    names = [f"c{number}" for number in range(columns)]
    path = write(tmp_path / "p.csv", f"left,right,{','.join(names)}\na,b{',1' * columns}\n")
    start = time.process_time()
    assert plan(path).schema.names == ["left", "right", *names]
    assert time.process_time() - start < 60


def test_more_columns_than_any_list_of_pairs_has_are_refused_before_they_are_read(tmp_path):
    values = {"left": ["a"], "right": ["b"], **{f"c{number}": ["1"] for number in range(9_998)}}
    pq.write_table(pa.table(values), tmp_path / "most.parquet")
    assert len(plan(tmp_path / "most.parquet").schema) == 10_000
    names = ",".join(f"c{number}" for number in range(120_000))
    write(tmp_path / "p.csv", f"left,right,{names}\na,b{',' * 120_000}\n")
    pq.write_table(pa.table(values | {"more": ["1"]}), tmp_path / "p.parquet")
    pq.write_table(pa.table({"left": ["a"], "right": ["b"], "parts": [dict.fromkeys(values, 1)]}), tmp_path / "parts.parquet")
    start = time.process_time()
    for name in ("p.csv", "p.parquet", "parts.parquet"):
        (problem,) = problems(tmp_path / name)
        assert problem.endswith(f"{name}: it has more than 10,000 columns; leave out what the run does not need."), name
    assert time.process_time() - start < 10


TOO_DEEP = "p.parquet: it has a column that is nested more than 100 levels deep; leave out what the run does not need."


def write_nested(path, levels, nest) -> None:
    kind = pa.int32()
    for _ in range(levels):
        kind = nest(kind)
    table = pa.table({"left": ["a"], "right": ["b"], "deep": pa.nulls(1, kind)})
    pq.write_table(table, path, store_schema=False)


@pytest.mark.parametrize(("levels", "nest"), [(50, pa.list_), (2_000, lambda kind: pa.struct({"a": kind}))])
def test_columns_of_too_many_levels_are_refused(levels, nest, tmp_path):
    write_nested(tmp_path / "p.parquet", levels, nest)
    (problem,) = problems(tmp_path / "p.parquet")
    assert problem.endswith(TOO_DEEP)


def test_columns_of_many_levels_are_read(tmp_path):
    write_nested(tmp_path / "p.parquet", 45, pa.list_)
    assert str(plan(tmp_path / "p.parquet").schema.field("deep").type).count("list") == 45


def test_columns_of_as_many_levels_as_crash_arrow_are_refused(tmp_path):
    """Arrow cannot write such a file either: this is a footer in Thrift's compact protocol, with each column in another."""
    levels = 100_000
    count = bytes([levels & 127 | 128, levels >> 7 & 127 | 128, levels >> 14])
    group, last = b"\x35\2\x18\1a\x15\2\0", b"\x15\2\x25\2\x18\1b\0"
    footer = b"\x15\2\x19\xfc" + count + group * (levels - 1) + last + b"\x16\0\x19\x0c\0"
    (tmp_path / "p.parquet").write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    (problem,) = problems(tmp_path / "p.parquet")
    assert problem.endswith(TOO_DEEP)


@pytest.mark.parametrize(
    "data", [b"x" * 2**21, b"left,right," + b",".join(b"c%d" % n for n in range(10**6)), b'"' + b"y\n" * 2**20]
)
def test_a_header_without_an_end_is_refused(data, tmp_path):
    (problem,) = problems(write(tmp_path / "p.csv", data))
    assert "p.csv, header: it is longer than 1 MiB" in problem or "field larger than field limit" in problem


@pytest.mark.processes
def test_a_compressed_line_without_an_end_is_refused_and_aborts_nothing(tmp_path):
    path = write(tmp_path / "p.csv.gz", gzip.compress(b"left,right\n" + b"x" * 2**28 + b",b\n", 1))
    process = start_program(["--manifest", path, "--output", tmp_path / "out", "--check"], os.environ)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and "a row is longer than 16 MiB" in said and "Fatal" not in said


# Names of files


def test_a_file_that_is_named_twice_is_read_once(tmp_path, monkeypatch):
    path = write(tmp_path / "p.csv", "left,right\na,b\n")
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read("p.csv", "./p.csv", tmp_path / "link.csv", path, "folder/p.csv", "*.csv").num_rows == 1


def test_folders_are_searched_for_every_spelling_of_an_ending_and_through_links(tmp_path):
    folder, elsewhere = tmp_path / "pairs", tmp_path / "elsewhere"
    for made in (folder / "a[1]", elsewhere):
        made.mkdir(parents=True)
    write(folder / "1.CSV", "left,right\n1,b\n")
    write(folder / "a[1]" / "2.Csv.GZ", gzip.compress(b"left,right\n2,b\n"))
    write(elsewhere / "3.TSV", "left\tright\n3\tb\n")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # A loop.
    assert sorted(read(folder)["left"].to_pylist()) == ["1", "2", "3"]


def test_what_a_run_writes_into_the_manifests_folder_is_no_manifest(tmp_path):
    write(tmp_path / "p.csv", "left,right\na,b\n")
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.table({"left": ["a"], "right": ["b"], "score": [0.5]}), tmp_path / "scores" / "scores-0.parquet")
    config = batchverify.VerificationConfig(manifests=(str(tmp_path),), output=str(tmp_path / "scores"))
    assert plan_manifest(config).expected_rows == 1


@pytest.mark.parametrize("name", ["p[1].csv", "p*.csv", "p?.csv", "[.csv"])
def test_a_file_with_the_characters_of_a_pattern_in_its_name_is_found(name, tmp_path):
    write(tmp_path / "px.csv", "left,right\nother,b\n")
    assert read(write(tmp_path / name, "left,right\na,b\n"))["left"].to_pylist() == ["a"]


def test_a_file_whose_name_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with open(os.fsencode(tmp_path / "folder") + b"/p\xff.csv", "w") as file:
        file.write("left,right\na,b\n")
    (problem,) = problems(tmp_path / "folder")
    assert "p\\udcff.csv' is not UTF-8; rename the file." in problem


# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_inch_mark_in_a_field_is_no_open_quote(end, tmp_path):
    path = write(tmp_path / "p.csv", end.join(["left,right,note", 'a,b,5"', 'c,d,"3"" x"', 'e,f,6" pipe', ""]))
    assert read(path)["note"].to_pylist() == ['5"', '3" x', '6" pipe']


@pytest.mark.parametrize(
    "last", ['a,"b', 'a,"b\n', 'a,b\nc,"d,5""', 'a,"\n', '"a,b\nc,d\n'], ids=["end", "line", "doubled", "empty", "misfit"]
)
def test_a_quote_that_is_open_at_the_end_is_refused_after_an_inch_mark_too(last, tmp_path):
    for start in ("", '5",x\n6",y\n'):
        (problem,) = problems(write(tmp_path / "p.csv", f"left,right\n{start}{last}"))
        assert "a quote is opened and never closed" in problem or "there are 1 fields" in problem


def test_empty_lines_before_the_header_are_left_out(tmp_path):
    path = write(tmp_path / "p.csv", "\n\r\nleft,right\na,b\n\nc\nd,e\n")
    assert problems(path) == [
        f"{path}, row 1: there are 1 fields where the header has 2; quote fields that hold the separator, "
        "or give --bad-rows keep to score the other rows."
    ]
    assert read(path, bad_rows="keep")["left"].to_pylist() == ["a", "c", "d"]


def test_a_parquet_file_is_read_under_any_name(tmp_path):
    pq.write_table(pa.table({"left": ["a"], "right": ["b"]}), tmp_path / "p.csv")
    assert read(tmp_path / "p.csv")["left"].to_pylist() == ["a"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_line_in_which_excel_says_the_separator_is_read(mark, tmp_path):
    path = write(tmp_path / "p.csv", f"{mark}sep=^\r\nleft^right\r\na^b,c\r\n\r\nd\r\ne^f\r\n")
    assert problems(path)[0].startswith(f"{path}, row 1: there are 1 fields")
    assert read(path, bad_rows="keep").select(["left", "right"]).to_pydict() == {
        "left": ["a", "d", "e"],
        "right": ["b,c", "", "f"],
    }


def test_a_bad_row_may_be_as_long_as_any(tmp_path):
    path = write(tmp_path / "p.csv", f"left,right\n{'a' * 200_000}\nb,c\n")
    assert [len(name) for name in read(path, bad_rows="keep")["left"].to_pylist()] == [200_000, 1]


def test_rows_that_fill_whole_blocks_and_do_not_fit_stay_in_their_places(tmp_path, monkeypatch):
    """A block may hold no other rows; Arrow may have read the next ones by then."""
    monkeypatch.setattr("batchverify.manifest.csv._CSV_BLOCK_BYTES", 4096)
    rng = np.random.default_rng(1)
    rows = []
    for number in range(3):
        rows += [f"misfit-{number}-{row}" for row in range(600)]
        rows += [f"{number}-{row},right" if fits else f"lone-{number}-{row}" for row, fits in enumerate(rng.random(1500) < 0.7)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["left,right", *rows]) + "\n")
    header = read_header(str(path), batchverify.VerificationConfig(manifests=(str(path),), output="out"))
    assert header is not None
    read = [left for batch in read_csv_batches(str(path), header, keep=True) for left in batch["left"].to_pylist()]
    assert read == [row.partition(",")[0] for row in rows]
