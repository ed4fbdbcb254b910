"""The public API: one table of names, which type checkers see too, and examples that run."""

import ast
import doctest
import shutil
from pathlib import Path

import pytest

import batchverify

WITH_EXAMPLE = (
    "RunResult",
    "RunSummary",
    "Scorer",
    "Submission",
    "Verified",
    "VerifyPairs",
    "VerifyRows",
    "load",
    "run",
    "score_frame",
)
PACKAGE = Path(batchverify.__file__).parent


def test_the_table_all_and_the_imports_for_type_checkers_agree():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {name.asname: node.module for node in imports for name in node.names if name.name == name.asname}
    assert seen == {name: f"batchverify.{module}" for name, module in batchverify._EXPORTS.items()}
    assert sorted(batchverify.__all__) == sorted([*seen, "__version__"]) == dir(batchverify)
    assert list(batchverify._EXPORTS) == sorted(batchverify._EXPORTS)


@pytest.mark.parametrize("name", batchverify._EXPORTS)
def test_a_public_name_is_defined_in_the_module_of_the_table(name):
    assert getattr(batchverify, name).__module__ == f"batchverify.{batchverify._EXPORTS[name]}"


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'verify'"):
        getattr(batchverify, "verify")  # noqa: B009


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_example_of_a_public_name_runs(name, demo, tmp_path, monkeypatch):
    """It finds the demo as `pairs.csv` and `model.keras`. The example of `submit` runs on the stand-in for Dataflow."""
    shutil.copytree(demo / "images", tmp_path / "images")
    shutil.copy(demo / "demo.csv", tmp_path / "pairs.csv")
    for suffix in ("", ".batchverify.json"):
        shutil.copy(PACKAGE / "demo" / f"sane.keras{suffix}", tmp_path / f"model.keras{suffix}")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(batchverify, name), name, globs={})
    assert doctest.DocTestRunner().run(example).failed == 0 < len(example.examples)
