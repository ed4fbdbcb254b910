"""Many runs of the same job, night after night: what the summary of each run says, and which nights have none.

Nothing is read but names of files and the summaries of finished runs. What lies in a summary is not trusted: where it is
no summary that this program can read, the night says so.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import gc
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from batchverify.config import Limit
from batchverify.errors import PreflightError, short_reason
from batchverify.evaluation.baseline import MAX_SUMMARY_BYTES
from batchverify.evaluation.drift import RunStatistics, population_stability_index
from batchverify.evaluation.gates import Gate
from batchverify.evaluation.summary_version import why_unreadable
from batchverify.io.filesystem import files_by_folder, read_bytes
from batchverify.io.object_store import has_client, read_object
from batchverify.io.storage_options import current_storage_options
from batchverify.report.verdict import judge_run
from batchverify.uris import is_remote

_SUCCESS, _SUMMARY, _REPORT, _RUNNING = "_SUCCESS", "_summary.json", "_report.html", "_RUNNING"
_OF_A_RUN = re.compile(r"_SUCCESS|_summary\.json|_report\.html|_RUNNING|_REPLACEMENT|scores-.*\.parquet")
_DAY = re.compile(r"dt=(\d{4}-\d{2}-\d{2})")
_ONE_DAY = datetime.timedelta(1)
# Other years are no nights of anybody, and a folder named after one must not stretch the page.
_FIRST_YEAR, _LAST_YEAR = 2000, 2199
# After so many missing nights in a row, the job had been turned off, and no more of them are shown.
_LONGEST_GAP = 100
_THREADS = 32
_PATIENCE_S = 60.0
# The measure that each gate limits.
_GATED = {
    "--max-drift": "psi",
    "--max-stranger-matches": "stranger_rate",
    "--max-identity-faults": "identity_faults",
    "--max-failed-rows": "failed_rows",
}
# What Python raises where a summary lacks an entry, or has another type of value there.
_ERRORS_OF_CONTENT = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError)


class State(enum.StrEnum):
    """What there is of a night."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    UNREADABLE = "unreadable"
    MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the summary of a finished run says.

    Attributes:
        started: The time at which the run started, as the summary has it.
        model: The path of the model.
        model_digest: The digest of the model.
        level: The level of the verdict: `good`, `warn` or `bad`.
        headline: The verdict in one sentence.
        measures: Numbers by name; rates are shares in [0, 1], `seconds` is the wall time. What a run does not have is missing.
        failures: Shares of the distinct images by status, and of the sides of rows where no image is named.
        limits: The limits of gates, by the measure that each one limits and in its unit.
        unmet: One sentence for each gate that is not met.
        remark: Why the night is not compared with the baseline; empty where it is.
    """

    started: str
    model: str
    model_digest: str
    level: str
    headline: str
    measures: Mapping[str, float]
    failures: Mapping[str, float]
    limits: Mapping[str, float]
    unmet: tuple[str, ...]
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Night:
    """One folder with a run, or a day on which there should be one.

    Attributes:
        name: The folder's path below the folder of all nights; of a missing night, the name that it should have.
        day: The day: that of `dt=YYYY-MM-DD` in the name, or the one on which the run started; None if neither is known.
        state: What there is of it.
        problem: Why there are no figures, in a sentence; empty where there are.
        has_report: Whether its folder holds a report.
        figures: What its summary says; None where there is none that can be read.
    """

    name: str
    day: datetime.date | None
    state: State
    problem: str = ""
    has_report: bool = False
    figures: Figures | None = None

    @property
    def level(self) -> str:
        """The level of the night: `good`, `warn` or `bad`."""
        return self.figures.level if self.figures else "bad"

    @property
    def headline(self) -> str:
        """What there is to say about the night, in a sentence."""
        return self.figures.headline if self.figures else self.problem


def read_nights(folder: str, baseline: RunStatistics | None = None, until: datetime.date | None = None) -> list[Night]:
    """Returns the nights below a folder in the order of their days, with those that are missing between two days.

    Args:
        folder: The folder that holds the run directories, at any depth, on this machine or in a store.
        baseline: The run to compare every night with; None takes what each run found against its own baseline.
        until: The last day that should have a run; None for the last one that has.

    Raises:
        PreflightError: If the folder cannot be listed, or holds no run.
    """
    runs = _find_runs(folder)
    # Requests to a store wait most of the time; files on this machine are parsed as fast by one thread.
    with _no_garbage_collection(), ThreadPoolExecutor(_THREADS if is_remote(folder) else 1) as threads:
        nights = list(threads.map(lambda run: _read_night(folder, run[0], run[1], baseline), runs.items()))
    nights += _missing_nights([day for day in (_day_of(night.name) for night in nights) if day], until)
    return sorted(nights, key=lambda night: (night.day or datetime.date.min, _started(night), night.name))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Has Python collect no garbage: JSON has no cycles, and to look for some takes most of the time to parse it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _find_runs(folder: str) -> dict[str, list[str]]:
    """Returns the names of the files in each run directory below `folder`, by its path relative to it."""
    try:
        files = files_by_folder(folder, _holds_run)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{folder} cannot be listed ({short_reason(error)}); check the path.") from None
    runs = {name: names for name, names in files.items() if _holds_run(names) or _is_empty_night(name, names, files)}
    if "" in runs:
        raise PreflightError(f"{folder} is itself a run directory; name the folder that holds the directories of all nights.")
    runs = {name: names for name, names in runs.items() if not _is_hidden(name) and not any(p in runs for p in _parents(name))}
    if not runs:
        raise PreflightError(f"{folder} holds no run directories; name the folder in which the --output of every night lies.")
    return runs


def _holds_run(names: Collection[str]) -> bool:
    return any(map(_OF_A_RUN.fullmatch, names))


def _is_empty_night(name: str, names: Collection[str], files: Mapping[str, Any]) -> bool:
    """Returns whether a folder is named after a day and has nothing in it: a failed run deletes its files."""
    is_day = _DAY.fullmatch(name.rpartition("/")[2]) is not None
    return is_day and not names and not any(other.startswith(f"{name}/") for other in files)


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name.split("/"))


def _read_night(folder: str, name: str, files: Collection[str], baseline: RunStatistics | None) -> Night:
    day, has_report = _day_of(name), _REPORT in files
    if _SUCCESS not in files:
        return Night(name, day, State.UNFINISHED, _why_unfinished(files))
    try:
        summary = _read_summary(f"{folder.rstrip('/')}/{name}/{_SUMMARY}")
        figures = _figures(summary, baseline)
    except RecursionError:
        return Night(name, day, State.UNREADABLE, "Its summary is nested too deeply.", has_report)
    except _ERRORS_OF_CONTENT as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else short_reason(error)
        return Night(name, day, State.UNREADABLE, f"Its summary cannot be read: {reason:.200}.", has_report)
    except Exception as error:  # A store's client raises whatever it likes; the other nights are read all the same.
        return Night(name, day, State.UNREADABLE, f"Its summary cannot be read: {short_reason(error)}.", has_report)
    return Night(name, day or _date(figures.started), State.FINISHED, "", has_report, figures)


def _why_unfinished(files: Collection[str]) -> str:
    if _RUNNING in files:
        return "A run is under way, or was killed."
    return "There is no _SUCCESS: the run did not finish." if files else "The folder is empty: the run failed."


def _read_summary(path: str) -> dict[str, Any]:
    if has_client(path):
        data = read_object(path, MAX_SUMMARY_BYTES, _PATIENCE_S, current_storage_options())
    else:
        data = read_bytes(path, MAX_SUMMARY_BYTES + 1)
    if len(data) > MAX_SUMMARY_BYTES:
        raise ValueError("it is too large")
    summary = json.loads(data)
    if not isinstance(summary, dict) or "summary_version" not in summary:
        raise ValueError("batchverify did not write it")
    if problem := why_unreadable(summary):
        raise ValueError(f"it {problem}")
    return summary


def _figures(summary: dict[str, Any], baseline: RunStatistics | None) -> Figures:
    run, gates = summary["run"], list(summary.get("gates") or ())
    drift, remark = _drift(summary, baseline)
    return Figures(
        started=str(run["started"]),
        model=str(run["model"]),
        model_digest=str(run["model_digest"]),
        level=_level(summary, gates),
        headline=judge_run(summary).headline,
        measures={name: value for name, value in (_measures(summary) | drift).items() if value is not None},
        failures=_failures(summary),
        limits=_limits(summary, gates),
        unmet=tuple(f"{_gate(gate)}." for gate in gates if not gate["met"]),
        remark=remark,
    )


def _level(summary: dict[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """Returns the level of the verdict. A few rows without a score are an ordinary night where a gate limits their number."""
    if any(gate["option"] == "--max-failed-rows" and gate["met"] for gate in gates):
        summary = {**summary, "rows": {**summary["rows"], "failed": 0}}
    return judge_run(summary).level


def _drift(summary: dict[str, Any], baseline: RunStatistics | None) -> tuple[dict[str, float | None], str]:
    """Returns the drift since the baseline, or else since the run's own one; and why there is none."""
    remark = ""
    found: dict[str, Any] = summary.get("baseline") or {}
    if baseline is not None:
        try:
            now = RunStatistics.from_summary(summary)
            found = {
                "psi": population_stability_index(baseline.scores, now.scores),
                "strangers_psi": population_stability_index(baseline.strangers, now.strangers),
            }
        except _ERRORS_OF_CONTENT as error:
            found, remark = {}, f"It cannot be compared with the baseline: {short_reason(error)}."
    return {"psi": _number(found.get("psi")), "strangers_psi": _number(found.get("strangers_psi"))}, remark


