"""Runs into a directory that is in use: what was finished stays until what replaces it is complete."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem

import batchverify
from batchverify.cli.main import main
from batchverify.output.embedding_store import EmbeddingStore
from batchverify.output.run_directory import RunDirectory
from batchverify.output.write_scores import FinishRun
from batchverify.pipeline import run
from tests.support.processes import start_program, wait_for


@pytest.fixture
def arguments(small_model, pictures, tmp_path) -> list[str]:
    """The arguments of a run of 100 pairs over ten pictures into `out`, which replaces a finished run."""
    pairs = [(f"pictures/p{k % 10}.png", f"pictures/p{k // 10}.png") for k in range(100)]
    pd.DataFrame(pairs, columns=["left", "right"]).to_csv(tmp_path / "pairs.csv", index=False)
    options = ["--model", small_model, "--overwrite"]
    return ["--manifest", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "out"), *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_the_finished_run_that_it_was_to_replace(number, arguments, tmp_path, read_scores):
    assert main(arguments) == 0
    finished = contents(tmp_path / "out")
    process = start_program([*arguments, "--block-rows", "1", "--threshold", "0.25"], os.environ | {"TMPDIR": str(tmp_path)})
    wait_for(tmp_path / "out" / "_RUNNING", process)
    process.send_signal(number)
    process.wait(timeout=300)
    left_behind = contents(tmp_path / "out")
    assert left_behind.pop("_RUNNING", None) is None or number == signal.SIGKILL
    assert left_behind == finished
    assert len(pd.read_parquet([str(path) for path in (tmp_path / "out").glob("scores-*.parquet")])) == 100

    assert main([*arguments, "--threshold", "0.25"]) == 0
    assert contents(tmp_path / "out").keys() == finished.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert RunDirectory(str(tmp_path / "out")).read_summary()["run"]["threshold"] == 0.25


def test_a_run_that_fails_leaves_the_finished_run(arguments, tmp_path, monkeypatch, capsys):
    assert main(arguments) == 0
    finished = contents(tmp_path / "out")
    (tmp_path / "pairs.csv").write_text((tmp_path / "pairs.csv").read_text() + "pictures/p1.png,pictures/p2.png\n")
    monkeypatch.setattr(RunDirectory, "count_rows", lambda self, run_id: 0)
    assert main(arguments) == 1
    assert contents(tmp_path / "out") == finished


class _Killed(BaseException):
    """Stands for the end of the process."""


def finished_directory(path: Path, run_id: str, rows: int, parts: int) -> RunDirectory:
    """Returns a directory in which the run `run_id` has written its scores, claimed by a process that has ended since."""
    directory = RunDirectory(str(path))
    with directory.claimed(run_id, overwrite=True):
        directory.detach(run_id)
        written = directory.for_run(run_id)
    for part in range(parts):
        file = f"{written.scores_prefix()}-{part:05d}-of-{parts:05d}.parquet"
        os.makedirs(os.path.dirname(file), exist_ok=True)
        table = pa.table({"score": pa.nulls(rows, pa.float32())})
        pq.write_table(table.replace_schema_metadata({"batchverify.run_id": run_id}), file)
    return written


@pytest.mark.parametrize(("old_parts", "new_parts"), [(1, 1), (3, 1), (1, 3)])
def test_a_replacement_that_dies_at_any_step_is_completed_by_who_comes_next(old_parts, new_parts, tmp_path, monkeypatch):
    step = 0
    while True:
        path = tmp_path / f"out{step}"
        finished_directory(path, "old", 5, old_parts).finish("old", {"of": "old"}, "old")
        new = finished_directory(path, "new", 7, new_parts)
        calls = iter(range(step))
        with monkeypatch.context() as patch:
            _die_within(patch, calls)
            try:
                new.finish("new", {"of": "new"}, "new")
                break
            except _Killed:
                step += 1
        directory = RunDirectory(str(path))
        with pytest.raises(batchverify.PreflightError, match="holds a finished run"):
            directory.refuse_taken(overwrite=False)
        owner = directory.read_summary()["of"]
        rows = [pq.read_metadata(file).num_rows for file in sorted(path.glob("scores-*.parquet"))]
        assert rows == {"old": [5] * old_parts, "new": [7] * new_parts}[owner]
        assert (path / "_SUCCESS").read_text() == (path / "_report.html").read_text() == owner
    assert step > 5


@pytest.mark.parametrize("replaces", [True, False])
def test_a_run_that_dies_at_any_step_of_its_end_is_finished_by_another_try(replaces, tmp_path, monkeypatch):
    step = 0
    while True:
        path = tmp_path / f"out{step}"
        if replaces:
            finished_directory(path, "old", 5, 3).finish("old", {"of": "old"}, "old")
        last = FinishRun(finished_directory(path, "new", 7, 2), "new")
        elements = None, {"of": "new", "rows": {"total": 14}}, "new", 14, ["a file"]
        calls = iter(range(step))
        with monkeypatch.context() as patch:
            _die_within(patch, calls)
            try:
                last.process(*elements)
                is_last_step = True
            except _Killed:
                is_last_step = False
        last.process(*elements)
        assert sorted(contents(path)) == [
            "_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00002.parquet", "scores-00001-of-00002.parquet"
        ]  # fmt: skip
        assert (path / "_SUCCESS").read_text() == (path / "_report.html").read_text() == "new"
        assert pq.read_table(path).num_rows == 14
        step += 1
        if is_last_step:
            break
    assert step > (10 if replaces else 4)


def test_a_run_that_dies_between_its_last_steps_has_finished(tmp_path, monkeypatch):
    directory = finished_directory(tmp_path / "out", "new", 7, 2)
    with monkeypatch.context() as patch:
        patch.setattr(
            FileSystems, "delete", staticmethod(_dies_after(iter(()), FileSystems.delete, str(tmp_path / "out/_RUNNING")))
        )
        with pytest.raises(_Killed):
            directory.finish("new", {}, "")
    directory.discard("new")
    assert directory.is_finished() and pq.read_table(tmp_path / "out").num_rows == 14
    assert not (tmp_path / "out" / "_RUNNING").exists()


@pytest.mark.parametrize("text", ["", '{"run_id": "ne', "[]", '{"files": []}', "[" * 100_000])
def test_a_replacement_that_was_not_begun_blocks_nothing(text, tmp_path):
    finished_directory(tmp_path / "out", "old", 5, 1).finish("old", {"of": "old"}, "old")
    (tmp_path / "out" / "_REPLACEMENT").write_text(text)
    directory = RunDirectory(str(tmp_path / "out"))
    directory.refuse_taken(overwrite=True)
    with directory.claimed("new", overwrite=True):
        pass
    assert sorted(contents(tmp_path / "out")) == ["_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00001.parquet"]
    assert directory.read_summary() == {"of": "old"}


@pytest.mark.parametrize("replaces", [True, False])
def test_all_files_are_on_the_disk_before_the_run_has_finished(replaces, tmp_path, monkeypatch):
    path = tmp_path / "out"
    if replaces:
        finished_directory(path, "old", 5, 3).finish("old", {}, "")
    directory, synced, fsync = finished_directory(path, "new", 7, 2), set[str](), os.fsync

    def note(handle):
        before = contents(path)
        if before.get("_SUCCESS") != b"new" and "_REPLACEMENT" not in before:
            synced.add(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    directory.finish("new", {}, "")
    names = {name for name in contents(path) if not name.startswith("_SUCCESS")}
    assert synced >= {*names, "_replacement-new" if replaces else "out"} and len(names) == 4


def test_a_summary_has_each_pair_of_numbers_on_one_line(tmp_path):
    summary = {"bins": [[0.0071, 5], [1e-05, 3], [2, 4]], "interval": [0.25, -1.5e16], "three": [1, 2, 3], "one": [1]}
    finished_directory(tmp_path / "out", "run", 1, 1).finish("run", summary, "")
    text = (tmp_path / "out" / "_summary.json").read_text()
    assert json.loads(text) == summary
    assert "[0.0071, 5],\n    [1e-05, 3],\n    [2, 4]" in text and '"interval": [0.25, -1.5e+16]' in text


def test_a_run_whose_bundles_run_twice_replaces_a_finished_run(arguments, tmp_path, read_scores):
    for threshold in ("0.25", "0.75"):
        assert main([*arguments, "--threshold", threshold, "--direct_runner_bundle_repeat=1"]) == 0
        names = ["_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00001.parquet"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
        assert RunDirectory(str(tmp_path / "out")).read_summary()["run"]["threshold"] == float(threshold)
        assert len(read_scores(tmp_path / "out")) == 100


def test_a_run_that_is_interrupted_in_a_notebook_writes_nothing_later(arguments, small_model, tmp_path):
    config = batchverify.VerificationConfig(manifests=(arguments[1],), output=str(tmp_path / "out"), model=small_model)

    def interrupt(totals, images, rows):
        raise KeyboardInterrupt

    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        batchverify.run(config, watch=interrupt)
    for thread in threading.enumerate():
        if thread.name == "run-pipeline" and thread not in before:
            thread.join()
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("kind", [RunDirectory, EmbeddingStore])
def test_a_file_system_without_locks_is_written_to(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", _fails_with(errno.ENOLCK))
    with kind(str(tmp_path / "out")).claimed(f"embeddings-{1:032x}"):
        assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", [RunDirectory, EmbeddingStore])
def test_a_directory_whose_lock_fails_is_refused_as_that(kind, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(fcntl, "flock", _fails_with(errno.EIO))
    with pytest.raises(batchverify.PreflightError, match=r"out cannot be read \(.*Input/output error"):
        refuse_taken(kind(str(tmp_path / "out")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0, 0o333, 0o555])
@pytest.mark.parametrize("kind", [RunDirectory, EmbeddingStore])
def test_a_directory_without_the_rights_is_refused(mode, kind, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(mode)
    try:
        with pytest.raises(batchverify.PreflightError, match=r"out cannot be (written|listed).*your rights\.$"):
            refuse_taken(kind(str(tmp_path / "out")))
    finally:
        (tmp_path / "out").chmod(0o755)


@pytest.mark.parametrize("kind", [RunDirectory, EmbeddingStore])
def test_a_file_is_refused(kind, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(batchverify.PreflightError, match=r"out is not a directory"):
        refuse_taken(kind(str(tmp_path / "out")))


def refuse_taken(directory: RunDirectory | EmbeddingStore) -> None:
    if isinstance(directory, RunDirectory):
        directory.refuse_taken(overwrite=False)
    else:
        directory.refuse_taken()


def _fails_with(number: int):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


class OverloadedFileSystem(LocalFileSystem):
    """A store `overloaded://` whose client raises errors of its own, as Beam's client of Amazon S3 does."""

    @classmethod
    def scheme(cls):
        return "overloaded"

    def _fail(self, *_, **__):
        raise Exception("503 SlowDown")

    exists = open = match = _fail


