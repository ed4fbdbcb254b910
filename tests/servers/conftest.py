"""What the tests of workers and engines share: Prism's program, and the source distribution."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest

from benchmarks.clusters import cache_folder
from tests.support.workers_elsewhere import REPOSITORY

PRISM = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}"
BUILD_S = 600


@pytest.fixture(scope="session")
def prism() -> str:
    """Prism's program of Beam's version, built once for each machine; skips where Go or its modules cannot be had."""
    cache = cache_folder() / f"prism-{beam.__version__}"
    if not (cache / "prism").exists():
        if shutil.which("go") is None:
            pytest.skip("Prism is built with Go, which is not installed")
        cache.mkdir(parents=True, exist_ok=True)
        # Go first writes elsewhere, so that tests at the same time never find half a program.
        built = subprocess.run(
            ["go", "install", PRISM], env=os.environ | {"GOBIN": str(cache)}, capture_output=True, text=True, timeout=BUILD_S
        )
        if built.returncode:
            pytest.skip(f"Prism cannot be built: {built.stderr.strip().splitlines()[-1]}")
    return str(cache / "prism")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    """The source distribution that setup.py makes."""
    folder, source = tmp_path_factory.mktemp("sdist"), tmp_path_factory.mktemp("source")
    # setup.py writes beside itself, so that two that run at once in one folder fail: each has a copy.
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    shutil.copytree(REPOSITORY / "batchverify", source / "batchverify", ignore=shutil.ignore_patterns("__pycache__"))
    steps = ["-q", "egg_info", "--egg-base", str(folder), "sdist", "--dist-dir", str(folder)]
    subprocess.run([sys.executable, "setup.py", *steps], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))
