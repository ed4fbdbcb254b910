"""Jobs for Dataflow, taken by a stand-in for the service's REST API: what arrives, and what the launcher makes of its end.

The bucket is PyPI's emulator of Cloud Storage, which the stand-in gives credentials for, as Google's machines get them. Where
a test wants the job's work done, the stand-in does as the service does: it takes the staged pipeline out of the bucket and
runs it.
"""

import bz2
import doctest
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.stager import Stager
from gcp_storage_emulator.server import create_server
from google.cloud.dataflow import JobState, JobType
from PIL import Image

import batchverify
from batchverify.cli.main import main
from batchverify.pipeline import plan, run
from batchverify.pipeline.plan import pipeline_options
from tests.support.processes import start_program

pytestmark = pytest.mark.servers
BUCKET = "gs://nightly-pairs"
IMAGE = "europe-docker.pkg.dev/my-project/images/batchverify:1"
GPU = ["--accelerator", "nvidia-tesla-t4", f"--sdk_container_image={IMAGE}"]
ACCELERATOR, MIN_RAM = common_urns.resource_hints.ACCELERATOR.urn, common_urns.resource_hints.MIN_RAM_BYTES.urn
WORK = "the job's own work"


class Service(ThreadingHTTPServer):
    """Stands in for Dataflow.

    Attributes:
        jobs: as they arrived.
        ending: the state that a job comes to at once, or `WORK`: that which its pipeline comes to; None, and nobody may see it.
        state: of the last job.
        message: the error that is told of it.
        polls: how often its state was asked for.
        may_cancel: whether it may be cancelled.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.reset()

    def reset(self) -> None:
        self.jobs: list[dict] = []
        self.ending: str | None = "JOB_STATE_RUNNING"
        self.state: str | None = ""
        self.message = ""
        self.polls, self.may_cancel = 0, True

    @property
    def options(self) -> list[str]:
        """The arguments that lead a job here."""
        return [
            "--runner=DataflowRunner", "--project=my-project", "--region=europe-west4", f"--temp_location={BUCKET}/tmp",
            f"--dataflow_endpoint=http://localhost:{self.server_port}", "--no_auth",
        ]  # fmt: skip

    def take(self, job: dict) -> dict:
        self.jobs.append(job)
        self.state = "JOB_STATE_RUNNING" if self.ending == WORK else self.ending
        if self.ending == WORK:
            threading.Thread(target=self._work, args=(staged_pipeline(job),), daemon=True).start()
        return job | {"id": "job-1"}

    def _work(self, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        for environment in pipeline.components.environments.values():
            environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
            environment.ClearField("resource_hints")
        try:
            FnApiRunner().run_via_runner_api(pipeline, PipelineOptions(["--no_auth"])).wait_until_finish()
            self.state = "JOB_STATE_DONE"
        except Exception as error:
            self.message, self.state = f"Traceback (most recent call last):\n{error}", "JOB_STATE_FAILED"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self):
        self._answer(self.server.take(json.loads(self._body())))

    def do_PUT(self):
        if not self.server.may_cancel:
            self.send_error(403)
            return
        self.server.state = JobState(json.loads(self._body())["requestedState"]).name
        self._answer({"id": "job-1", "currentState": self.server.state})

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.endswith("/universe-domain"):
            self.send_error(404)  # that is, the usual one
        elif path.startswith("/computeMetadata"):
            self._answer({"access_token": "let me in", "expires_in": 3600, "email": "launcher@my-project", "scopes": []})
        elif path == "/":
            self._answer({})
        elif path.endswith("/messages"):
            told = {"id": "1", "time": "2026-02-28T02:15:00Z", "messageImportance": "JOB_MESSAGE_ERROR"}
            self._answer({"jobMessages": [told | {"messageText": self.server.message}] if self.server.message else []})
        elif path.endswith("/metrics"):
            name = {"name": "rows_scored", "origin": "user", "context": {"namespace": "batchverify", "step": "s1"}}
            self._answer({"metrics": [{"name": name, "scalar": 57}]})
        elif self.server.state is None:
            self.send_error(403)
        else:
            self.server.polls += 1
            self._answer({"id": "job-1", "currentState": self.server.state})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...


@pytest.fixture(scope="module")
def dataflow(small_model):
    """The stand-in, and an emulator of Cloud Storage; in its bucket a model, ten pictures and a manifest of 57 pairs."""
    service = Service()
    threading.Thread(target=service.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    storage = create_server("localhost", port, in_memory=True, default_bucket=BUCKET.removeprefix("gs://"))
    storage.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
            patch.setenv(name, f"localhost:{service.server_port}")
        patch.setattr(Stager, "_build_setup_package", staticmethod(package_once(Stager._build_setup_package)))
        fill_bucket(small_model)
        yield service
    storage.stop()
    service.shutdown()
    service.server_close()


@pytest.fixture
def service(dataflow):
    dataflow.reset()
    return dataflow


@pytest.fixture
def arguments(service, request) -> list[str]:
    """The arguments of a run on the stand-in, into a folder of the test's own."""
    name = re.sub(r"\W", "-", request.node.name)
    given = ["--manifest", f"{BUCKET}/pairs.csv", "--output", f"{BUCKET}/{name}", "--model", f"{BUCKET}/model.keras"]
    return [*given, *service.options]


