"""The text that the program prints for people. `--check` has its own, in `check.py`."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchverify.cli.streams import print_text, unfailing
from batchverify.errors import printable
from batchverify.evaluation.traits import describe_traits
from batchverify.words import agree, counted, counted_of
from batchverify.worker_stats import WORK_NAMES

if TYPE_CHECKING:
    from batchverify.model.diagnosis import Diagnosis
    from batchverify.output.score_files import ScoreCounts
    from batchverify.training.data import Group
    from batchverify.training.fit import TrainingFiles
    from batchverify.training.history import Epoch, History
    from batchverify.training.session import TrainingPlan

_INDENT = 10 * " "
# Below this the start of the libraries takes most of the time, and the shares say nothing about the run.
_SHORT_RUN_S = 1.0
# The parts of a run that other threads do while the run waits for them.
_IN_THREADS = ("fetch", "decode", "encode")
_BAD_WORDS = ["FAULT.", "NOT CHECKED.", "NOT TRUSTWORTHY:", "NOT STEADY.", "NONE.", "MISLEADING:", "REVERSED."]
# The impostor pairs that it takes to show a false match rate, times that rate: 3 for less than it, 30 for the rate itself.
_PAIRS_NEEDED = {"rough": 30, "too_few": 3}


# The job.


def print_run(message: str, with_colours: bool = True) -> None:
    """Prints what a run came to, with its verdict and labels in colour where the terminal has colours."""
    if not with_colours:
        print_text(message)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(message)
    text.highlight_regex(r"(?m)^[A-Z][a-z]+(?= )", "bold")
    text.highlight_words(["SANE."], "bold green")
    text.highlight_words(_BAD_WORDS, "bold red")
    Console(file=unfailing(sys.stdout), soft_wrap=True, highlight=False).print(text)


def run_message(output: str, summary: dict[str, Any]) -> str:
    """Returns what the terminal shows at the end of a run: counts, the verdict with its reason, and where the files are."""
    lines = ["", _rows_message(summary), _images_message(summary)]
    if summary["run"].get("model_version"):
        lines.append(_model_message(summary["run"]))
    if traits := describe_traits(summary["image_traits"]):
        lines.append("Traits    " + traits)
    lines.append(_matches_message(summary))
    if "review" in summary["rows"]:
        lines.append(_review_message(summary))
    if (run := summary["run"]).get("calibration") or run.get("calibration_ignored"):
        lines.append(_calibration_message(run))
    if rates := summary["error_rates"]:
        lines.append(_labels_message(rates))
        lines += [f"Suggest   {threshold}" for threshold in threshold_messages(rates)]
    if calibration := summary.get("calibration"):
        lines.append("Cllr      " + cllr_message(calibration))
    if candidate := summary.get("candidate"):
        lines.append(f"Candidate {candidate_message(candidate)}")
    if embeddings := summary.get("embeddings"):
        lines.append("Store     " + store_message(embeddings))
    if baseline := summary.get("baseline"):
        lines.append("Baseline  " + baseline_message(baseline))
    if (profile := summary.get("profile")) and profile["wall_seconds"] >= _SHORT_RUN_S:
        lines.append("Time      " + profile_message(profile))
    if groups := summary.get("groups"):
        lines += groups_messages(groups)
    if strangers := summary.get("strangers"):
        lines.append("Strangers " + strangers_message(strangers))
    if (steadiness := summary.get("steadiness")) and steadiness["verdict"]:
        lines.append("Steady    " + steadiness_message(steadiness))
    lines.append("Identity  " + identity_message(summary))
    lines.append(f"Files     {output}/scores-*.parquet, {output}/_summary.json, {output}/_report.html")
    return "\n".join(lines)


def _rows_message(summary: dict[str, Any]) -> str:
    rows, limit = summary["rows"], summary["run"].get("limit")
    counts = f"{rows.get('total', 0):,}: {rows.get('scored', 0):,} scored, {rows.get('failed', 0):,} without a score"
    return f"Rows      {counts}" + (f" (of the first {limit:,}, --limit)" if limit else "")


def _images_message(summary: dict[str, Any]) -> str:
    images, embeddings = summary["images"], summary.get("embeddings")
    total, readable = images.get("total", 0), images.get("ok", 0)
    encoded = f"{embeddings['encoded'] if embeddings else readable:,} encoded"
    reused = f", {embeddings['reused']:,} from the store" if embeddings else ""
    kinds = ", ".join(f"{number} {kind}" for kind, number in images.items() if kind not in ("total", "ok"))
    return f"Images    {total:,} distinct: {encoded}{reused}, {total - readable:,} failed" + (f" ({kinds})" if kinds else "")


def _model_message(run: dict[str, Any]) -> str:
    """Returns the version that a registry's name stood for, and the alias or revision that was asked for."""
    version = run["model_version"]
    asked = version.get("alias") or version.get("revision")
    return printable(f"Model     {run['model']}" + (f" ({asked})" if asked else ""))