def test_a_store_that_fails_between_two_steps_is_named_in_a_sentence(tmp_path, capsys):
    with pytest.raises(batchverify.RunError, match=r"--output overloaded://out cannot be looked up \(503 SlowDown\)"):
        RunDirectory("overloaded://out").for_run("run")
    store, said = EmbeddingStore("overloaded://store"), r"--embeddings overloaded://store cannot be read \(503 SlowDown\)"
    with pytest.raises(batchverify.PreflightError, match=said):
        store.published_folder()
    with pytest.raises(batchverify.PreflightError, match=said):
        store.unfinished_files({"embedding_size": 4}, None)
    command = ["convert", "scores", "overloaded://out", "--format", "bob", "--output", str(tmp_path / "scores.txt")]
    assert main(command) == 2 and "overloaded://out cannot be read (503 SlowDown)" in capsys.readouterr().err


def test_a_finished_run_whose_summary_cannot_be_read_is_told_as_finished(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RunDirectory, "read_summary", OverloadedFileSystem._fail)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "out holds the finished run, but its _summary.json cannot be read (503 SlowDown)" in said and "Traceback" not in said
    assert (tmp_path / "out" / "_SUCCESS").exists()


def _die_within(patch: pytest.MonkeyPatch, calls) -> None:
    """Ends the process at one of the steps that change files."""
    for name in ("rename", "delete", "create"):
        patch.setattr(FileSystems, name, staticmethod(_dies_after(calls, getattr(FileSystems, name))))
    patch.setattr(os, "replace", _dies_after(calls, os.replace))


