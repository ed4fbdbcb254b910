"""Workers elsewhere: in environments of their own, made from the source distribution, with an object store and nothing else."""

import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.object_stores import s3_store
from tests.support.workers_elsewhere import REPOSITORY, assert_as_local, make_environment, start_launcher, write_input

pytestmark = pytest.mark.workers


class Pool:
    """A worker pool in a virtual environment with the source distribution; its libraries are those of this environment.

    Args:
        folder: of its own, where it also works.
        sdist: to install.
        theirs: beginnings of paths that are the launcher's.
    """

    def __init__(self, folder: Path, sdist: Path, theirs: tuple[str, ...]):
        self.folder, self.seen = folder, folder / "seen"
        self.packages = make_environment(folder, sdist, theirs)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.address = f"localhost:{free.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        self.seen.unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.folder}/venv/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
        }
        command = [
            "python",
            "-m",
            "apache_beam.runners.worker.worker_pool_main",
            f"--service_port={self.address.split(':')[1]}",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
                executable=str(self.folder / "venv" / "bin" / "python"),
            )  # fmt: skip

    def workers(self) -> set[int]:
        """Returns the process ids of all workers that it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return {int(child) for task in tasks for child in (task / "children").read_text().split()}

    def kill(self) -> None:
        """Kills it, with its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def account(self) -> list[str]:
        """Returns what its interpreters imported and what they looked for of the launcher's."""
        return self.seen.read_text().splitlines()


@pytest.fixture(scope="module")
def store(tmp_path_factory, small_model):
    """A store with thirty pictures, 300 pairs of them and a model."""
    folder = write_input(tmp_path_factory.mktemp("pictures"), small_model)
    with s3_store(folder) as store:
        store.upload(folder, "in")
        yield store


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Path:
    """The folder that the launcher works in and has its temporary files in."""
    return tmp_path_factory.mktemp("launcher")


@pytest.fixture(scope="module")
def pools(tmp_path_factory, sdist, launcher):
    theirs = (str(launcher), str(REPOSITORY))
    found = [Pool(tmp_path_factory.mktemp(f"pool{number}"), sdist, theirs) for number in range(2)]
    yield found
    for pool in found:
        pool.kill()


@pytest.fixture(scope="module")
def cluster(pools, launcher, tmp_path_factory) -> Iterator[list[str]]:
    """Beam's arguments for a run on all pools."""
    port_file = launcher.parent / "cluster-ports"
    script = REPOSITORY / "tests" / "support" / "cluster.py"
    command = [sys.executable, str(script), str(port_file), *(pool.address for pool in pools)]
    # The job service makes a folder for what it is sent, and never deletes it.
    environment = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("cluster"))}
    with (launcher.parent / "cluster-log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    while not port_file.exists():
        assert process.poll() is None
        time.sleep(0.05)
    port, front = port_file.read_text().split()
    external = ["--environment_type=EXTERNAL", f"--environment_config=localhost:{front}"]
    yield ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", *external]
    process.kill()
    process.wait()


def wait_for_work(store, pools, process) -> None:
    """Waits until workers fetch images, after the few that the launcher looks at."""
    before = None
    while before is None or store.proxy.images_asked() < before + 5:
        assert process.poll() is None, process.communicate()
        if before is None and all(pool.workers() for pool in pools):
            before = store.proxy.images_asked()
        time.sleep(0.05)


def test_the_source_distribution_is_whole(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    package = REPOSITORY / "batchverify"
    tracked = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(REPOSITORY)) for path in tracked} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "setup.py", "pyproject.toml"} <= names


def test_workers_elsewhere_give_what_a_local_run_gives(store, pools, cluster, launcher, tmp_path, read_scores):
    with ExitStack() as stack:
        stack.callback(store.clear, "out")
        # A worker is killed in mid-run, and a whole pool: the run fails in a sentence and leaves nothing.
        store.proxy.delay_s = 0.5
        process = start_launcher(store, launcher, *cluster, "--fetch-threads", "2")
        wait_for_work(store, pools, process)
        os.kill(max(pools[0].workers()), signal.SIGKILL)
        pools[1].kill()
        _, said = process.communicate(timeout=300)
        assert process.returncode == 1, said
        assert "the run failed: a worker process died" in said and "Traceback" not in said
        assert store.names("out") == [] and store.uploads() == []
        pools[1].start()
        store.proxy.clear()
        store.proxy.delay_s = 0.5
        # The job takes longer than a job service may take to answer.
        process = start_launcher(store, launcher, *cluster, "--fetch-threads=2", "--job_server_timeout=3")
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        scores = read_scores(store.download("out", tmp_path / "out"))
        for pool in pools:
            account = pool.account()
            assert f"import {pool.packages}/batchverify/__init__.py" in account
            assert not [line for line in account if line.startswith("import") and str(pool.packages) not in line]
            assert not [line for line in account if line.startswith("open") and "batchverify-run-" not in line]
    assert_as_local(scores, store, tmp_path, read_scores)


@contextmanager
def running(program: str, folder: Path, pool: Pool) -> Iterator[list[str]]:
    """Runs Prism, and yields Beam's arguments for a run on it with the workers of a pool."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with (folder / "prism-log").open("ab") as log:
        command = [program, f"--job_port={port}", "--serve_http=false"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)})
    while socket.socket().connect_ex(("localhost", port)):
        assert process.poll() is None
        time.sleep(0.05)
    external = ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
    yield ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", *external]
    process.kill()
    process.wait()


@pytest.mark.engines
@pytest.mark.exhaustive
def test_prism_with_workers_elsewhere_gives_what_a_local_run_gives(prism, store, pools, launcher, tmp_path, read_scores):
    """Prism reports a dead worker, or ends itself; in either case the run fails in a sentence, and the next one is whole."""
    with ExitStack() as stack:
        stack.callback(store.clear, "out")
        pools[0].kill()  # With the workers of other tests, which would be taken for Prism's.
        pools[0].start()
        with running(prism, tmp_path, pools[0]) as arguments:
            store.proxy.delay_s = 0.5
            process = start_launcher(store, launcher, *arguments, "--fetch-threads", "2")
            wait_for_work(store, pools[:1], process)
            for worker in pools[0].workers():
                os.kill(worker, signal.SIGKILL)
            _, said = process.communicate(timeout=300)
        assert process.returncode == 1, said
        assert "the run failed: a " in said and "Traceback" not in said
        assert store.names("out") == [] and store.uploads() == []
        store.proxy.clear()
        store.proxy.delay_s = 0.5
        with running(prism, tmp_path, pools[0]) as arguments:
            # The job takes longer than a job server may take to answer.
            process = start_launcher(store, launcher, *arguments, "--fetch-threads=2", "--job_server_timeout=3")
            _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        scores = read_scores(store.download("out", tmp_path / "out"))
    assert_as_local(scores, store, tmp_path, read_scores)


def test_a_pool_that_is_not_there_fails_the_run_in_a_sentence(store, cluster, launcher):
    nowhere = [*cluster[:2], "--environment_type=EXTERNAL", "--environment_config=localhost:9"]
    process = start_launcher(store, launcher, *nowhere)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a part of the runner does not answer (" in said and "Traceback" not in said
    assert store.names("out") == []