def _matches_message(summary: dict[str, Any]) -> str:
    source = summary["run"].get("threshold_from")
    message = f"Matches   {summary['rows'].get('matches', 0):,} at threshold {summary['run']['threshold']:g}"
    return printable(message + (f" (from {source})" if source else ""))


def _review_message(summary: dict[str, Any]) -> str:
    count, scored = summary["rows"]["review"], summary["rows"].get("scored", 0)
    low, high = summary["run"]["options"]["review"]
    share = f" ({count / scored:.2%} of those with a score)" if scored else ""
    return f"Review    {counted(count, 'row')}{share} {agree(count, 'scores', 'score')} from {low:g} to below {high:g}"


def _calibration_message(run: dict[str, Any]) -> str:
    if run["calibration_ignored"]:
        return printable(f"Llr       NONE. The calibration of the model's sidecar is not used: {run['calibration_ignored']}")
    prior = run["options"].get("prior")
    probability = "" if prior is None else f"; probability at a prior of {prior:g}"
    return printable(f"Llr       {run['calibration']}{probability}")


def cllr_message(calibration: dict[str, Any]) -> str:
    """Returns how good log-likelihood ratios are, in one line, for somebody who never heard of Cllr."""
    cost, lowest = calibration["cllr"], calibration["cllr_min"]
    best = "" if lowest is None else f", and {lowest:.3f} were these scores calibrated perfectly"
    message = f"{cost:.3f} bits, where 0 is perfect and 1 tells nothing{best}"
    return message if cost < 1 else f"{message}. MISLEADING: calibrate again"


def candidate_message(candidate: dict[str, Any]) -> str:
    """Returns in one line how many decisions a candidate changes, and in a second one what is wrong with it."""
    from batchverify.evaluation.candidate import describe_changes, describe_faults

    count = candidate["rows"].get("matches", 0)
    matches = f"{count:,} match{'' if count == 1 else 'es'} at threshold {candidate['threshold']:g}"
    line = printable(f"{candidate['model']}: {matches}; {describe_changes(candidate)}")
    faults = describe_faults(candidate)
    return f"{line}\n{_INDENT}{faults}" if faults else line


def _labels_message(rates: dict[str, Any]) -> str:
    known = ", ".join(f"{name.upper()} {rates[name]:.2%}" for name in ("fmr", "fnmr", "eer") if rates[name] is not None)
    line = f"Labels    {rates['genuine']:,} genuine, {rates['impostor']:,} impostor: {known}"
    if not rates.get("is_reversed"):
        return line
    from batchverify.evaluation.metrics import REVERSED, WHY_REVERSED

    found = f"{REVERSED[0].upper()}{REVERSED[1:]}, by more than chance, so no threshold is suggested"
    reversal = f"REVERSED. {found}. {WHY_REVERSED}"
    return f"{line}\n{_fill(reversal, _INDENT, _INDENT)}"


def threshold_messages(rates: dict[str, Any]) -> list[str]:
    """Returns the thresholds that a run's labels suggest, each in one line, and whether there are pairs enough to trust it."""
    from batchverify.evaluation.metrics import format_threshold

    if rates.get("is_reversed"):
        return []
    lines = []
    if rates.get("eer_threshold") is not None:
        lines.append(f"threshold {format_threshold(rates['eer_threshold'])} for the EER of {rates['eer']:.2%}")
    by_threshold = itertools.groupby(rates.get("at_fmr", []), lambda point: (point["threshold"], point["fnmr"]))
    return lines + [_operating_points_message(threshold, fnmr, list(points)) for (threshold, fnmr), points in by_threshold]


def _operating_points_message(threshold: float | None, fnmr: float | None, points: list[dict[str, Any]]) -> str:
    """Returns a line about the targets that one threshold meets; few impostor pairs have one threshold for several."""
    from batchverify.evaluation.metrics import format_threshold

    targets = ", ".join(f"{point['target']:g}" for point in points)
    if threshold is None:
        return f"no threshold gives an FMR of {targets}"
    doubts = [
        _doubt(evidence, list(doubtful))
        for evidence, doubtful in itertools.groupby(points, lambda point: str(point["evidence"]))
        if evidence in _PAIRS_NEEDED
    ]
    doubt = f" ({'; '.join(doubts)})" if doubts else ""
    return f"threshold {format_threshold(threshold)} for FMR {targets}{'' if fnmr is None else f', FNMR {fnmr:.2%}'}{doubt}"


