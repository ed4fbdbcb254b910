"""The report's plots: SVG elements that Matplotlib draws. They use the colours of the page, which is light or dark."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from batchverify.errors import printable
from batchverify.evaluation import metrics
from batchverify.evaluation.groups import group_label
from batchverify.words import counted

# Placeholders that look like no other colour of a plot. Each is replaced by a variable of the page's style sheet.
INK, MUTED, GRID, GENUINE, IMPOSTOR, NEUTRAL, FAULT, PAPER = (f"#0102{number:02x}" for number in range(8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", GENUINE: "genuine", IMPOSTOR: "impostor", NEUTRAL: "neutral",
              FAULT: "bad", PAPER: "paper"}  # fmt: skip
LINE_STYLES = ("solid", "dashed", "dotted")  # by their names in style sheets, too
_KIND_COLOURS = {"genuine": GENUINE, "impostor": IMPOSTOR, "unlabelled": NEUTRAL}
_BARS = 50
_WIDTH_IN = 5.6
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "grid.color": GRID, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.grid": True,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "text.parse_math": False,  # A dollar in a name of the user's is a dollar.
}  # fmt: skip
_PROBABILITY_TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
# Ticks at the first of a year, at the first of a month, at days, and at hours, which plots over days don't have.
_DATE_FORMATS = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S"]
_MANY_DAYS = 120  # Of more days, a plot shows no dots.
_LIMIT_IN_SIGHT = 4  # A limit so many times above the highest value would press the line to the ground.
_DET_TICKS = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5)


def css_colour(colour: str) -> str:
    """Returns a colour of this module as a style sheet has it."""
    return f"var(--{_VARIABLES[colour]})"


# Turns the figure into an SVG element, given its name and its description.
Finish = Callable[[str, str], str]


def score_plot(histograms: dict[str, np.ndarray], threshold: float) -> str:
    """Draws a histogram of scores for each kind of pair, one below the other; kinds without pairs are left out.

    Args:
        histograms: Histograms of scores by kind (`genuine`, `impostor`, `unlabelled`), int `(bins,)` each.
        threshold: The lowest score that is a match.
    """
    present = {kind: counts for kind, counts in histograms.items() if counts.sum()}
    description = "Histogram of pair scores from 0 to 1, one panel each for " + ", ".join(
        counted(int(counts.sum()), f"{kind} pair") for kind, counts in present.items()
    )
    with _figure(0.4 + 1.4 * len(present)) as (figure, finish):
        panels = np.atleast_1d(figure.subplots(len(present), 1, sharex=True))
        for axes, (kind, counts) in zip(panels, present.items(), strict=True):
            _bars(axes, counts, _KIND_COLOURS[kind])
            axes.set_title(f"{kind.capitalize()} pairs ({counts.sum():,})", color=_KIND_COLOURS[kind], fontweight="bold")
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
        _label_line(panels[0], threshold, f"threshold {threshold:g}")
        panels[-1].set_xlabel("score")
        return finish("scores", f"{description}; a dashed line at the threshold {threshold:g}.")


def identity_plot(
    identity: np.ndarray,
    strangers: np.ndarray,
    pairs: np.ndarray,
    faults: np.ndarray,
    span: tuple[float, float],
    threshold: float,
) -> str:
    """Draws histograms of the scores of images with themselves, of strangers, and of pairs; pairs at fault are hatched.

    Args:
        identity: Histogram of the distinct images' identity scores.
        strangers: Histogram of the scores of images drawn at random; without any, the plot has no panel for them.
        pairs: Histogram of the scores of all pairs.
        faults: Histogram of the scores of pairs whose identity check is not sane.
        span: Lowest and highest identity score.
        threshold: The lowest score that is a match.
    """
    panels = 2 + bool(strangers.sum())
    with _figure(0.3 + 1.4 * panels) as (figure, finish):
        above, *between, below = figure.subplots(panels, 1, sharex=True)
        for axes in between:
            _bars(axes, strangers, IMPOSTOR)
            title = f"Strangers: images drawn at random ({counted(int(strangers.sum()), 'pair')})"
            axes.set_title(title, fontweight="bold", color=IMPOSTOR)
        _bars(above, identity, INK)
        above.set_title(f"Images compared with themselves ({identity.sum():,})", fontweight="bold")
        _bars(below, pairs, NEUTRAL)
        title = f"Pairs ({pairs.sum():,})"
        if faults.sum():
            _bars(below, faults, FAULT, hatch="///")
            title += f", hatched: at fault ({faults.sum():,})"
        below.set_title(title, fontweight="bold", color=FAULT if faults.sum() else INK)
        for axes in (above, *between, below):
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
            axes.axvspan(*span, color=INK, alpha=0.12, linewidth=1.5)
        _label_line(above, threshold, f"threshold {threshold:g}")
        below.set_xlabel("score")
        return finish(
            "identity",
            f"Histogram of {counted(int(identity.sum()), 'identity score')}, from {span[0]:.4f} to {span[1]:.4f}, above "
            + (f"a histogram of {counted(int(strangers.sum()), 'score')} of strangers and " if strangers.sum() else "")
            + f"a histogram of {counted(int(pairs.sum()), 'pair score')}, {int(faults.sum()):,} of them at fault.",
        )


def det_plot(
    fmr: np.ndarray, fnmr: np.ndarray, pairs: tuple[int, int], eer: float | None, operating_point: tuple[float, float]
) -> str:
    """Draws the DET curve on normal-deviate axes.

    Args:
        fmr: FMR at each threshold, float64 `(n,)`.
        fnmr: FNMR at the same thresholds, float64 `(n,)`.
        pairs: Numbers of impostor and of genuine pairs. A rate of 0 has no place on these axes; it is drawn as half a pair.
        eer: The equal error rate, or None.
        operating_point: FMR and FNMR at the threshold in force.
    """
    floors = [0.5 / count for count in pairs]
    with _figure(3.4, 3.6) as (figure, finish):
        axes = figure.subplots()
        axes.plot(_normal_deviates(fmr, floors[0]), _normal_deviates(fnmr, floors[1]), color=NEUTRAL, linewidth=1.8)
        for axis, floor in zip("xy", floors, strict=True):
            _set_deviate_axis(axes, axis, floor)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=":")
        x, y = (_normal_deviate(rate, floor) for rate, floor in zip(operating_point, floors, strict=True))
        best_x, best_y = (_normal_deviate(0.5 if eer is None else eer, floor) for floor in floors)
        _mark_rates(axes, (x, y), eer, (best_x, best_y), "best")
        axes.set(xlabel="FMR in %", ylabel="FNMR in %")
        axes.set_title("DET", fontweight="bold")
        crossing = "" if eer is None else f" It crosses the diagonal at the EER of {eer:.2%}."
        return finish("det", f"DET curve: false non-match rate against false match rate.{crossing}")


def two_det_plot(curves: dict[str, dict[str, Any]]) -> str:
    """Draws the DET curves of two models on normal-deviate axes.

    Args:
        curves: The results of `two_models.curves`; the first is drawn as a line, the second is dashed.
    """
    floors = [min(0.5 / curve["pairs"][place] for curve in curves.values()) for place in (0, 1)]
    with _figure(3.4, 3.6) as (figure, finish):
        axes = figure.subplots()
        for axis, floor in zip("xy", floors, strict=True):
            _set_deviate_axis(axes, axis, floor)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=":")
        for (name, curve), colour, line in zip(curves.items(), (NEUTRAL, IMPOSTOR), ("-", "--"), strict=True):
            x, y = (_normal_deviates(curve[rate], floor) for rate, floor in zip(("fmr", "fnmr"), floors, strict=True))
            eer = "" if curve["eer"] is None else f", EER {curve['eer']:.2%}"
            axes.plot(x, y, color=colour, linestyle=line, linewidth=1.8, label=f"{name}{eer}")
            point = [_normal_deviate(rate, floor) for rate, floor in zip(curve["point"], floors, strict=True)]
            axes.plot(*([value] for value in point), marker="o", color=colour, markersize=6, linestyle="", clip_on=False)
        axes.legend(loc="best", fontsize=8, frameon=True, facecolor=PAPER, framealpha=1, edgecolor=GRID)
        axes.set(xlabel="FMR in %", ylabel="FNMR in %")
        axes.set_title("DET of both models", fontweight="bold")
        return finish("both-models", f"DET curves of the {' and of the '.join(curves)}.")


def group_plot(column: str, groups: Sequence[dict[str, Any]], number: int) -> str:
    """Draws FMR and FNMR of each group with their intervals, on a logarithmic axis.

    Args:
        column: The column that names the groups.
        groups: The entries `each` of a section of `_summary.json`.
        number: The number of the column; names of plots on a page differ.
    """
    with _figure(0.9 + 0.32 * len(groups), left=1.6) as (figure, finish):
        axes = figure.subplots()
        for rate, kind, colour, shift in (("fmr", "impostor", IMPOSTOR, -0.15), ("fnmr", "genuine", GENUINE, 0.15)):
            places = [place for place, group in enumerate(groups) if group[kind]]
            # A rate of 0 has no place on this axis; it is drawn as half a pair.
            rates = [max(groups[place][rate], 0.5 / groups[place][kind]) for place in places]
            lows = [max(groups[place][f"{rate}_interval"][0], 0.05 / groups[place][kind]) for place in places]
            highs = [groups[place][f"{rate}_interval"][1] for place in places]
            reach = [[max(0.0, rate - low) for rate, low in zip(rates, lows, strict=True)],
                     [max(0.0, high - rate) for rate, high in zip(rates, highs, strict=True)]]  # fmt: skip
            heights = [place + shift for place in places]
            axes.errorbar(rates, heights, xerr=reach, fmt="o", color=colour, markersize=4, label=rate.upper())
        axes.set_xscale("log")
        axes.set_yticks(range(len(groups)), [_short(group_label(group)) for group in groups])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g}%"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, borderaxespad=0)
        axes.set_title(f"Error rates by {_short(column)}", fontweight="bold")
        return finish(f"groups-{number}", f"FMR and FNMR of {len(groups)} groups of {column} with their 95% intervals.")


def _short(name: str) -> str:
    """Returns a name of the user's as a plot has room for it."""
    return printable(name)[:24]


