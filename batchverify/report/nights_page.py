"""The page of many nights: one HTML file with plots over time, a calendar, and a table that leads to each night's report."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from batchverify.report import plots
from batchverify.report.nights import Night, State
from batchverify.report.page import environment
from batchverify.report.plots import Line, Timeline
from batchverify.uris import is_remote, scheme_of
from batchverify.version import VERSION

_KINDS_SHOWN = 6
_KIND_COLOURS = (plots.IMPOSTOR, plots.NEUTRAL, plots.GENUINE, plots.INK, plots.MUTED, plots.FAULT)
_TROUBLES_SHOWN = 30
_CHANGES_SHOWN = 20
_MONTHS_OPEN = 2
_LEVELS = ("good", "warn", "bad")  # from best to worst
_MARKS = {"good": "✓", "warn": "!", "bad": "✗"}


@dataclasses.dataclass(frozen=True)
class Chart:
    """One plot over time with its legend.

    Attributes:
        id: The name of its section.
        title: The heading.
        text: What it shows, in a sentence or two.
        svg: The plot; empty where no night has such a figure.
        legend: Label, colour and line style of each line; empty where there is only one.
    """

    id: str
    title: str
    text: str
    svg: Markup
    legend: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """The places of the page and of what it leads to.

    Attributes:
        nights: The folder that holds the run directories.
        page: The file of the page.
    """

    nights: str
    page: str

    def link(self, night: Night) -> str:
        """Returns the address of a night's report, relative to the page where both lie side by side; empty without one."""
        if not night.has_report:
            return ""
        path = f"{self.nights.rstrip('/')}/{night.name}/_report.html"
        if is_remote(path):
            return self._link_to_store(path)
        if is_remote(self.page):
            return ""
        folder = os.path.dirname(os.path.abspath(self.page))
        return quote(os.path.relpath(os.path.abspath(path), folder), safe="/=")

    def _link_to_store(self, path: str) -> str:
        folder = self.page.rpartition("/")[0] + "/"
        if is_remote(self.page) and path.startswith(folder):
            return quote(path.removeprefix(folder), safe="/=")
        scheme = scheme_of(path)
        rest = quote(path.partition("://")[2], safe="/=")
        # A browser that is signed in opens objects of Google's there.
        return f"https://storage.cloud.google.com/{rest}" if scheme == "gs" else f"{scheme}://{rest}"


def render_nights(nights: Sequence[Night], place: Place, baseline: str | None = None) -> str:
    """Returns the HTML page.

    Args:
        nights: The nights in their order, at least one.
        place: The places of the nights and of the page.
        baseline: The run that all nights are compared with, as it was named; None where each has its own.
    """
    last = nights[-1]
    return environment().get_template("nights.html.j2").render(
        place=place,
        baseline=baseline,
        version=VERSION,
        last=last,
        marks=_MARKS,
        counts=_counts(nights),
        charts=_charts(nights, baseline),
        calendar=_calendar(nights, place),
        troubles=_troubles(nights)[:_TROUBLES_SHOWN],
        untold=max(0, len(_troubles(nights)) - _TROUBLES_SHOWN),
        changes=_changes(nights)[-_CHANGES_SHOWN:][::-1],
        months=_months(nights, place),
    )  # fmt: skip


def _counts(nights: Sequence[Night]) -> dict[str, int]:
    states = [night.state for night in nights]
    return {
        "Nights finished": states.count(State.FINISHED),
        "Gates not met": sum(bool(night.figures and night.figures.unmet) for night in nights),
        "Not finished": states.count(State.UNFINISHED),
        "Missing": states.count(State.MISSING),
        "Unreadable": states.count(State.UNREADABLE),
    }


def _troubles(nights: Sequence[Night]) -> list[tuple[Night, tuple[str, ...]]]:
    """Returns the nights to look at, the latest first, each with what is wrong."""
    found: list[tuple[Night, tuple[str, ...]]] = []
    for night in reversed(nights):
        if night.figures is None:
            found.append((night, (night.problem,)))
        elif night.figures.unmet or night.level == "bad" or night.figures.remark:
            said = (night.headline,) if night.level == "bad" and not night.figures.unmet else night.figures.unmet
            found.append((night, (*said, *filter(None, [night.figures.remark]))))
    return found


def _changes(nights: Sequence[Night]) -> list[tuple[Night, Night]]:
    """Returns each night with another model than the finished night before it, and that night."""
    finished = [night for night in nights if night.figures]
    return [
        (before, night)
        for before, night in itertools.pairwise(finished)
        if before.figures and night.figures and before.figures.model_digest != night.figures.model_digest
    ]


