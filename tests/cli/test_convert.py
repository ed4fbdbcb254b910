"""The field's lists into manifests, and a run's scores into the files that the field's tools read."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchverify
from batchverify.cli.main import main
from batchverify.manifest.columns import pair_uris
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_blocks

LFW = "2\t1\nAbel_Pacheco\t1\t4\nAbdul_Majeed\t1\tIan_Thorpe\t12\nAkhmed_Zakayev\t1\t3\nAJ_Lamas\t1\tZach_Safrin\t1\n"
DEV = "1\nAaron_Peirsol 1 2\nAJ_Cook 1 Marsha_Thomason 1\n"


def read(path) -> pd.DataFrame:
    """Reads a manifest as a run does, with the URIs that it would open."""
    config = batchverify.VerificationConfig(manifests=(str(path),), output="o")
    plan = plan_manifest(config)
    (block,) = (block for shard in plan.shards for block in read_blocks(shard, plan.schema, config))
    frame = block.to_pandas()
    frame["opened_left"], frame["opened_right"] = (uris.to_pylist() for uris in pair_uris(block, config))
    return frame


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_lfws_pairs_become_a_manifest_with_folds(ending, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.txt").write_text(LFW)
    assert main(["convert", "lfw", "pairs.txt", "--images", "lfw", "--output", f"made/pairs.{ending}"]) == 0
    assert "4 pairs written" in capsys.readouterr().out
    found = read(tmp_path / "made" / f"pairs.{ending}")
    assert found["genuine"].astype(int).tolist() == [1, 0, 1, 0] and found["fold"].astype(int).tolist() == [1, 1, 2, 2]
    opened = [path.replace("made/../", "") for path in found["opened_right"]]
    assert opened[0] == str(tmp_path / "lfw/Abel_Pacheco/Abel_Pacheco_0004.jpg")
    assert opened[1] == str(tmp_path / "lfw/Ian_Thorpe/Ian_Thorpe_0012.jpg")


def test_lfws_development_pairs_have_no_folds(tmp_path):
    (tmp_path / "pairsDevTrain.txt").write_text(DEV)
    command = ["convert", "lfw", str(tmp_path / "pairsDevTrain.txt"), "--ending", ".png", "--output", str(tmp_path / "p.csv")]
    assert main(command) == 0
    found = pd.read_csv(tmp_path / "p.csv")
    assert found.columns.tolist() == ["left", "right", "genuine"]
    assert found.iloc[1].tolist() == ["AJ_Cook/AJ_Cook_0001.png", "Marsha_Thomason/Marsha_Thomason_0001.png", 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: a header gives folds and pairs"),
        ("ten 300\n", "line 1: a header gives folds and pairs"),
        ("1\nA 1 2\n", "promises 2 pairs, but there are 1"),
        ("1\nA 1 2\nA 1 2\n", "line 3: it should be 'name number name number'"),
        ("1\nA 1 B 2\nA 1 B 2\n", "line 2: it should be 'name number number'"),
        ("1\nA 1 two\nA 1 B 2\n", "line 2: it should be"),
        (DEV + "C 1 2\n", "line 4: there are more pairs than the 2"),
        ("0\nA 1 2\n", "line 2: there are more pairs than the 0"),
        (b"1\nA\xff 1 2\n", "it is not UTF-8"),
    ],
)
def test_a_mistake_in_lfws_pairs_is_a_sentence_and_leaves_nothing(text, told, tmp_path, capsys):
    (tmp_path / "pairs.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["convert", "lfw", str(tmp_path / "pairs.txt"), "--output", str(tmp_path / "p.csv")]) == 2
    said = capsys.readouterr().err
    assert told in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.txt"]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("1 a.jpg b.jpg\n0 c.jpg d.jpg\n", "label-left-right"),
        ("1\ta.jpg\tb.jpg\n\n-1\tc.jpg\td.jpg\r\n", "label-left-right"),
        ("True, a.jpg, b.jpg\nfalse,c.jpg,d.jpg", "label-left-right"),
        ("a.jpg b.jpg 1\nc.jpg d.jpg 0\n", "left-right-label"),
    ],
)
def test_lists_become_manifests(text, order, tmp_path):
    (tmp_path / "pairs.lst").write_text(text)
    command = ["convert", "list", str(tmp_path / "pairs.lst"), "--order", order, "--images", "gs://faces/", "--output"]
    assert main([*command, str(tmp_path / "p.csv")]) == 0
    assert read(tmp_path / "p.csv")[["left", "right", "genuine"]].values.tolist() == [
        ["gs://faces/a.jpg", "gs://faces/b.jpg", "1"], ["gs://faces/c.jpg", "gs://faces/d.jpg", "0"],
    ]  # fmt: skip


def test_paths_with_blanks_commas_and_quotes_come_through(tmp_path):
    (tmp_path / "pairs.lst").write_text('1\tmy photos/a, "old".jpg\t/abs/b c.jpg\n')
    assert main(["convert", "list", str(tmp_path / "pairs.lst"), "--output", str(tmp_path / "p.csv")]) == 0
    assert read(tmp_path / "p.csv")[["left", "right"]].values.tolist() == [['my photos/a, "old".jpg', "/abs/b c.jpg"]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 a b\n1 a\n", "line 2: there are 2 fields"),
        ("1 a b\n\n1 a b c\n", "line 3: there are 4 fields"),
        ("label left right\n", "line 1: the label is 'label'"),
        ("a b 1\n", "line 1: the label is 'a', not 1 or 0; see --order left-right-label"),
        ("", "there are no pairs"),
        ("1 " + "a" * 70_000 + " b", "line 1: it is longer than"),
        ("\x1b[2J a b", "the label is '\\x1b[2J'"),
    ],
)
def test_a_mistake_in_a_list_is_a_sentence(text, told, tmp_path, capsys):
    (tmp_path / "pairs.lst").write_text(text)
    assert main(["convert", "list", str(tmp_path / "pairs.lst"), "--output", str(tmp_path / "p.parquet")]) == 2
    said = capsys.readouterr().err
    assert told in said and "\x1b" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.lst"]


@pytest.mark.processes
def test_a_long_list_is_read_a_piece_at_a_time(tmp_path):
    (tmp_path / "pairs.lst").write_text("".join(f"{n % 2} a{n}.jpg b{n}.jpg\n" for n in range(150_000)))
    code = (
        "import resource, sys\nfrom batchverify.cli.main import main\nimport pyarrow.csv, pyarrow.parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 0\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "convert",
        "list",
        str(tmp_path / "pairs.lst"),
        "--output",
        str(tmp_path / "p.parquet"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = pd.read_parquet(tmp_path / "p.parquet")
    assert len(found) == 150_000 and found["left"].iloc[-1] == "a149999.jpg" and found["genuine"].sum() == 75_000
    assert int(done.stdout.splitlines()[-1]) < 100 * 1024


def test_what_exists_is_not_replaced_unasked(tmp_path, capsys):
    (tmp_path / "pairs.lst").write_text("1 a b\n")
    (tmp_path / "p.csv").write_text("mine")
    command = ["convert", "list", str(tmp_path / "pairs.lst"), "--output", str(tmp_path / "p.csv")]
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0 and "genuine" in (tmp_path / "p.csv").read_text()
    assert main([*command[:3], "--output", str(tmp_path / "p.txt")]) == 2
    assert "end it with .csv or .parquet" in capsys.readouterr().err
    assert main([*command[:3], "--output", "s3://bucket/p.csv"]) == 2
    assert "--output s3://bucket/p.csv lies in a store" in capsys.readouterr().err
    assert main(["convert", "list", str(tmp_path / "none"), "--output", str(tmp_path / "q.csv")]) == 2
    assert "none: No such file" in capsys.readouterr().err


@pytest.fixture
def small_run(tmp_path):
    """A folder as a finished run leaves it, with two scores."""
    folder = tmp_path / "small"
    folder.mkdir()
    scores = pa.table({"score": pa.array([0.75, 0.25], pa.float32()), "genuine": ["1", "0"]})
    pq.write_table(scores, folder / "scores-00000-of-00001.parquet")
    (folder / "_SUCCESS").write_text("run")
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "{}/pairs.lst", "--output", "{}/folder.csv"], "is a folder, and a file is to be written"),
        (["scores", "{}/small", "--format", "bob", "--output", "{}/small"], "is a folder, and a file is to be written"),
        (["scores", "{}/small", "--format", "bob", "--output", "{}/new/"], "is a folder, and a file is to be written"),
        (["scores", "{}/small", "--format", "pyeer", "--output", "{}/small"], "holds '_SUCCESS', which would be deleted"),
        (["scores", "{}/small", "--format", "pyeer", "--output", "."], "holds 'folder.csv', which would be deleted"),
        (["scores", "{}/small", "--format", "pyeer", "--output", "{}/pairs.lst"], "is no folder"),
    ],
)
def test_what_holds_other_files_is_not_replaced_and_stays(words, told, small_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "pairs.lst").write_text("1 a b\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.csv" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", *(word.format(tmp_path) for word in words), "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_for_pyeer_is_replaced_or_stays(small_run, tmp_path, monkeypatch, capsys):
    command = ["convert", "scores", str(small_run), "--format", "pyeer", "--output", str(tmp_path / "pyeer"), "--overwrite"]
    assert main(command) == 0
    (tmp_path / "pyeer" / "genuine.txt").write_text("earlier")
    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "rename", lambda source, target: rename(source, f"{source}/x" if source.endswith("unfinished") else target)
        )
        assert main(command) == 2
    assert (tmp_path / "pyeer" / "genuine.txt").read_text() == "earlier" and "check the path" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "pyeer" / "genuine.txt").read_text() == "0.75\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pyeer", "small"]


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    return batchverify.run(batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(output)))


@pytest.fixture(scope="module")
def expected(run, read_scores):
    scored = read_scores(run.output).dropna(subset="score")
    return {kind: scored.loc[scored["genuine"] == kind, "score"].to_numpy(np.float32) for kind in ("1", "0")}


@pytest.mark.slow
def test_scores_as_bob_measure_reads_them(run, expected, tmp_path, capsys):
    assert main(["convert", "scores", run.output, "--format", "bob", "--output", str(tmp_path / "scores.txt")]) == 0
    assert (
        "62 genuine and 60 impostor scores" in (told := capsys.readouterr().out) and "3 rows without a score left out" in told
    )
    # What bob.measure.load.split does.
    columns = np.loadtxt(tmp_path / "scores.txt")
    assert sorted(columns[columns[:, 0] == 1, 1].astype(np.float32)) == sorted(expected["1"])
    assert sorted(columns[columns[:, 0] == -1, 1].astype(np.float32)) == sorted(expected["0"])


@pytest.mark.slow
def test_bob_measure_finds_our_error_rate(run, tmp_path):
    measure = pytest.importorskip("bob.measure", reason="bob.measure is not installed; it needs NumPy 1")
    from bob.measure.load import split

    assert main(["convert", "scores", run.output, "--format", "bob", "--output", str(tmp_path / "scores.txt")]) == 0
    assert measure.eer(*split(str(tmp_path / "scores.txt"))) == pytest.approx(run.summary["error_rates"]["eer"], abs=1e-4)


@pytest.mark.slow
def test_pyeer_reads_the_scores_and_finds_our_error_rate(run, expected, tmp_path):
    assert main(["convert", "scores", run.output, "--format", "pyeer", "--output", str(tmp_path / "scores")]) == 0
    for kind, name in (("1", "genuine.txt"), ("0", "impostor.txt")):
        assert sorted(np.loadtxt(tmp_path / "scores" / name).astype(np.float32)) == sorted(expected[kind])
    if not (command := shutil.which("geteerinf", path=f"{sys.prefix}/bin")):
        pytest.skip("pyeer is not installed, so the files are not tried on it: pip install pyeer")
    arguments = [command, "-p", ".", "-g", "genuine.txt", "-i", "impostor.txt", "-e", "run", "-np", "-rf", "csv", "-sp", "."]
    subprocess.run(arguments, cwd=tmp_path / "scores", check=True, capture_output=True)
    report = pd.read_csv(tmp_path / "scores" / "pyeer_report.csv", skiprows=1, nrows=1)
    assert float(report["EER"].iloc[0]) == pytest.approx(run.summary["error_rates"]["eer"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        (lambda run: (run / "_SUCCESS").unlink(), [], "holds no finished run"),
        (lambda run: None, ["--label-column", "same"], "there is no column 'same'"),
        (lambda run: None, ["--label-column", "left"], "no label; name another column"),
    ],
)
def test_scores_that_cannot_be_converted_are_a_sentence(change, more, told, run, tmp_path, capsys):
    shutil.copytree(run.output, tmp_path / "run")
    change(tmp_path / "run")
    assert (
        main(["convert", "scores", str(tmp_path / "run"), "--format", "bob", "--output", str(tmp_path / "s.txt"), *more]) == 2
    )
    assert told in capsys.readouterr().err and not (tmp_path / "s.txt").exists()


@pytest.mark.parametrize("conversion", ["lfw", "list"])
def test_an_unknown_option_is_refused(conversion, tmp_path, capsys):
    assert main(["convert", conversion, str(tmp_path / "none"), "--output", "p.csv", "--frob"]) == 2
    assert "there is no option --frob" in capsys.readouterr().err
    assert main(["convert", conversion, str(tmp_path / "none"), "--output", "p.csv", "--region=x"]) == 2  # opens no store
    assert "there is no option --region" in capsys.readouterr().err
    assert main(["convert", conversion, str(tmp_path / "none"), "--outptu", "p.csv"]) == 2
    assert "there is no option --outptu; did you mean --output?" in capsys.readouterr().err