def reliability_plot(entries: Sequence[dict[str, Any]]) -> str:
    """Draws observed shares of genuine pairs against predicted probabilities, both on logit axes.

    Args:
        entries: The key `calibration.reliability` of `_summary.json`.
    """
    predicted, observed = (_log_odds([entry[name] for entry in entries]) for name in ("predicted", "observed"))
    low, high = (_log_odds([entry["observed_interval"][end] for entry in entries]) for end in (0, 1))
    # A share of 0 or 1 has no place on these axes; it is drawn as half a pair, which lies this far inside Wilson's bound.
    half_a_pair = np.log(2 * NormalDist().inv_cdf(0.975) ** 2)
    observed = np.where(np.isneginf(observed), high - half_a_pair, np.where(np.isposinf(observed), low + half_a_pair, observed))
    limit = max(2.5, 0.4 + float(np.max(np.abs([predicted, observed]))))
    reach = [observed - np.maximum(low, -2 * limit), np.minimum(high, 2 * limit) - observed]
    with _figure(3.6, 3.8) as (figure, finish):
        axes = figure.subplots()
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=":")
        axes.errorbar(predicted, observed, yerr=reach, fmt="o", color=NEUTRAL, markersize=5, linewidth=1.2)
        ticks = [tick for tick in _PROBABILITY_TICKS if abs(_log_odds([tick])[0]) <= limit]
        for axis in "xy":
            axes.set(**{f"{axis}ticks": _log_odds(ticks), f"{axis}lim": (-limit, limit)})
            axes.set(**{f"{axis}ticklabels": [f"{100 * tick:g}" for tick in ticks]})
        axes.set(xlabel="predicted probability of a genuine pair in %", ylabel="observed share of genuine pairs in %")
        axes.set_title("Reliability at a prior of 50%", fontweight="bold")
        points = ", ".join(f"{entry['observed']:.2%} at {entry['predicted']:.2%}" for entry in entries)
        return finish("reliability", f"Observed share of genuine pairs by predicted probability: {points}.")