def package_once(build: Callable[..., str]) -> Callable[..., str]:
    """Has jobs of this process send copies of one source distribution. A job of a process of its own builds its own."""
    built: dict[str, bytes] = {}

    def package(setup_file: str, folder: str, *rest) -> str:
        if setup_file not in built:
            built[setup_file] = Path(build(setup_file, folder, *rest)).read_bytes()
        file = Path(folder) / "batchverify.tar.gz"
        file.write_bytes(built[setup_file])
        return str(file)

    return package


def fill_bucket(model: str) -> None:
    write("model.keras", Path(model).read_bytes())
    rng = np.random.default_rng(5)
    for number in range(10):
        drawn = BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(drawn, "PNG")
        write(f"pictures/p{number}.png", drawn.getvalue())
    rows = [f"pictures/p{left}.png,pictures/p{right}.png" for left, right in rng.integers(10, size=(57, 2))]
    write("pairs.csv", "\n".join(["left,right", *rows]).encode())


def write(name: str, content: bytes) -> None:
    with FileSystems.create(f"{BUCKET}/{name}") as file:
        file.write(content)


def read(uri: str) -> bytes:
    with FileSystems.open(uri, compression_type="uncompressed") as file:
        return file.read()


def names(arguments: list[str]) -> list[str]:
    """Returns the names of the files in the run directory."""
    found = FileSystems.match([arguments[3] + "/*"])[0].metadata_list
    return sorted(file.path.rsplit("/", 1)[1] for file in found)


def job_options(job: dict) -> dict:
    return job["environment"]["sdkPipelineOptions"]["options"]


def staged_pipeline(job: dict) -> beam_runner_api_pb2.Pipeline:
    return beam_runner_api_pb2.Pipeline.FromString(read(job_options(job)["pipelineUrl"]))


def staged_files(pipeline: beam_runner_api_pb2.Pipeline) -> dict[str, str]:
    """Returns what workers are sent: URIs by name."""
    files = {}
    for environment in pipeline.components.environments.values():
        for artifact in environment.dependencies:
            name = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
            files[name] = beam_runner_api_pb2.ArtifactUrlPayload.FromString(artifact.type_payload).url
    return files


def images(pipeline: beam_runner_api_pb2.Pipeline) -> set[str]:
    payloads = (environment.payload for environment in pipeline.components.environments.values())
    return {beam_runner_api_pb2.DockerPayload.FromString(payload).container_image for payload in payloads}


def pickles(pipeline: beam_runner_api_pb2.Pipeline) -> list[bytes]:
    """Returns all pickles of a pipeline, which Beam compresses with bzip2 and writes in base 64."""
    found = re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", pipeline.SerializeToString())
    return [bz2.decompress(b64decode(text)) for text in found]


def hints(pipeline: beam_runner_api_pb2.Pipeline) -> dict[str, dict[str, bytes]]:
    """Returns the resource hints of all steps that run on workers, by the steps' names."""
    environments = pipeline.components.environments
    return {
        step.unique_name: dict(environments[step.environment_id].resource_hints)
        for step in pipeline.components.transforms.values()
        if step.environment_id and not step.subtransforms
    }


def producer(pipeline: beam_runner_api_pb2.Pipeline, step: str) -> str:
    """Returns the name of what makes the input of a step."""
    steps = pipeline.components.transforms.values()
    (wanted,) = next(found.inputs.values() for found in steps if found.unique_name == step)
    return next(found.unique_name for found in steps if wanted in found.outputs.values() and not found.subtransforms)


