"""The report of a run: one HTML file, made from the content of `_summary.json`.

The scores are not read. Only the images of the thumbnails are not in `_summary.json`; they are fetched again.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.evaluation import metrics
from batchverify.evaluation.candidate import GAINED, LOST, describe_changes, describe_faults
from batchverify.evaluation.drift import describe_shift
from batchverify.evaluation.strangers import describe_mates
from batchverify.evaluation.summary_version import why_unreadable
from batchverify.evaluation.traits import describe_traits
from batchverify.images.variants import CHANGES
from batchverify.output.run_directory import RunDirectory
from batchverify.report.command import format_command
from batchverify.report.page import environment
from batchverify.report.two_models import compare_models, curves
from batchverify.report.verdict import judge_model, judge_run
from batchverify.worker_stats import WORK_NAMES

_LOG = logging.getLogger(__name__)
_DRIFTING = ("match_rate", "strangers_match_rate", "score_mean")
_GROUPS_DRAWN = 40
_PAIRS_PER_KIND = 10  # Three kinds are shown, and two more with a candidate, so a report has at most 100 thumbnails.
_KINDS_WITH_LABELS = ("identity_faults", "highest_impostors", "lowest_genuines")
_KINDS_WITHOUT_LABELS = ("identity_faults", "highest_unlabelled", "lowest_unlabelled")


def rebuild(directory: str, output: str | None = None) -> str:
    """Writes the report of a finished run again, and returns its path.

    Args:
        directory: The run directory.
        output: The file to write; None means `_report.html` in the run directory.

    Raises:
        PreflightError: if there is no finished run, or its summary cannot be read or is of another version.
        RunError: if the file cannot be written.
    """
    run = RunDirectory(directory)
    page = render(_read_summary(run, directory))
    try:
        if output is None:
            return run.write_report(page)
        with open(output, "w", encoding="utf-8") as file:
            file.write(page)
    except Exception as error:  # Beam wraps any exception of the store's client.
        raise RunError(f"the report cannot be written ({short_reason(error)}); name another --output.") from None
    return output


def _read_summary(run: RunDirectory, directory: str) -> dict[str, Any]:
    try:
        summary = run.read_summary() if run.is_finished() else None
    except Exception as error:  # Beam wraps any exception of the store's client, and JSON has errors of its own.
        raise PreflightError(f"{directory}: _summary.json cannot be read ({short_reason(error)}); run the job again.") from None
    if summary is None:
        raise PreflightError(f"{directory} holds no finished run; name the --output of one.")
    if not isinstance(summary, dict) or "summary_version" not in summary:
        raise PreflightError(f"{directory}: its _summary.json is not one that batchverify wrote; run the job again.")
    return summary


def prepare_report() -> None:
    """Imports in a thread what a report takes, while TensorFlow computes; most of a second on a short run's way otherwise."""
    threading.Thread(target=_import_plots, name="prepare-report", daemon=True).start()


def _import_plots() -> None:
    with contextlib.suppress(ImportError):  # The report says so.
        importlib.import_module("batchverify.report.plots")


def make_report(summary: dict[str, Any]) -> str:
    """Returns the report of a run, or a page with the reason why it could not be made.

    The scores are worth more than the report, so an error in the report must not fail the run.
    """
    try:
        return render(summary)
    except Exception as error:  # No exception may leave this function.
        _LOG.error("the report could not be made (%s: %s); the scores are whole.", type(error).__name__, error)
        message = f"This report could not be made ({type(error).__name__}: {error}). The scores are whole."
        return environment().from_string(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>No report</title><p>{{ message }}</p></html>'
        ).render(message=message)  # fmt: skip


def render(summary: dict[str, Any]) -> str:
    """Returns the HTML page of a summary.

    Args:
        summary: The content of `_summary.json`.

    Raises:
        PreflightError: if the summary is of another version than this program reads.
    """
    if problem := why_unreadable(summary):
        raise PreflightError(f"_summary.json {problem}.")
    # Not every run has these sections.
    optional = dict.fromkeys(("profile", "baseline", "embeddings", "calibration", "candidate"))
    summary = {**optional, **summary}
    rates, run = summary["error_rates"], summary["run"]
    return environment().get_template("report.html.j2").render(
        summary=summary,
        run=run,
        rates=rates,
        verdict=judge_run(summary),
        model_verdict=judge_model(summary),
        plots=_plots(summary),
        extremes=_extremes(summary, _KINDS_WITH_LABELS if rates else _KINDS_WITHOUT_LABELS),
        flipped=_extremes(summary, (GAINED, LOST)),
        both_models=compare_models(summary) if summary["candidate"] else [],
        changes=describe_changes(summary["candidate"]) if summary["candidate"] else "",
        candidate_faults=describe_faults(summary["candidate"]) if summary["candidate"] else "",
        failures=_failures(summary),
        operating_points=_operating_points(rates) if rates and not rates.get("is_reversed") else [],
        drift=_drift(summary["baseline"]) if summary.get("baseline") else None,
        command=format_command(run),
        statuses=_statuses(summary),
        traits=describe_traits(summary["image_traits"]),
        change_names=CHANGES,
        mates=describe_mates(summary["strangers"]) if summary["strangers"] else "",
    )  # fmt: skip