def _doubt(evidence: str, points: list[dict[str, Any]]) -> str:
    needed = ", ".join(f"{_PAIRS_NEEDED[evidence] / point['target']:,.0f}" for point in points)
    return f"{evidence.replace('_', ' ')}: it takes {needed} impostor pairs to show"


def store_message(embeddings: dict[str, Any]) -> str:
    """Returns how many images a run took from its store of embeddings, in one line."""
    reused, total = embeddings["reused"], embeddings["reused"] + embeddings["encoded"]
    share = f"{counted_of(reused, total, 'image')} {agree(reused, 'was', 'were', total)} in it unchanged"
    share = share if total else "no image could be read"
    ignored = f"; not used: {embeddings['ignored']}" if embeddings["ignored"] else ""
    return printable(f"{embeddings['path']}: {share}{ignored}")


def baseline_message(baseline: dict[str, Any]) -> str:
    """Returns what changed since the earlier run, in two lines."""
    from batchverify.evaluation.drift import describe_shift

    match_rates = [f"{rate:.2%}" if rate is not None else "none" for rate in baseline["match_rate"]]
    failures = [f"{now - before:+,} {status}" for status, (before, now) in baseline["failures"].items() if now != before]
    strangers = [f"{rate:.2%}" for rate in baseline.get("strangers_match_rate") or () if rate is not None]
    drawn = f"; of strangers {strangers[0]} before, {strangers[1]} now" if len(strangers) == 2 else ""
    model = "ANOTHER MODEL" if baseline["model_changed"] else "the same model"
    threshold_before, threshold_now = baseline["threshold"]
    threshold = f"; threshold {threshold_before:g} before, {threshold_now:g} now" if threshold_before != threshold_now else ""
    message = (
        f"against {baseline['path']}: {describe_shift(baseline['psi'])}, with {model}{threshold};\n"
        f"          matches {match_rates[0]} before, {match_rates[1]} now{drawn}; failures {', '.join(failures) or 'as before'}"
    )
    return printable(message, keep="\n")  # Another program may have written the earlier summary.


def profile_message(profile: dict[str, Any]) -> str:
    """Returns where a run's time went, the largest share first, and the time of other threads in a second line."""
    wall, seconds = profile["wall_seconds"], profile["seconds"]
    longest = sorted(((seconds[name], name) for name in seconds if name not in _IN_THREADS), reverse=True)
    shares = ", ".join(f"{WORK_NAMES[name]} {spent / wall:.0%}" for spent, name in longest if spent >= wall / 200)
    threads = ", ".join(f"{name} {seconds[name]:,.1f} s" for name in _IN_THREADS)
    rates = f"{profile['images_per_second']:,.0f} images/s, {profile['rows_per_second']:,.0f} rows/s"
    idle = f"; the device was idle for {profile['device_idle_share']:.0%}" if profile["device_idle_share"] is not None else ""
    first = f"{wall:,.1f} s, {rates}" + (f": {shares}" if shares else "")
    return f"{first}\n          in threads meanwhile: {threads}{idle}"


def identity_message(summary: dict[str, Any]) -> str:
    """Returns the identity verdict of a run, with an explanation for somebody who never heard of it."""
    from batchverify.evaluation.strangers import MANY_MATCH

    identity, compared = summary["identity"], summary["identity"]["images_compared"]
    if not compared:
        return "NOT CHECKED. No image could be encoded, so none was compared with itself."
    if identity["score_min"] is None:
        return f"FAULT. {_each_image(compared)} was compared with itself, and no score is a number: check the model's weights."
    low, high = (f"{identity[name]:.4f}" for name in ("score_min", "score_max"))
    scores = low if low == high else f"{low} to {high}"
    if identity["images_below_threshold"] or identity["outscored"]:
        return _identity_fault_message(summary, scores)
    if (summary.get("strangers") or {}).get("verdict") == MANY_MATCH:
        return (
            f"{_each_image(compared)} was compared with itself and scored {scores}, as it should;\n"
            "          but that makes no score trustworthy while strangers match."
        )
    return (
        f"SANE. {_each_image(compared)} was compared with itself and scored {scores};\n"
        "          none fell below the threshold, and no pair scored higher than its own images do."
    )


