"""Manifests as people write them, and as they get them wrong."""

import bz2
import dataclasses
import gzip
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import batchverify
from batchverify.manifest import csv, parquet
from batchverify.manifest.columns import pair_uris
from batchverify.manifest.labels import parse_labels
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_batches, read_blocks


def read(*paths, **settings) -> pa.Table:
    config = batchverify.VerificationConfig(manifests=tuple(map(str, paths)), output="unused", **settings)
    plan = plan_manifest(config)
    return pa.concat_tables([block for shard in plan.shards for block in read_blocks(shard, plan.schema, config)])


def problems(*paths, **settings) -> list[str]:
    with pytest.raises(batchverify.PreflightError) as refused:
        read(*paths, **settings)
    return refused.value.problems


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_csv_values_stay_as_they_are(tmp_path):
    path = write(tmp_path / "p.csv", "left,right,id,note\na,b,00096,NA\nc,d,,\n")
    assert read(path).drop_columns(["manifest_file"]).to_pylist() == [
        {"left": "a", "right": "b", "id": "00096", "note": "NA", "manifest_row": 0},
        {"left": "c", "right": "d", "id": "", "note": "", "manifest_row": 1},
    ]


def test_quoted_newlines_quotes_commas_and_crlf(tmp_path):
    path = write(tmp_path / "p.csv", '\ufeffleft,"ri""ght",x\r\n"a,1",b,"two\nlines"\r\nc,d,"say ""hi"""\r\n')
    table = read(path, right_column='ri"ght')
    assert table["left"].to_pylist() == ["a,1", "c"]
    assert table["x"].to_pylist() == ["two\nlines", 'say "hi"']


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstandard.compress)])
def test_compressed_csv_is_read_whole_or_refused(ending, compress, tmp_path):
    text = "left,right\n" + "".join(f"a{i},b{i * 7919}\n" for i in range(30_000))
    packed = compress(text.encode())
    assert read(write(tmp_path / f"p.csv.{ending}", packed)).num_rows == 30_000
    (problem,) = problems(write(tmp_path / f"cut.csv.{ending}", packed[: len(packed) // 2]))
    assert "cut.csv" in problem and "cannot be read" in problem


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("row_group", [1, 3, 1000])
def test_parquet_of_every_text_type_and_row_group_size(kind, row_group, tmp_path):
    left = pa.array([f"l{i}" if i % 4 else None for i in range(10)]).cast(kind)
    right = pa.array([f"r{i}" for i in range(10)]).cast(kind)
    table = pa.table({"left": left, "right": right, "weight": np.arange(10) / 3})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=row_group)
    found = read(tmp_path / "p.parquet", block_rows=4)
    assert found.select(["left", "right", "weight"]).to_pylist() == table.to_pylist()
    assert found["manifest_row"].to_pylist() == list(range(10))
    assert found.schema.field("left").type == (pa.string() if pa.types.is_string_view(kind) else kind)
    config = batchverify.ScoringConfig(image_root="/root")
    assert pair_uris(found, config)[0].to_pylist()[:2] == [None, "/root/l1"]


@pytest.mark.parametrize("read_at_once", [40, 200, 500])
def test_blocks_are_whole_however_much_of_a_file_is_read_at_once(read_at_once, tmp_path, monkeypatch):
    """Fewer blocks are sent fewer copies of an image."""
    monkeypatch.setattr(csv, "_CSV_BLOCK_BYTES", read_at_once)
    names = [f"{number:03}" for number in range(100)]
    path = write(tmp_path / "p.csv", "left,right\n" + "".join(f"l{name},r{name}\n" for name in names))
    config = batchverify.VerificationConfig(manifests=(str(path),), output="unused", block_rows=16)
    plan = plan_manifest(config)
    blocks = [block for shard in plan.shards for block in read_blocks(shard, plan.schema, config)]
    assert [block.num_rows for block in blocks] == [16] * 6 + [4]
    found = pa.concat_tables(blocks)
    assert found["left"].to_pylist() == [f"l{name}" for name in names] and found["manifest_row"].to_pylist() == list(range(100))


def test_row_groups_without_rows_cost_nothing(tmp_path):
    """`ParquetWriter.write_table` writes such a group for a table without rows, as a loop over chunks gives it one."""
    table = pa.table({"left": [f"l{n}" for n in range(1000)], "right": [f"r{n}" for n in range(1000)]})
    with pq.ParquetWriter(tmp_path / "p.parquet", table.schema) as writer:
        for start, rows in ((0, 0), (0, 500), (0, 0), (500, 500), (0, 0)):
            writer.write_table(table.slice(start, rows))
    footer = pq.read_metadata(tmp_path / "p.parquet")
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [0, 500, 0, 500, 0]
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "p.parquet"),), output="unused")
    (shard,) = plan_manifest(config).shards
    assert len(list(read_batches(shard))) <= 2
    found = read(tmp_path / "p.parquet", block_rows=300)
    assert found.select(table.column_names).equals(table) and found["manifest_row"].to_pylist() == list(range(1000))