def _plots(summary: dict[str, Any]) -> dict[str, str]:
    """Returns the plots, SVG elements by name; a plot without data is empty."""
    from batchverify.report import plots

    rates, histograms = summary["error_rates"], summary["score_histograms"]
    genuine, impostor, unlabelled, identity, strangers, faults = (
        metrics.dense(histograms.get(kind) or [])
        for kind in ("genuine", "impostor", "unlabelled", "identity", "strangers", "identity_faults")
    )
    threshold, all_pairs = summary["run"]["threshold"], genuine + impostor + unlabelled
    drawn = dict.fromkeys(("scores", "identity", "det", "roc", "reliability", "both_models", "time"), "")
    if all_pairs.sum():
        kinds = {"genuine": genuine, "impostor": impostor, "unlabelled": unlabelled}
        drawn["scores"] = plots.score_plot(kinds, threshold)
    if identity.sum():
        span = summary["identity"]["score_min"], summary["identity"]["score_max"]
        drawn["identity"] = plots.identity_plot(identity, strangers, all_pairs, faults, span, threshold)
    if rates and rates["genuine"] and rates["impostor"]:
        _, fmr, fnmr = metrics.det_points(genuine, impostor)
        operating_point, pairs = (rates["fmr"], rates["fnmr"]), (rates["impostor"], rates["genuine"])
        drawn["det"] = plots.det_plot(fmr, fnmr, pairs, rates["eer"], operating_point)
        drawn["roc"] = plots.roc_plot(fmr, fnmr, rates["eer"], operating_point)
    if (calibration := summary["calibration"]) and calibration["reliability"]:
        drawn["reliability"] = plots.reliability_plot(calibration["reliability"])
    for number, (column, section) in enumerate((summary.get("groups") or {}).items()):
        if section and any(group["impostor"] + group["genuine"] for group in section["each"]):
            drawn[f"groups_{number}"] = plots.group_plot(column, section["each"][:_GROUPS_DRAWN], number)
    if summary.get("candidate") and (both := curves(summary)):
        drawn["both_models"] = plots.two_det_plot(both)
    spent = (summary.get("profile") or {}).get("seconds", {})
    if seconds := {WORK_NAMES.get(name, name): value for name, value in spent.items() if value}:
        drawn["time"] = plots.time_plot(seconds)
    return {name: Markup(svg) for name, svg in drawn.items()}


def _extremes(summary: dict[str, Any], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the kinds of extreme pairs, each with its pairs and their thumbnails."""
    pairs_by_kind = {kind: summary["extremes"][kind][:_PAIRS_PER_KIND] for kind in kinds if summary["extremes"].get(kind)}
    thumbnails = iter(_thumbnails([pair for pairs in pairs_by_kind.values() for pair in pairs], summary["run"]))
    return [
        {
            "kind": kind,
            "pairs": [{**pair, "thumbnails": next(thumbnails), "fault": kind == "identity_faults"} for pair in pairs],
        }
        for kind, pairs in pairs_by_kind.items()
    ]


def _thumbnails(pairs: list[dict[str, Any]], run: dict[str, Any]) -> list[Any]:
    from batchverify.report.thumbnails import Thumbnail, pair_thumbnails

    try:
        return pair_thumbnails(pairs, run)
    except Exception as error:  # The report is worth more than its thumbnails.
        _LOG.warning("thumbnails could not be made (%s: %s).", type(error).__name__, error)
        return [(Thumbnail("", "not shown"),) * 2] * len(pairs)


def _failures(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the statuses of rows without a score, each with examples and the pandas expression that lists all its rows."""
    kinds = [kind.removeprefix("failed_") for kind in summary["extremes"] if kind.startswith("failed_")]
    return [{"status": kind, "pairs": summary["extremes"][f"failed_{kind}"], "list": list_failed(kind)} for kind in kinds]


def list_failed(status: str) -> str:
    """Returns the pandas expression that lists the rows with an image of one status."""
    if status == "ok":
        return 'scores[(scores.left_status == "ok") & (scores.right_status == "ok")]'
    if status == "not_a_number":
        return 'scores[scores.score.isna() & (scores.left_status == "ok") & (scores.right_status == "ok")]'
    return f'scores[(scores.left_status == "{status}") | (scores.right_status == "{status}")]'


def _statuses(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of images by status: one entry for each status that occurred."""
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


def _operating_points(rates: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns each operating point, with a remark if there are too few impostor pairs to show its FMR."""
    needed = {"rough": (30, "rule of 30"), "too_few": (3, "rule of 3")}
    points = []
    for point in rates["at_fmr"]:
        remark = ""
        if point["evidence"] in needed:
            times, rule = needed[point["evidence"]]
            kind = "shows such an FMR" if times == 3 else "shows it to within 30%"
            word, pairs = point["evidence"].replace("_", " "), f"{times / point['target']:,.0f}"
            remark = f"{word}: it takes {pairs} impostor pairs before a run {kind} ({rule})"
        points.append({**point, "remark": remark})
    return points


def _drift(baseline: dict[str, Any]) -> dict[str, Any]:
    """Returns the comparison with the baseline; each of its rows has a name, the earlier value and the present one."""
    rows = [(name.replace("_", " "), *baseline[name]) for name in _DRIFTING if baseline.get(name)]
    for group, title in (("failures", "failed"), ("identity", "identity")):
        rows += [(f"{title}: {name.replace('_', ' ')}", *pair) for name, pair in (baseline.get(group) or {}).items()]
    return {
        "rows": rows,
        "description": describe_shift(baseline.get("psi")),
        **{name: baseline.get(name) for name in ("path", "psi", "ks", "model_changed")},
    }
