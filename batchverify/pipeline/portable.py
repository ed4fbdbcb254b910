"""Beam's portable runners (Prism, Flink, Spark, a job service): their job server, and what is checked before a job starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from batchverify import shutdown
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.uris import is_remote

_ANSWER_S = 10.0
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_REMEDIES = {
    "PrismRunner": "name Prism's program or its archive with --prism_location",
    "FlinkRunner": "name Beam's job server for Flink with --flink_job_server_jar, and have Java installed",
    "SparkRunner": "name Beam's job server for Spark with --spark_job_server_jar, and have Java installed",
}
# The job servers that this process has started and not stopped.
_servers: list[Any] = []


def configure_portable(options: PipelineOptions, config: VerificationConfig) -> None:
    """Refuses what would keep a job on a portable runner from running; does nothing for other runners.

    Raises:
        PreflightError: With everything that is wrong.
    """
    if _find_runner(options) is None:
        return
    problems = [*_find_local_paths(options, config), *_find_missing_server(options)]
    if problems:
        raise PreflightError(problems)


@contextmanager
def job_server(options: PipelineOptions) -> Iterator[None]:
    """Starts the job server that a runner brings along, and stops it at the end; does nothing for other runners.

    Beam would start it from the thread that runs the pipeline, where it fails, because it handles signals.

    Raises:
        PreflightError: If it cannot be started.
    """
    runner, portable = _find_runner(options), options.view_as(PortableOptions)
    if runner is None or type(runner) is PortableRunner or portable.job_endpoint:
        yield
        return
    name, server_options = type(runner).__name__, options.view_as(JobServerOptions)
    port = server_options.job_port = server_options.job_port or _free_port()
    try:
        server = runner.default_job_server(options)
        server = getattr(server, "_job_server", server)  # The wrapper around it would take SIGINT from this program.
        _servers.append(server)
        server.start()
        portable.job_endpoint = f"localhost:{port}"
    except Exception as error:  # A download, a process and a channel may fail, each in its own way.
        _stop_servers()
        remedy = _REMEDIES.get(name, "start it yourself, and name it with --job_endpoint")
        raise PreflightError(f"--runner={name}: its job server cannot be started ({short_reason(error)}); {remedy}.") from None
    try:
        yield
    finally:
        portable.job_endpoint = None
        _stop_servers()


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
    paths: list[tuple[str, str | None]] = [("--manifest", path) for path in config.manifests]
    paths += [("--model", config.model), ("--image-root", config.image_root)]
    paths += [("--output", config.output), ("--embeddings", config.embeddings)]
    for option, path in paths:
        if path and not is_remote(path):
            yield f"{option} {path} lies on this machine, and {place} cannot reach it; use a store, such as s3:// or gs://."


def _place_of_workers(options: PipelineOptions) -> str | None:
    """Returns where the workers are, if they do not share this machine's files, or None."""
    portable = options.view_as(PortableOptions)
    kind, where = portable.environment_type, portable.environment_config
    if kind is None and type(_find_runner(options)) is PortableRunner:
        kind = "DOCKER"  # Beam's own default.
    if kind == "DOCKER":
        return "a worker in a container (--environment_type=DOCKER)"
    if kind == "EXTERNAL" and where and where.rpartition(":")[0] not in _THIS_MACHINE:
        return f"the worker pool {where}"
    return None


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
