"""The benchmark of engines runs, and would notice rows that are not the same."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.engines import _difference

pytestmark = pytest.mark.benchmarks
ROOT = Path(__file__).resolve().parents[2]


def test_the_in_process_runner_is_measured():
    command = [sys.executable, "-m", "benchmarks.engines", "--pairs", "3000", "--images", "500", "--block-rows", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("| in process"))
    seconds, rows = (line.split("|")[column].strip() for column in (2, 7))
    assert float(seconds) > 0 and rows == "3,000"


def test_rows_that_are_not_the_same_are_noticed():
    rows = pd.DataFrame({"manifest_file": ["a", "a"], "manifest_row": [0, 1], "score": [0.25, 0.5]})
    assert _difference(rows, rows) == 0
    assert _difference(rows.assign(score=[0.25, 0.75]), rows) == 0.25
    assert _difference(rows.head(1), rows) == _difference(rows.assign(manifest_row=[0, 2]), rows) == float("inf")
