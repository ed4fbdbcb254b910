"""A run that scores nothing is never a silent success, and a check of it finds the likely cause."""

import json

import pytest

from batchverify.cli.main import main


@pytest.fixture
def job(tmp_path, small_model, capsys):
    """Runs a manifest of some text, and returns the exit code and what was printed to stderr."""

    def run(text: str, *options: str) -> tuple[int, str]:
        manifest = tmp_path / "pairs.csv"
        manifest.write_text(text)
        code = main(["--manifest", str(manifest), "--output", str(tmp_path / "out"), "--model", small_model, *options])
        return code, capsys.readouterr().err

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("left,right\na.png,b.png\n", "no row has a score"),
        ("left,right\n", "the manifest has no rows"),
        ("", "the manifest has no rows"),
    ],
)
def test_the_run_ends_with_code_3_even_in_silence(text, reason, job, tmp_path):
    code, err = job(text, "--quiet")
    assert code == 3 and reason in err and "--allow-empty" in err
    assert (tmp_path / "out" / "_SUCCESS").exists()
    (gate,) = json.loads((tmp_path / "out" / "_summary.json").read_text())["gates"]
    assert (gate["option"], gate["met"]) == ("--allow-empty", False)


@pytest.mark.slow
def test_it_may_be_allowed(job):
    assert job("left,right\n", "--allow-empty", "--quiet")[0] == 0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("left,right\nfaces\\a.png,faces\\b.png\n", "write / in the manifest"),
        ("left,right\na.png,b.png\n", "--image-root"),
        ("left,right\n,\n", "--left-column"),
        ("left,right\n", "no rows"),
    ],
)
def test_a_check_refuses_it_with_the_likely_cause(text, cause, job):
    code, err = job(text, "--check")
    assert code == 2 and cause in err


@pytest.mark.usefixtures("pictures")
def test_a_check_that_can_read_one_image_refuses_nothing(job):
    assert job("left,right\npictures/p1.png,none.png\n", "--check")[0] == 0