def test_the_job_that_arrives_has_all_it_needs(arguments, service):
    command = [sys.executable, "-m", "batchverify", *arguments, "--no-wait"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Submitted https://console.cloud.google.com/dataflow/jobs/europe-west4/job-1?project=my-project" in done.stdout
    assert "Nothing is scored yet" in done.stdout
    (job,) = service.jobs
    assert job["type"] == JobType.JOB_TYPE_BATCH
    pipeline = staged_pipeline(job)
    with tarfile.open(fileobj=BytesIO(read(staged_files(pipeline)["workflow.tar.gz"]))) as sdist:
        inside = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"setup.py", "README.md", "batchverify/pipeline/network.py", "batchverify/report/report.html.j2"} <= inside
    assert {"batchverify/demo/sane.keras", "batchverify/demo/sane.keras.batchverify.json"} <= inside
    assert "pickled_main_session" not in staged_files(pipeline)
    assert all(re.search(r"beam_python3\.\d+_sdk:2\.\d+", image) for image in images(pipeline))
    assert not any(hints(pipeline).values())
    assert "no_use_multiple_sdk_containers" not in job["environment"]["experiments"]
    assert sum(b"batchverify.pipeline" in pickle for pickle in pickles(pipeline)) >= 2
    assert not any(b"__main__" in pickle for pickle in pickles(pipeline))
    # The launcher is gone; the job finds the directory to be its own.
    assert names(arguments) == ["_RUNNING"]


def test_the_example_of_submit_runs(service, monkeypatch):
    for module in (plan, run):  # The example does not name the stand-in.
        monkeypatch.setattr(module, "pipeline_options", lambda arguments: pipeline_options([*arguments, *service.options[-2:]]))
    (example,) = doctest.DocTestFinder(recurse=False).find(batchverify.submit, "submit", globs={})
    assert doctest.DocTestRunner().run(example).failed == 0 < len(example.examples)


