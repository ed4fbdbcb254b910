"""Runs contenders in processes of their own, in turn, and measures whole processes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from batchverify.errors import printable
from benchmarks.speed.contenders import Contender, difference, read_answer

_ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Measured:
    """One process, from its start to its end.

    Attributes:
        seconds: The wall time in seconds.
        cpu_seconds: The processor time of the process and of the children that it waited for.
        peak_gib: resident memory of the largest of these processes.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float


@dataclasses.dataclass
class Record:
    """All that is known of a contender.

    Attributes:
        contender: The contender.
        start_up: The second run on two pairs, or None. The first one fills caches.
        rounds: One measurement for each round.
        difference: The largest difference from the reference's answer, over all rounds.
        scores: The lowest and the highest score of the last answer. Scores that are all alike agree whatever was computed.
        problem: The reason why there are no times, or None.
    """

    contender: Contender
    start_up: Measured | None = None
    rounds: list[Measured] = dataclasses.field(default_factory=list)
    difference: float = 0.0
    scores: tuple[float, float] | None = None
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Course:
    """What the contenders run on.

    Attributes:
        manifest: The manifest with all pairs.
        short_manifest: The manifest with two of them.
        model: The `.keras` file of the network.
        folder: The folder that answers are written to.
    """

    manifest: Path
    short_manifest: Path
    model: Path
    folder: Path


def compete(
    contenders: Sequence[Contender],
    course: Course,
    rounds: int,
    tolerance: float,
    warm: bool,
    tell: Callable[[str], None],
) -> list[Record]:
    """Runs the contenders in turn, each round in another order.

    The first contender's first answer is what all answers are compared with.

    Args:
        contenders: The contenders, at least one.
        course: What they run on.
        rounds: The number of rounds.
        tolerance: The amount by which a score may differ from the first contender's.
        warm: Whether each runs on two pairs first, twice, which shows what its start-up takes.
        tell: A function that is called with a line after each run.

    Returns:
        One record for each contender. A contender that fails or answers otherwise runs no further.
    """
    records = [Record(contender) for contender in contenders]
    for record in records:
        if missing := record.contender.missing():
            record.problem = f"skipped: {', '.join(missing)} is not installed"
    reference: np.ndarray | None = None
    for number in range(-2 if warm else 0, rounds):
        turn = max(0, number) % len(records)
        # The reference is the answer of the first contender, so the order changes only once there is one.
        for record in records[turn:] + records[:turn] if reference is not None else records:
            answer = None if record.problem else _take_turn(record, course, number, tolerance, reference)
            if number >= 0 and reference is None:
                reference = answer
            tell(_turn_message(record, number))
    return records


def _take_turn(
    record: Record, course: Course, number: int, tolerance: float, reference: np.ndarray | None
) -> np.ndarray | None:
    """Runs a contender once, enters the result into its record, and returns its answer, or None if it failed.

    Args:
        record: The record of the contender.
        course: What it runs on.
        number: The number of the round; below 0 for a run that shows what its start-up takes.
        tolerance: The amount by which a score may differ from the reference's.
        reference: The answer to compare with; None for the answer itself.
    """
    measured, answer = _run(record, course, number)
    if answer is None or measured is None:
        return None
    if number < 0:
        record.start_up = measured
        return answer
    record.rounds.append(measured)
    record.scores = float(answer[0].min()), float(answer[0].max())
    record.difference = max(record.difference, difference(answer, answer if reference is None else reference))
    if not record.difference <= tolerance:
        record.problem = f"its scores differ by {record.difference:.2g}"
    return answer


def _turn_message(record: Record, number: int) -> str:
    """Returns a line about a contender's last run; `number` is as in `_take_turn`."""
    turn = "start-up" if number < 0 else f"round {number + 1}"
    measured = record.start_up if number < 0 else record.rounds[-1] if record.rounds else None
    return f"{turn}: {record.contender.name} {record.problem or (measured and f'{measured.seconds:.1f} s')}"


def _run(record: Record, course: Course, number: int) -> tuple[Measured | None, np.ndarray | None]:
    output = course.folder / f"answer-{record.contender.name}"
    _remove(output)
    manifest = course.short_manifest if number < 0 else course.manifest
    code, measured, words = measure(record.contender.command(manifest, course.model, output))
    if code != 0:
        record.problem = f"failed with exit code {code}: {words}"
        return None, None
    try:
        return measured, read_answer(output)
    finally:
        _remove(output)


def measure(command: Sequence[str]) -> tuple[int, Measured, str]:
    """Runs a command to its end.

    Returns:
        its exit code, what it took, and the last line that it said.
    """
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    surroundings = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:  # not a pipe, which nobody would empty while it runs
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=surroundings)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").split("\n")
    words = next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")
    measured = Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)
    return process.returncode, measured, words[:200]


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)
