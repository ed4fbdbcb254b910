"""Beam's portable runners (Prism, Flink, Spark, a job service): their job server, and what is checked before a job starts."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
)
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from batchverify import shutdown
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.pipeline.flink import cancel_flink_job
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE, PORTABLE_BLOCK_BYTES, PORTABLE_ELEMENT_BYTES
from batchverify.pipeline.worker_paths import is_on_this_machine, with_absolute_paths, worker_paths

_LOG = logging.getLogger(__name__)
_ANSWER_S = 10.0
_CANCEL_S = 15.0
_LONGEST_JOB_S = 30 * 86_400
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_REMEDIES = {
    "PrismRunner": "name Prism's program or its archive with --prism_location",
    "FlinkRunner": "name Beam's job server for Flink with --flink_job_server_jar, and have Java installed",
    "SparkRunner": "name Beam's job server for Spark with --spark_job_server_jar, and have Java installed",
}
# The job servers that this process has started and not stopped.
_servers: list[Any] = []


def absolute_paths(options: PipelineOptions, config: VerificationConfig) -> VerificationConfig:
    """Returns the configuration with absolute paths for a portable runner, whose workers may run in another folder."""
    if _find_runner(options) is None:
        return config
    return with_absolute_paths(config)


def configure_portable(options: PipelineOptions, config: VerificationConfig) -> None:
    """Refuses what would keep a job on a portable runner from running; does nothing for other runners.

    Raises:
        PreflightError: With everything that is wrong.
    """
    if _find_runner(options) is None:
        return
    portable = options.view_as(PortableOptions)
    problems = [*_find_local_paths(options, config), *_find_missing_server(options)]
    if not problems and portable.job_endpoint:
        problems = [*_find_unknown_options(options)]
    if problems:
        raise PreflightError(problems)
    engine = find_engine(options) if portable.job_endpoint else None
    if engine and engine.is_flink and not engine.flink_master:
        _LOG.warning("Name the address of Flink with --flink_master=HOST:PORT; without it a signal cannot cancel the job.")


@contextmanager
def job_server(options: PipelineOptions) -> Iterator[None]:
    """Starts the job server that a portable runner brings along, and stops it at the end; does nothing for other runners.

    Beam would start it from the thread that runs the pipeline, where it fails, because it handles signals.

    Raises:
        PreflightError: If it cannot be started, or does not know an option.
    """
    if (runner := _find_runner(options)) is None:
        yield
        return
    portable = options.view_as(PortableOptions)
    endpoint, answer_s = portable.job_endpoint, portable.job_server_timeout
    try:
        if not endpoint:
            portable.job_endpoint = _start_server(runner, options)
            if problems := [*_find_unknown_options(options)]:
                raise PreflightError(problems)
        # Beam also ends its watch over a job after the time in which a job server should answer, a minute.
        portable.job_server_timeout = _LONGEST_JOB_S
        yield
    finally:
        portable.job_endpoint, portable.job_server_timeout = endpoint, answer_s
        _stop_servers()


def _start_server(runner: PortableRunner, options: PipelineOptions) -> str:
    """Starts a runner's own job server, and returns its address."""
    name, server_options = type(runner).__name__, options.view_as(JobServerOptions)
    port = server_options.job_port = server_options.job_port or _free_port()
    try:
        server = runner.default_job_server(options)
        server = getattr(server, "_job_server", server)  # The wrapper around it would take SIGINT from this program.
        _servers.append(server)
        server.start()
    except Exception as error:  # A download, a process and a channel may fail, each in its own way.
        remedy = _REMEDIES.get(name, "start it yourself, and name it with --job_endpoint")
        raise PreflightError(f"--runner={name}: its job server cannot be started ({short_reason(error)}); {remedy}.") from None
    return f"localhost:{port}"


@dataclasses.dataclass(frozen=True)
class Engine:
    """The engine behind a portable runner, as far as this process knows it.

    Attributes:
        place: Where its jobs can be looked at, in words.
        is_flink: Whether it is Flink.
        flink_master: The URL of Flink's REST interface, or None if it is not known.
    """

    place: str
    is_flink: bool
    flink_master: str | None

    def cancel(self, result: Any) -> None:
        """Cancels a job, and waits for its end.

        Raises:
            RunError: If the job may go on.
        """
        result.cancel()
        if self.is_flink and not self.flink_master:
            raise RunError("the job server for Flink does not cancel jobs, and the address of Flink is not known.")
        if self.flink_master:
            cancel_flink_job(self.flink_master, result._job_id.rpartition("_")[0], _CANCEL_S)


def max_element_bytes(options: PipelineOptions) -> int:
    """Returns the size of the largest element that may be sent between the steps of a job."""
    return EMBEDDING_BYTES_AT_ONCE if _find_runner(options) is None else PORTABLE_ELEMENT_BYTES


