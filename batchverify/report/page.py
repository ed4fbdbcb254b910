"""What the HTML pages of this package share: their templates' environment, with its filters and its escaping."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jinja2

from batchverify.errors import printable
from batchverify.evaluation import metrics
from batchverify.evaluation.groups import group_label
from batchverify.report.verdict import format_value
from batchverify.words import agree, counted


@functools.cache
def environment() -> jinja2.Environment:
    """Returns an environment that escapes all values, and in which a template can include `style.css`. It keeps templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_invisible,
    )
    environment.filters |= {
        "value": format_value,
        "score": _score,
        "percent": _percent,
        "counted": counted,
        "agree": agree,
        "interval": _interval,
        "threshold": metrics.format_threshold,
        "spaced": _spaced,
        "group_label": group_label,
    }
    return environment


def _escape_invisible(value: Any) -> Any:
    """Escapes characters that are not printed, such as marks that change the direction of writing.

    Names of files and columns come from strangers. Markup, such as a plot, is a subclass of str and stays as it is.
    """
    return printable(value, keep="\n") if type(value) is str else value


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if value == 0 or value >= 1e-3 else f"{100 * value:.3g}%"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_percent(bounds[0])} to {_percent(bounds[1])}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