def _each_image(compared: int) -> str:
    return "The only image" if compared == 1 else f"Each of {compared:,} images"


def groups_messages(groups: dict[str, Any]) -> list[str]:
    """Returns a line for each column of groups: how far the worst group lies from the best."""
    from batchverify.evaluation.groups import describe_differential

    return [f"Groups    {printable(describe_differential(column, section))}" for column, section in groups.items()]


def strangers_message(strangers: dict[str, Any]) -> str:
    """Returns how many images that were drawn at random match, and what that means."""
    from batchverify.evaluation.strangers import (
        FEW_MATCH,
        MANY_MATCH,
        REMEDY,
        describe_causes,
        describe_mates,
        describe_rate,
        describe_shortage,
    )

    rate = describe_rate(strangers)
    if strangers["verdict"] == MANY_MATCH:
        return "\n".join(
            [
                f"NOT TRUSTWORTHY: {rate}.",
                _paragraph(
                    "Seen:",
                    "images that have nothing to do with each other pass as the same. "
                    f"The limit is {strangers['limit']}; --max-stranger-matches sets another.",
                ),
                _paragraph("Why:", describe_causes(strangers)),
                _paragraph("Do:", REMEDY),
            ]
        )
    if strangers["verdict"] == FEW_MATCH:
        return f"{rate}.\n" + _fill(describe_mates(strangers), _INDENT, _INDENT)
    return f"Not judged: {describe_shortage(strangers)}.\n" + _fill(f"{rate[0].upper()}{rate[1:]}.", _INDENT, _INDENT)


def steadiness_message(steadiness: dict[str, Any]) -> str:
    """Returns how many images the model rejects after a small change of them."""
    from batchverify.evaluation.steadiness import UNSTEADY, describe_rejections

    counts = describe_rejections(steadiness)
    if steadiness["verdict"] == UNSTEADY:
        return _fill(f"NOT STEADY. Changes that people don't see decide: {counts}.", "", _INDENT)
    return _fill(f"{counts}.", "", _INDENT)


def _paragraph(title: str, text: str) -> str:
    return _fill(text, f"{_INDENT}{title:<7}", f"{_INDENT}       ")


def _fill(text: str, first_indent: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=first_indent, subsequent_indent=indent, break_on_hyphens=False)


def _identity_fault_message(summary: dict[str, Any], scores: str) -> str:
    from batchverify.evaluation.identity import explain_fault

    below, outscored = summary["identity"]["images_below_threshold"], summary["identity"]["outscored"]
    threshold, compared = summary["run"]["threshold"], summary["identity"]["images_compared"]
    faults = []
    if below:
        verb = agree(below, "itself, falls", "themselves, fall", compared)
        faults.append(f"{counted_of(below, compared, 'image')}, compared with {verb} below the threshold {threshold:g}")
    if outscored:
        pairs = "pair of different images scores" if outscored == 1 else "pairs of different images score"
        faults.append(f"{outscored:,} {pairs} higher than an image against itself")
    seen = f"an image compared with itself scores {scores}; nothing can be more alike, so it should be near 1."
    why, remedy = explain_fault(summary)
    do = f"don’t trust matches of near-identical images from this model. {remedy} The column identity_check marks the rows."
    paragraphs = [_paragraph("Seen:", seen), _paragraph("Why:", why), _paragraph("Do:", do)]
    return "\n".join([f"FAULT. {'; '.join(faults)}.", *paragraphs])


def gate_message(gate: dict[str, Any]) -> str:
    """Returns which gate is not met, and by how much."""
    from batchverify.evaluation.gates import Gate

    return f"gate not met: {Gate(**gate)}."


def submission_message(output: str, link: str | None) -> str:
    """Returns what the terminal shows when a job was submitted to Dataflow and is not waited for."""
    where = f"Submitted {link}" if link else "Submitted the job is written, and the Flex Template's launcher starts it"
    return (
        f"\n{where}\n"
        f"          Nothing is scored yet. The job writes {output}/_SUCCESS when it is done, and {output}/_summary.json\n"
        f"          then says whether the gates are met; this exit code says nothing about them."
    )


# The doctor.


def diagnosis_message(diagnosis: Diagnosis) -> str:
    """Returns a diagnosis as a page for the terminal."""
    lines = []
    for title, findings in diagnosis.findings.items():
        lines.append(title.capitalize())
        lines += [f"  {name.replace('_', ' '):<24} {_format_value(value)}" for name, value in findings.items()]
        lines.append("")
    if diagnosis.faults:
        lines += ["NOT SANE.", *(f"  - {fault}" for fault in diagnosis.faults)]
    else:
        lines.append("SANE. Every image is accepted as itself, and no pair was seen to outscore an identity score.")
    return printable("\n".join(lines), keep="\n")