def _dies_after(calls, function, path=None):
    def call(*arguments, **options):
        if path in (None, *arguments[0]) and next(calls, None) is None:
            raise _Killed
        return function(*arguments, **options)

    return call


def test_the_same_configuration_runs_twice(arguments, small_model, tmp_path):
    config = batchverify.VerificationConfig(
        manifests=(arguments[1],), output=str(tmp_path / "out"), model=small_model, overwrite=True
    )
    first = batchverify.run(config)
    (tmp_path / "pairs.csv").write_text("left,right\npictures/p1.png,pictures/p2.png\n")
    second = batchverify.run(config)
    assert (first.summary["rows"]["total"], second.summary["rows"]["total"]) == (100, 1)
    assert first.summary["run"]["run_id"] != second.summary["run"]["run_id"]


def test_a_run_that_finished_while_another_one_started_is_not_deleted(arguments, tmp_path, monkeypatch, capsys):
    arguments.remove("--overwrite")
    monkeypatch.setattr(RunDirectory, "refuse_taken", lambda self, overwrite: None)  # It looked before the other one had begun.
    assert main(arguments) == 0
    finished = contents(tmp_path / "out")
    assert main(arguments) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert contents(tmp_path / "out") == finished


def test_an_output_that_is_deleted_during_the_run_is_named_as_that(arguments, tmp_path, monkeypatch, capsys):
    count_rows = RunDirectory.count_rows

    def count_late(self, run_id):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        return count_rows(self, run_id)

    monkeypatch.setattr(RunDirectory, "count_rows", count_late)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"--output {tmp_path}/out was deleted, emptied or replaced while the run wrote to it" in said


