"""What the terminal shows of a run."""

from __future__ import annotations

from typing import Any

from batchverify.errors import printable

# What other threads do while a run waits for them.
_IN_THREADS = ("fetch", "decode", "encode")


def show(words: str) -> None:
    """Prints closing words, their verdict and labels set off where the terminal can."""
    from rich.console import Console
    from rich.text import Text

    text = Text(words)
    text.highlight_regex(r"(?m)^[A-Z][a-z]+(?=  )", "bold")
    text.highlight_words(["SANE."], "bold green")
    text.highlight_words(["FAULT.", "NOT CHECKED."], "bold red")
    Console(soft_wrap=True, highlight=False).print(text)


def closing_words(output: str, summary: dict[str, Any]) -> str:
    """Returns what the terminal shows at the end of a run: counts, the verdict explained, where the files are."""
    rows, images, rates = summary["rows"], summary["images"], summary["error_rates"]
    failed = images.get("total", 0) - images.get("ok", 0)
    kinds = ", ".join(f"{n} {kind}" for kind, n in images.items() if kind not in ("total", "ok"))
    kept = summary.get("embeddings")
    lines = [
        "",
        f"Rows      {rows.get('total', 0):,}: {rows.get('scored', 0):,} scored, {rows.get('failed', 0):,} without a score"
        + (f" (of the first {summary['run']['limit']:,}, --limit)" if summary["run"].get("limit") else ""),
        f"Images    {images.get('total', 0):,} distinct: {kept['encoded'] if kept else images.get('ok', 0):,} encoded, "
        + (f"{kept['reused']:,} from the store, " if kept else "")
        + f"{failed:,} failed"
        + (f" ({kinds})" if kinds else ""),
        f"Matches   {rows.get('matches', 0):,} at threshold {summary['run']['threshold']:g}",
    ]
    if rates:
        known = [(name.upper(), rates[name]) for name in ("fmr", "fnmr", "eer") if rates[name] is not None]
        lines.append(
            f"Labels    {rates['genuine']:,} genuine, {rates['impostor']:,} impostor: "
            + ", ".join(f"{name} {value:.2%}" for name, value in known)
        )
        lines += [f"Suggest   {words}" for words in threshold_words(rates)]
    if kept:
        lines.append("Store     " + store_words(kept))
    if baseline := summary.get("baseline"):
        lines.append("Baseline  " + baseline_words(baseline))
    if profile := summary.get("profile"):
        lines.append("Time      " + profile_words(profile))
    lines += [
        "Identity  " + identity_words(summary),
        f"Files     {output}/scores-*.parquet, {output}/summary.json, {output}/report.html",
    ]
    return "\n".join(lines)


def submission_words(output: str, link: str | None) -> str:
    """Returns what the terminal shows of a job that was handed to Dataflow and is not waited for."""
    where = f"Submitted {link}" if link else "Submitted the job is written, and the Flex Template's launcher starts it"
    return (
        f"\n{where}\n"
        f"          Nothing is scored yet. When the job has done its work, {output}/_SUCCESS is there, and whether\n"
        f"          gates are met stands in {output}/summary.json; this exit code says nothing of them."
    )


def baseline_words(baseline: dict[str, Any]) -> str:
    """Returns what changed since the earlier run, in two lines."""
    from batchverify.evaluation.drift import describe_shift

    before, now = (f"{rate:.2%}" if rate is not None else "none" for rate in baseline["match_rate"])
    changed = [f"{now - before:+,} {status}" for status, (before, now) in baseline["failures"].items() if now != before]
    model = "ANOTHER MODEL" if baseline["model_changed"] else "the same model"
    one, other = baseline["threshold"]
    threshold = "" if one == other else f"; threshold {one:g} before, {other:g} now"
    told = (
        f"against {baseline['path']}: {describe_shift(baseline['psi'])}, with {model}{threshold};\n"
        f"          matches {before} before, {now} now; failures {', '.join(changed) or 'as before'}"
    )
    return printable(told, keep="\n")  # The earlier summary may be a stranger's.


