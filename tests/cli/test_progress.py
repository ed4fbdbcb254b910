"""How far a run is and where its time went, as its user sees them."""

import itertools
import json
import logging
import os
import pty
import re
import subprocess
import sys
from contextlib import ExitStack

import pytest

import batchverify
from batchverify.cli.main import main
from batchverify.cli.messages import profile_message, run_message
from batchverify.cli.progress import format_progress, watcher
from batchverify.temporary_folder import temporary_folder
from batchverify.worker_stats import COUNTS, SECONDS, WorkerStats, read_totals

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(demo, small_model, tmp_path) -> list[str]:
    """Returns the arguments of a run of the demo's pairs with a network that is quick to load, into `out`."""
    return ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "out"), "--model", small_model]


def on_a_terminal(arguments: list[str]) -> tuple[int, str]:
    """Runs a command whose output is a terminal, and returns its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"})
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:  # the other end is closed
        pass
    return process.wait(), shown.decode(errors="replace")


@pytest.mark.processes
def test_a_terminal_shows_a_bar(arguments):
    code, shown = on_a_terminal([sys.executable, "-m", "batchverify", *arguments])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    assert "Images encoded" in plain and "Rows scored" in plain and "/87" in plain and "/125" in plain
    assert "Identity  " in plain


@pytest.mark.processes
def test_elsewhere_there_is_no_bar(arguments, capsys):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "Images encoded" not in err and "\x1b" not in out + err


@pytest.mark.processes
def test_quiet_shows_nothing(arguments, capsys, caplog):
    caplog.set_level(logging.INFO, logger="batchverify")  # puts the level back at the end
    assert main([*arguments, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "batchverify" not in err and "Images" not in err
    assert not [record for record in caplog.records if record.name.startswith("batchverify")]


@pytest.mark.processes
@pytest.mark.parametrize("workers", [[], ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]])
def test_a_watcher_sees_the_whole_run(workers, arguments, tmp_path):
    seen = []
    config = batchverify.VerificationConfig(manifests=(arguments[1],), output=arguments[3], model=arguments[5])
    result = batchverify.run(config, workers, lambda totals, images, rows: seen.append((totals, images, rows)))
    totals, images, rows = seen[-1]
    profile = result.summary["profile"]
    assert (images, rows) == (87, 125)
    assert all(earlier[0][name] <= later[0][name] for earlier, later in itertools.pairwise(seen) for name in COUNTS)
    assert totals["images_encoded"] <= 85 and totals["rows_scored"] <= 122
    assert set(profile["seconds"]) == set(SECONDS) | (set() if workers else {"shuffle"})
    assert profile["rows_per_second"] == pytest.approx(125 / profile["wall_seconds"], rel=0.05)
    assert profile["images_per_second"] == pytest.approx(87 / profile["wall_seconds"], rel=0.05)
    if not workers:  # one thread does one thing after the other, and others read, decode and encode for it
        alone = sum(seconds for name, seconds in profile["seconds"].items() if name not in ("fetch", "decode", "encode"))
        assert alone == pytest.approx(profile["wall_seconds"], abs=0.01)
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["profile"] == profile


def test_tallies_of_several_workers_add_up_and_are_deleted():
    with temporary_folder() as folder:
        for images in (3, 4):
            WorkerStats(folder).add(images_encoded=images, fetch=0.5)
        totals = read_totals(folder)
    assert (totals["images_encoded"], totals["fetch"]) == (7, 1.0)
    assert not os.path.exists(folder)


def test_a_tally_without_its_folder_keeps_nothing():
    with temporary_folder() as folder:
        pass
    WorkerStats(folder).add(images_encoded=1)
    assert not os.path.exists(folder)


def test_a_line_says_how_far_and_how_long():
    totals = dict.fromkeys(COUNTS, 0.0) | {"images_encoded": 900.0, "images_failed": 100.0, "rows_scored": 50.0}
    said = format_progress(totals, images=10_000, rows=20_000, rate=50.0)
    assert "1,000 of 10,000 (10%), 100 failed, 50/s, about 3 min left" in said
    assert "50 of 20,000 (0%)" in said


def test_a_log_has_no_lines_while_no_worker_on_this_machine_has_counted_anything(monkeypatch, caplog):
    monkeypatch.setattr("batchverify.cli.progress._LOG_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, logger="batchverify")
    with ExitStack() as stack:
        watch = watcher(stack)
        nothing = dict.fromkeys((*COUNTS, *SECONDS), 0.0)
        watch(nothing, 100, 200)
        assert caplog.messages == []
        watch(nothing | {"images_encoded": 10.0}, 100, 200)
    assert caplog.messages[0].startswith("Images encoded: 10 of 100 (10%)")


def test_times_that_nobody_measured_are_left_out():
    profile = {
        "wall_seconds": 46.1, "seconds": dict.fromkeys(SECONDS, 0.0), "images_per_second": 2.0, "rows_per_second": 3.0,
        "device_idle_share": None,
    }  # fmt: skip
    assert profile_message(profile).splitlines()[0] == "46.1 s, 2 images/s, 3 rows/s"


def test_the_parts_of_a_run_have_names_that_say_what_is_done():
    seconds = dict.fromkeys(SECONDS, 0.0) | {"shuffle": 1.0, "examine": 0.5, "wait": 0.25, "write": 0.25}
    profile = {
        "wall_seconds": 2.0, "seconds": seconds, "images_per_second": 2.0, "rows_per_second": 3.0, "device_idle_share": 0.5,
    }  # fmt: skip
    line, _ = profile_message(profile).splitlines()
    parts = "Beam itself 50%, strangers and steadiness 25%, writing 12%, waiting for images 12%"
    assert line == f"2.0 s, 2 images/s, 3 rows/s: {parts}"


@pytest.mark.parametrize(("seconds", "is_told"), [(0.99, False), (1.0, True)])
def test_where_the_time_went_is_told_from_a_second_on(seconds, is_told, small_model, demo, tmp_path):
    manifests = (str(demo / "demo.csv"),)
    config = batchverify.VerificationConfig(manifests=manifests, output=str(tmp_path / "out"), model=small_model, limit=4)
    summary = batchverify.run(config).summary
    summary["profile"]["wall_seconds"] = seconds
    assert ("\nTime  " in run_message("out", summary)) == is_told
