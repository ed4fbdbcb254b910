"""The command line as a user meets it: in a process of its own."""

import subprocess
import sys

import pytest

from batchverify.cli.messages import closing_words
from batchverify.cli.options import parse
from batchverify.config import PIXELS
from batchverify.errors import PreflightError


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "batchverify", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_run_says_what_it_did(demo, tmp_path):
    done = command("--manifest", demo / "demo.csv", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in (
        "embedded demo model",
        "125: 122 scored, 3 without",
        "1 missing, 1 unreadable",
        "SANE",
        "scores-*.parquet",
        "threshold 0.9102 for FMR 0.01, FNMR 14.52% (too few: it takes 300",
        "for the EER of 3.28%",
        "report.html",
    ):
        assert words in done.stdout
    again = command("--manifest", demo / "demo.csv", "--output", tmp_path / "out")
    assert again.returncode == 2 and "--overwrite" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--manifest", "none.csv", "--output", "{out}"], "none.csv: there is no such file"),
        (["--manifest", "x", "--outptu", "{out}"], "no option --outptu; did you mean --output?"),
        (["--manifest", "x", "--output", "{out}", "--runer=y"], "no option --runer; did you mean --runner?"),
        (["--manifest", "x"], "--output is missing"),
        (["--manifest", "x", "--output", "{out}[1]"], "[1] holds one of * ? ["),
        (["--manifest", "x", "--output", "{out}", "--threshold", "7"], "--threshold is 7.0"),
        (["--manifest", "x", "--output", "{out}", "--threshold", "high"], "invalid float value: 'high'"),
        (["--manifest", "{demo}", "--output", "{out}", "--model", "none.keras"], "none.keras: there is no such file"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(arguments, told, demo, tmp_path):
    out = tmp_path / "out"
    done = command(*(argument.format(out=out, demo=demo / "demo.csv") for argument in arguments))
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert not out.exists()


def test_an_output_that_cannot_be_made_fails_in_a_sentence(demo, tmp_path):
    (tmp_path / "file").touch()
    done = command("--manifest", demo / "demo.csv", "--output", tmp_path / "file" / "out")
    assert done.returncode in (1, 2) and "cannot be" in done.stderr and "Traceback" not in done.stderr


def test_beams_options_pass_through():
    config, others = parse(["--manifest=m.csv", "--output=o", "--runner=DataflowRunner", "--region", "europe-west4"])
    assert config.manifests == ("m.csv",)
    assert others == ["--runner=DataflowRunner", "--region", "europe-west4"]


def test_zero_is_a_threshold():
    assert parse(["--manifest=m", "--output=o", "--threshold=0"])[0].threshold == 0
    with pytest.raises(PreflightError):
        parse(["--manifest=m", "--output=o", "--batch-size=0"])


def test_help_loads_neither_beam_nor_tensorflow():
    code = (
        "import sys\nfrom batchverify.cli.job import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'apache_beam', 'tensorflow', 'keras', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for group in (
        "the job",
        "the model",
        "what the model was trained on",
        "the decisions",
        "the manifest's columns",
        "the images",
        "default: 0.0001",
    ):
        assert group in done.stdout


def test_a_fault_is_explained():
    summary = {
        "run": {"threshold": 0.6},
        "rows": {"total": 3, "scored": 3, "failed": 0, "matches": 2},
        "images": {"total": 4, "ok": 4},
        "identity": {"images_below_threshold": 4, "outscored": 0, "score_min": 0.5, "score_max": 0.5},
        "error_rates": None,
    }
    words = closing_words("out", summary)
    for expected in ("FAULT", "4 of 4 images", "fall below the threshold 0.6", "scores 0.5000", "sigmoid(bias)", "Retrain"):
        assert expected in words


def test_every_scale_of_pixels_can_be_given():
    for pixels in PIXELS:
        config, _ = parse(["--manifest", "m.csv", "--output", "o", "--pixels", pixels])
        assert config.pixels == pixels


def test_names_from_a_manifest_cannot_drive_the_terminal(tmp_path):
    (tmp_path / "pairs.csv").write_text("left,right,\x1b]0;owned\x07,\x1b]0;owned\x07\n")
    done = command("--manifest", tmp_path / "pairs.csv", "--output", tmp_path / "out")
    assert done.returncode == 2 and "column '\\x1b]0;owned\\x07' occurs 2 times" in done.stderr
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr
