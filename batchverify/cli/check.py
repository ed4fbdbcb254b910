"""The text of `--check`. It stands apart from the other messages because it needs modules that are slow to import."""

from __future__ import annotations

from collections.abc import Iterator

from batchverify.cli.progress import format_duration
from batchverify.errors import printable
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.pipeline.check import CheckResult
from batchverify.pipeline.plan import IN_PROCESS_RUNNER
from batchverify.pipeline.sample import SampleResult
from batchverify.uris import is_remote
from batchverify.words import counted


def check_message(check: CheckResult) -> str:
    """Returns what a check found, for the terminal."""
    return "\n".join(map(printable, ["", *_lines(check), "", "Nothing is wrong, and nothing was written."]))


def _lines(check: CheckResult) -> Iterator[str]:
    yield from _manifest_lines(check)
    yield f"Model     {check.model.path}: {check.model.structure}"
    if check.golden:
        yield f"          {check.golden} golden pairs score as they should"
    if check.calibration:
        yield f"          calibrated: {check.calibration}"
    if check.candidate:
        pixels = "the pixels that the model takes" if check.candidate_shares_pixels else "pixels of its own"
        yield f"Candidate {check.candidate.path}: {check.candidate.structure}; it takes {pixels}"
    yield from _sample_lines(check.sample)
    if check.baseline:
        yield f"Baseline  {check.config.baseline}: {check.baseline.scored:,} scored rows"
    if check.session:
        yield f"Store     {_store_message(check.session, check.sample)}"
    yield f"Output    {check.config.output} {_output_message(check.config.output)}"
    yield (
        f"Plan      blocks of rows: {check.manifest.blocks:,}, buckets of images: {check.buckets:,}, "
        f"runner: {_runner_message(check)}"
    )
    yield f"Time      {_time_message(check)}"
    process = "" if check.runner == IN_PROCESS_RUNNER else " for each worker process"
    yield f"Memory    about {check.memory / 2**30:.1f} GiB{process}"


def _manifest_lines(check: CheckResult) -> Iterator[str]:
    survey, limit = check.manifest, check.config.limit
    bad = f", {survey.bad_rows:,} of them bad" if survey.bad_rows else ""
    limited = f" (the first {limit:,}, --limit)" if limit else ""
    yield f"Manifest  {counted(survey.rows, 'row')}{bad}{limited} in {counted(survey.files, 'file')}"
    about = "" if survey.images.is_exact() else "about "
    yield f"          {about}{counted(survey.images.count(), 'distinct image')}"


def _sample_lines(sample: SampleResult) -> Iterator[str]:
    statuses = ", ".join(f"{number:,} {status}" for status, number in sample.statuses.items()) or "none named"
    yield f"Images    {sum(sample.statuses.values()):,} tried: {statuses}"
    yield from (f"          {status}: {example}" for status, example in sample.examples.items())


def _store_message(session: EmbeddingStoreSession, sample: SampleResult) -> str:
    if session.ignored:
        return f"{session.path}: what is stored is not used: {session.ignored}"
    if session.published is None and not session.unfinished_rows:
        return f"{session.path}: nothing is stored yet"
    tried = sum(sample.statuses.values())
    unchanged = f"; of {tried:,} images tried, {sample.unchanged:,} are in it unchanged" if sample.unchanged is not None else ""
    return f"{session.path}: {session.rows:,} embeddings that fit{unchanged}"


def _runner_message(check: CheckResult) -> str:
    return f"{check.runner}, in this process" if check.runner == IN_PROCESS_RUNNER else check.runner


def _time_message(check: CheckResult) -> str:
    sample = check.sample
    if check.seconds is None or not sample.images_per_second or not sample.pairs_per_second:
        return "unknown, as no image of the sample could be encoded"
    return (
        f"about {format_duration(check.seconds)} in one process like this, and what shuffling and writing take: "
        f"{sample.images_per_second:,.0f} images/s and {sample.pairs_per_second:,.0f} pairs/s were measured"
    )


def _output_message(output: str) -> str:
    return "is in a store, and it was not tried whether the store takes files" if is_remote(output) else "can be written"
