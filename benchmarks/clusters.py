"""Clusters of Flink and Spark on this machine, for tests and benchmarks.

A task manager (in Spark, a worker with its executor) and the worker pool beside it stand for one machine: they run in a network
namespace of their own, and reach the rest of the cluster over a bridge. That takes Linux, its `ip` command and root.

The programs are published ones: the distributions of Flink and Spark come from PyPI. A job server is made of Beam's libraries
at Maven Central, where the archives of the job servers themselves are not always to be had. A cache keeps all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

FLINK, SPARK, BEAM_LIBRARIES = "1.19.3", "3.5.9", "2.62.0"
_JOB_SERVERS = {
    "flink": ("beam-runners-flink-1.19", "org.apache.beam.runners.flink.FlinkJobServerDriver"),
    "spark": ("beam-runners-spark-3", "org.apache.beam.runners.spark.SparkJobServerDriver"),
}
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>org.example</groupId><artifactId>job-server</artifactId><version>1</version><dependencies>{}</dependencies></project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
# The packages of Java 17 that Flink and Spark reach into.
_OPENED = [
    *("java.base/java.lang", "java.base/java.lang.invoke", "java.base/java.lang.reflect", "java.base/java.io"),
    *("java.base/java.net", "java.base/java.nio", "java.base/java.text", "java.base/java.time", "java.base/java.util"),
    *("java.base/java.util.concurrent", "java.base/java.util.concurrent.atomic", "java.base/java.util.concurrent.locks"),
    *("java.base/sun.net.util", "java.base/sun.nio.ch", "java.base/sun.nio.cs", "java.base/sun.security.action"),
    "java.base/sun.util.calendar",
]
_JAVA = ["java", *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED)]
_POOL_PORT = 50000
# Without it, an engine starts new workers for each stage, each of which loads the model.
_CACHE = "--environment_cache_millis=600000"
TASK_MIB = 512
_FETCH_S, _START_S, _END_S = 900, 120, 10
_BRIDGES = itertools.count()  # Numbers that make the names of networks unique.


class MissingPartError(Exception):
    """A program or a right that a cluster needs cannot be had; the message says which and why."""


def cache_folder() -> Path:
    """Returns the folder that keeps what was fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "batchverify-tests"


def fetch_flink() -> Path:
    """Returns the folder with Flink's Java archives."""
    return _fetch_distribution("apache-flink-libraries", FLINK) / "pyflink" / "lib"


def fetch_spark() -> Path:
    """Returns the folder with Spark's Java archives."""
    return _fetch_distribution("pyspark", SPARK) / "pyspark" / "jars"