def _log_odds(shares: Sequence[float]) -> np.ndarray:
    """Returns log(p / (1 − p)), infinite at 0 and 1."""
    with np.errstate(divide="ignore"):
        log_odds: np.ndarray = np.log(shares) - np.log1p(-np.asarray(shares))
    return log_odds


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plot over time.

    Attributes:
        label: Its name.
        values: Its value on each day, float64 `(n,)`; NaN where there is none.
        colour: One of the colours of this module.
        style: A line style of Matplotlib.
        interval: Lower and upper bounds of the values, float64 `(n,)` each.
    """

    label: str
    values: np.ndarray
    colour: str = NEUTRAL
    style: str = "solid"
    interval: tuple[np.ndarray, np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The days that several plots have in common, and what is marked on them.

    Attributes:
        days: The days in order, datetime64[D] `(n,)`; several runs may be of one day.
        missing: Days without a run, datetime64[D].
        failed: Days whose run has no figures, datetime64[D].
        changes: Days on which the model was another one than on the day before, datetime64[D].
    """

    days: np.ndarray
    missing: np.ndarray
    failed: np.ndarray
    changes: np.ndarray


def timeline_plot(
    name: str,
    title: str,
    timeline: Timeline,
    lines: Sequence[Line],
    form: Callable[[float], str],
    limits: np.ndarray,
    from_zero: bool = True,
) -> str:
    """Draws values over days. A band shows what is beyond a limit, and points beyond it are marked.

    Args:
        name: The name of the plot; names of plots on a page differ.
        title: What is drawn, for those who cannot see it.
        timeline: The days.
        lines: The lines; the limits are those of the first one.
        form: The function that turns a value into the label of a tick.
        limits: The highest value that is allowed on each day, float64 `(n,)`; NaN where there is no limit.
        from_zero: Whether the axis begins at 0; if not, it begins near the lowest value, so that small changes show.
    """
    with _figure(1.75, left=0.7) as (figure, finish):
        axes = figure.subplots()
        top = _draw_limits(axes, timeline.days, limits, _highest(lines))
        for line in lines:
            if line.interval:
                axes.fill_between(timeline.days, *line.interval, color=line.colour, alpha=0.18, linewidth=0)
            axes.plot(timeline.days, line.values, color=line.colour, linewidth=1.3, linestyle=line.style, zorder=3)
            alone = _without_neighbours(line.values) if len(timeline.days) > _MANY_DAYS else np.isfinite(line.values)
            _dots(axes, timeline.days[alone], line.values[alone], line.colour, 2.5)
        beyond = lines[0].values > limits
        _dots(axes, timeline.days[beyond], lines[0].values[beyond], FAULT, 4)
        lowest = 0.0 if from_zero else float(np.nanmin([np.nanmin(line.values) for line in lines]))
        _finish_time_axes(axes, timeline, (lowest, top if from_zero else max(_highest(lines), lowest * 1.01)), form)
        return finish(name, f"{title}. {_describe_lines(lines, form)}")