def store_words(kept: dict[str, Any]) -> str:
    """Returns what a run had of its store of embeddings, in a line."""
    total = kept["reused"] + kept["encoded"]
    share = f"{kept['reused']:,} of {total:,} images were in it unchanged" if total else "no image could be read"
    return printable(f"{kept['path']}: {share}" + (f"; not used: {kept['ignored']}" if kept["ignored"] else ""))


def profile_words(profile: dict[str, Any]) -> str:
    """Returns where a run's time went, the larger shares first, and beside it what other threads did meanwhile."""
    wall, seconds = profile["wall_seconds"], profile["seconds"]
    alone = sorted(((seconds[name], name) for name in seconds if name not in _IN_THREADS), reverse=True)
    shares = ", ".join(f"{name} {spent / wall:.0%}" for spent, name in alone if spent >= wall / 200)
    idle = profile["device_idle_share"]
    return (
        f"{wall:,.1f} s, {profile['images_per_second']:,.0f} images/s, {profile['rows_per_second']:,.0f} rows/s: {shares}\n"
        "          in threads meanwhile: "
        + ", ".join(f"{name} {seconds[name]:,.1f} s" for name in _IN_THREADS)
        + (f"; the device was idle for {idle:.0%}" if idle is not None else "")
    )


def threshold_words(rates: dict[str, Any]) -> list[str]:
    """Returns the thresholds that a run's labels suggest, a line each, and how far they are to be trusted."""
    lines = []
    if rates.get("eer_threshold") is not None:
        lines.append(f"threshold {rates['eer_threshold']:.4f} for the EER of {rates['eer']:.2%}")
    for point in rates.get("at_fmr", []):
        if point["threshold"] is None:
            lines.append(f"no threshold gives an FMR of {point['target']:g}")
            continue
        fnmr = "" if point["fnmr"] is None else f", FNMR {point['fnmr']:.2%}"
        needed = {"enough": 0, "rough": 30, "too_few": 3}[point["evidence"]] / point["target"]
        doubt = f" ({point['evidence'].replace('_', ' ')}: it takes {needed:,.0f} impostor pairs to show)" if needed else ""
        lines.append(f"threshold {point['threshold']:.4f} for FMR {point['target']:g}{fnmr}{doubt}")
    return lines


def identity_words(summary: dict[str, Any]) -> str:
    """Returns the identity verdict of a run, explained to somebody who never heard of it."""
    identity, threshold = summary["identity"], summary["run"]["threshold"]
    compared = summary["images"].get("ok", 0)
    if not compared:
        return "NOT CHECKED. No image could be encoded, so none was compared with itself."
    low, high = identity["score_min"], identity["score_max"]
    scale = f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"
    refused, outscored = identity["images_below_threshold"], identity["outscored"]
    if not refused and not outscored:
        return (
            f"SANE. Each of {compared:,} images was compared with itself and scored {scale};\n"
            "          none fell below the threshold, and no pair scored higher than its own images do."
        )
    seen = []
    if refused:
        seen.append(f"{refused:,} of {compared:,} images, compared with themselves, fall below the threshold {threshold:g}")
    if outscored:
        seen.append(f"{outscored:,} pairs of different images score higher than an image against itself")
    return (
        f"FAULT. {'; '.join(seen)}.\n"
        f"          Seen:  an image compared with itself scores {scale}; nothing can be more alike, so it should be near 1.\n"
        "          Why:   of two equal images the distance is zero, and the head turns zero into sigmoid(bias),\n"
        "                 whatever the image shows. Ordinary training never shows it such a pair, so the bias is free;\n"
        "                 positive head weights then let pairs that differ a little score above pairs that don't differ.\n"
        "          Do:    don't trust matches of near-identical images from this model. Retrain its head with weights\n"
        "                 that can't be positive and with identity pairs. The column identity_check marks the rows."
    )
