"""Kills parts of a cluster while a run is on it, at random moments, and accounts for every row.

    python -m benchmarks.engine_faults --engine flink --tries 5

A worker pool, a task manager (in Spark, an executor) or the launcher is killed with SIGKILL. Pools and task managers are
started again a moment later, as a supervisor would. A run that the engine can finish must hold every row once; a run that fails
must fail in a sentence and leave nothing that looks finished; a killed launcher's job may go on, and then it must finish whole.
A run that neither ends nor goes on is stopped with SIGINT, which must cancel its job and leave nothing. The next run must be
whole in any case. The exit code is 1 if it is not so. `benchmarks/clusters.py` says what a cluster takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.clusters import CLUSTERS, Cluster
from benchmarks.faults import FAILED, FINISHED, names, read, write_pairs

_LONGEST_S, _RESTART_S = 270, 2.0
_KEYS = ["manifest_file", "manifest_row"]


@dataclasses.dataclass
class Outcome:
    """One line of the table.

    Attributes:
        engine: Name of the engine.
        killed: What was killed.
        tries: Number of tries.
        finished: Number of runs that the engine finished all the same.
        failed: Number of runs that failed in a sentence and left nothing, or whose launcher and job ended without `_SUCCESS`.
        hung: Number of runs that had not ended after a long time, and were stopped.
        lost: Number of rows that are missing in finished runs.
        doubled: Number of rows that finished runs hold more than once.
        wrong: Number of runs with other values, other exit codes, a traceback, or files left behind.
        seconds: Seconds of the finished runs.
    """

    engine: str
    killed: str
    tries: int = 0
    finished: int = 0
    failed: int = 0
    hung: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)

    def account(self, output: Path, expected: pd.DataFrame) -> None:
        """Adds the rows of a finished run."""
        rows = read(output)
        self.lost += len(expected) - len(rows[_KEYS].drop_duplicates())
        self.doubled += int(rows[_KEYS].duplicated().sum())
        same = [name for name in rows.columns if name not in ("score", "identity_left", "identity_right")]
        self.wrong += not rows[same].equals(expected[same]) or bool((rows["score"] - expected["score"]).abs().max() > 1e-6)

    def line(self) -> str:
        seconds = f"{min(self.seconds):.0f} to {max(self.seconds):.0f}" if self.seconds else ""
        counts = [self.tries, self.finished, self.failed, self.hung, self.lost, self.doubled, self.wrong]
        return f"| {self.engine} | {self.killed} | {' | '.join(map(str, counts))} | {seconds} |"


class Campaign:
    """Runs on one cluster, each with something killed."""

    def __init__(self, cluster: Cluster, folder: Path, tries: int):
        self.cluster, self.folder, self.tries, self.random = cluster, folder, tries, random.Random(0)
        self._number = 0
        self.manifest = folder / "pairs.csv"
        write_pairs(self.manifest)
        subprocess.run(self._command(folder / "local"), check=True, capture_output=True)
        self.expected = read(folder / "local")
        process, submitted = self._submit()
        process.communicate()
        self.seconds = time.monotonic() - submitted
        print(f"undisturbed: {self.seconds:.0f} s from the submission on", file=sys.stderr, flush=True)

    def run(self, killed: str) -> Outcome:
        """Returns the line of the table for one part of the cluster."""
        outcome = Outcome(self.cluster.engine, killed)
        while outcome.tries < self.tries:
            self._number += 1
            process, submitted = self._submit()
            time.sleep(self.random.uniform(0, self.seconds))
            if process.poll() is not None:  # It was faster than the undisturbed run, and has ended.
                continue
            outcome.tries += 1
            if killed == "launcher":
                self._kill_launcher(process, outcome)
            else:
                self._kill_part(killed, process, submitted, outcome)
            print(outcome.line(), file=sys.stderr, flush=True)
        return outcome

    def _kill_part(self, killed: str, process: subprocess.Popen[str], submitted: float, outcome: Outcome) -> None:
        machine = self.random.randrange(2)
        if killed == "task manager":
            self.cluster.kill_task_manager(machine)
            time.sleep(_RESTART_S)
            self.cluster.restart_task_manager(machine)
        else:
            self.cluster.kill(f"pool-{machine}")
            time.sleep(_RESTART_S)
            self.cluster.start(f"pool-{machine}")
        try:
            _, said = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            outcome.hung += 1
            self._stop(process, outcome)
            return
        if process.returncode == FINISHED:
            outcome.finished += 1
            outcome.seconds.append(time.monotonic() - submitted)
            outcome.account(self._output, self.expected)
        else:
            outcome.failed += 1
            outcome.wrong += process.returncode != FAILED or "Traceback" in said or bool(names(self._output))
            print(said[-600:], file=sys.stderr)
            self._run_again(outcome)

    def _stop(self, process: subprocess.Popen[str], outcome: Outcome) -> None:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        outcome.wrong += process.returncode != 128 + signal.SIGINT or bool(names(self._output) or self.cluster.active_jobs())
        print(said[-600:], file=sys.stderr)
        self._run_again(outcome)

    def _kill_launcher(self, process: subprocess.Popen[str], outcome: Outcome) -> None:
        process.kill()
        process.communicate()
        deadline = time.monotonic() + _LONGEST_S
        while self.cluster.active_jobs() and time.monotonic() < deadline:
            time.sleep(0.5)
        if "_SUCCESS" in names(self._output):
            outcome.finished += 1
            outcome.account(self._output, self.expected)
        else:
            outcome.failed += 1
        self._run_again(outcome)

    def _run_again(self, outcome: Outcome) -> None:
        """Runs the same command again: it must be whole."""
        process, _ = self._submit("--overwrite")
        _, said = process.communicate()
        outcome.wrong += process.returncode != FINISHED
        if process.returncode == FINISHED:
            outcome.account(self._output, self.expected)
        else:
            print(said[-600:], file=sys.stderr)

    @property
    def _output(self) -> Path:
        return self.folder / f"out-{self._number}"

    def _command(self, output: Path, *more: str) -> list[str]:
        words = ["--manifest", str(self.manifest), "--output", str(output), "--block-rows", "500"]
        return [sys.executable, "-m", "batchverify", *words, *more]

    def _submit(self, *more: str) -> tuple[subprocess.Popen[str], float]:
        """Starts a run on the cluster, and returns it with the time at which its job was there."""
        command = self._command(self._output, *self.cluster.arguments, "--parallelism=2", *more)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not self.cluster.active_jobs():
            time.sleep(0.1)
        return process, time.monotonic()


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=sorted(CLUSTERS), required=True)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--kill", choices=["worker pool", "task manager", "launcher"], action="append")
    options = parser.parse_args()
    columns = ["engine", "killed", "tries", "finished", "failed", "hung", "lost", "doubled", "wrong", "seconds"]
    lines, is_right = [], True
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cluster").mkdir()
        with CLUSTERS[options.engine](Path(folder) / "cluster", [Path(sys.executable)] * 2) as cluster:
            campaign = Campaign(cluster, Path(folder), options.tries)
            for killed in options.kill or ["worker pool", "task manager", "launcher"]:
                outcome = campaign.run(killed)
                lines.append(outcome.line())
                is_right = is_right and not (outcome.lost or outcome.doubled or outcome.wrong)
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", *lines, sep="\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
