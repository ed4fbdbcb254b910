"""What the tests of workers and engines share: Prism's program, and the source distribution."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.clusters import MissingPartError, fetch_boot, fetch_prism
from tests.support.workers_elsewhere import REPOSITORY


@pytest.fixture(scope="session")
def prism() -> str:
    """Prism's program of Beam's version, built once for each machine; skips where Go or its modules cannot be had."""
    return str(_fetch(fetch_prism))


@pytest.fixture(scope="session")
def boot() -> Path:
    """Beam's program that starts a worker, built once for each machine; skips where it cannot be."""
    return _fetch(fetch_boot)


def _fetch(fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    except MissingPartError as missing:
        pytest.skip(str(missing))


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