def _format_value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# Conversions.


def manifest_written_message(pairs: int, output: str) -> str:
    """Returns how many pairs a manifest got."""
    return printable(f"{counted(pairs, 'pair')} written to {output}.")


def scores_written_message(counts: ScoreCounts, output: str) -> str:
    """Returns how many scores were written, and how many rows have no place in the files."""
    left_out = {"a score": counts.without_score, "a label": counts.without_label}
    missing = " and ".join(f"{counted(number, 'row')} without {what}" for what, number in left_out.items() if number)
    written = f"{counts.genuine:,} genuine and {counts.impostor:,} impostor scores written to {output}"
    return printable(f"{written}; {missing} left out." if missing else f"{written}.")


# Calibration.


def calibrated_message(
    calibration: str, knots: Sequence[tuple[float, float]], figures: dict[str, Any], sidecar: str, is_beside_model: bool
) -> str:
    """Returns what a calibration was fitted on, what it gives, and where it was written.

    Args:
        calibration: The calibration in words.
        knots: Its scores and their log-likelihood ratios.
        figures: The section `calibration` that `_summary.json` would have for the pairs that it was fitted on.
        sidecar: The sidecar that has it.
        is_beside_model: Whether runs of the model read that file.
    """
    then = "" if is_beside_model else "once its key calibration stands in MODEL.batchverify.json, "
    (low, lowest), (high, highest) = knots[0], knots[-1]
    lines = [
        f"Llr       {calibration}",
        f"          natural logarithms: {lowest:.2f} for scores of {low:.4g} or less, to {highest:.2f} for {high:.4g} or more",
        f"Cllr      {cllr_message(figures)} (on the pairs that it was fitted on)",
        f"Files     {sidecar}: {then}later runs of the model have a column llr, and with --prior P a column probability",
    ]
    return "\n".join(map(printable, lines))


# Training.


def training_data_message(plan: TrainingPlan) -> str:
    """Returns how many images there are to train on, to validate with and to measure on, one line each."""
    kinds = (("training", plan.training), ("validation", plan.validation), ("held out", plan.held_out))
    return "\n".join(f"{kind}: {_size_message(groups)}" for kind, groups in kinds if groups)


def _size_message(groups: Sequence[Group]) -> str:
    classes = [images for group in groups for images in group.classes]
    images = counted(sum(map(len, classes)), "image")
    return f"{images} of {len(classes):,} {agree(len(classes), 'class', 'classes')} in {counted(len(groups), 'group')}"


def epoch_message(epoch: Epoch) -> str:
    """Returns the line that training prints after an epoch."""
    message = f"epoch {epoch.epoch:3d}  step {epoch.step:6d}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
    if epoch.validation_accuracy is not None:
        message += f"  validation accuracy {epoch.validation_accuracy:.4f}  EER {epoch.validation_eer:.4f}"
    return f"{message}  {epoch.seconds:.0f} s"


def interrupted_message(files: TrainingFiles, history: History, step: int) -> str:
    """Returns what an interrupted training leaves, and how to go on."""
    return f"Interrupted after step {step}. {files.model} holds {_saved_network(history)}; go on with --resume."


def trained_message(files: TrainingFiles, history: History, figures: dict[str, Any] | None, measured_on: str) -> str:
    """Returns what the terminal shows at the end of a training: the figures, and where the files are."""
    lines = [f"Trained for {history.seconds / 60:.1f} minutes. {files.model} holds {_saved_network(history)}."]
    if figures:
        trials = f"of {figures['one_shot_trials']:,} trials"
        lines += [
            f"On {measured_on} classes, {counted(figures['pairs'], 'pair')}:",
            f"  verification accuracy  {figures['accuracy']:.4f}   EER {figures['eer']:.4f}",
            f"  {figures['one_shot_ways']:2d}-way one-shot       {figures['one_shot']:.4f}   {trials}",
            f"  identity score f(x, x) {figures['identity_score']:.4f}   outscored by {figures['outscored']:.1%} of genuine",
        ]
    lines.append(f"Log {files.log}, curves {files.curves}, figures {files.figures}.")
    return "\n".join(lines)


def _saved_network(history: History) -> str:
    best = history.best()
    if best is None:
        return "the network as it is"
    if best.validation_accuracy is None:
        return f"the network of step {best.step}"
    return f"the best so far, of step {best.step} (validation accuracy {best.validation_accuracy:.4f})"
