"""The rules of the house: imports go down only, and the light modules stay light."""

import ast
from pathlib import Path

import pytest

import batchverify

PACKAGE = Path(batchverify.__file__).parent
LAYERS = [
    "train", "training.fit", "training.trainer", "training.optimizers", "training.network", "training.distort",
    "training.evaluate", "training.curves", "training.history", "training.sources", "training.data", "training.recipe",
    "doctor", "convert", "cli", "check", "pipeline", "progress", "running", "dataflow", "report", "plots", "thumbnails",
    "gates", "baseline", "drift", "summary", "extremes", "scores", "inference", "embeddings", "reading", "models", "runtimes",
    "freezing", "trials", "certificate", "siamese", "loading", "modelfile", "hdf5probe", "preprocessing", "comparisons",
    "sidecar", "memory", "manifest", "coders", "images", "folders", "stores", "tally", "traps", "identity", "metrics", "schema",
    "config", "version",
]  # fmt: skip
HEAVY = {"apache_beam", "keras", "tensorflow"}
MAY_IMPORT_TENSORFLOW = {"models", "runtimes", "freezing", "siamese", "certificate", "loading", "preprocessing", "comparisons",
                         "training.trainer", "training.optimizers", "training.network", "training.distort"}  # fmt: skip


def imported(name: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if name == "train" else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "batchverify"}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_down(name):
    above = set(LAYERS[: LAYERS.index(name)])
    assert not {module for module in imported(name) if module.removeprefix("batchverify.") in above}


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {f"training.{path.stem}" for path in PACKAGE.glob("training/*.py")}
    modules -= {"__init__", "__main__", "training.__init__"}
    assert modules == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_tensorflow_only_where_a_model_is_loaded(name):
    heavy = {module.split(".")[0] for module in imported(name)} & {"keras", "tensorflow"}
    assert not heavy or name in MAY_IMPORT_TENSORFLOW


@pytest.mark.parametrize("name", ["metrics", "drift", "schema", "config", "identity", "version", "report", "plots", "tally"])
def test_the_light_modules_import_nothing_heavy(name):
    assert not {module.split(".")[0] for module in imported(name)} & HEAVY


@pytest.mark.parametrize("name", batchverify.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(batchverify, name).__doc__
