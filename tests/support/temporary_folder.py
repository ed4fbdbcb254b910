"""A pytest plugin: the tests get a temporary folder of their own, and the session fails where they leave something in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_VARIABLE = "BATCHVERIFY_TESTS_TMPDIR"
_TESTS = pytest.StashKey[dict[str, str]]()
_LEFT = pytest.StashKey[dict[str, str]]()


def _is_generated_code(path: Path) -> bool:
    """Returns whether a file or folder holds code that TensorFlow generates from the functions with which tests make models.

    It deletes that only when the process ends, which is later, and it never deletes what Python has compiled of it.
    """
    if path.name == "__pycache__":
        return all(map(_is_generated_code, path.iterdir()))
    return path.name.startswith("__autograph_generated_file")


def is_worker(config: pytest.Config) -> bool:
    """Returns whether this process is one of pytest-xdist's workers, and not the session that the user started."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder. Each worker of pytest-xdist has one in it, which all processes that its tests start inherit."""
    if not is_worker(config):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ.get("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="batchverify-tests-")
    own = Path(os.environ[_VARIABLE]) / os.environ.get("PYTEST_XDIST_WORKER", "main")
    own.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)
    config.stash[_TESTS], config.stash[_LEFT] = {}, {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Writes down which test an entry of the folder is from. A later test or the end of a fixture may yet take it away."""
    result = yield
    for name in os.listdir(tempfile.gettempdir()):
        item.config.stash[_TESTS].setdefault(name, item.nodeid)
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Collects what is left. A worker writes it down for the session that the user started, whose exit code it is."""
    own = Path(tempfile.gettempdir())
    tests = session.config.stash[_TESTS]
    names = [path.name for path in sorted(own.iterdir()) if not _is_generated_code(path)]
    left = {f"{own.name}/{name}": tests.get(name, "no single test") for name in names}
    if is_worker(session.config):
        own.with_suffix(".json").write_text(json.dumps(left), encoding="utf-8")
        return
    for path in own.parent.glob("*.json"):
        left |= json.loads(path.read_text(encoding="utf-8"))
    session.config.stash[_LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what is left, and which test it is from."""
    if left := config.stash[_LEFT]:
        terminalreporter.section("left in the temporary folder", red=True)
        for name, test in left.items():
            terminalreporter.line(f"{name}  {test}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the folder."""
    if not is_worker(config):
        shutil.rmtree(os.environ[_VARIABLE], ignore_errors=True)