def max_block_bytes(options: PipelineOptions) -> int:
    """Returns the size of all embeddings that may be sent to one block."""
    return EMBEDDING_BYTES_AT_ONCE if _find_runner(options) is None else PORTABLE_BLOCK_BYTES


def find_engine(options: PipelineOptions) -> Engine | None:
    """Returns the engine that a job with these options is submitted to; None for runners that are not portable."""
    if _find_runner(options) is None:
        return None
    endpoint, flink, spark = options.view_as(PortableOptions).job_endpoint, _flink_master(options), _spark_master(options)
    known = _described_options(endpoint)
    if "flink_master" in known:
        return Engine(f"Flink's page {flink}" if flink else f"the job service {endpoint}", True, flink)
    is_elsewhere = "spark_master_url" in known and spark
    return Engine(f"the Spark cluster {spark}" if is_elsewhere else f"the job service {endpoint}", False, None)


def _stop_servers() -> list[str]:
    """Stops the job servers of this process, and with them their jobs."""
    while _servers:
        with suppress(Exception):  # It has ended already.
            _servers.pop().stop()
    return []


shutdown.register_cancellation(_stop_servers)


def _find_runner(options: PipelineOptions) -> PortableRunner | None:
    name = options.view_as(StandardOptions).runner
    try:
        runner = create_runner(name) if name else None
    except (ImportError, ValueError, TypeError):  # Beam says it when the pipeline is made.
        return None
    return runner if isinstance(runner, PortableRunner) else None


def _find_local_paths(options: PipelineOptions, config: VerificationConfig) -> Iterator[str]:
    """Yields a problem for each path on this machine that workers elsewhere need."""
    if (place := _place_of_workers(options)) is None:
        return
    for option, path in worker_paths(config):
        if is_on_this_machine(path):
            yield f"{option} {path} lies on this machine, and {place} cannot reach it; use a store, such as s3:// or gs://."


def _place_of_workers(options: PipelineOptions) -> str | None:
    """Returns where the workers are, if they do not share this machine's files, or None."""
    portable = options.view_as(PortableOptions)
    kind, where = portable.environment_type or _default_environment(options), portable.environment_config
    if kind == "DOCKER":
        return "a worker in a container (--environment_type=DOCKER)"
    if kind == "EXTERNAL" and where and where.rpartition(":")[0] not in _THIS_MACHINE:
        return f"the worker pool {where}"
    return None


def _default_environment(options: PipelineOptions) -> str | None:
    """Returns the kind of environment that Beam gives workers if nothing is said: containers, except beside a local engine."""
    name = type(_find_runner(options)).__name__
    masters = {"PrismRunner": None, "FlinkRunner": _flink_master(options), "SparkRunner": _spark_master(options)}
    return "DOCKER" if name not in masters or masters[name] else None


def _flink_master(options: PipelineOptions) -> str | None:
    """Returns the address of Flink's cluster; None if Beam starts one in the job server."""
    master = str(options.view_as(FlinkRunnerOptions).flink_master)
    return None if master.startswith("[") else FlinkRunner.add_http_scheme(master)


def _spark_master(options: PipelineOptions) -> str | None:
    """Returns the address of Spark's master; None if Beam starts one in the job server."""
    master = str(options.view_as(SparkRunnerOptions).spark_master_url)
    return None if master.startswith("local") else master


def _find_unknown_options(options: PipelineOptions) -> Iterator[str]:
    """Yields a problem for each option that only the job service could know, and does not know.

    The options of Flink and Spark are known to their job services alone; Beam drops without a word what nobody knows.
    """
    unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    if not unknown:
        return
    endpoint = options.view_as(PortableOptions).job_endpoint
    known = _described_options(endpoint)
    for name in sorted(unknown - set(known)):
        near = difflib.get_close_matches(name, known, 1, 0.75)
        remedy = f"did you mean --{near[0]}?" if near else "see batchverify --help."
        yield f"there is no option --{name}, and the job service at {endpoint} knows none of that name; {remedy}"


def _described_options(endpoint: str) -> list[str]:
    """Returns the names of the options of a job service's engine."""
    if endpoint == "embed":
        return []
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            return [option.name for option in stub.DescribePipelineOptions(request, timeout=_ANSWER_S).options]
        except grpc.RpcError as error:
            raise PreflightError(f"--job_endpoint {endpoint} is not a job service ({error.code().name.lower()}).") from None


def _find_missing_server(options: PipelineOptions) -> Iterator[str]:
    endpoint = options.view_as(PortableOptions).job_endpoint
    if not endpoint:
        if type(_find_runner(options)) is PortableRunner:
            yield "--runner=PortableRunner needs a job service; name its address with --job_endpoint=HOST:PORT."
        return
    host, _, port = endpoint.rpartition(":")
    if endpoint == "embed" or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]") or "localhost", int(port)), _ANSWER_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        yield f"--job_endpoint {endpoint}: nothing answers there ({reason}); start the job service, or name another."


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