def test_a_store_that_another_run_fills_between_look_and_claim_loses_nothing(arguments, small_model, tmp_path, monkeypatch):
    # The second run looks at the store while it is empty, and claims it after the first one has published.
    base = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),),
        output=str(tmp_path / "out"),
        model=small_model,
        embeddings=str(tmp_path / "store"),
    )
    plan_run = run.plan_run  # type: ignore[attr-defined]

    def plan_first(config, *rest):
        plan = plan_run(config, *rest)
        monkeypatch.setattr(run, "plan_run", plan_run)
        batchverify.run(dataclasses.replace(base, output=str(tmp_path / "first")))
        return plan

    monkeypatch.setattr(run, "plan_run", plan_first)
    (tmp_path / "few.csv").write_text("left,right\npictures/p1.png,pictures/p2.png\n")
    second = batchverify.run(dataclasses.replace(base, manifests=(str(tmp_path / "few.csv"),)))
    assert second.summary["embeddings"]["reused"] == 2
    third = batchverify.run(dataclasses.replace(base, output=str(tmp_path / "third")))
    assert (third.summary["embeddings"]["reused"], third.summary["embeddings"]["encoded"]) == (10, 0)


@pytest.mark.parametrize("name", ["_summary.json", "_report.html", "scores-input.parquet", "scores-2023.parquet"])
def test_files_of_the_user_that_are_named_as_those_of_a_run_are_refused_and_stay(name, arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / name
    path.write_bytes(b"mine")
    if name == "scores-input.parquet":  # The manifest itself.
        pd.DataFrame({"left": ["../pictures/p1.png"], "right": ["../pictures/p2.png"]}).to_parquet(path)
        arguments[1] = str(path)
    before = contents(tmp_path / "out")
    assert main(arguments) == 2
    assert f"holds {name}, which no run has written" in capsys.readouterr().err and contents(tmp_path / "out") == before


def test_a_file_of_the_user_beside_a_finished_run_stays(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    pd.DataFrame({"score": [0.5]}).to_parquet(tmp_path / "out" / "scores-archive.parquet")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "out")
    assert main(arguments) == 2
    assert "holds scores-archive.parquet" in capsys.readouterr().err and contents(tmp_path / "out") == before
    (tmp_path / "out" / "scores-archive.parquet").unlink()
    assert main(arguments) == 0 and (tmp_path / "out" / "notes.txt").read_text() == "mine"
