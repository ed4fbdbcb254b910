"""What is printed after the work never decides the exit code."""

import os
import subprocess
import sys

import pytest

CONVERT = [sys.executable, "-m", "batchverify", "convert", "list"]


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """The command line of a conversion whose closing words hold a character that is not ASCII."""
    (tmp_path / "pairs.lst").write_text("1 a.png b.png\n")
    return [*CONVERT, str(tmp_path / "pairs.lst"), "--output", str(tmp_path / "é.csv")]


@pytest.mark.processes
def test_a_reader_that_is_gone_is_no_failure(arguments, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "é.csv").exists()


@pytest.mark.processes
def test_a_character_that_the_stream_cannot_encode_is_escaped(arguments):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "\\xe9.csv" in done.stdout


@pytest.mark.processes
def test_closed_streams_are_no_failure(arguments):
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *arguments], check=False)
    assert done.returncode == 0