def test_a_parquet_file_of_groups_without_rows_has_no_row(tmp_path):
    table = pa.table({"left": pa.array([], pa.string()), "right": pa.array([], pa.string())})
    with pq.ParquetWriter(tmp_path / "p.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "p.parquet"),), output="unused")
    plan = plan_manifest(config)
    assert [block for shard in plan.shards for block in read_blocks(shard, plan.schema, config)] == []


def test_large_values_in_one_row_group_slow_down_no_other_group(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 2**18)
    rows = [{"left": f"l{n}", "right": f"r{n}", "note": "x" * 2**19 if n == 0 else ""} for n in range(2000)]
    with pq.ParquetWriter(tmp_path / "p.parquet", pa.Table.from_pylist(rows[:1]).schema) as writer:
        for part in (rows[:1], rows[1:1000], rows[1000:]):
            writer.write_table(pa.Table.from_pylist(part))
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "p.parquet"),), output="unused")
    (shard,) = plan_manifest(config).shards
    assert [batch.num_rows for batch in read_batches(shard)] == [1, 999, 1000]


def test_files_of_both_kinds_are_one_manifest(tmp_path):
    write(tmp_path / "1.csv", "left,right\na,b\n")
    write(tmp_path / "2.csv", "right,left\nd,c\n")
    pq.write_table(pa.table({"left": pa.array(["e"], pa.large_string()), "right": ["f"]}), tmp_path / "3.parquet")
    found = read(tmp_path / "*.csv", tmp_path / "3.parquet", tmp_path / "1.csv")
    assert found.select(["left", "right"]).to_pylist() == [
        {"left": "a", "right": "b"}, {"left": "c", "right": "d"}, {"left": "e", "right": "f"},
    ]  # fmt: skip


def test_relative_paths_start_from_the_manifest_or_the_root(tmp_path):
    path = write(tmp_path / "p.csv", "left,right\na.png,/abs/b.png\ns3://bucket/c.png,file:///d.png\n,x\n")
    table = read(path)
    left, right = pair_uris(table, batchverify.ScoringConfig())
    assert left.to_pylist() == [f"{tmp_path}/a.png", "s3://bucket/c.png", None]
    assert right.to_pylist() == ["/abs/b.png", "/d.png", f"{tmp_path}/x"]
    left, _ = pair_uris(table, batchverify.ScoringConfig(image_root="gs://bucket/faces/"))
    assert left.to_pylist()[0] == "gs://bucket/faces/a.png"


