"""Google's Dataflow: the options that a job there needs, and what it cannot use, checked before anything is submitted."""

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
from batchverify.pipeline.worker_paths import is_on_this_machine, worker_paths

_LOG = logging.getLogger(__name__)
# The setup.py of this package's checkout. The file does not exist where pip has installed the package.
_SETUP_FILE = Path(batchverify.__file__).resolve().parent.parent / "setup.py"
_ONE_PROCESS, _PROCESS_PER_CORE = "no_use_multiple_sdk_containers", "use_multiple_sdk_containers"


def is_dataflow(options: PipelineOptions) -> bool:
    """Returns whether the runner is Dataflow, by any of the names that Beam takes."""
    return "dataflow" in (options.view_as(StandardOptions).runner or "").lower()


def is_template_launch(options: PipelineOptions) -> bool:
    """Returns whether the job is only written to a file, which the launcher of a Flex Template starts afterwards."""
    return is_dataflow(options) and options.view_as(GoogleCloudOptions).template_location is not None


def job_link(options: PipelineOptions, result: Any) -> str | None:
    """Returns the address of a job's page in the console; None for other runners, and for a job that is only written."""
    if not getattr(result, "has_job", False):
        return None
    cloud = options.view_as(GoogleCloudOptions)
    return f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"


def configure_dataflow(options: PipelineOptions, config: VerificationConfig) -> None:
    """Adds to `options` what Dataflow needs and the user may leave out; changes nothing for other runners.

    Raises:
        PreflightError: With everything that would keep the job from running.
    """
    if not is_dataflow(options):
        if config.accelerator is not None:
            raise PreflightError(
                f"--accelerator {config.accelerator} requests GPUs from Dataflow; add --runner=DataflowRunner, or leave it "
                "out: a GPU of this machine is used without it."
            )
        return
    runner = _make_runner()
    cloud = options.view_as(GoogleCloudOptions)
    cloud.region = cloud.region or runner.get_default_gcp_region()
    if problems := [
        *_find_missing_options(cloud),
        *_find_local_paths(config),
        *_find_missing_packages(options, config),
        *_find_gpu_problems(options, config),
    ]:
        raise PreflightError(problems)
    _stage_this_package(options.view_as(SetupOptions), options)
    if config.accelerator is not None:
        _keep_one_model_per_gpu(options.view_as(DebugOptions))
    if malformed := PipelineOptionsValidator(options, runner).validate():
        raise PreflightError([f"--runner=DataflowRunner: {problem}" for problem in malformed])


def _make_runner() -> Any:
    try:
        from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401  The runner itself imports it too late.
    except ImportError:
        raise PreflightError(
            "--runner=DataflowRunner needs Beam's part for Google Cloud; pip install 'batchverify[gcp]'."
        ) from None
    return DataflowRunner()


def refuse_local_images(sample: Sequence[str]) -> None:
    """Refuses images that lie on this machine, found in a sample of a manifest's URIs.

    Raises:
        PreflightError: With the first such image.
    """
    if local := next(filter(is_on_this_machine, sample), None):
        raise PreflightError(
            f"the manifest names {local}, which Dataflow's workers cannot read; copy the images to a store such as gs://, and "
            "name them by URI, or by relative path with --image-root gs://BUCKET/FOLDER."
        )


def refuse_image_without(package: str, wanted_by: str, options: PipelineOptions) -> None:
    """Refuses Beam's own image where workers need a package that it lacks.

    Args:
        package: The package.
        wanted_by: What needs it, as the beginning of a sentence.
        options: Beam's options.

    Raises:
        PreflightError: With the remedy.
    """
    if not _container_image(options):
        raise PreflightError(
            f"{wanted_by} needs {package}, which Beam's own image lacks; add --sdk_container_image=IMAGE with it, or leave the "
            "labels out with --label-column ''."
        )


def _find_missing_options(cloud: GoogleCloudOptions) -> Iterator[str]:
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


def _find_local_paths(config: VerificationConfig) -> Iterator[str]:
    for option, path in worker_paths(config):
        if is_on_this_machine(path):
            yield f"{option} {path} lies on this machine, which Dataflow's workers cannot reach; give a URI such as gs://bucket/…"


def _find_missing_packages(options: PipelineOptions, config: VerificationConfig) -> Iterator[str]:
    """Yields a problem for each package that the workers need and would not have."""
    setup_file = options.view_as(SetupOptions).setup_file
    if setup_file is not None and not os.path.isfile(setup_file):
        yield f"--setup_file {setup_file} does not exist; name the setup.py of batchverify's source, or leave it out."
    if not _provides_package(options) and not _is_checkout():
        yield (
            "Dataflow's workers need batchverify too, and this installation has no source to send them; add "
            "--extra_package=FILE with its wheel or sdist, or --sdk_container_image=IMAGE that holds it, built from "
            "deploy/Dockerfile."
        )
    if config.runtime == "openvino" and not _container_image(options):
        yield f"--runtime {config.runtime} is an extra, which Beam's own image lacks; add --sdk_container_image=IMAGE with it."
    if any((model or "").lower().endswith(".onnx") for model in (config.model, config.candidate)) and not _container_image(
        options
    ):
        yield "an ONNX file needs onnxruntime, which Beam's own image lacks; add --sdk_container_image=IMAGE with it."


def _find_gpu_problems(options: PipelineOptions, config: VerificationConfig) -> Iterator[str]:
    if config.accelerator is None:
        return
    if not _container_image(options):
        yield (
            "--accelerator needs TensorFlow with CUDA on the workers, which Beam's own image lacks; add "
            "--sdk_container_image=IMAGE, built from deploy/Dockerfile."
        )
    cloud = options.view_as(GoogleCloudOptions)
    if cloud.flexrs_goal is not None:
        yield "--accelerator and --flexrs_goal exclude each other on Dataflow; leave one of them out."
    extra_options = [*(cloud.dataflow_service_options or []), *(options.view_as(DebugOptions).experiments or [])]
    if any(option.startswith("worker_accelerator") for option in extra_options):
        yield "worker_accelerator gives every worker a GPU, --accelerator only the workers that encode; leave one of them out."


def _container_image(options: PipelineOptions) -> str | None:
    workers = options.view_as(WorkerOptions)
    image: str | None = workers.sdk_container_image or workers.worker_harness_container_image
    return image


def _provides_package(options: PipelineOptions) -> bool:
    """Returns whether the user's options install this package on the workers."""
    setup = options.view_as(SetupOptions)
    return any((setup.setup_file, setup.extra_packages, setup.requirements_file, _container_image(options)))


def _is_checkout() -> bool:
    return _SETUP_FILE.is_file() and 'name="batchverify"' in _SETUP_FILE.read_text(encoding="utf-8")


def _stage_this_package(setup: SetupOptions, options: PipelineOptions) -> None:
    if setup.setup_file is not None:
        # Beam changes to the folder of the file, and a plain 'setup.py' names none.
        setup.setup_file = os.path.abspath(setup.setup_file)
    elif not _provides_package(options):
        setup.setup_file = str(_SETUP_FILE)
        _LOG.info("The workers install batchverify from %s (--setup_file).", _SETUP_FILE)


def _keep_one_model_per_gpu(debug: Any) -> None:
    """Makes each worker run one process, unless the user's options state the opposite.

    By default a worker runs one process for each core, and each of them would load a model of its own and take the GPU's memory
    for itself. The threads of a single process, one for each core by default, share the model.
    """
    if not debug.lookup_experiment(_PROCESS_PER_CORE):
        debug.add_experiment(_ONE_PROCESS)