def test_a_gpu_is_asked_for_where_images_are_encoded_and_nowhere_else(arguments, service):
    assert main([*arguments, *GPU, "--no-wait"]) == 0
    (job,) = service.jobs
    pipeline = staged_pipeline(job)
    found = {step: wanted for step, wanted in hints(pipeline).items() if wanted}
    encode, compare = "VerifyPairs/EncodeImages/ParDo(EncodeImages)", "VerifyPairs/ComparePairs"
    assert found == {encode: {ACCELERATOR: b"type:nvidia-tesla-t4;count:1;install-nvidia-driver", MIN_RAM: b"12000000000"}}
    # What stands behind a shuffle is never fused with what stands before it.
    assert "GroupByKey" in producer(pipeline, encode) and "GroupByBlock" in producer(pipeline, compare)
    # The image has the package; one process a worker, one model.
    assert images(pipeline) == {IMAGE} and "workflow.tar.gz" not in staged_files(pipeline)
    experiments = job["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" in experiments and "use_multiple_sdk_containers" not in experiments


def test_what_the_user_says_of_processes_and_of_the_machine_stands(arguments, service):
    words = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
    more = ["--accelerator", words, f"--sdk_container_image={IMAGE}", "--experiments=use_multiple_sdk_containers"]
    assert main([*arguments, *more, "--no-wait"]) == 0
    assert "no_use_multiple_sdk_containers" not in service.jobs[0]["environment"]["experiments"]
    (wanted,) = (wanted for wanted in hints(staged_pipeline(service.jobs[0])).values() if wanted)
    assert wanted == {ACCELERATOR: words.encode()}


def test_a_job_that_is_waited_for_ends_as_a_local_run_does(arguments, service, tmp_path, capsys):
    service.ending = WORK
    decisions = ["--threshold", "0.999", "--max-identity-faults", "0"]
    assert main([*arguments, *decisions]) == 3
    said = capsys.readouterr()
    assert "Rows      57: 57 scored" in said.out and f"{arguments[3]}/_summary.json" in said.out
    assert "gate not met" in said.err
    assert names(arguments) == ["_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00001.parquet"]
    assert main([*arguments[:2], "--output", str(tmp_path), *arguments[4:6], *decisions]) == 3
    name = "scores-00000-of-00001.parquet"
    there, here = pq.read_table(BytesIO(read(f"{arguments[3]}/{name}"))), pq.read_table(tmp_path / name)
    there, here = (table.sort_by("manifest_row").to_pydict() for table in (there, here))
    for column in ("score", "identity_left", "identity_right"):
        np.testing.assert_allclose(there.pop(column), here.pop(column), atol=1e-6)
    assert there == here


@pytest.mark.parametrize(
    ("state", "message", "told"),
    [
        ("JOB_STATE_FAILED", "Workflow failed. Causes: no quota for nvidia-tesla-t4.", "no quota for nvidia-tesla-t4;"),
        ("JOB_STATE_CANCELLED", "", "the job was cancelled;"),
    ],
)
def test_a_job_that_ends_badly_is_told_in_a_sentence_and_swept(state, message, told, arguments, service, capsys):
    service.ending, service.message = state, message
    assert main(arguments) == 1
    (words,) = (line for line in capsys.readouterr().err.splitlines() if "the run failed: " in line)
    assert told in words and words.endswith("/jobs/europe-west4/job-1?project=my-project.")
    assert names(arguments) == []


def test_a_job_that_is_lost_sight_of_keeps_its_directory(arguments, service, capsys):
    service.ending = None  # Not even its state is shown.
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the job was lost sight of, and may go on and finish; see https://console" in said and "Traceback" not in said
    assert names(arguments) == ["_RUNNING"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_stopped_cancels_its_job(number, arguments, service):
    may_cancel = service.may_cancel = number == signal.SIGTERM
    process = start_program(arguments)
    while not service.jobs or not service.polls:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in said
    assert service.state == ("JOB_STATE_CANCELLED" if may_cancel else "JOB_STATE_RUNNING")
    if may_cancel:
        assert "stopped by SIGTERM; no unfinished output is left" in said and names(arguments) == []
    else:
        assert "could not be cancelled and goes on: https://console" in said and names(arguments) == ["_RUNNING"]


def test_a_flex_templates_launcher_writes_the_job_and_returns(arguments, service, capsys):
    wanted = f"{arguments[3]}-launch/job_object"
    assert main([*arguments, f"--template_location={wanted}"]) == 0
    assert "the Flex Template's launcher starts it" in capsys.readouterr().out
    assert json.loads(read(wanted))["environment"]["sdkPipelineOptions"] and not service.jobs
    assert names(arguments) == ["_RUNNING"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--manifest", "pairs.csv"], "--manifest pairs.csv lies on this machine"),
        (["--output", "/scores"], "--output /scores lies on this machine"),
        (["--model", "file:///model.keras"], "--model /model.keras lies on this machine"),
        (["--candidate", "next.keras"], "--candidate next.keras lies on this machine"),
        (["--image-root", "images"], "--image-root images lies on this machine"),
        (["--project="], "--project is missing"),
        (["--temp_location="], "--temp_location is missing"),
        (["--temp_location=tmp"], "--temp_location tmp is not in Cloud Storage"),
        (["--project=My-Project", "--dataflow_endpoint=https://dataflow.googleapis.com"], "Invalid Project ID (My-Project)"),
        (["--setup_file=none/setup.py"], "--setup_file none/setup.py does not exist"),
        (["--accelerator", "nvidia-tesla-t4"], "--accelerator needs TensorFlow with CUDA"),
        ([*GPU, "--flexrs_goal=COST_OPTIMIZED"], "--accelerator and --flexrs_goal exclude each other"),
        ([*GPU, "--dataflow_service_options=worker_accelerator=type:x"], "worker_accelerator gives every worker a GPU"),
        ([*GPU, "--runtime", "openvino"], "--runtime openvino runs on the CPU"),
        (["--runtime", "openvino"], "which Beam's own image lacks"),
        (["--model", f"{BUCKET}/encoder.ONNX"], "needs onnxruntime, which Beam's own image lacks"),
        (["--candidate", f"{BUCKET}/encoder.onnx"], "needs onnxruntime, which Beam's own image lacks"),
        (["--accelerator", "type:nvidia-tesla-t4;count:2"], "give a type such as nvidia-tesla-t4"),
        (["--manifest", f"{BUCKET}/local.csv"], "the manifest names /srv/p0.png, which Dataflow's workers cannot read"),
        (["--runner=DirectRunner", "--no-wait"], "--no-wait is for --runner=DataflowRunner"),
        (["--runner=DirectRunner", *GPU], "a GPU of this machine is used without it"),
    ],
)
def test_what_cannot_run_there_is_refused_before_anything_is_submitted(options, told, arguments, service, capsys):
    write("local.csv", b"left,right\n/srv/p0.png,/srv/p1.png\n")
    arguments = arguments[2:] if "--manifest" in options else arguments
    assert main([*arguments, *options]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not service.jobs


def test_an_installation_without_source_says_what_to_give(arguments, service, tmp_path):
    shutil.copytree(Path(batchverify.__file__).parent, tmp_path / "site" / "batchverify")
    command = [sys.executable, "-c", "from batchverify.cli.main import run_as_process; run_as_process()", *arguments]
    done = subprocess.run(command, cwd=tmp_path / "site", env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2 and "this installation has no source to send them; add --extra_package=FILE" in done.stderr
    assert not service.jobs
