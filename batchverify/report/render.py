"""A run's summary as one HTML file, which people read in the morning.

The scores are not read: everything that the report shows is in `summary.json`, except the thumbnails, which are fetched again.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from batchverify.errors import PreflightError, RunError, printable
from batchverify.evaluation import metrics
from batchverify.evaluation.drift import describe_shift
from batchverify.report.command import command_of
from batchverify.report.verdict import format_value, judge_model, judge_run

_LOG = logging.getLogger(__name__)
_NEWEST = 2
_PICTURED = 10  # pairs of a kind; with three kinds at most 60 images
_LABELLED = ("identity_faults", "highest_impostors", "lowest_genuines")
_UNLABELLED = ("identity_faults", "highest_unlabelled", "lowest_unlabelled")


def rebuild(directory: str, output: str | None = None) -> str:
    """Makes the report of a finished run again, and returns where it stands.

    Raises:
        PreflightError: if there is no finished run, or its summary is newer than this program.
        RunError: if the file cannot be written.
    """
    from batchverify.errors import short_reason
    from batchverify.output.run_directory import RunDirectory

    run = RunDirectory(directory)
    try:
        summary = run.read_summary() if run.is_finished() else None
    except Exception as error:  # Beam wraps whatever the store's client raises, and JSON has errors of its own.
        raise PreflightError(f"{directory}: summary.json cannot be read ({short_reason(error)}); run the job again.") from None
    if summary is None:
        raise PreflightError(f"{directory} holds no finished run; name the --output of one.")
    if not isinstance(summary, dict) or "summary_version" not in summary:
        raise PreflightError(f"{directory}: its summary.json is not one that batchverify wrote; run the job again.")
    page = render(summary)
    try:
        if output is None:
            return run.write_report(page)
        with open(output, "w", encoding="utf-8") as file:
            file.write(page)
    except Exception as error:  # likewise
        raise RunError(f"the report cannot be written ({short_reason(error)}); name another --output.") from None
    return output


def make_report(summary: dict[str, Any]) -> str:
    """Returns the report of a run; a page that says why there is none, where it cannot be made.

    A night's scores are worth more than their report, so that no fault of it may fail the run.
    """
    try:
        return render(summary)
    except Exception as error:  # whatever it is
        _LOG.error("the report could not be made (%s: %s); the scores are whole.", type(error).__name__, error)
        words = f"This report could not be made ({type(error).__name__}: {error}). The scores are whole."
        return _environment().from_string(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>No report</title><p>{{ words }}</p></html>'
        ).render(words=words)  # fmt: skip


def render(summary: dict[str, Any]) -> str:
    """Returns the page of a summary.

    Raises:
        PreflightError: if the summary is newer than this program.
    """
    if summary.get("summary_version", 0) > _NEWEST:
        raise PreflightError(
            f"summary.json has version {summary['summary_version']}; update batchverify, which knows {_NEWEST}."
        )
    if summary.get("summary_version") == 1:
        summary = _of_version_1(summary)
    summary = {"profile": None, "baseline": None, "embeddings": None, **summary}  # sections that not every run has
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    rates, run = summary["error_rates"], summary["run"]
    return _environment().from_string(template).render(
        summary=summary,
        run=run,
        rates=rates,
        verdict=judge_run(summary),
        sanity=judge_model(summary),
        plots=_plots(summary),
        gallery=_gallery(summary),
        failures=_failures(summary),
        suggestions=_suggestions(rates) if rates else [],
        drift=_drift(summary["baseline"]) if summary.get("baseline") else None,
        command=command_of(run),
        statuses=_statuses(summary),
    )  # fmt: skip


def _plots(summary: dict[str, Any]) -> dict[str, str]:
    """Returns SVG elements by name, empty where there is nothing to show."""
    from batchverify.report import plots

    rates, histograms = summary["error_rates"], summary["score_histograms"]
    genuine, impostor, unlabelled, identity, faults = (
        metrics.dense(histograms.get(kind) or [])
        for kind in ("genuine", "impostor", "unlabelled", "identity", "identity_faults")
    )
    threshold, all_pairs = summary["run"]["threshold"], genuine + impostor + unlabelled
    drawn = dict.fromkeys(("scores", "identity", "det", "roc", "time"), "")
    if all_pairs.sum():
        kinds = {"genuine": genuine, "impostor": impostor, "unlabelled": unlabelled}
        drawn["scores"] = plots.score_plot(kinds, threshold)
    if identity.sum():
        span = summary["identity"]["score_min"], summary["identity"]["score_max"]
        drawn["identity"] = plots.identity_plot(identity, all_pairs, faults, span, threshold)
    if rates and rates["genuine"] and rates["impostor"]:
        _, fmr, fnmr = metrics.det_points(genuine, impostor)
        point, pairs = (rates["fmr"], rates["fnmr"]), (rates["impostor"], rates["genuine"])
        drawn["det"] = plots.det_plot(fmr, fnmr, pairs, rates["eer"], point)
        drawn["roc"] = plots.roc_plot(fmr, fnmr, rates["eer"], point)
    if seconds := {name: value for name, value in (summary.get("profile") or {}).get("seconds", {}).items() if value}:
        drawn["time"] = plots.time_plot(seconds)
    return {name: Markup(svg) for name, svg in drawn.items()}


def _gallery(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the kinds of telling pairs, each with its pairs and their pictures."""
    extremes = summary["extremes"]
    kinds = [kind for kind in (_LABELLED if summary["error_rates"] else _UNLABELLED) if extremes.get(kind)]
    chosen = [pair for kind in kinds for pair in extremes[kind][:_PICTURED]]
    pictures = iter(_pictures(chosen, summary["run"]))
    return [
        {
            "kind": kind,
            "pairs": [
                {**pair, "pictures": next(pictures), "fault": kind == "identity_faults"} for pair in extremes[kind][:_PICTURED]
            ],
        }
        for kind in kinds
    ]