def _measures(summary: dict[str, Any]) -> dict[str, float | None]:
    rows, identity, images = summary["rows"], summary["identity"], summary["images"]
    strangers, profile = summary.get("strangers") or {}, summary.get("profile") or {}
    embeddings = summary.get("embeddings") or {}
    total, scored, ok = (
        _number(counts.get(name, 0)) or 0 for counts, name in ((rows, "total"), (rows, "scored"), (images, "ok"))
    )
    low, high = strangers.get("match_rate_interval") or (None, None)
    return {
        "rows": total,
        "match_rate": _share(rows.get("matches", 0), scored),
        "failed_rows": _share(rows.get("failed", 0), total),
        "identity_faults": _share(identity.get("below_threshold", 0) + identity.get("outscored", 0), scored),
        "stranger_rate": _number(strangers.get("match_rate")),
        "stranger_low": _number(low),
        "stranger_high": _number(high),
        "encoded": _number(embeddings.get("encoded", ok)),
        "reused": _number(embeddings.get("reused", 0)),
        "failed_images": _number(images.get("total", 0) - ok),
        "images_per_second": _number(profile.get("images_per_second")),
        "seconds": _number(profile.get("wall_seconds")),
    }


def _failures(summary: dict[str, Any]) -> dict[str, float]:
    images, rows = summary["images"], summary["rows"]
    shares = {
        status: _share(count, images.get("total", 0)) for status, count in images.items() if status not in ("total", "ok")
    }
    sides = 2 * rows.get("total", 0)
    shares |= {
        status: _share(rows.get(f"left.{status}", 0) + rows.get(f"right.{status}", 0), sides)
        for status in ("no_uri", "bad_row")
    }
    return {status: share for status, share in shares.items() if share}