def fetch_job_server(engine: str) -> Path:
    """Returns Beam's job server for `flink` or `spark`, an archive for `java -jar`."""
    artifact, driver = _JOB_SERVERS[engine]

    def fetch(folder: Path) -> None:
        beam = [artifact, "beam-sdks-java-extensions-google-cloud-platform-core"]
        needed = [("org.apache.beam", name, BEAM_LIBRARIES) for name in beam]
        needed += [("org.slf4j", "slf4j-simple", "1.7.30")] if engine == "flink" else []
        (folder / "pom.xml").write_text(_POM.format("".join(_DEPENDENCY.format(*what) for what in needed)))
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
        _run(["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), *goal])
        libraries = sorted((folder / "lib").glob("*.jar"))
        if engine == "spark":  # Its own archives come with Spark; among them is a Guava that is too old for Beam.
            theirs = sorted(fetch_spark().glob("*.jar"))
            names = {path.name for path in theirs}  # Spark refuses a name that comes twice.
            newer = [path for path in libraries if path.name.startswith("guava-")]
            libraries = [*newer, *theirs, *(path for path in libraries if path.name not in names and path not in newer)]
        _write_archive(folder / "job-server.jar", driver, libraries)

    return _keep(f"{artifact}-{BEAM_LIBRARIES}", fetch) / "job-server.jar"


def fetch_prism() -> Path:
    """Returns Beam's engine Prism, built with Go."""
    return _fetch_program("go/cmd/prism")


def fetch_boot() -> Path:
    """Returns the program that starts a worker in Beam's containers, built with Go; it serves without them, too."""
    return _fetch_program("python/container")


def _fetch_program(package: str) -> Path:
    """Returns a program of Beam's version out of Beam's Go module."""
    name = package.rpartition("/")[2]

    def fetch(folder: Path) -> None:
        module = f"github.com/apache/beam/sdks/v2/{package}@v{beam.__version__}"
        _run(["go", "install", module], {"GOBIN": str(folder)})

    return _keep(f"{name}-{beam.__version__}", fetch) / name


def _fetch_distribution(name: str, version: str) -> Path:
    def fetch(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        _run([*pip, "--target", str(folder), f"{name}=={version}"])

    return _keep(f"{name}-{version}", fetch)


def _keep(name: str, fetch: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache; a new one is renamed when it is whole, so that nobody ever finds half of it."""
    folder = cache_folder() / name
    if folder.exists():
        return folder
    unfinished = cache_folder() / f"{name}-{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        fetch(unfinished)
        with contextlib.suppress(OSError):  # Another process was faster.
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise MissingPartError(f"{command[0]} is not installed")
    surroundings = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S, env=surroundings)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
        raise MissingPartError(f"{command[0]} cannot fetch {command[-1]}: {said[0]}")


def _write_archive(path: Path, driver: str, libraries: Sequence[Path]) -> None:
    """Writes an archive that holds the names of its libraries, relative to its own folder, and nothing else."""
    names = " ".join(os.path.relpath(library, path.parent) for library in libraries)
    headers = ["Manifest-Version: 1.0", f"Main-Class: {driver}", f"Add-Opens: {' '.join(_OPENED)}", f"Class-Path: {names}"]
    folded = ["\r\n ".join(re.findall(".{1,70}", header)) for header in headers]  # A line has at most 72 bytes.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "\r\n".join([*folded, "", ""]))


class Bridge:
    """A network of namespaces, each with an address.

    Attributes:
        address: The address of this machine's own namespace.
        hosts: The other addresses.
    """

    def __init__(self, hosts: int):
        if shutil.which("ip") is None or os.geteuid() != 0:
            raise MissingPartError("network namespaces take Linux' ip command and root")
        number = next(_BRIDGES)
        self._name, subnet = f"bv{os.getpid()}x{number}", f"10.{os.getpid() % 250}.{number % 250}"
        self.address, self.hosts = f"{subnet}.1", [f"{subnet}.{host + 2}" for host in range(hosts)]
        try:
            self._make()
        except MissingPartError:
            self.close()
            raise

    def _make(self) -> None:
        bridge = self._name
        _run(["ip", "link", "add", bridge, "type", "bridge"])
        _run(["ip", "addr", "add", f"{self.address}/24", "dev", bridge])
        _run(["ip", "link", "set", bridge, "up"])
        for number, host in enumerate(self.hosts):
            space = f"{bridge}-{number}"
            _run(["ip", "netns", "add", space])
            _run(["ip", "link", "add", f"{bridge}v{number}", "type", "veth", "peer", "name", "eth0", "netns", space])
            _run(["ip", "link", "set", f"{bridge}v{number}", "master", bridge, "up"])
            for words in (
                ["addr", "add", f"{host}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                _run(["ip", "-n", space, *words])

    def within(self, number: int) -> list[str]:
        """Returns the words before a command that runs in a namespace."""
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def close(self) -> None:
        """Deletes the network; a namespace can be deleted when the last process that saw it has ended."""
        for number in range(len(self.hosts)):
            space = f"{self._name}-{number}"
            deadline = time.monotonic() + _END_S
            while Path("/run/netns", space).exists() and time.monotonic() < deadline:
                if subprocess.run(["ip", "netns", "del", space], capture_output=True).returncode:
                    time.sleep(0.2)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True)


class Cluster:
    """An engine's processes, each of which can be killed and started again; a context that starts and stops them.

    Args:
        folder: A folder for settings, logs and temporary files.
        pythons: For each machine, the interpreter of its workers. Its folder comes first in the machine's PATH.
        modules: A folder with modules that workers import beside those of their interpreter.
        task_mib: The heap of a task manager's tasks, or of an executor, in MiB.

    Attributes:
        address: The address that all machines reach; a store for them listens there.

    Raises:
        MissingPartError: If a program or a right that the cluster needs cannot be had, here or where the context begins.
    """

    engine = ""
    _cache: tuple[str, ...] = ()  # Spark would keep workers that have been killed.

    def __init__(self, folder: Path, pythons: Sequence[Path], modules: str = "", task_mib: int = TASK_MIB):
        self.folder, self._pythons, self._task_mib = folder, pythons, task_mib
        temporary = folder / "tmp"
        temporary.mkdir()
        java = f"{os.environ.get('JAVA_TOOL_OPTIONS', '')} -Djava.io.tmpdir={temporary}"  # Java does not look at TMPDIR.
        self._surroundings = {"JAVA_TOOL_OPTIONS": java, "SPARK_LOCAL_DIRS": str(temporary)}
        self._paths = [{"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": modules} for python in pythons]
        self._commands: dict[str, tuple[list[str], dict[str, str], Path]] = {}
        self.processes: dict[str, subprocess.Popen] = {}
        self._job_server = fetch_job_server(self.engine)
        self._bridge = Bridge(len(pythons))
        self.address = self._bridge.address
        self._port = _free_port()
        self._job_service = ["--runner=PortableRunner", f"--job_endpoint=localhost:{self._port}"]

    def __enter__(self) -> Cluster:
        try:
            self._start_engine()
            for number, python in enumerate(self._pythons):
                self._start_pool(number, python)
            _wait_until(self._is_ready, f"the {self.engine} cluster in {self.folder} is up")
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def arguments(self) -> list[str]:
        """Beam's arguments for a run whose workers the pools start."""
        return [*self._job_service, "--environment_type=EXTERNAL", f"--environment_config=localhost:{_POOL_PORT}", *self._cache]

    def process_arguments(self, boot: Path) -> list[str]:
        """Returns Beam's arguments for a run whose workers the task managers start themselves.

        Args:
            boot: Beam's program that starts a worker (`fetch_boot`).
        """
        command, files = self.folder / "start-worker", self.folder / "tmp"
        # Without a container there is no virtual environment for it to make: the machine's own is the worker's.
        command.write_text(
            f"#!/bin/sh\nexport RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 TMPDIR={files}\n"
            f'exec {boot} --semi_persist_dir={files}/$$ "$@"\n'
        )
        command.chmod(0o755)
        config = json.dumps({"command": str(command)})
        return [*self._job_service, "--environment_type=PROCESS", f"--environment_config={config}", _CACHE]

    def __exit__(self, *_: Any) -> None:
        for name in list(self.processes):
            self.kill(name)
        self._bridge.close()

    def kill(self, name: str) -> None:
        """Kills a process with all that it has started (SIGKILL)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()

    def start(self, name: str) -> None:
        """Starts a process, or starts a killed one again, with the same command."""
        command, environment, folder = self._commands[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=os.environ | self._surroundings | environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def workers(self, number: int) -> list[int]:
        """Returns the process ids of the Python workers of a machine."""
        return children(self.processes[f"pool-{number}"].pid)

    def kill_task_manager(self, number: int) -> None:
        """Kills what does the engine's work on a machine; Spark starts it again by itself."""
        self.kill(f"task-manager-{number}")

    def restart_task_manager(self, number: int) -> None:
        """Starts what `kill_task_manager` has killed, as the machine's own supervisor would."""
        self.start(f"task-manager-{number}")

    def active_jobs(self) -> int:
        """Returns the number of jobs that the engine has not ended."""
        raise NotImplementedError

    def _start_engine(self) -> None:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _add(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        machine: int | None = None,
        folder: Path | None = None,
    ) -> None:
        within = [] if machine is None else self._bridge.within(machine)
        self._commands[name] = ([*within, *command], environment, folder or self.folder)
        self.start(name)

    def _add_job_server(self, argument: str, environment: dict[str, str], *java: str) -> None:
        ports = [f"--job-port={self._port}", f"--artifact-port={_free_port()}", f"--expansion-port={_free_port()}"]
        where = ["--job-host=localhost", *ports, f"--artifacts-dir={self.folder}/artifacts"]
        self._add("job-server", ["java", "-Xmx768m", *java, "-jar", str(self._job_server), *where, argument], environment)

    def _start_pool(self, number: int, python: Path) -> None:
        folder = self.folder / f"pool-{number}"
        folder.mkdir()
        module = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={_POOL_PORT}"]
        surroundings = self._paths[number] | {"HOME": str(folder), "TMPDIR": str(folder)}
        self._add(f"pool-{number}", [str(python), *module], surroundings, number, folder)


class FlinkCluster(Cluster):
    """A job manager, and on each machine a task manager with two slots and a worker pool.

    Two task managers must not share a pool: both name their first worker 1-1, and each would stop the other's.
    """

    engine = "flink"
    _cache = (_CACHE,)

    def _start_engine(self) -> None:
        archives, self._rest = fetch_flink(), _free_port()
        settings = self._write_settings()
        where = {"FLINK_CONF_DIR": str(settings)}
        java = [*_JAVA, f"-Dlog4j.configurationFile={settings}/log4j.properties", "-cp", f"{archives}/*"]
        main = "org.apache.flink.runtime"
        manager = [f"{main}.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", str(settings)]
        self._add("job-manager", [*java, "-Xmx512m", *manager], where)
        for number, host in enumerate(self._bridge.hosts):
            runner = [f"{main}.taskexecutor.TaskManagerRunner", "--configDir", str(settings), f"-Dtaskmanager.host={host}"]
            heap = [f"-Xmx{self._task_mib + 128}m", "-XX:MaxDirectMemorySize=640m"]
            self._add(f"task-manager-{number}", [*java, *heap, *runner], where | self._paths[number], number)
        master = f"{self.address}:{self._rest}"
        self._add_job_server(f"--flink-master={master}", {})
        self._job_service.append(f"--flink_master={master}")

    def _write_settings(self) -> Path:
        memory = {
            "task.heap": self._task_mib, "framework.heap": 128, "task.off-heap": 64, "framework.off-heap": 128, "managed": 512,
            "jvm-metaspace": 256, "network": 256, "jvm-overhead": 192,
        }  # fmt: skip
        bounds = {name: ("min", "max") if name in ("network", "jvm-overhead") else ("size",) for name in memory}
        settings = {
            "jobmanager.rpc.address": self.address,
            "jobmanager.rpc.port": _free_port(),
            "jobmanager.memory.process.size": "1024m",
            "taskmanager.numberOfTaskSlots": 2,
            "taskmanager.cpu.cores": 2,
            "rest.address": self.address,
            "rest.port": self._rest,
            "io.tmp.dirs": f"{self.folder}/tmp",
            "cluster.evenly-spread-out-slots": "true",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 30,
            "restart-strategy.fixed-delay.delay": "2 s",
            "heartbeat.timeout": "20000",
            **{f"taskmanager.memory.{name}.{bound}": f"{size}m" for name, size in memory.items() for bound in bounds[name]},
        }
        folder = self.folder / "conf"
        folder.mkdir()
        (folder / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
        (folder / "log4j.properties").write_text(
            "rootLogger.level = INFO\nrootLogger.appenderRef.console.ref = C\nappender.console.name = C\n"
            "appender.console.type = CONSOLE\nappender.console.layout.type = PatternLayout\n"
            "appender.console.layout.pattern = %d{HH:mm:ss,SSS} %-5p %c{1} - %m%n\n"
        )
        return folder

    def _is_ready(self) -> bool:
        overview = _ask(f"http://{self.address}:{self._rest}/overview")
        return overview.get("taskmanagers") == len(self._pythons) and _answers(self._port)

    def active_jobs(self) -> int:
        jobs = _ask(f"http://{self.address}:{self._rest}/jobs/overview")["jobs"]
        return sum(job["state"] not in ("FINISHED", "CANCELED", "FAILED") for job in jobs)


class SparkCluster(Cluster):
    """A master, and on each machine a worker, which starts an executor of two cores for a job, and a worker pool."""

    engine = "spark"

    def _start_engine(self) -> None:
        archives, self._web, port = fetch_spark(), _free_port(), _free_port()
        java = [*_JAVA, "-Xmx512m", "-cp", f"{archives}/*"]
        master = f"spark://{self.address}:{port}"
        where = ["--host", self.address, "--port", str(port), "--webui-port", str(self._web)]
        local = {"SPARK_LOCAL_IP": self.address, "SPARK_HOME": str(archives.parent), "SPARK_SCALA_VERSION": "2.12"}
        self._add("master", [*java, "org.apache.spark.deploy.master.Master", *where], local)
        _wait_until(lambda: bool(_ask(f"http://{self.address}:{self._web}/json/")), "Spark's master is up")
        for number, host in enumerate(self._bridge.hosts):
            worker = [
                "org.apache.spark.deploy.worker.Worker",
                "--host",
                host,
                "--cores",
                "2",
                "--memory",
                f"{2 * self._task_mib}m",
            ]
            place = ["--work-dir", str(self.folder / f"work-{number}"), master]
            surroundings = local | self._paths[number] | {"SPARK_LOCAL_IP": host}
            self._add(f"task-manager-{number}", [*java, *worker, *place], surroundings, number)
        # Spark gives a job up after four failures of a task, which are soon over while a worker pool starts again.
        settings = ["-Dspark.task.maxFailures=200", f"-Dspark.executor.memory={2 * self._task_mib}m"]
        self._add_job_server(f"--spark-master-url={master}", local, *settings)

    def _is_ready(self) -> bool:
        workers = _ask(f"http://{self.address}:{self._web}/json/").get("workers", [])
        return sum(worker["state"] == "ALIVE" for worker in workers) == len(self._pythons) and _answers(self._port)

    def active_jobs(self) -> int:
        return len(_ask(f"http://{self.address}:{self._web}/json/")["activeapps"])

    def kill_task_manager(self, number: int) -> None:
        for executor in children(self.processes[f"task-manager-{number}"].pid):
            os.kill(executor, signal.SIGKILL)

    def restart_task_manager(self, number: int) -> None:
        pass  # The worker has started another executor.


CLUSTERS: dict[str, type[Cluster]] = {"flink": FlinkCluster, "spark": SparkCluster}


def children(process: int) -> list[int]:
    """Returns the ids of the processes that a process has started and that still run."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for child in itertools.chain.from_iterable(task.read_text().split() for task in tasks)]


def _ask(url: str) -> dict[str, Any]:
    """Returns what a web page of the cluster answers, or nothing while it does not."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
    return {}


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {_START_S} s it is still not so that {what}")
        time.sleep(0.2)