def timeline_stack(name: str, title: str, timeline: Timeline, lines: Sequence[Line], form: Callable[[float], str]) -> str:
    """Draws values over days, stacked upon each other. The arguments are those of `timeline_plot`."""
    with _figure(1.75, left=0.7) as (figure, finish):
        axes = figure.subplots()
        days, below = _steps(timeline.days), np.zeros(2 * len(timeline.days))
        for line in lines:
            above = below + np.repeat(np.nan_to_num(line.values), 2)
            axes.fill_between(days, below, above, facecolor=line.colour, linewidth=0, alpha=0.85, zorder=3)
            below = above
        _finish_time_axes(axes, timeline, (0, max(below.max(), 1) * 1.15), form)
        return finish(name, f"{title}. {_describe_lines(lines, form)}")


def _steps(days: np.ndarray) -> np.ndarray:
    """Returns the beginning and the end of each day, around its middle; datetime64[h] `(2 n,)`."""
    hours = days.astype("datetime64[h]")
    return np.stack([hours - 12, hours + 12], axis=1).ravel()


def _highest(lines: Sequence[Line]) -> float:
    values = np.concatenate([line.values for line in lines])
    return float(np.max(values, where=np.isfinite(values), initial=0))


def _draw_limits(axes: Axes, days: np.ndarray, limits: np.ndarray, highest: float) -> float:
    """Draws the band beyond the limits, and returns where the axis ends; far above all values, the limit is only named."""
    lowest = float(np.min(limits, where=np.isfinite(limits), initial=np.inf))
    if not np.isfinite(lowest):
        return highest * 1.15
    shown = lowest <= highest * _LIMIT_IN_SIGHT
    top = max(highest * 1.15, lowest * 1.3 if shown or not highest else 0)
    if shown or not highest:
        bottom = np.repeat(np.minimum(np.nan_to_num(limits, nan=np.inf), top or 1), 2)
        axes.fill_between(_steps(days), bottom, top or 1, color=FAULT, alpha=0.13, linewidth=0)
    else:
        axes.annotate("the limit lies higher", (1, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", ha="right",
                      va="bottom", fontsize=7, color=INK)  # fmt: skip
    return top


def _finish_time_axes(axes: Axes, timeline: Timeline, span: tuple[float, float], form: Callable[[float], str]) -> None:
    """Draws what all plots over time have: missing and failed days, changes of the model, and the axes."""
    bottom, top = span
    top = top if top > bottom else bottom + 1
    half_a_day = np.timedelta64(12, "h")
    for first, last in _ranges(timeline.missing):
        axes.axvspan(date2num(first - half_a_day), date2num(last + half_a_day), color=MUTED, alpha=0.22, linewidth=0)
    axes.plot(timeline.failed, np.full(len(timeline.failed), 0.05), "x", color=FAULT, markersize=4.5, markeredgewidth=1.4,
              transform=axes.get_xaxis_transform(), zorder=4, clip_on=False)  # fmt: skip
    for day in timeline.changes:
        axes.axvline(day, color=INK, linewidth=0.9, linestyle=":", zorder=2)
    axes.plot(timeline.changes, np.full(len(timeline.changes), 1.0), "v", color=INK, markersize=4,
              transform=axes.get_xaxis_transform(), zorder=4, clip_on=False)  # fmt: skip
    axes.set_xlim(timeline.days[0] - 2 * half_a_day, timeline.days[-1] + 2 * half_a_day)
    margin = 0.02 * top if bottom == 0 else 0.12 * (top - bottom)
    axes.set_ylim(bottom - margin, top if bottom == 0 else top + margin)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False, formats=_DATE_FORMATS))


