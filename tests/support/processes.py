"""The program in a process of its own, which tests stop, kill and starve.

A process takes several seconds to import TensorFlow and Beam, longer than for all that it does then. `start_program` forks from
a process that has imported them. What it starts has arguments, environment, signals, memory and an exit code of its own. What a
fresh interpreter does is tested where the program is started as a user starts it, with `python -m batchverify`.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import multiprocessing.reduction
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SUBPROCESS_WORKERS = [
    "--runner=PortableRunner",
    "--job_endpoint=embed",
    "--environment_type=beam:env:harness_subprocess_python:v1",
    f"--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.preloaded"])


@functools.cache
def _move_socket() -> None:
    """Has the socket of the process that forks lie beside pytest's own folders: it stays until this process ends."""
    folder = tempfile.mkdtemp(prefix="batchverify-forks-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # multiprocessing looks there
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)


class Program:
    """A running process of the program, with those methods of `subprocess.Popen` that the tests need."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], cwd: str | None, before: Callable[[], None] | None):
        _move_socket()
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        handles = [multiprocessing.reduction.DupFd(stream.fileno()) for stream in self._streams]
        given = (list(map(str, arguments)), handles, dict(env), cwd or os.getcwd(), before)
        self._process = _FORKS.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("batchverify", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end, and returns what was written to stdout and stderr."""
        self.wait(timeout)
        for stream in self._streams:
            stream.seek(0)
        printed, said = (stream.read() for stream in self._streams)
        return printed, said


def start_program(
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    before: Callable[[], None] | None = None,
) -> Program:
    """Starts the program.

    Args:
        arguments: The command line, without the program's name.
        env: The environment; by default that of this process.
        cwd: The working directory; by default that of this process.
        before: What the process does first.
    """
    return Program(arguments, os.environ if env is None else env, cwd, before)


def wait_for(path: Path, process: Program) -> None:
    """Waits until a path exists, while the process runs."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def _run(arguments: list[str], streams: list, env: dict[str, str], cwd: str, before: Callable[[], None] | None) -> None:
    """Does in the new process what the interpreter does for `python -m batchverify`."""
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.detach(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv, tempfile.tempdir = ["batchverify", *arguments], None
    if before:
        before()
    from batchverify.cli.main import run_as_process

    try:
        run_as_process()
    finally:
        atexit._run_exitfuncs()
