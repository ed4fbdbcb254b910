"""A function of the operator's that makes pixels of decoded images (`--preprocess module:function`)."""

import dataclasses
import os
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import batchverify
from batchverify.cli.main import main
from batchverify.model.load import load_model

SOURCE = """
import numpy as np
from PIL import Image

def centre(image):
    \"\"\"The middle square, reduced, and darker.\"\"\"
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side]).resize((16, 16), Image.Resampling.BOX)
    return np.asarray(square, np.float32) * 0.5

def fails(image):
    raise ValueError("no face found")

def fails_on_tall_images(image):
    if image.shape[0] > 24:
        raise ValueError("no face found")
    return centre(image)

def turned(image):
    return centre(image).transpose(2, 0, 1)

number = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module with functions, fresh for each test."""
    name = f"faces_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def config(small_model, pictures, tmp_path):
    """A run of ten pictures, each against the next."""
    pairs = [(f"pictures/p{k}.png", f"pictures/p{(k + 1) % 10}.png") for k in range(10)]
    pd.DataFrame(pairs, columns=["left", "right"]).to_csv(tmp_path / "pairs.csv", index=False)
    return batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=small_model
    )


def test_the_network_gets_what_the_function_returns(module, config, pictures, read_scores):
    config = dataclasses.replace(config, preprocess=f"{module}:centre")
    summary = batchverify.run(config).summary
    centre = sys.modules[module].centre
    pixels = np.stack([centre(np.asarray(Image.open(pictures / f"p{k}.png"))) for k in range(10)])
    embeddings = load_model(config).encode(pixels)
    expected = load_model(config).compare(embeddings, np.roll(embeddings, -1, axis=0))
    np.testing.assert_allclose(read_scores(config.output)["score"], expected, atol=1e-6)
    assert f"--preprocess {module}:centre (" in summary["run"]["preprocessing"]


def test_an_image_on_which_the_function_fails_is_a_failure_of_that_image(module, config, read_scores):
    batchverify.run(dataclasses.replace(config, preprocess=f"{module}:fails_on_tall_images"))
    rows = read_scores(config.output)  # p0 to p9 are 20 to 29 pixels high.
    assert rows["score"].notna().tolist() == [True] * 4 + [False] * 6
    assert "no face found" in rows["error"][7] and rows["left_status"][7] == "unreadable"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("fails", "failed (no face found); repair the function"),
        ("turned", "gave the shape (3, 16, 16), and the model takes (16, 16, 3); repair the function"),
        ("number", "it is not a function"),
        ("missing", "it cannot be imported"),
    ],
)
def test_a_function_that_cannot_work_is_refused_before_the_run(function, told, module, config, tmp_path, capsys):
    arguments = ["--manifest", config.manifests[0], "--output", config.output, "--model", config.model]
    assert main([*arguments, "--preprocess", f"{module}:{function}"]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_stored_embeddings_of_another_version_of_the_function_are_not_used(module, config, tmp_path):
    config = dataclasses.replace(config, preprocess=f"{module}:centre", embeddings=str(tmp_path / "store"))
    assert batchverify.run(config).summary["embeddings"]["encoded"] == 10
    again = dataclasses.replace(config, overwrite=True)
    assert batchverify.run(again).summary["embeddings"]["reused"] == 10
    (tmp_path / f"{module}.py").write_text(SOURCE.replace("* 0.5", "* 0.25"))
    del sys.modules[module]
    os.utime(config.model)  # Tests share a loaded model while its file stays the same.
    assert batchverify.run(again).summary["embeddings"]["encoded"] == 10