def _charts(nights: Sequence[Night], baseline: str | None) -> list[Chart]:
    dated = [night for night in nights if night.day]
    if not dated:
        return []
    timeline = _timeline(dated)
    since = f"since {baseline}" if baseline else "since the baseline that each run had (--baseline names one for all)"

    def lines(*wanted: tuple[str, str, str, str]) -> list[Line]:
        return [Line(label, _values(dated, name), colour, style) for name, label, colour, style in wanted]

    def chart(name: str, title: str, text: str, drawn: Sequence[Line], form: Callable[[float], str]) -> Chart:
        known = [line for line in drawn if np.isfinite(line.values).any()]
        limits = _limits(dated, _MEASURES_WITH_LIMITS.get(name, ""))
        svg = plots.timeline_plot(name, title, timeline, known, form, limits, name != "match-rate") if known else ""
        return Chart(name, title, text, Markup(svg), _legend(known))

    stranger = dataclasses.replace(
        lines(("stranger_rate", "strangers that match", plots.IMPOSTOR, "solid"))[0],
        interval=(_values(dated, "stranger_low"), _values(dated, "stranger_high")),
    )
    seconds = _values(dated, "seconds")
    unit, divisor = _unit(float(np.max(seconds, where=np.isfinite(seconds), initial=0)))
    duration = Line("duration", seconds / divisor)
    sources = lines(
        ("reused", "reused from the store of embeddings", plots.GENUINE, "solid"),
        ("encoded", "encoded", plots.NEUTRAL, "solid"),
        ("failed_images", "failed", plots.FAULT, "solid"),
    )
    images = plots.timeline_stack("images", "Images new and reused", timeline, sources, format_count)
    return [
        chart("match-rate", "Match rate", "Share of the scored rows that match.",
              lines(("match_rate", "match rate", plots.NEUTRAL, "solid")), format_share),
        chart("drift", "Drift", f"Population stability index of the scores {since}. Below 0.1 they have hardly moved, from "
              "0.25 on they have moved a lot.",
              lines(("psi", "scores of the pairs", plots.NEUTRAL, "solid"),
                    ("strangers_psi", "scores of strangers", plots.IMPOSTOR, "dashed")), "{:.3g}".format),
        chart("strangers", "Strangers", "Share of the pairs drawn at random that match, with its 95% interval.", [stranger],
              format_share),
        chart("identity", "Identity faults", "Share of the scored rows with an image that scores too low against itself.",
              lines(("identity_faults", "identity faults", plots.NEUTRAL, "solid")), format_share),
        chart("failed-rows", "Rows without a score", "Share of all rows.",
              lines(("failed_rows", "rows without a score", plots.NEUTRAL, "solid")), format_share),
        chart("failures", "Failures by kind", "Share of the distinct images that could not be read, by the reason; no uri and "
              "bad row are shares of the sides of rows.", _failure_lines(dated), format_share),
        Chart("images", "Images new and reused", "Distinct images of each night.", Markup(images), _legend(sources)),
        chart("speed", "Images a second", "Distinct images over the time of the whole run.",
              lines(("images_per_second", "images a second", plots.NEUTRAL, "solid")), format_count),
        chart("duration", "Duration", "Time from the start of the pipeline to the summary.", [duration],
              f"{{:.3g}} {unit}".format),
    ]  # fmt: skip


_MEASURES_WITH_LIMITS = {
    "drift": "psi",
    "strangers": "stranger_rate",
    "identity": "identity_faults",
    "failed-rows": "failed_rows",
}


def _timeline(nights: Sequence[Night]) -> Timeline:
    def days(chosen: Sequence[Night]) -> np.ndarray:
        return np.array([night.day for night in chosen], "datetime64[D]")

    return Timeline(
        days=days(nights),
        missing=np.unique(days([night for night in nights if night.state is State.MISSING])),
        failed=days([night for night in nights if night.state in (State.UNFINISHED, State.UNREADABLE)]),
        changes=np.unique(days([night for _, night in _changes(nights)])),
    )


def _values(nights: Sequence[Night], name: str) -> np.ndarray:
    """Returns a measure of each night, float64 `(n,)`; NaN where a night has none."""
    return np.array([night.figures.measures.get(name, np.nan) if night.figures else np.nan for night in nights])


