"""Runs leave nothing in the temporary folder, even those that are killed."""

import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from batchverify.pipeline import run
from batchverify.temporary_folder import temporary_folder

HOLD = """
from batchverify.temporary_folder import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


def hold_folder(temporary):
    """Starts a process that holds a folder for counts, and returns it with the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_run_deletes_the_folders_of_killed_runs_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, folder_of_killed = hold_folder(tmp_path)
    living, folder_of_living = hold_folder(tmp_path)
    try:
        killed.kill()
        killed.communicate()
        assert os.path.isdir(folder_of_killed)
        with temporary_folder() as folder:
            assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, (folder, folder_of_living)))
    finally:
        living.communicate("\n")
    assert living.returncode == 0
    assert os.listdir(tmp_path) == []


def test_a_pipeline_has_no_temporary_folder_that_a_killed_run_would_leave(tmp_path, monkeypatch):
    plan: Any = SimpleNamespace(options=PipelineOptions([]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run, "build", lambda pipeline, plan: None)
    pipeline = run._make_pipeline(plan)
    assert os.listdir(tmp_path) == []
    pipeline.run().wait_until_finish()