def _pictures(pairs: list[dict[str, Any]], run: dict[str, Any]) -> list[Any]:
    from batchverify.report.thumbnails import Thumbnail, pair_thumbnails

    try:
        return pair_thumbnails(pairs, run)
    except Exception as error:  # Pictures are the least of a report; whatever it is, it must not cost the rest.
        _LOG.warning("thumbnails could not be made (%s: %s).", type(error).__name__, error)
        return [(Thumbnail("", "not shown"),) * 2] * len(pairs)


def _failures(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the statuses of rows without a score, with examples and a line of pandas that lists all."""
    kinds = [kind.removeprefix("failed_") for kind in summary["extremes"] if kind.startswith("failed_")]
    return [{"status": kind, "pairs": summary["extremes"][f"failed_{kind}"], "list": list_failed(kind)} for kind in kinds]


def list_failed(status: str) -> str:
    """Returns the pandas expression that lists the rows with an image of one status."""
    if status == "ok":
        return 'scores[(scores.left_status == "ok") & (scores.right_status == "ok")]'
    if status == "not_a_number":
        return 'scores[scores.error == "the model gave a score that is not a number"]'
    return f'scores[(scores.left_status == "{status}") | (scores.right_status == "{status}")]'


def _statuses(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row of the table of images for each status that occurred."""
    rows, images = summary["rows"], summary["images"]
    names = {name for name in images if name != "total"}
    names |= {name.split(".", 1)[1] for name in rows if name.startswith(("left.", "right."))}
    return [
        {
            "status": name,
            "images": images.get(name, 0),
            "left": rows.get(f"left.{name}", 0),
            "right": rows.get(f"right.{name}", 0),
            "list": list_failed(name),
        }
        for name in sorted(names, key=lambda name: (name != "ok", name))
    ]


def _suggestions(rates: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns each operating point, with a remark where there are too few impostor pairs to show its FMR."""
    needed = {"rough": (30, "rule of 30"), "too_few": (3, "rule of 3")}
    found = []
    for point in rates["at_fmr"]:
        remark = ""
        if point["evidence"] in needed:
            times, rule = needed[point["evidence"]]
            kind = "shows such an FMR" if times == 3 else "shows it to within 30%"
            remark = f"too few: it takes {times / point['target']:,.0f} impostor pairs before a run {kind} ({rule})"
        found.append({**point, "remark": remark})
    return found


def _drift(baseline: dict[str, Any]) -> dict[str, Any]:
    """Returns the comparison with an earlier run as rows of before and now."""
    rows = [(name.replace("_", " "), *baseline[name]) for name in ("match_rate", "score_mean") if baseline.get(name)]
    for group, title in (("failures", "failed"), ("identity", "identity")):
        rows += [(f"{title}: {name.replace('_', ' ')}", *pair) for name, pair in (baseline.get(group) or {}).items()]
    return {
        "rows": rows,
        "words": describe_shift(baseline.get("psi")),
        **{name: baseline.get(name) for name in ("path", "psi", "ks", "model_changed")},
    }


def _of_version_1(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns a summary of version 1 as one of version 2, without what it does not know."""
    rates, histograms = summary["error_rates"], summary["score_histograms"]
    if rates:
        genuine, impostor = (metrics.dense(histograms[kind]) for kind in ("genuine", "impostor"))
        matches = (round((1 - (rates["fnmr"] or 0)) * rates["genuine"]), round((rates["fmr"] or 0) * rates["impostor"]))
        rates = metrics.describe_error_rates(genuine, impostor, rates["threshold"], matches, (0, 0))
        rates |= {"folds": None, "generalised_fmr": None, "generalised_fnmr": None}
    images = summary["images"]
    failed = metrics.Rate(images.get("total", 0) - images.get("ok", 0), images.get("total", 0))
    return {
        **summary,
        "error_rates": rates,
        "failure_to_acquire": {"rate": failed.value, "interval": failed.interval},
        "extremes": {},
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalized
    )
    environment.filters |= {"shown": format_value, "percent": _percent, "interval": _interval, "words": _words}
    return environment


def _finalized(value: Any) -> Any:
    """Writes out what is not printed, such as marks that turn the direction of a line, in strings that come from strangers."""
    return printable(value, keep="\n") if type(value) is str else value


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if value == 0 or value >= 1e-3 else f"{100 * value:.3g}%"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_percent(bounds[0])} to {_percent(bounds[1])}"


def _words(name: str) -> str:
    return name.replace("_", " ")