def _limits(nights: Sequence[Night], name: str) -> np.ndarray:
    """Returns the limit of a measure in each night, float64 `(n,)`; a night without figures has that of the night before."""
    limits, limit = [], np.nan
    for night in nights:
        limit = night.figures.limits.get(name, np.nan) if night.figures else limit
        limits.append(limit)
    return np.array(limits)


def _failure_lines(nights: Sequence[Night]) -> list[Line]:
    """Returns a line for each of the most frequent kinds of failure, and one for all others."""
    figures = [night.figures.failures if night.figures else None for night in nights]
    totals: dict[str, float] = {}
    for failures in filter(None, figures):
        for kind, share in failures.items():
            totals[kind] = totals.get(kind, 0) + share
    kinds = sorted(totals, key=lambda kind: (-totals[kind], kind))
    named = kinds if len(kinds) <= _KINDS_SHOWN else kinds[: _KINDS_SHOWN - 1]
    groups: list[tuple[str, tuple[str, ...]]] = [(kind.replace("_", " "), (kind,)) for kind in named]
    if others := kinds[len(named) :]:
        groups.append((f"{len(others)} other kinds", tuple(others)))
    return [
        Line(label, _sums(figures, members), _KIND_COLOURS[number], plots.LINE_STYLES[number % len(plots.LINE_STYLES)])
        for number, (label, members) in enumerate(groups)
    ]


def _sums(figures: Sequence[Mapping[str, float] | None], kinds: Sequence[str]) -> np.ndarray:
    return np.array([np.nan if failures is None else sum(failures.get(kind, 0) for kind in kinds) for failures in figures])


def _legend(lines: Sequence[Line]) -> tuple[tuple[str, str, str], ...]:
    if len(lines) < 2:
        return ()
    return tuple((line.label, plots.css_colour(line.colour), line.style) for line in lines)


def _calendar(nights: Sequence[Night], place: Place) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns the months, the latest first, each with its days; of several runs of a day, the worst is shown."""
    by_day: dict[datetime.date, Night] = {}
    for night in nights:
        if night.day and (night.day not in by_day or _rank(night) > _rank(by_day[night.day])):
            by_day[night.day] = night
    months: dict[str, list[dict[str, Any]]] = {}
    for day, night in by_day.items():
        cell = {"column": day.day + 1, "kind": _kind(night), "link": place.link(night), "title": f"{day}: {night.headline}"}
        months.setdefault(f"{day:%Y-%m}", []).append(cell)
    return sorted(months.items(), reverse=True)


def _kind(night: Night) -> str:
    """Returns what the calendar shows of a night: its level, or its state where it has none."""
    return night.level if night.figures else str(night.state)


def _rank(night: Night) -> int:
    return _LEVELS.index(night.level)


def _months(nights: Sequence[Night], place: Place) -> list[dict[str, Any]]:
    """Returns the table of nights, the latest month first and open."""
    by_month: dict[str, list[Night]] = {}
    for night in reversed(nights):
        by_month.setdefault(f"{night.day:%Y-%m}" if night.day else "without a day", []).append(night)
    return [
        {"name": name, "is_open": number < _MONTHS_OPEN, "nights": [_row(night, place) for night in month]}
        for number, (name, month) in enumerate(by_month.items())
    ]


def _row(night: Night, place: Place) -> dict[str, Any]:
    measures = night.figures.measures if night.figures else {}
    columns = (
        ("matches", "match_rate", format_share), ("drift", "psi", "{:.3g}".format),
        ("strangers", "stranger_rate", format_share), ("identity faults", "identity_faults", format_share),
        ("without a score", "failed_rows", format_share),
        ("rows", "rows", format_count), ("images/s", "images_per_second", format_count), ("time", "seconds", format_seconds),
    )  # fmt: skip
    return {
        "name": night.name,
        "link": place.link(night),
        "level": night.level,
        "text": " ".join((night.headline, *(night.figures.unmet if night.figures else ()))),
        "cells": [(label, form(measures[key]) if key in measures else "") for label, key, form in columns] if measures else [],
    }


def format_share(value: float) -> str:
    """Returns a share in percent, with as many digits as it takes to tell it from its neighbours."""
    return f"{100 * value:.3g}%"


def format_count(value: float) -> str:
    """Returns a number, large ones in thousands, millions or billions."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Returns a time in the unit that suits it."""
    unit, seconds = _unit(value)
    return f"{value / seconds:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    """Returns the unit that suits a time, and its seconds."""
    if seconds < 90:
        return "s", 1.0
    return ("min", 60.0) if seconds < 5400 else ("h", 3600.0)
