"""Runs whose workers are elsewhere: their environments, what lies in the store that all share, and the launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import batchverify
from tests.support.object_stores import Store

REPOSITORY = Path(batchverify.__file__).parents[1]

# Imported by each interpreter of a pool: whatever is the launcher's is not there, and every look at it is written down.
ELSEWHERE = """
import os, sys
seen = open({log!r}, "a", buffering=1)
def watch(event, args):
    if event == "exec" and getattr(args[0], "co_filename", "").endswith("/batchverify/__init__.py"):
        seen.write(f"import {{args[0].co_filename}}\\n")
    if event == "open" and isinstance(args[0], (str, bytes)) and os.fsdecode(args[0]).startswith({theirs!r}):
        seen.write(f"open {{os.fsdecode(args[0])}}\\n")
        raise FileNotFoundError(2, "it is on another machine", args[0])
sys.addaudithook(watch)
"""


def make_environment(folder: Path, sdist: Path, theirs: tuple[str, ...]) -> Path:
    """Makes a virtual environment in `folder/venv`, and returns the folder of its packages.

    Its libraries are those of this environment. Its interpreters write what they import of the package into `folder/seen`.

    Args:
        folder: A folder of its own.
        sdist: The source distribution.
        theirs: The beginnings of paths that are the launcher's and are not there for the workers.
    """
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    libraries = Path(np.__file__).parents[1]
    (packages / "libraries.pth").write_text(f"{libraries}\nimport elsewhere\n")
    (packages / "elsewhere.py").write_text(ELSEWHERE.format(log=str(folder / "seen"), theirs=theirs))
    shutil.copy(sdist, folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python"), "install", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--ignore-installed"]
    subprocess.run([*pip, *offline, str(folder / sdist.name)], check=True, cwd=folder)
    return packages


def write_input(folder: Path, model: str) -> Path:
    """Writes thirty pictures, 300 pairs of them and a missing one, and a model into `folder`."""
    rng = np.random.default_rng(9)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (18, 16, 3), np.uint8)).save(folder / f"p{number}.png")
    names = [*(f"p{number}.png" for number in range(30)), "none.png"]
    pairs = pd.DataFrame({side: [names[i] for i in rng.integers(len(names), size=300)] for side in ("left", "right")})
    pairs.to_csv(folder / "pairs.csv", index=False)
    shutil.copy(model, folder / "model.keras")
    return folder


def start_launcher(store: Store, launcher: Path, *words: str) -> subprocess.Popen:
    """Starts the command; what says how the store is reached is in its arguments alone, for workers to be told of."""
    names = {"--manifest": "in/pairs.csv", "--output": "out", "--model": "in/model.keras"}
    given = [word for option, name in names.items() for word in (option, store.uri(name))]
    keys = ["--s3_access_key_id=test", "--s3_secret_access_key=test", "--s3_region_name=eu-central-1"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(launcher), "AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.Popen(
        [sys.executable, "-m", "batchverify", *given, *store.arguments, *keys, "--block-rows", "50", *words],
        cwd=launcher, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def assert_as_local(scores: pd.DataFrame, store: Store, tmp_path: Path, read_scores: Callable) -> None:
    """Compares scores with those of a run in this process, row by row."""
    config = batchverify.VerificationConfig(
        manifests=(str(store.download("in", tmp_path / "in") / "pairs.csv"),),
        output=str(tmp_path / "local"),
        model=str(tmp_path / "in" / "model.keras"),
    )
    batchverify.run(config)
    same = [column for column in scores.columns if column not in ("manifest_file", "error")]
    pd.testing.assert_frame_equal(scores[same], read_scores(tmp_path / "local")[same], rtol=0, atol=1e-6)