def test_the_images_that_are_tried_before_a_run_are_those_of_the_rows(tmp_path, monkeypatch):
    """A relative root is put before a name once."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "p.csv", "left,right\n1.png,/abs/2.png\n,3.png\n")
    planned = lambda *paths, **settings: plan_manifest(  # noqa: E731
        batchverify.VerificationConfig(manifests=paths, output="unused", **settings)
    )
    assert planned("a/p.csv", image_root="photos").sample == ("photos/1.png", "/abs/2.png", "photos/3.png")
    assert planned("a/p.csv").sample == (f"{tmp_path}/a/1.png", "/abs/2.png", f"{tmp_path}/a/3.png")
    # Images of one name in two folders are two images.
    assert planned("a/p.csv", "b/p.csv").expected_images == 5
    assert planned("a/p.csv", "b/p.csv", image_root="photos").expected_images == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1", "0", "", None]),
        pa.array(["TRUE", "false", " ", None]),
        pa.array([True, False, None, None]),
        pa.array([1, 0, None, None]),
        pa.array([1.0, 0.0, None, None]),
        pa.array(["1", "0", None, None]).dictionary_encode(),
    ],
)
def test_labels_in_every_spelling(column):
    labels, bad = parse_labels(pa.chunked_array([column]))
    assert labels.tolist() == [1, 0, -1, -1] and not bad.any()


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    label = write(tmp_path / "label.csv", "left,right,genuine\na,b,1\nc,d,perhaps\n")
    reserved = write(tmp_path / "reserved.csv", "left,right,genuine,score\na,b,1,2\n")
    told = problems(label, reserved, tmp_path / "none.csv")
    assert any("none.csv: there is no such file" in problem for problem in told)
    assert any("label.csv, row 1: the label is 'perhaps'" in problem for problem in told)
    assert any("reserved.csv: column 'score' is one that the output adds" in problem for problem in told)
    assert any("disagree on columns ('score')" in problem for problem in told)


def test_a_column_that_is_missing_is_told_once(tmp_path):
    paths = [write(tmp_path / f"{name}.csv", "left,right\na,b\n") for name in "abc"]
    named = {"group_columns": ("x",), "group_column_pairs": (("x", "y"),), "subject_columns": ("x", "y")}
    about_x, about_y = problems(*paths, **named)
    assert about_x == (
        f"{paths[0]} and 2 other files: there is no column 'x', only 'left', 'right'; name the right one with --group-column "
        "and --group-columns and --subject-columns."
    )
    assert about_y.endswith("only 'left', 'right'; name the right one with --group-columns and --subject-columns.")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("links,right\n", "there is no column 'left', only 'links', 'right'"),
        ("left,right,x,x\n", "column 'x' occurs 2 times"),
        ("left,right,left\n", "column 'left' occurs 2 times"),
        ("left,right,right\n", "column 'right' occurs 2 times"),
        ("left,right,genuine,genuine\n", "column 'genuine' occurs 2 times"),
        ("left,right,fold,fold\n", "column 'fold' occurs 2 times"),
        ("left,right\na,b\nc\n", "row 1: there are 1 fields where the header has 2"),
        ("left,right\na,b,c\n", "row 0: there are 3 fields where the header has 2"),
        (b"left,right\na,b\nc,\xff\xfe\n", r"row 1: column 'right' is not UTF-8 (b'\xff\xfe')"),
        ("left,right\na,b\n".encode("utf-16"), "header: it is not UTF-8"),
        ('left,right\na,"b\nc,d\n', "a quote is opened and never closed"),
    ],
)
def test_a_wrong_csv_is_refused_in_a_sentence(data, told, tmp_path):
    (problem,) = problems(write(tmp_path / "p.csv", data))
    assert told in problem and "p.csv" in problem and "\n" not in problem


def test_a_wrong_parquet_is_refused_in_a_sentence(tmp_path):
    pq.write_table(pa.table({"left": [1, 2], "right": ["a", "b"]}), tmp_path / "p.parquet")
    (problem,) = problems(tmp_path / "p.parquet")
    assert "column 'left' holds int64, not text" in problem
    whole = (tmp_path / "p.parquet").read_bytes()
    (problem,) = problems(write(tmp_path / "cut.parquet", whole[:-20]))
    assert "cut.parquet: the Parquet file is damaged" in problem


def test_a_missing_label_column_is_refused_only_when_asked_for(tmp_path):
    path = write(tmp_path / "p.csv", "left,right\na,b\n")
    assert read(path).num_rows == 1
    assert "there is no column 'same'" in problems(path, label_column="same")[0]


BAD = "batchverify.bad_row"


@pytest.mark.parametrize("good_before", [0, 1, 5])
@pytest.mark.parametrize("good_after", [0, 3])
def test_bad_rows_are_kept_where_they_stand(good_before, good_after, tmp_path):
    rows = [f"a{n},b{n}" for n in range(good_before)] + ["x,y,z", "alone", '"q,""1",t,u'] + ["c,d"] * good_after + ["", "one"]
    found = read(write(tmp_path / "p.csv", "left,right\n" + "\n".join(rows)), bad_rows="keep")
    left = [f"a{n}" for n in range(good_before)] + ["x", "alone", 'q,"1'] + ["c"] * good_after + ["one"]
    right = [f"b{n}" for n in range(good_before)] + ["y", "", "t"] + ["d"] * good_after + [""]
    assert found["left"].to_pylist() == left and found["right"].to_pylist() == right
    assert found["manifest_row"].to_pylist() == list(range(len(left)))
    counts = [None] * good_before + [3, 1, 3] + [None] * good_after + [1]
    wrong = [n and f"there are {n} fields where the header has 2" for n in counts]
    assert found[BAD].to_pylist() == wrong
    uris = pair_uris(found, batchverify.ScoringConfig(image_root="/"))
    assert all([uri is None for uri in side.to_pylist()] == [n is not None for n in counts] for side in uris)


def test_bad_rows_are_put_back_across_the_readers_batches(tmp_path, monkeypatch):
    # Batches of 4 kB, so that bad rows stand at their ends and beginnings.
    monkeypatch.setattr("batchverify.manifest.csv._CSV_BLOCK_BYTES", 4096)
    rng = np.random.default_rng(6)
    bad = rng.random(3000) < 0.2
    path = write(tmp_path / "p.csv", "left,right\n" + "".join(f"l{n},r{n}{',x' * int(bad[n])}\n" for n in range(3000)))
    found = read(path, bad_rows="keep")
    assert found["left"].to_pylist() == [f"l{n}" for n in range(3000)]
    assert (found[BAD].is_valid().to_numpy() == bad).all()


@pytest.mark.parametrize("good_before", [0, 1])
def test_rows_that_do_not_fit_do_not_pile_up(good_before, tmp_path, monkeypatch):
    """They are given out block by block, as all rows are, also where no row fits that could follow them."""
    monkeypatch.setattr(csv, "_CSV_BLOCK_BYTES", 4096)
    rows = ["a,b"] * good_before + [f"alone-{number}" for number in range(5000)]
    path = write(tmp_path / "p.csv", "\n".join(["left,right", *rows]))
    config = batchverify.VerificationConfig(manifests=(str(path),), output="unused", bad_rows="keep")
    (shard,) = plan_manifest(config).shards
    batches = list(read_batches(shard, keep=True))
    assert max(batch.num_rows for batch in batches) < 2000
    assert pa.concat_tables(batches)["left"].to_pylist() == [row.partition(",")[0] for row in rows]


@pytest.mark.parametrize("bad_rows", ["refuse", "keep"])
@pytest.mark.parametrize("mistake", [b"alone\n", b"\xfc,b\n", b"x,y,z\n" * 50])
def test_a_mistake_beyond_the_limit_is_none(mistake, bad_rows, tmp_path):
    path = write(tmp_path / "p.csv", b"left,right\n" + b"a,b\n" * 4 + mistake + b"c,d\n" * 4)
    for limit in (1, 4):
        assert read(path, limit=limit, bad_rows=bad_rows)["left"].to_pylist() == ["a"] * limit
    if bad_rows == "refuse":
        assert f"{path}, row 4: " in problems(path, limit=5)[0]
    else:
        assert read(path, limit=5, bad_rows="keep")[BAD].is_valid().to_pylist() == [False] * 4 + [True]
        assert read(path, limit=6, bad_rows="keep").num_rows == 6


def test_mixed_encodings_are_kept_or_refused(tmp_path):
    path = write(tmp_path / "p.csv", b"left,right,genuine\na,b,1\nZ\xfcrich,c,1\nZ\xc3\xbcrich,d,0\n")
    (told,) = problems(path)
    assert "row 1: column 'left' is not UTF-8" in told
    assert told.endswith("save the file as UTF-8, or give --bad-rows keep to score the other rows.")
    found = read(path, bad_rows="keep")
    assert found["left"].to_pylist() == ["a", "Z\N{REPLACEMENT CHARACTER}rich", "Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich"]
    assert found[BAD].to_pylist() == [None, "column 'left' is not UTF-8", None]


def test_the_label_of_a_bad_row_is_not_judged(tmp_path):
    path = write(tmp_path / "p.csv", "left,right,genuine\na,b,1\nc,d,e,1\n")
    assert read(path, bad_rows="keep").num_rows == 2
    assert "the label is 'perhaps'" in problems(write(path, "left,right,genuine\nx\nc,d,perhaps\n"), bad_rows="keep")[0]


def test_a_row_of_ten_megabytes_and_nul_bytes_are_read(tmp_path):
    path = write(tmp_path / "p.csv", "left,right,note\na,b," + "x" * 10_000_000 + "\nc\0d,e,\0\n")
    found = read(path)
    assert [len(note) for note in found["note"].to_pylist()] == [10_000_000, 1] and found["left"].to_pylist()[1] == "c\0d"


def test_a_row_that_is_too_long_is_refused_in_a_sentence(tmp_path):
    path = write(tmp_path / "p.csv", "left,right\na,b\nc," + "x" * 140_000_000 + "\n")
    assert "a row is longer than 16 MiB" in problems(path)[0]


def test_repeated_rows_are_kept(tmp_path):
    assert read(write(tmp_path / "p.csv", "left,right\n" + "a,b\n" * 5)).num_rows == 5


@pytest.mark.parametrize("place", [4, 40, -8, -5, -30])
def test_a_parquet_file_with_a_lying_footer_is_refused_in_a_sentence(place, tmp_path):
    pq.write_table(pa.table({"left": [f"l{n}" for n in range(1000)], "right": ["r"] * 1000}), tmp_path / "p.parquet")
    data = bytearray((tmp_path / "p.parquet").read_bytes())
    data[place] ^= 0xFF
    try:
        found = read(write(tmp_path / "p.parquet", bytes(data)))
    except (batchverify.PreflightError, batchverify.RunError) as refused:
        assert "p.parquet" in str(refused) and "\n" not in str(refused)
    else:
        assert found.num_rows == 1000


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_once_enough_is_looked_at_files_are_only_opened(kind, tmp_path, monkeypatch):
    """Planning thousands of files must not read them all; their columns are looked at, and their rows counted or estimated."""
    monkeypatch.setattr("batchverify.manifest.plan._VALIDATION_BYTES", 1)
    for number, rows in enumerate((1000, 3000, 500)):
        frame = pd.DataFrame({"left": [f"{n:04d}.png" for n in range(rows)], "right": "0000.png", "genuine": "1"})
        frame.loc[rows // 2, "genuine"] = "1" if number == 0 else "yes"
        write = frame.to_parquet if kind == "parquet" else frame.to_csv
        write(tmp_path / f"p{number}.{kind}", index=False)
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / f"p*.{kind}"),), output="out")
    plan = plan_manifest(config)
    assert len(plan.shards) == 3
    assert plan.expected_rows == (4500 if kind == "parquet" else pytest.approx(4500, rel=0.15))
    pd.DataFrame({"left": ["a.png"], "rihgt": ["b.png"]}).to_csv(tmp_path / "q.csv", index=False)
    with pytest.raises(batchverify.PreflightError, match="rihgt"):
        plan_manifest(dataclasses.replace(config, manifests=(*config.manifests, str(tmp_path / "q.csv"))))


def test_names_that_differ_only_in_case_are_one_name(tmp_path):
    (problem,) = problems(write(tmp_path / "a.csv", "left,right,Score\na,b,1\n"))
    assert "'Score' is one that the output adds" in problem
    (problem,) = problems(write(tmp_path / "b.csv", "left,right,id,ID\na,b,1,2\n"))
    assert "'ID', 'id' differ only in case" in problem


@pytest.mark.parametrize(
    ("name", "is_awkward"), [("", True), ("a.b", True), ("_TABLE_x", True), ("größe 2", False), ("id", False)]
)
def test_names_that_other_readers_refuse_are_warned_of(name, is_awkward, tmp_path, caplog):
    read(write(tmp_path / "p.csv", f"left,right,{name}\na,b,1\n"))
    assert ("rename them" in caplog.text) is is_awkward


def test_file_uris_are_decoded_and_paths_are_not(tmp_path):
    names = ["file:///a%20b.png", "FILE:///c.png", "file://localhost/d.png", "/e%20f.png"]
    path = write(tmp_path / "p.csv", "left,right\n" + "".join(f"{name},x\n" for name in names))
    config = batchverify.VerificationConfig(manifests=(str(path),), output="unused")
    assert pair_uris(read(path), config)[0].to_pylist() == ["/a b.png", "/c.png", "/d.png", "/e%20f.png"]


def test_what_can_be_read_only_once_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", "/dev/null", "/proc/self/environ"):
        (problem,) = problems(path)
        assert "read only once" in problem and "save its content as a file" in problem


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"a;b\n1;2\n", "add --separator ';'"),
        (b"a\tb\n1\t2\n", "add --separator tab"),
        ("left,right\na,b\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"left,right\na,b\n", mtime=0), "gzip"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
    ],
    ids=["semicolons", "tabs", "UTF-16", "gzip", "ZIP"],
)
def test_a_file_of_another_kind_is_named_with_the_remedy(data, cause, tmp_path):
    (problem,) = problems(write(tmp_path / "p.csv", data))
    assert cause in problem and "; " in problem


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("p.csv", {"left": ["c"], "other": ["d"]}, "columns 'other', 'right'"),
        ("p.csv", {"left": ["c"]}, "columns 'right'"),
        ("p.csv", {"left": ["c"] * 30}, "columns 'right'"),
        ("p.csv", {"left": ["c"], "right": ["d"], "more": ["e"]}, "columns 'more'"),
        ("p.csv", {"right": ["d"], "left": ["c"]}, "columns 'left', 'right'"),
        ("p.parquet", {"left": ["c"], "right": ["d"], "more": ["e"]}, "columns 'more'"),
        ("p.parquet", {"left": ["c"], "right": [[1]]}, "has changed since the run began"),
    ],
    ids=["renamed", "dropped", "dropped from many rows", "added to CSV", "another order", "added", "another type"],
)
def test_a_file_whose_columns_change_in_mid_run_is_named(name, changed, words, tmp_path):
    def save(columns):
        frame = pd.DataFrame(columns)
        frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)

    path = tmp_path / name
    save({"left": ["a"], "right": ["b"]})
    config = batchverify.VerificationConfig(manifests=(str(path),), output="unused")
    plan = plan_manifest(config)
    save(changed)
    with pytest.raises(batchverify.RunError) as failed:
        list(read_blocks(plan.shards[0], plan.schema, config))
    assert str(failed.value).startswith(f"{path}: ") and words in str(failed.value)
