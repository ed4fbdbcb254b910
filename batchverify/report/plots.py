"""The report's plots: Matplotlib's SVG, made fit to stand inside a page. Its colours are the page's: light or dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

# Colours that no plot has, each of which becomes a variable of the page's style sheet.
INK, MUTED, GRID, GENUINE, IMPOSTOR, NEUTRAL, FAULT, PAPER = (f"#0102{number:02x}" for number in range(8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", GENUINE: "genuine", IMPOSTOR: "impostor", NEUTRAL: "neutral",
              FAULT: "bad", PAPER: "paper"}  # fmt: skip
_KIND_COLOURS = {"genuine": GENUINE, "impostor": IMPOSTOR, "unlabelled": NEUTRAL}
_BARS = 50
_WIDTH_IN = 5.6
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "grid.color": GRID, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.grid": True,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
_DET_TICKS = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5)


def score_plot(histograms: dict[str, np.ndarray], threshold: float) -> str:
    """Draws a panel for each kind of pair that there is.

    Args:
        histograms: int `(bins,)` each, by kind: `genuine`, `impostor`, `unlabelled`.
        threshold: of a match.
    """
    shown = {kind: counts for kind, counts in histograms.items() if counts.sum()}
    words = "Histogram of pair scores from 0 to 1, one panel each for " + ", ".join(
        f"{int(counts.sum())} {kind} pairs" for kind, counts in shown.items()
    )
    with _figure(0.4 + 1.4 * len(shown)) as (figure, finish):
        panels = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
        for axes, (kind, counts) in zip(panels, shown.items(), strict=True):
            _bars(axes, counts, _KIND_COLOURS[kind])
            axes.set_title(f"{kind.capitalize()} pairs ({counts.sum():,})", color=_KIND_COLOURS[kind], fontweight="bold")
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
        _note(panels[0], threshold, f"threshold {threshold:g}")
        panels[-1].set_xlabel("score")
        return finish("scores", f"{words}; a dashed line at the threshold {threshold:g}.")


def identity_plot(
    identity: np.ndarray, pairs: np.ndarray, faults: np.ndarray, span: tuple[float, float], threshold: float
) -> str:
    """Draws identity scores of images above the scores of pairs, those at fault marked.

    Args:
        identity: histogram of distinct images' identity scores.
        pairs: histogram of all pairs' scores.
        faults: histogram of the scores of pairs whose identity check is not sane.
        span: lowest and highest identity score.
        threshold: of a match.
    """
    with _figure(3.1) as (figure, finish):
        above, below = figure.subplots(2, 1, sharex=True)
        _bars(above, identity, INK)
        above.set_title(f"Images compared with themselves ({identity.sum():,})", fontweight="bold")
        _bars(below, pairs, NEUTRAL)
        title = f"Pairs ({pairs.sum():,})"
        if faults.sum():
            _bars(below, faults, FAULT, hatch="///")
            title += f", hatched: at fault ({faults.sum():,})"
        below.set_title(title, fontweight="bold", color=FAULT if faults.sum() else INK)
        for axes in (above, below):
            axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
            axes.axvspan(*span, color=INK, alpha=0.12, linewidth=1.5)
        _note(above, threshold, f"threshold {threshold:g}")
        below.set_xlabel("score")
        return finish(
            "identity",
            f"Histogram of {int(identity.sum())} identity scores, from {span[0]:.4f} to {span[1]:.4f}, above a histogram of "
            f"{int(pairs.sum())} pair scores, {int(faults.sum())} of them at fault.",
        )


def det_plot(fmr: np.ndarray, fnmr: np.ndarray, pairs: tuple[int, int], eer: float | None, point: tuple[float, float]) -> str:
    """Draws the DET curve on normal-deviate axes.

    Args:
        fmr: float64 `(n,)`.
        fnmr: float64 `(n,)`, of the same thresholds.
        pairs: how many impostor and genuine pairs there are; half a pair stands for none, which these axes can't show.
        eer: the equal error rate.
        point: FMR and FNMR at the threshold in force.
    """
    least = [0.5 / count for count in pairs]

    def deviates(rates: Any, floor: float) -> np.ndarray:
        return np.array([NormalDist().inv_cdf(min(max(rate, floor), 1 - floor)) for rate in np.atleast_1d(rates)])

    with _figure(3.4, 3.6) as (figure, finish):
        axes = figure.subplots()
        axes.plot(deviates(fmr, least[0]), deviates(fnmr, least[1]), color=NEUTRAL, linewidth=1.8)
        for axis, floor in zip("xy", least, strict=True):
            ticks = [tick for tick in _DET_TICKS if tick >= floor]
            limits = NormalDist().inv_cdf(floor) - 0.15, NormalDist().inv_cdf(0.6)
            axes.set(**{f"{axis}ticks": deviates(ticks, 1e-12), f"{axis}lim": limits})
            axes.set(**{f"{axis}ticklabels": [f"{100 * tick:g}" for tick in ticks]})
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=":")
        _mark(axes, deviates(point[0], least[0])[0], deviates(point[1], least[1])[0], eer, deviates(eer or 0.5, 1e-9)[0], 1)
        axes.set(xlabel="FMR in %", ylabel="FNMR in %")
        axes.set_title("DET", fontweight="bold")
        words = "" if eer is None else f" It crosses the diagonal at the EER of {eer:.2%}."
        return finish("det", f"DET curve: false non-match rate against false match rate.{words}")


def roc_plot(fmr: np.ndarray, fnmr: np.ndarray, eer: float | None, point: tuple[float, float]) -> str:
    """Draws the ROC curve; arguments as of `det_plot`."""
    with _figure(3.4, 3.6) as (figure, finish):
        axes = figure.subplots()
        axes.plot(fmr, 1 - fnmr, color=NEUTRAL, linewidth=1.8)
        axes.axline((0, 1), slope=-1, color=MUTED, linewidth=0.8, linestyle=":")
        _mark(axes, point[0], 1 - point[1], eer, eer or 0, -1)
        axes.set(xlabel="FMR", ylabel="1 − FNMR", xlim=(-0.02, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_title("ROC", fontweight="bold")
        return finish("roc", "ROC curve: share of genuine pairs that match against the false match rate.")


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 1 else f"{value:.2f} s"


def time_plot(seconds: dict[str, float]) -> str:
    """Draws a bar for each kind of work."""
    with _figure(0.7 + 0.28 * len(seconds), left=1.1) as (figure, finish):
        axes = figure.subplots()
        names, values = list(seconds)[::-1], list(seconds.values())[::-1]
        axes.barh(names, values, color=NEUTRAL, height=0.7)
        for row, value in enumerate(values):
            axes.annotate(_seconds(value), (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.12)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        told = ", ".join(f"{name} {_seconds(value)}" for name, value in seconds.items())
        return finish("time", f"Seconds spent: {told}.")


def _bars(axes: Axes, counts: np.ndarray, colour: str, hatch: str | None = None) -> None:
    bars = counts.reshape(_BARS, -1).sum(axis=1)
    # One path, which is drawn several times faster than fifty bars.
    axes.stairs(bars, np.linspace(0, 1, _BARS + 1), fill=True, facecolor=colour, hatch=hatch, edgecolor=PAPER, linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_ylabel("count")
    axes.grid(axis="x", visible=False)
    if axes.get_ylim()[1] > 100 or bars.max() > 100:  # Few pairs beside many would not be seen.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, None)
        axes.set_ylabel("count (log)")
        axes.yaxis.set_major_locator(_decades(axes.get_ylim()[1]))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief_count(value)))


def _decades(most: float) -> Any:
    from matplotlib.ticker import FixedLocator

    decades = int(np.floor(np.log10(max(most, 10))))
    step = max(1, -(-decades // 4))
    return FixedLocator([0, *(10.0**power for power in range(0, decades + 1, step))])


def _brief_count(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _note(axes: Axes, at: float, text: str) -> None:
    """Writes beside a vertical line, inside the axes, on the side where there is room."""
    side = "right" if at >= 0.5 else "left"
    axes.annotate(text, (at, 1), (-4 if side == "right" else 4, 0), ha=side, va="top", fontsize=8, color=INK,
                  xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip


def _mark(axes: Axes, x: float, y: float, eer: float | None, at: float, sign: int) -> None:
    axes.plot([x], [y], marker="o", color=FAULT, markersize=6, linestyle="", label="at the threshold", clip_on=False)
    if eer is not None:
        axes.plot([at], [at if sign > 0 else 1 - at], marker="D", color=INK, markersize=5, fillstyle="none", linestyle="",
                  label=f"EER {eer:.2%}")  # fmt: skip
    axes.legend(loc="best" if sign > 0 else "lower right", fontsize=8, frameon=True, facecolor=PAPER, framealpha=1,
                edgecolor=GRID)  # fmt: skip


@contextmanager
def _figure(height: float, width: float = _WIDTH_IN, left: float = 0.65) -> Iterator[tuple[Figure, Any]]:
    """Gives a figure, and what makes of it an SVG element with a name and a description."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        # Margins by hand: to have them found out takes as long as all the drawing.
        across = {"left": left / width, "right": 1 - 0.2 / width}
        figure.subplots_adjust(**across, bottom=0.45 / height, top=1 - 0.25 / height, hspace=0.42)

        def finish(name: str, words: str) -> str:
            file = io.StringIO()
            with matplotlib.rc_context({"svg.hashsalt": name}):
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
            return _inline(file.getvalue(), name, words)

        yield figure, finish


def _inline(svg: str, name: str, words: str) -> str:
    """Returns the SVG element alone: named for readers of screens, ids its own, colours the page's."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                element.set(key, value.replace("#", f"#{name}-"))
            else:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": words, "class": f"plot plot-{name}"}
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