def _limits(summary: dict[str, Any], gates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    # Strangers have a limit in every run, be it a gate or the verdict's own.
    strangers = summary.get("strangers") or {}
    limits = {"stranger_rate": _limit(strangers["limit"], strangers["pairs"])} if strangers else {}
    for gate in gates:
        measure = _GATED.get(gate["option"])
        if measure == "psi":
            limits[measure] = _number(float(gate["limit"]))
        elif measure is not None:
            limits[measure] = _limit(gate["limit"], gate["rows"])
    return {measure: limit for measure, limit in limits.items() if limit is not None}


def _gate(entry: Mapping[str, Any]) -> Gate:
    """Returns a gate of a summary, which may have entries that this program does not know."""
    return Gate(**{field.name: entry[field.name] for field in dataclasses.fields(Gate)})


def _limit(text: str, rows: int) -> float | None:
    """Returns a limit as a share of `rows`."""
    limit = Limit.parse(text.replace(",", ""))
    return limit.maximum / 100 if limit.is_percentage else _share(limit.maximum, rows)


def _share(count: Any, whole: Any) -> float | None:
    part, total = _number(count), _number(whole)
    return part / total if part is not None and total else None


def _number(value: Any) -> float | None:
    """Returns a finite number, or None for null and for what is not finite; a summary may hold anything.

    Raises:
        ValueError: If it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value) if math.isfinite(value) else None


def _day_of(name: str) -> datetime.date | None:
    days = (_date(match[1]) for match in map(_DAY.fullmatch, name.split("/")) if match)
    return next((day for day in days if day), None)


def _date(text: str) -> datetime.date | None:
    try:
        day = datetime.date.fromisoformat(text[:10])
    except ValueError:
        return None
    return day if _FIRST_YEAR <= day.year <= _LAST_YEAR else None


def _started(night: Night) -> str:
    return night.figures.started if night.figures else ""


def _missing_nights(days: Collection[datetime.date], until: datetime.date | None) -> list[Night]:
    """Returns the nights that are missing between the first day and the last, with the most frequent distance of two runs."""
    days = sorted(set(days))
    if not days:
        return []
    steps = collections.Counter((after - before).days for before, after in itertools.pairwise(days))
    step = min(steps, key=lambda days: (-steps[days], days)) if steps else 1
    missing = []
    for before, after in zip(days, [*days[1:], max(days[-1], until or days[-1]) + _ONE_DAY], strict=True):
        due = range(before.toordinal() + step, after.toordinal(), step)
        missing += [_missing_night(datetime.date.fromordinal(day)) for day in due[:_LONGEST_GAP]]
    return missing


def _missing_night(day: datetime.date) -> Night:
    return Night(f"dt={day}", day, State.MISSING, "There is no folder of this night.")
