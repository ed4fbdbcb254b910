"""The public API: one table of names, which type checkers see too, and examples that run."""

import ast
import dataclasses
import doctest
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
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


def make_config(**fields) -> batchverify.VerificationConfig:
    return batchverify.VerificationConfig(**{"manifests": ("pairs.csv",), "output": "out", **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"threshold": "0.7"}, "threshold is '0.7'; give a number."),
        ({"threshold": True}, "threshold is True; give a number."),
        ({"threshold": [0.7]}, "threshold is [0.7]; give a number."),
        ({"batch_size": 64.0}, "batch_size is 64.0; give a whole number."),
        ({"batch_size": None}, "batch_size is None; give a whole number."),
        ({"overwrite": "no"}, "overwrite is 'no'; give True or False."),
        ({"model": 7}, "model is 7; give a text."),
        ({"manifests": (7,)}, "manifests is (7,); give a list of texts, such as ['pairs.csv']."),
        ({"manifests": {}}, "manifests is {}; give a list of texts, such as ['pairs.csv']."),
        ({"manifests": ()}, "manifests is empty; give one --manifest or more."),
        ({"fmr": ("1e-3",)}, "fmr is ('1e-3',); give a list of numbers, such as ["),
        ({"fmr": "1e-3"}, "fmr is '1e-3'; give a list of numbers, such as ["),
        ({"review": ("0.4", "0.6")}, "review is ('0.4', '0.6'); give a list of numbers, such as ["),
        ({"image_size": (96.5, 96)}, "image_size is (96.5, 96); give a list of whole numbers, such as [96, 96]."),
        (
            {"group_column_pairs": ("a", "b")},
            "group_column_pairs is ('a', 'b'); give a list of pairs of texts, such as [['left_region', 'right_region']].",
        ),
        (
            {"custom_objects": {"a": "b"}},
            "custom_objects is {'a': 'b'}; give a list of texts, such as ['CLASS=module:attribute'].",
        ),
        ({"lambdas": {"a": "l1"}}, "lambdas is {'a': 'l1'}; give a list of texts, such as ['NAME=KIND']."),
        ({"max_flips": "few"}, "max_flips is 'few'; give a count such as 100, or a percentage such as '0.5%'."),
        ({"max_failed_rows": 0.5}, "max_failed_rows is 0.5; give a count such as 100"),
        ({"embeddings": "e", "embeddings_days": 10**9}, "--embeddings-days is 1000000000; give 36500 at most"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_a_sentence_when_the_configuration_is_made(fields, told):
    with pytest.raises(batchverify.PreflightError, match=re.escape(told)) as refused:
        make_config(**fields)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("take", ["config", "candidate", "load", "score_frame"])
def test_a_network_in_memory_is_to_be_saved_first(take):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    frame = pd.DataFrame({"left": ["a.png"], "right": ["b.png"]})
    takers: dict[str, Callable[[], Any]] = {
        "config": lambda: make_config(model=model),
        "candidate": lambda: make_config(candidate=model),
        "load": lambda: batchverify.load(model),
        "score_frame": lambda: batchverify.score_frame(frame, model=model),
    }
    name = "candidate" if take == "candidate" else "model"
    saved = rf"save it first, {name}\.save\('{name}\.keras'\), and give that path"
    told = f"^{name} is <Sequential name=.*; it is a network in memory.*; {saved}"
    with pytest.raises(batchverify.PreflightError, match=told):
        takers[take]()


@pytest.mark.parametrize("given", [("5", False), (-1, False), (0.5, False), (101, True), (float("nan"), True), (1, "yes")])
def test_a_limit_that_cannot_be_is_a_sentence_when_it_is_made(given):
    with pytest.raises(batchverify.BatchverifyError, match="; give "):
        batchverify.Limit(*given)


def test_paths_lists_and_numbers_of_numpy_become_what_a_configuration_holds():
    given = make_config(
        manifests=Path("pairs.csv"), output=Path("out"), model=Path("m.keras"), threshold=np.float32(0.5),
        batch_size=np.int64(8), overwrite=np.True_, image_size=[np.int64(96), np.int64(64)], fmr=[np.float64(0.25)],
        review=[0.25, np.float32(0.5)], group_column_pairs=[["l", "r"]], max_identity_faults=0, max_failed_rows="1%",
        max_stranger_matches=np.int32(7),
    )  # fmt: skip
    expected = make_config(
        model="m.keras", threshold=0.5, batch_size=8, overwrite=True, image_size=(96, 64), fmr=(0.25,), review=(0.25, 0.5),
        group_column_pairs=(("l", "r"),), max_identity_faults=batchverify.Limit.parse("0"),
        max_failed_rows=batchverify.Limit.parse("1%"), max_stranger_matches=batchverify.Limit.parse("7"),
    )  # fmt: skip
    assert given == expected and json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(expected))
    assert make_config(manifests=["a.csv", Path("b.csv")]).manifests == ("a.csv", "b.csv")
    assert dataclasses.replace(given, threshold=np.float64(0.75)).threshold == 0.75
