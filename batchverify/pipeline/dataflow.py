"""Google's Dataflow: what a run there needs beside, and what it cannot have, told before anything is submitted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

import batchverify
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.uris import is_remote

_LOG = logging.getLogger(__name__)
# Where this package lies in a checkout; there is none where pip has put it beside others.
_SETUP_FILE = Path(batchverify.__file__).resolve().parent.parent / "setup.py"
_ONE_PROCESS, _PROCESS_PER_CORE = "no_use_multiple_sdk_containers", "use_multiple_sdk_containers"


def is_dataflow(options: PipelineOptions) -> bool:
    """Returns whether the runner is Dataflow, by any of the names that Beam takes."""
    return "dataflow" in (options.view_as(StandardOptions).runner or "").lower()


def is_template_launch(options: PipelineOptions) -> bool:
    """Returns whether the job is only written down: the launcher of a Flex Template says where to, and starts it afterwards."""
    return is_dataflow(options) and options.view_as(GoogleCloudOptions).template_location is not None


def job_link(options: PipelineOptions, result: Any) -> str | None:
    """Returns where Dataflow shows a job; None for other runners, and for a job that a template's launcher will start."""
    if not getattr(result, "has_job", False):
        return None
    cloud = options.view_as(GoogleCloudOptions)
    return f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"


def configure_dataflow(options: PipelineOptions, config: VerificationConfig) -> None:
    """Completes `options` with what Dataflow needs and the user need not say; leaves those of other runners alone.

    Raises:
        PreflightError: with all that the job could not run with.
    """
    if not is_dataflow(options):
        if config.accelerator is not None:
            raise PreflightError(
                f"--accelerator {config.accelerator} asks Dataflow for GPUs; add --runner=DataflowRunner, or leave it out: "
                "a GPU of this machine is used without it."
            )
        return
    try:
        from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401  which the runner itself imports too late
    except ImportError:
        raise PreflightError(
            "--runner=DataflowRunner needs Beam's part for Google Cloud; pip install 'batchverify[gcp]'."
        ) from None
    runner = DataflowRunner()
    cloud = options.view_as(GoogleCloudOptions)
    cloud.region = cloud.region or runner.get_default_gcp_region()
    if problems := [
        *_missing(cloud),
        *_local_paths(config),
        *_missing_on_workers(options, config),
        *_unfit_for_gpus(options, config),
    ]:
        raise PreflightError(problems)
    _stage_this_package(options.view_as(SetupOptions), options)
    if config.accelerator is not None:
        _keep_one_model_per_gpu(options.view_as(DebugOptions))
    if malformed := PipelineOptionsValidator(options, runner).validate():
        raise PreflightError([f"--runner=DataflowRunner: {problem}" for problem in malformed])


def refuse_local_images(sample: Sequence[str]) -> None:
    """Refuses images that lie on this machine, by a sample of a manifest's URIs.

    Raises:
        PreflightError: at the first one.
    """
    if local := next(filter(_is_local, sample), None):
        raise PreflightError(
            f"the manifest names {local}, which Dataflow's workers cannot read; copy the images to a store such as gs://, and "
            "name them by URI, or by relative path with --image-root gs://BUCKET/FOLDER."
        )


def _missing(cloud: GoogleCloudOptions) -> Iterator[str]:
    for option, meaning, example in (
        ("project", "the Google Cloud project that runs and pays for the job", "my-project"),
        ("region", "where the workers are", "europe-west4"),
        ("temp_location", "a folder in Cloud Storage for what the job stages", "gs://my-bucket/tmp"),
    ):
        if not getattr(cloud, option):
            yield f"--{option} is missing: {meaning}; add --{option}={example}."
    for option in ("temp_location", "staging_location", "template_location"):
        if (path := getattr(cloud, option)) and not path.startswith("gs://"):
            yield f"--{option} {path} is not in Cloud Storage; give a path such as gs://my-bucket/tmp."


def _local_paths(config: VerificationConfig) -> Iterator[str]:
    # A baseline may lie anywhere: the launcher reads it, and sends what it says.
    given: list[tuple[str, str | None]] = [("--manifest", path) for path in config.manifests]
    given += [("--output", config.output), ("--model", config.model), ("--image-root", config.image_root)]
    given += [("--embeddings", config.embeddings)]
    for option, path in given:
        if path is not None and _is_local(path):
            yield f"{option} {path} lies on this machine, which Dataflow's workers cannot reach; give a URI such as gs://bucket/…"


def _is_local(path: str) -> bool:
    return not is_remote(path) or path.startswith("file:")


def _missing_on_workers(options: PipelineOptions, config: VerificationConfig) -> Iterator[str]:
    """Yields what workers would need to import and do not have."""
    setup_file = options.view_as(SetupOptions).setup_file
    if setup_file is not None and not os.path.isfile(setup_file):
        yield f"--setup_file {setup_file} does not exist; name the setup.py of batchverify's source, or leave it out."
    if not _brings_package(options) and not _is_checkout():
        yield (
            "Dataflow's workers need batchverify too, and this installation has no source to send them; add "
            "--extra_package=FILE with its wheel or sdist, or --sdk_container_image=IMAGE that holds it, built from "
            "deploy/Dockerfile."
        )
    if config.runtime != "tensorflow" and not _image(options):
        yield f"--runtime {config.runtime} is an extra, which Beam's own image lacks; add --sdk_container_image=IMAGE with it."


def _unfit_for_gpus(options: PipelineOptions, config: VerificationConfig) -> Iterator[str]:
    if config.accelerator is None:
        return
    if not _image(options):
        yield (
            "--accelerator needs TensorFlow with CUDA on the workers, which Beam's own image lacks; add "
            "--sdk_container_image=IMAGE, built from deploy/Dockerfile."
        )
    cloud = options.view_as(GoogleCloudOptions)
    if cloud.flexrs_goal is not None:
        yield "--accelerator and --flexrs_goal exclude each other on Dataflow; leave one of them out."
    asked = [*(cloud.dataflow_service_options or []), *(options.view_as(DebugOptions).experiments or [])]
    if any(option.startswith("worker_accelerator") for option in asked):
        yield "worker_accelerator gives every worker a GPU, --accelerator those that encode; leave one of them out."


def _image(options: PipelineOptions) -> str | None:
    workers = options.view_as(WorkerOptions)
    return workers.sdk_container_image or workers.worker_harness_container_image


def _brings_package(options: PipelineOptions) -> bool:
    """Returns whether the user says how the workers come to this package."""
    setup = options.view_as(SetupOptions)
    return any((setup.setup_file, setup.extra_packages, setup.requirements_file, _image(options)))


def _is_checkout() -> bool:
    return _SETUP_FILE.is_file() and 'name="batchverify"' in _SETUP_FILE.read_text(encoding="utf-8")


def _stage_this_package(setup: SetupOptions, options: PipelineOptions) -> None:
    if setup.setup_file is not None:
        setup.setup_file = os.path.abspath(setup.setup_file)  # Beam changes to its folder, and 'setup.py' has none.
    elif not _brings_package(options):
        setup.setup_file = str(_SETUP_FILE)
        _LOG.info("The workers install batchverify from %s (--setup_file).", _SETUP_FILE)


def _keep_one_model_per_gpu(debug: DebugOptions) -> None:
    """Lets a worker run one process, unless the user says otherwise.

    By default there is one a core, and each would load a model of its own and take the GPU's memory for itself. The threads
    of the one process, one a core as the service chooses, share the model.
    """
    if not debug.lookup_experiment(_PROCESS_PER_CORE):
        debug.add_experiment(_ONE_PROCESS)
