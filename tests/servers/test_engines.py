"""Beam's portable runners: what is checked before a job is submitted, and Prism, built from Beam's own source."""

import dataclasses
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import keras
import pandas as pd
import pyarrow as pa
import pytest

import batchverify
from batchverify.cli.main import main
from batchverify.errors import PreflightError
from batchverify.pipeline.keras_network import keras_loader
from tests.support.processes import SUBPROCESS_WORKERS

pytestmark = pytest.mark.engines


@pytest.fixture
def pairs(pictures, tmp_path) -> Path:
    """A manifest of 60 pairs of ten images and a missing one."""
    names = [f"pictures/p{number}.png" for number in range(10)] + ["pictures/none.png"]
    rows = [(names[number % 11], names[(number * 7 + 3) % 11]) for number in range(60)]
    pd.DataFrame(rows, columns=["left", "right"]).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path / "pairs.csv"


def arguments(pairs, small_model, output, prism) -> list[str]:
    job = ["--manifest", str(pairs), "--model", small_model, "--output", str(output), "--block-rows", "13"]
    return [sys.executable, "-m", "batchverify", *job, "--runner=PrismRunner", f"--prism_location={prism}"]


def processes_of(program: str) -> list[str]:
    return subprocess.run(["pgrep", "-f", f"^{program}"], capture_output=True, text=True).stdout.split()


def own_prism(prism, tmp_path) -> str:
    """Returns a copy of the program, whose processes are those of this test."""
    return shutil.copy(prism, tmp_path / "prism")


def test_prism_gives_what_a_local_run_gives(prism, pairs, small_model, tmp_path, read_scores):
    program = own_prism(prism, tmp_path)
    done = subprocess.run(arguments(pairs, small_model, tmp_path / "out", program), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    batchverify.run(
        batchverify.VerificationConfig(
            manifests=(str(pairs),), model=small_model, output=str(tmp_path / "local"), block_rows=13
        )
    )  # fmt: skip
    found, expected = read_scores(tmp_path / "out"), read_scores(tmp_path / "local")
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)
    assert len(found) == 60 and (tmp_path / "out" / "_SUCCESS").exists()
    assert processes_of(program) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_and_prism(number, prism, pairs, small_model, tmp_path):
    program = own_prism(prism, tmp_path)
    process = subprocess.Popen(
        arguments(pairs, small_model, tmp_path / "out", program), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not processes_of(program):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert "no unfinished output is left" in said
    assert not list((tmp_path / "out").glob("*")) and processes_of(program) == []


def test_a_program_that_is_not_prism_is_refused(pairs, small_model, tmp_path, capsys):
    (tmp_path / "false").write_text("#!/bin/sh\nexit 3\n")
    job = arguments(pairs, small_model, tmp_path / "out", tmp_path / "false")[3:]
    assert main(job) == 2
    said = capsys.readouterr().err
    assert "--runner=PrismRunner: its job server cannot be started" in said and "--prism_location" in said
    assert not (tmp_path / "out" / "_RUNNING").exists()


@pytest.mark.parametrize(("runner", "option"), [("Flink", "--flink_job_server_jar"), ("Spark", "--spark_job_server_jar")])
def test_a_job_server_of_flink_or_spark_that_cannot_be_had_is_refused(runner, option, pairs, small_model, tmp_path, capsys):
    job = ["--manifest", str(pairs), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*job, f"--runner={runner}Runner", f"{option}={tmp_path}/no-such.jar"]) == 2
    said = capsys.readouterr().err
    assert f"--runner={runner}Runner: its job server cannot be started" in said and option in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


@pytest.fixture
def refusal(pairs, small_model, tmp_path):
    """Returns what a job with more of Beam's arguments is refused with."""

    def refuse(*beam_args: str, **settings: Any) -> str:
        config = batchverify.VerificationConfig(
            manifests=(str(pairs),), model=small_model, output=str(tmp_path / "out"), **settings
        )
        with pytest.raises(PreflightError) as refused:
            batchverify.run(config, beam_args)
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    return refuse


def test_a_job_service_that_does_not_answer_is_refused(refusal):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = refusal("--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK")
    assert f"--job_endpoint localhost:{port}: nothing answers there (Connection refused)" in said


