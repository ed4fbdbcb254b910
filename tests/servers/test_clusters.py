"""Clusters of Flink and Spark whose machines share nothing but an object store: they lose parts, and the rows are all there."""

import json
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchverify
from benchmarks.clusters import CLUSTERS, MissingPartError, fetch_job_server
from tests.support.object_stores import s3_store
from tests.support.workers_elsewhere import REPOSITORY, assert_as_local, make_environment, start_launcher, write_input

pytestmark = pytest.mark.engines
# Java compiles once and plainly: these engines live for a minute, and would spend much of it on code that runs faster later.
QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
END_S = 900  # beside other tests, on a slow machine


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Path:
    """The folder that the launcher works in and has its temporary files in."""
    return tmp_path_factory.mktemp("launcher")


@pytest.fixture(scope="module", params=["flink", pytest.param("spark", marks=pytest.mark.exhaustive)])
def cluster(request, tmp_path_factory, sdist, launcher):
    """Two machines with a task manager and a worker pool each."""
    folder = tmp_path_factory.mktemp(request.param)
    pythons = []
    for number in range(2):
        (folder / str(number)).mkdir()
        make_environment(folder / str(number), sdist, (str(launcher), str(REPOSITORY)))
        pythons.append(folder / str(number) / "venv" / "bin" / "python")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("JAVA_TOOL_OPTIONS", QUICK_START)
        try:
            cluster = stack.enter_context(CLUSTERS[request.param](folder, pythons))
        except MissingPartError as missing:
            pytest.skip(str(missing))
        yield cluster


@pytest.fixture(scope="module")
def store(cluster, tmp_path_factory, small_model):
    folder = write_input(tmp_path_factory.mktemp("pictures"), small_model)
    with s3_store(folder, cluster.address) as store:
        store.upload(folder, "in")
        yield store


@pytest.fixture
def start_run(cluster, store, launcher):
    """Starts runs; whatever became of them, the next test finds no process, no job and no output of theirs."""
    started = []

    def start(*words: str) -> subprocess.Popen:
        store.proxy.clear()
        started.append(start_launcher(store, launcher, *words))
        return started[-1]

    yield start
    store.proxy.clear()
    for process in started:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + END_S
    while cluster.active_jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
    for folder in ("out", "embeddings"):
        store.clear(folder)


@pytest.fixture
def slow_run(cluster, store, start_run):
    """Starts a run that fetches its images slowly, and returns it as soon as workers fetch them."""

    def start(*words: str) -> subprocess.Popen:
        process = start_run(*cluster.arguments, "--parallelism=2", "--fetch-threads=2", *words)
        store.proxy.delay_s = 1
        deadline = time.monotonic() + END_S
        while not cluster.active_jobs() or not (cluster.workers(0) or cluster.workers(1)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asked = store.proxy.images_asked()  # The launcher has looked at a few.
        while store.proxy.images_asked() < asked + 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        return process

    return start


def test_a_run_that_loses_a_worker_pool_and_a_task_manager_is_whole(cluster, store, slow_run, tmp_path, read_scores):
    """The engine does the lost work again: every row is written once, and the store of embeddings is published once."""
    process = slow_run("--embeddings", store.uri("embeddings"))
    cluster.kill("pool-0")
    cluster.start("pool-0")
    time.sleep(2)
    cluster.kill_task_manager(1)
    cluster.restart_task_manager(1)
    store.proxy.delay_s = 0
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 0, said
    assert "The job: " in said
    scores = read_scores(store.download("out", tmp_path / "out"))
    assert len(scores) == 300
    assert_as_local(scores, store, tmp_path, read_scores)
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["embeddings"]["encoded"] == 30
    local = json.loads((tmp_path / "local" / "_summary.json").read_text())
    for section in ("strangers", "steadiness"):
        assert_nearly_equal(summary[section], local[section])
    stored = store.download("embeddings", tmp_path / "embeddings").rglob("*.parquet")
    uris = pd.concat([pd.read_parquet(path, columns=["uri"]) for path in stored])["uri"]
    assert uris.is_unique and len(uris) == 30


@pytest.mark.exhaustive
def test_workers_may_be_processes_that_the_engine_starts(cluster, store, start_run, boot, tmp_path, read_scores):
    process = start_run(*cluster.process_arguments(boot), "--parallelism=2")
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 0, said
    scores = read_scores(store.download("out", tmp_path / "out"))
    assert len(scores) == 300
    assert_as_local(scores, store, tmp_path, read_scores)


def test_a_run_whose_worker_pools_are_gone_fails_in_a_sentence(cluster, store, slow_run):
    process = slow_run()
    for number in range(2):
        cluster.kill(f"pool-{number}")
    _, said = process.communicate(timeout=END_S)
    for number in range(2):
        cluster.start(f"pool-{number}")
    assert process.returncode == 1, said
    (failure,) = (line for line in said.splitlines() if line.startswith("batchverify: "))
    words = ("a worker pool does not answer; check that one runs", "a worker process died")
    assert any(failure.startswith(f"batchverify: the run failed: {cause}") for cause in words)
    assert "Traceback" not in said and "\tat " not in said
    assert cluster.active_jobs() == 0 and store.names("out") == []


def test_flink_s_address_is_asked_for(cluster, start_run):
    if cluster.engine != "flink":
        pytest.skip("only the job server for Flink does not cancel jobs")
    arguments = [argument for argument in cluster.arguments if not argument.startswith("--flink_master")]
    _, said = start_run(*arguments, "--check").communicate(timeout=END_S)
    assert "Name the address of Flink with --flink_master=HOST:PORT; without it a signal cannot cancel the job." in said


def test_a_signal_cancels_the_job(cluster, store, slow_run):
    process = slow_run()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "no unfinished output is left" in said
    assert cluster.active_jobs() == 0
    time.sleep(3)  # A task that still ran would write by then.
    assert store.names("out") == []


def assert_nearly_equal(found, expected):
    """Compares two values of a summary, numbers within 1e-6."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_nearly_equal(found[name], expected[name])
    elif isinstance(expected, list):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_the_runner_of_an_engine_needs_one_command(engine, small_model, pictures, tmp_path, monkeypatch, read_scores):
    """The job server brings a small engine along, and alone knows its options; workers are threads of the launcher."""
    try:
        archive = fetch_job_server(engine)
    except MissingPartError as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", f"{QUICK_START} -Djava.io.tmpdir={tmp_path}")  # Java does not look at TMPDIR.
    names = [f"p{number}.png" for number in range(10)]
    pairs = pd.DataFrame({"left": [*names, *names, *names, *names][:38], "right": (names[1:] + names) * 2})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), image_root=str(pictures), model=small_model, output=str(tmp_path / "out")
    )
    runner = [f"--runner={engine.title()}Runner", f"--{engine}_job_server_jar={archive}"]
    runner.append({"flink": "--execution_mode_for_batch=BATCH_FORCED", "spark": "--bundle_size=1000"}[engine])
    result = batchverify.run(config, runner)
    assert result.counters["rows_scored"] == 38
    batchverify.run(
        batchverify.VerificationConfig(
            manifests=config.manifests, image_root=str(pictures), model=small_model, output=str(tmp_path / "local")
        )
    )
    found, expected = read_scores(tmp_path / "out"), read_scores(tmp_path / "local")
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)
