"""The job of the command line as a user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from batchverify.cli.job import parse
from batchverify.cli.main import main
from batchverify.cli.messages import run_message, threshold_messages
from batchverify.config import PIXELS
from batchverify.errors import PreflightError
from batchverify.report.verdict import judge_run


@pytest.fixture
def command(capsys):
    """Runs a job in this process, and returns its exit code and what it printed to stdout and to stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        return main([*map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_run_says_what_it_did(demo, tmp_path, command):
    code, out, err = command("--manifest", demo / "demo.csv", "--output", tmp_path / "out")
    assert code == 0, err
    for words in (
        "embedded demo model",
        "125: 122 scored, 3 without",
        "1 missing, 1 unreadable",
        "SANE",
        "scores-*.parquet",
        "threshold 0.9102 for FMR 0.01, 0.001, 0.0001, FNMR 14.52% (too few: it takes 300, 3,000, 30,000",
        "for the EER of 3.28%",
        "_report.html",
    ):
        assert words in out
    code, out, err = command("--manifest", demo / "demo.csv", "--output", tmp_path / "out")
    assert code == 2 and "--overwrite" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--manifest", "x", "--outptu", "{out}"], "no option --outptu; did you mean --output?"),
        (["--manifest", "x", "--output", "{out}", "--runer=y"], "no option --runer; did you mean --runner?"),
        (["--manifest", "x"], "--output is missing"),
        (["--manifest", "x", "--output", "{out}[1]"], "[1] holds one of * ? ["),
        (["--manifest", "x", "--output", "{out}", "--threshold", "7"], "--threshold is 7.0"),
        (["--manifest", "x", "--output", "{out}", "--fetch-threads", "100000"], "--fetch-threads is 100000; give 1024 at most"),
        (["--manifest", "x\udcff.csv", "--output", "{out}"], r"the argument 'x\udcff.csv' is not UTF-8"),
        (["--manifest", "x", "--output", "{out}\udcff"], r"out\udcff' is not UTF-8"),
        (["--manifest", "x", "--output", "{out}", "--threshold", "high"], "invalid float value: 'high'"),
        (["--manifest", "{demo}", "--output", "{out}", "--model", "none.keras"], "none.keras: there is no such file"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(arguments, told, demo, tmp_path, command):
    output = tmp_path / "out"
    code, _, err = command(*(argument.format(out=output, demo=demo / "demo.csv") for argument in arguments))
    assert code == 2 and told in err and "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize("name", ["a[1]", "b*", "c?"])
def test_a_working_directory_that_beam_takes_for_a_pattern_is_refused(name, demo, tmp_path, monkeypatch, command):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    code, _, err = command("--manifest", demo / "demo.csv", "--output", "out")
    assert code == 2 and f"--output {tmp_path / name}/out holds one of * ? [" in err and not Path("out").exists()


@pytest.mark.parametrize("names", [["none.csv"], ["empty"], ["none.csv", "empty"], ["pairs.csv", "none*.csv"]])
def test_a_manifest_that_is_not_there_ends_with_a_code_of_its_own(names, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pairs.csv").write_text("left,right\na.png,b.png\n")
    code, _, err = command(*(word for name in names for word in ("--manifest", name)), "--output", "out")
    assert code == 75 and "Traceback" not in err
    assert ("there is no such file" in err) == any("none" in name for name in names)
    assert ("the folder has no file that ends in" in err) == ("empty" in names)
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_is_not_there_is_not_waited_for_where_another_mistake_was_made(tmp_path, command):
    (tmp_path / "bad.csv").write_text("left,wrong\na.png,b.png\n")
    code, _, err = command(
        "--manifest", tmp_path / "bad.csv", "--manifest", tmp_path / "none.csv", "--output", tmp_path / "out"
    )  # fmt: skip
    assert code == 2 and "there is no such file" in err and "bad.csv" in err


@pytest.mark.slow
def test_an_output_that_cannot_be_made_fails_in_a_sentence(demo, tmp_path, command):
    (tmp_path / "file").touch()
    code, _, err = command("--manifest", demo / "demo.csv", "--output", tmp_path / "file" / "out")
    assert code in (1, 2) and "cannot be" in err and "Traceback" not in err


def test_beams_options_pass_through():
    arguments = parse(["--manifest=m.csv", "--output=o", "--runner=DataflowRunner", "--region", "europe-west4"])
    assert arguments.config.manifests == ("m.csv",)
    assert arguments.beam_args == ["--runner=DataflowRunner", "--region=europe-west4"]
    more = ["--streaming", "--num_workers", "-1", "--experiments", "a", "--experiments", "b", "--labels", "", "--limit", "3"]
    arguments = parse(["--manifest=m.csv", "--output=o", *more])
    given = ["--streaming", "--num_workers=-1", "--experiments=a", "--experiments=b", "--labels="]
    assert arguments.beam_args == given and arguments.config.limit == 3
    portable = parse(["--manifest=m.csv", "--output=o", "--runner=PortableRunner", "--their_own", "7", "--their_flag"])
    assert portable.beam_args == ["--runner=PortableRunner", "--their_own=7", "--their_flag"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--temp_location=/tmp/t", "--manifest", "a.csv", "b.csv", "c.csv"], "'b.csv' and 1 more are not options"),
        (["--manifest", "a.csv", "b.csv", "--temp_location", "/tmp/t"], "'b.csv' is not an option"),
        (["--temp_location", "--manifest", "a.csv", "b.csv"], "'b.csv' is not an option"),
        (["--manifest", "a.csv", "--project", "p", "b.csv"], "'b.csv' is not an option"),
        (["--manifest", "a.csv", "--streaming", "b.csv"], "'b.csv' is not an option"),
        (["--manifest", "a.csv", "--project=p", "-v"], "'-v' is not an option"),
        (["--manifest", "a.csv", "--project=p", "--", "b.csv"], "'--' and 1 more are not options"),
        (["--manifest", "a.csv", "--runner=PortableRunner", "--their_own", "7", "b.csv"], "'b.csv' is not an option"),
    ],
)
def test_a_word_that_is_neither_an_option_nor_a_value_is_refused_wherever_it_stands(words, told, tmp_path, command):
    code, _, err = command("--output", tmp_path / "out", *words)
    assert code == 2 and told in err and not (tmp_path / "out").exists()


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = parse(["--manifest=~/pairs/*.csv", "--output=~/scores", "--model=~/m.keras", "--image-root=gs://b/~"]).config
    assert config.manifests == ("/home/me/pairs/*.csv",) and config.output == "/home/me/scores"
    assert config.model == "/home/me/m.keras" and config.image_root == "gs://b/~"


@pytest.mark.parametrize("option", ["--output", "--embeddings"])
def test_a_file_in_the_place_of_a_directory_is_refused_before_the_model_is_loaded(option, tmp_path, command):
    (tmp_path / "pairs.csv").write_text("left,right\na,b\n")
    (tmp_path / "file").write_text("")
    places = {"--manifest": tmp_path / "pairs.csv", "--output": tmp_path / "out", "--model": tmp_path / "none.keras"}
    places[option] = tmp_path / "file" / "in"
    code, _, err = command(*(word for place in places.items() for word in place))
    assert code == 2 and f"{option} {tmp_path / 'file' / 'in'} cannot be written" in err and "none.keras" not in err


@pytest.mark.parametrize("start", ["file://", "FILE://", "file://localhost"])
def test_a_file_uri_in_an_option_is_a_path(start):
    config = parse(["--manifest", f"{start}/a%20b/p.csv", "--output", f"{start}/out", "--image-root", "gs://b/a%20b"]).config
    assert (*config.manifests, config.output, config.image_root) == ("/a b/p.csv", "/out", "gs://b/a%20b")


def test_zero_is_a_threshold():
    assert parse(["--manifest=m", "--output=o", "--threshold=0"]).config.threshold == 0
    with pytest.raises(PreflightError):
        parse(["--manifest=m", "--output=o", "--batch-size=0"])


@pytest.mark.processes
def test_help_loads_neither_beam_nor_tensorflow():
    code = (
        "import sys\nfrom batchverify.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'apache_beam', 'tensorflow', 'keras', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for group in (
        "the job",
        "doctor    examine",
        "the model",
        "what the model was trained on",
        "the decisions",
        "the manifest's columns",
        "the images",
        "default: 0.0001",
    ):
        assert group in done.stdout


@pytest.mark.parametrize(
    ("highest", "comparison", "why", "remedy"),
    [
        (0.5, "l1", "the distance zero, and the head turns zero into sigmoid(bias)", "weights that can’t be positive and"),
        (0.5, "cosine", "the head turns one into sigmoid(bias + weight)", "with a weight that can’t be negative"),
        (0.57, None, "score of an image with itself depends on the image", "or give it a head that compares embeddings by a"),
    ],
)
def test_a_fault_is_explained(highest, comparison, why, remedy):
    identity = {"images_compared": 4, "images_below_threshold": 4, "outscored": 0, "score_min": 0.5, "score_max": highest}
    summary = {
        "run": {"threshold": 0.6, "certificate": {"comparison": comparison, "holds": None}},
        "rows": {"total": 3, "scored": 3, "failed": 0, "matches": 2},
        "images": {"total": 4, "ok": 4},
        "image_traits": {},
        "identity": identity,
        "error_rates": None,
        "gates": [],
    }
    words = run_message("out", summary)
    for expected in ("FAULT", "4 of 4 images", "fall below the threshold 0.6", "scores 0.5000", "Seen:  an image", "Retrain"):
        assert expected in words
    for text in (words, judge_run(summary).findings[0].text):
        assert why in " ".join(text.split()) and remedy in " ".join(text.split())
        assert comparison == "l1" or "distance zero" not in text


def test_every_scale_of_pixels_can_be_given():
    for pixels in PIXELS:
        assert parse(["--manifest", "m.csv", "--output", "o", "--pixels", pixels]).config.pixels == pixels


def test_names_from_a_manifest_cannot_drive_the_terminal(tmp_path, command):
    (tmp_path / "pairs.csv").write_text("left,right,\x1b]0;owned\x07,\x1b]0;owned\x07\n")
    code, _, err = command("--manifest", tmp_path / "pairs.csv", "--output", tmp_path / "out")
    assert code == 2 and "column '\\x1b]0;owned\\x07' occurs 2 times" in err
    assert "\x1b" not in err and "\x07" not in err


def test_a_threshold_for_several_targets_is_suggested_once():
    def point(target, threshold, fnmr, evidence):
        return {"target": target, "threshold": threshold, "fnmr": fnmr, "evidence": evidence}

    points = [
        point(0.01, 0.8, 0.02, "enough"), point(0.001, 0.9, 0.1, "rough"), point(0.0001, 0.9, 0.1, "too_few"),
        point(1e-5, None, None, "too_few"), point(1e-6, None, None, "too_few"),
    ]  # fmt: skip
    assert threshold_messages({"at_fmr": points}) == [
        "threshold 0.8000 for FMR 0.01, FNMR 2.00%",
        "threshold 0.9000 for FMR 0.001, 0.0001, FNMR 10.00% (rough: it takes 30,000 impostor pairs to show; "
        "too few: it takes 30,000 impostor pairs to show)",
        "no threshold gives an FMR of 1e-05, 1e-06",
    ]