def _dots(axes: Axes, days: np.ndarray, values: np.ndarray, colour: str, size: float) -> None:
    axes.plot(days, values, "o", color=colour, markersize=size, linestyle="", zorder=4)


def _without_neighbours(values: np.ndarray) -> np.ndarray:
    """Returns which values have none beside them, so that no line shows them; bool `(n,)`."""
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone: np.ndarray = known[1:-1] & ~known[:-2] & ~known[2:]
    return alone


def _ranges(days: np.ndarray) -> list[tuple[np.datetime64, np.datetime64]]:
    """Returns the first and the last day of each sequence of days without a gap."""
    if not len(days):
        return []
    parts = np.split(days, np.flatnonzero(np.diff(days) > np.timedelta64(1, "D")) + 1)
    return [(part[0], part[-1]) for part in parts]


def _describe_lines(lines: Sequence[Line], form: Callable[[float], str]) -> str:
    """Returns the span of each line and its last value, in words."""
    words = []
    for line in lines:
        known = line.values[np.isfinite(line.values)]
        if len(known):
            span = f"from {form(known.min())} to {form(known.max())}, {form(known[-1])} in the last night"
            words.append(f"{line.label} in {len(known)} nights: {span}")
    return "; ".join(words) + "."


def _normal_deviate(rate: float, floor: float) -> float:
    """Returns the quantile of the normal distribution at `rate`, which is first moved into [floor, 1 - floor]."""
    return NormalDist().inv_cdf(min(max(rate, floor), 1 - floor))


def _normal_deviates(rates: Sequence[float] | np.ndarray, floor: float) -> np.ndarray:
    return np.array([_normal_deviate(rate, floor) for rate in rates])


def _set_deviate_axis(axes: Axes, axis: str, floor: float) -> None:
    """Sets ticks, their labels in percent, and limits of the axis `x` or `y`."""
    ticks = [tick for tick in _DET_TICKS if tick >= floor]
    limits = NormalDist().inv_cdf(floor) - 0.15, NormalDist().inv_cdf(0.6)
    axes.set(**{f"{axis}ticks": _normal_deviates(ticks, 1e-12), f"{axis}lim": limits})
    axes.set(**{f"{axis}ticklabels": [f"{100 * tick:g}" for tick in ticks]})


