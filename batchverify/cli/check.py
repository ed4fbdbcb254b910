"""What the terminal shows of `--check`."""

from __future__ import annotations

from batchverify.cli.progress import duration
from batchverify.errors import printable
from batchverify.output.embedding_store import EmbeddingStoreSession
from batchverify.pipeline.check import CheckResult
from batchverify.pipeline.plan import IN_PROCESS_RUNNER
from batchverify.pipeline.sample import SampleResult


def format_check(check: CheckResult) -> str:
    """Returns what a check found, for the terminal."""
    survey, sample, facts = check.manifest, check.sample, check.model
    about = "" if survey.images.is_exact() else "about "
    limited = f" (the first {check.config.limit:,}, --limit)" if check.config.limit else ""
    bad = f", {survey.bad_rows:,} of them bad" if survey.bad_rows else ""
    found = ", ".join(f"{number:,} {status}" for status, number in sample.statuses.items()) or "none named"
    lines = [
        "",
        f"Manifest  {survey.rows:,} rows{bad}{limited} in {survey.files:,} files",
        f"          {about}{survey.images.count():,} distinct images",
        f"Model     {facts.path}: {facts.structure}",
        *([f"          {check.golden} golden pairs score as they should"] if check.golden else []),
        f"Images    {sum(sample.statuses.values()):,} tried: {found}",
        *(f"          {status}: {example}" for status, example in sample.examples.items()),
        *([f"Baseline  {check.config.baseline}: {check.baseline.scored:,} scored rows"] if check.baseline else []),
        *([f"Store     {_store_words(check.session, sample)}"] if check.session else []),
        f"Output    {check.config.output} {_output_words(check.config.output)}",
        f"Plan      blocks of rows: {survey.blocks:,}, buckets of images: {check.buckets:,}, runner: {_runner_words(check)}",
        f"Time      {_time_words(check)}",
        f"Memory    about {check.memory / 2**30:.1f} GiB"
        + ("" if check.runner == IN_PROCESS_RUNNER else " for each worker process"),
        "",
        "Nothing is wrong, and nothing was written.",
    ]
    return "\n".join(map(printable, lines))


def _store_words(session: EmbeddingStoreSession, sample: SampleResult) -> str:
    if session.ignored:
        return f"{session.path}: what is stored is not used: {session.ignored}"
    if session.stored is None:
        return f"{session.path}: nothing is stored yet"
    tried = sum(sample.statuses.values())
    of_sample = f"; of {tried:,} images tried, {sample.unchanged:,} are in it unchanged" if sample.unchanged is not None else ""
    return f"{session.path}: {session.rows:,} embeddings that fit{of_sample}"


def _runner_words(check: CheckResult) -> str:
    return f"{check.runner}, in this process" if check.runner == IN_PROCESS_RUNNER else check.runner


def _time_words(check: CheckResult) -> str:
    sample = check.sample
    if check.seconds is None or not sample.images_per_second or not sample.pairs_per_second:
        return "unknown, as no image of the sample could be encoded"
    return (
        f"about {duration(check.seconds)} in one process like this, and what shuffling and writing take: "
        f"{sample.images_per_second:,.0f} images/s and {sample.pairs_per_second:,.0f} pairs/s were measured"
    )


def _output_words(output: str) -> str:
    return "lies in a store, and whether it takes files was not tried" if "://" in output else "can be written"
