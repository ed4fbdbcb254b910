"""The rules of the house: packages import one way only, and what is public is documented."""

import os
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import batchverify

ROOT = Path(batchverify.__file__).parent.parent


def test_packages_import_one_way_only():
    os.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == 0


@pytest.mark.parametrize("name", batchverify.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(batchverify, name).__doc__