def roc_plot(fmr: np.ndarray, fnmr: np.ndarray, eer: float | None, operating_point: tuple[float, float]) -> str:
    """Draws the ROC curve. The arguments are those of `det_plot`."""
    with _figure(3.4, 3.6) as (figure, finish):
        axes = figure.subplots()
        axes.plot(fmr, 1 - fnmr, color=NEUTRAL, linewidth=1.8)
        axes.axline((0, 1), slope=-1, color=MUTED, linewidth=0.8, linestyle=":")
        match_rate, eer_position = 1 - operating_point[1], 0.0 if eer is None else eer
        _mark_rates(axes, (operating_point[0], match_rate), eer, (eer_position, 1 - eer_position), "lower right")
        axes.set(xlabel="FMR", ylabel="1 − FNMR", xlim=(-0.02, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_title("ROC", fontweight="bold")
        return finish("roc", "ROC curve: share of genuine pairs that match against the false match rate.")


def _format_seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 1 else f"{value:.2f} s"


def time_plot(seconds: dict[str, float]) -> str:
    """Draws a bar for each kind of work.

    Args:
        seconds: Seconds by kind of work.
    """
    with _figure(0.7 + 0.28 * len(seconds), left=1.8) as (figure, finish):
        axes = figure.subplots()
        names, values = [*map(_short, seconds)][::-1], list(seconds.values())[::-1]
        axes.barh(names, values, color=NEUTRAL, height=0.7)
        for row, value in enumerate(values):
            axes.annotate(_format_seconds(value), (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.12)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        bars = ", ".join(f"{name} {_format_seconds(value)}" for name, value in seconds.items())
        return finish("time", f"Seconds spent: {bars}.")


def _bars(axes: Axes, counts: np.ndarray, colour: str, hatch: str | None = None) -> None:
    bars = metrics.even_bins(counts, _BARS)
    # One path is drawn several times faster than fifty bars.
    axes.stairs(bars, np.linspace(0, 1, _BARS + 1), fill=True, facecolor=colour, hatch=hatch, edgecolor=PAPER, linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_ylabel("count")
    axes.grid(axis="x", visible=False)
    if axes.get_ylim()[1] > 100 or bars.max() > 100:  # A linear axis would hide a few pairs beside many.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, None)
        axes.set_ylabel("count (log)")
        axes.yaxis.set_major_locator(_decades(axes.get_ylim()[1]))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_count(value)))


def _decades(highest: float) -> FixedLocator:
    """Returns a locator of at most six ticks: 0, and powers of ten up to `highest`."""
    decades = int(np.floor(np.log10(max(highest, 10))))
    step = max(1, -(-decades // 4))
    return FixedLocator([0, *(10.0**power for power in range(0, decades + 1, step))])


def _format_count(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _label_line(axes: Axes, x: float, text: str) -> None:
    """Writes `text` beside a vertical line at `x`, on the side where there is more room."""
    side = "right" if x >= 0.5 else "left"
    axes.annotate(text, (x, 1), (-4 if side == "right" else 4, 0), ha=side, va="top", fontsize=8, color=INK,
                  xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip


def _mark_rates(
    axes: Axes,
    threshold: tuple[float, float],
    eer: float | None,
    eer_position: tuple[float, float],
    legend_place: Literal["best", "lower right"],
) -> None:
    """Marks the positions of the threshold in force and of the EER, and draws a legend."""
    x, y = threshold
    axes.plot([x], [y], marker="o", color=FAULT, markersize=6, linestyle="", label="at the threshold", clip_on=False)
    if eer is not None:
        x, y = eer_position
        axes.plot([x], [y], marker="D", color=INK, markersize=5, fillstyle="none", linestyle="", label=f"EER {eer:.2%}")
    axes.legend(loc=legend_place, fontsize=8, frameon=True, facecolor=PAPER, framealpha=1, edgecolor=GRID)


@contextmanager
def _figure(height: float, width: float = _WIDTH_IN, left: float = 0.65) -> Iterator[tuple[Figure, Finish]]:
    """Yields a figure, and a function that returns it as an SVG element. Sizes are in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        # Matplotlib takes as long to compute margins as to draw all the rest.
        margins = {"left": left / width, "right": 1 - 0.32 / width, "bottom": 0.45 / height, "top": 1 - 0.25 / height}
        figure.subplots_adjust(**margins, hspace=0.42)

        def finish(name: str, description: str) -> str:
            file = io.StringIO()
            with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
                # The reader's browser draws the text, with fonts of its own.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
            return _inline_svg(file.getvalue(), name, description)

        yield figure, finish


def _inline_svg(svg: str, name: str, description: str) -> str:
    """Returns the SVG element that an HTML page can contain.

    Screen readers read out its description. Its ids begin with `name`, so that two plots on a page have no id in common. Its
    colours are variables of the page's style sheet.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    _remove_elements(root, (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"))
    _prefix_ids(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": printable(description), "class": f"plot plot-{name}"}
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def _remove_elements(root: ElementTree.Element, tags: tuple[str, ...]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _prefix_ids(root: ElementTree.Element, prefix: str) -> None:
    """Puts `prefix` before each id, and before each reference to one."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, value.replace("#", f"#{prefix}-"))
            else:
                element.set(key, value.replace("url(#", f"url(#{prefix}-"))