def test_a_portable_runner_without_a_job_service_is_refused(refusal):
    assert "needs a job service; name its address with --job_endpoint" in refusal(
        "--runner=PortableRunner", "--environment_type=LOOPBACK"
    )


@pytest.mark.parametrize(
    ("beam_args", "place"),
    [
        (["--environment_type=DOCKER"], "a worker in a container"),
        ([], "a worker in a container"),
        (
            ["--environment_type=EXTERNAL", "--environment_config=worker.example.org:50000"],
            "the worker pool worker.example.org",
        ),
    ],
    ids=["docker", "default", "elsewhere"],
)
def test_paths_that_workers_cannot_reach_are_refused(beam_args, place, refusal, pairs, small_model):
    settings = {"candidate": "next.keras", "architecture": "net.json", "image_root": "file:///srv"}
    said = refusal("--runner=PortableRunner", "--job_endpoint=localhost:1", *beam_args, **settings)
    for name, path in (("manifest", pairs), ("model", small_model), *settings.items()):
        assert f"--{name.replace('_', '-')} {path} lies on this machine, and {place}" in said
    assert "--output" in said


def test_workers_of_a_cluster_are_in_containers_if_nothing_is_said(refusal, pairs):
    said = refusal("--runner=FlinkRunner", "--flink_master=flink.example.org:8081")
    assert f"--manifest {pairs} lies on this machine, and a worker in a container" in said


def test_an_option_that_the_job_service_does_not_know_is_refused(refusal):
    said = refusal("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK", "--no_such_option=3")
    assert "there is no option --no_such_option, and the job service at embed knows none of that name" in said


def test_what_is_no_job_service_is_refused(refusal):
    with socket.create_server(("localhost", 0)) as deaf:
        endpoint = f"localhost:{deaf.getsockname()[1]}"
        said = refusal("--runner=PortableRunner", f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK")
    assert f"--job_endpoint {endpoint} is not a job service (" in said


def test_a_misspelt_option_is_no_option_of_an_engine(pairs, capsys):
    job = ["--manifest", str(pairs), "--runner=PortableRunner", "--job_endpoint=embed"]
    assert main([*job, "--outptu", "out"]) == 2
    assert "there is no option --outptu; did you mean --output?" in capsys.readouterr().err


def test_workers_in_another_folder_find_relative_paths(pairs, small_model, tmp_path, monkeypatch, read_scores):
    monkeypatch.chdir(tmp_path)
    network = keras.models.load_model(small_model)
    network.save_weights(tmp_path / "net.weights.h5")
    (tmp_path / "architecture.json").write_text(network.to_json())
    config = batchverify.VerificationConfig(
        manifests=("pairs.csv",), model="net.weights.h5", architecture="architecture.json", output="out"
    )
    *arguments, command = SUBPROCESS_WORKERS
    command = command.replace("=", "=cd / && ", 1)
    batchverify.run(config, [*arguments, command])
    batchverify.run(dataclasses.replace(config, output="local"))
    same = [column for column in read_scores("local").columns if column != "manifest_file"]
    found, expected = read_scores(tmp_path / "out"), read_scores(tmp_path / "local")
    pd.testing.assert_frame_equal(found[same], expected[same], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "version"), [("apache-beam", "2.60.0"), ("Python", "3.9"), ("batchverify", "0.0.1")])
def test_a_worker_of_another_version_fails_in_a_sentence(name, version, small_model, pictures):
    config = batchverify.ScoringConfig(model=small_model)
    loader = keras_loader(config)
    loader = dataclasses.replace(loader, versions={**loader.versions, name: version})
    pipeline = beam.Pipeline(runner="FnApiRunner")
    block = pa.table({"left": [str(pictures / "p0.png")], "right": [str(pictures / "p1.png")]})
    verify = batchverify.VerifyPairs(config, expected_images=2, loader=loader)
    _ = pipeline | beam.Create([("block", block)]) | verify
    with pytest.raises(Exception, match=rf"a worker has {name} \S+, but the launcher {name} {version};"):
        pipeline.run().wait_until_finish()
