"""The rules of the house: packages import one way only, and what is public is documented."""

import subprocess
import sys
from pathlib import Path

import pytest

import batchverify

ROOT = Path(batchverify.__file__).parent.parent


def test_packages_import_one_way_only():
    # Not in this process: import-linter configures logging, and so disables the loggers that other tests read.
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("name", batchverify.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(batchverify, name).__doc__
