"""The job, `batchverify` without a subcommand: scores the pairs of a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from batchverify import shutdown
from batchverify.cli import run_end
from batchverify.cli.completion import SHELLS, PrintCompletion
from batchverify.cli.exit_code import ExitCode
from batchverify.cli.messages import gate_message, print_run, run_message, submission_message
from batchverify.cli.options import (
    add_candidate_options,
    add_column_options,
    add_dataflow_options,
    add_decision_options,
    add_embedding_options,
    add_gate_options,
    add_image_options,
    add_job_options,
    add_model_options,
    add_monitoring_options,
    add_pixel_options,
    config_fields,
)
from batchverify.cli.parser import Parser
from batchverify.cli.streams import exit_at_once, flush_streams, print_text
from batchverify.cli.subcommands import SUBCOMMANDS
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.model.cache_switch import model_cache
from batchverify.version import VERSION

_USAGE = """batchverify --manifest FILE --output DIR [options]
       batchverify SUBCOMMAND [options]"""
_EPILOG = """\
All other options are Beam's own. In all option names, hyphens and underscores are the same. On Dataflow, with workers that
have processors:
  batchverify --manifest gs://BUCKET/pairs.parquet --output gs://BUCKET/scores --model gs://BUCKET/model.keras \\
    --runner=DataflowRunner --project=PROJECT --region=REGION --temp_location=gs://BUCKET/tmp
and with a GPU in each worker that encodes; IMAGE is built from deploy/Dockerfile:
    … --accelerator nvidia-tesla-t4 --sdk_container_image=IMAGE

Exit codes: 0 done, or submitted with --no-wait; 1 the run failed; 2 refused before anything ran; 3 done, but a gate is not
met; 75 the manifest is not there yet; 129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM, and a job on Dataflow
cancelled."""


@dataclasses.dataclass(frozen=True)
class JobArguments:
    """What the command line of a job says.

    Attributes:
        config: The configuration of the run.
        beam_args: Beam's own arguments.
        check: Whether to check everything and run nothing.
        quiet: Whether to print errors only.
        no_wait: Whether to return when the job is submitted.
        log_format: How everything is said, one of `options.LOG_FORMATS`.
        no_cache: Whether to load the model as if nothing had been proven about it before.
    """

    config: VerificationConfig
    beam_args: list[str]
    check: bool
    quiet: bool
    no_wait: bool
    log_format: str
    no_cache: bool = False


def make_parser() -> Parser:
    """Returns the parser of the job's own options."""
    parser = Parser(
        prog="batchverify",
        usage=_USAGE,
        description="Scores the image pairs of a manifest with a trained Siamese network, and checks the network's sanity.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"batchverify {VERSION}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS, help="print the script that completes options in a shell"
    )
    lines = [f"{name:<10}{text}" for name, text in SUBCOMMANDS.items()]
    parser.add_argument_group("subcommands, each with its own --help", "\n".join(lines))
    for add_options in (
        add_job_options, add_model_options, add_pixel_options, add_decision_options, add_candidate_options, add_gate_options,
        add_embedding_options, add_column_options, add_image_options, add_monitoring_options, add_dataflow_options,
    ):  # fmt: skip
        add_options(parser)
    return parser


def parse(argv: Sequence[str]) -> JobArguments:
    """Returns what `argv` says.

    Raises:
        PreflightError: if an option is neither ours nor Beam's, is missing, or has a value that cannot be.
    """
    options, beam_args = make_parser().parse_with_beam(argv)
    given = {"--manifest": options.manifests, "--output": options.output}
    if missing := [f"{name} is missing; see batchverify --help." for name, value in given.items() if not value]:
        raise PreflightError(missing)
    fields = config_fields(options)
    flags = {name: fields.pop(name) for name in ("check", "quiet", "no_wait", "log_format", "no_cache")}
    for name in ("print_completion", "metrics_file", "notify_command"):  # `run_end` knows these.
        del fields[name]
    return JobArguments(VerificationConfig(**fields), beam_args, **flags)


def run(argv: Sequence[str]) -> int:
    """Runs the job that `argv` asks for, and returns the exit code."""
    with _clean_up_when_stopped():
        arguments = parse(argv)
        if arguments.config.model is None and not arguments.quiet:
            print_text("No --model given: scoring with the embedded demo model, trained on handwritten characters.")
        with model_cache(not arguments.no_cache):
            return _check(arguments) if arguments.check else _run(arguments)


def _check(arguments: JobArguments) -> int:
    from batchverify.cli.check import check_message
    from batchverify.pipeline.check import check_run

    run_end.refuse_untellable(is_waited_for=not arguments.no_wait)
    print_text(check_message(check_run(arguments.config, arguments.beam_args)))
    return ExitCode.DONE


def _run(arguments: JobArguments) -> int:
    from batchverify.images.pillow_settings import configure_pillow
    from batchverify.pipeline.dataflow import is_dataflow, is_template_launch
    from batchverify.pipeline.plan import pipeline_options

    configure_pillow()
    if arguments.quiet:
        logging.getLogger("batchverify").setLevel(logging.WARNING)
    beam_options = pipeline_options(arguments.beam_args)
    if arguments.no_wait or is_template_launch(beam_options):
        return _submit(arguments)
    return _run_and_wait(arguments, show_progress=not arguments.quiet and not is_dataflow(beam_options))


def _submit(arguments: JobArguments) -> int:
    from batchverify.pipeline.run import submit

    run_end.refuse_untellable(is_waited_for=False)
    submission = submit(arguments.config, arguments.beam_args)
    if not arguments.quiet:
        print_text(submission_message(submission.output, submission.link))
    return ExitCode.DONE


def _run_and_wait(arguments: JobArguments, show_progress: bool) -> int:
    from batchverify.cli.progress import watcher
    from batchverify.pipeline.run import run as run_job

    run_end.refuse_untellable(is_waited_for=True)
    with ExitStack() as stack:
        result = run_job(arguments.config, arguments.beam_args, watcher(stack, arguments.log_format) if show_progress else None)
    run_end.set_result(result.output, result.summary)
    if not arguments.quiet:
        print_run(run_message(result.output, result.summary), with_colours=arguments.log_format == "text")
    return _exit_code(result.summary)


def _exit_code(summary: dict[str, Any]) -> int:
    """Prints which gates are not met, and returns the exit code that follows from them."""
    unmet = [gate for gate in summary["gates"] if not gate["met"]]
    for gate in unmet:
        print_text(f"batchverify: {gate_message(gate)}", to_stderr=True)
    return ExitCode.GATE_NOT_MET if unmet else ExitCode.DONE


@contextmanager
def _clean_up_when_stopped() -> Iterator[None]:
    """Ends the process at a signal that stops it; its job is cancelled and its output is deleted first.

    The process does not end as Python would end it: Beam's in-process runner would first wait for its workers to end their
    bundles.
    """
    earlier = {number: signal.signal(number, _stop) for number in shutdown.stopping_signals()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _stop(number: int, _: Any) -> None:
    stopped = f"stopped by {signal.Signals(number).name}"
    if running := shutdown.cancel_jobs():
        stopped += f"; the job could not be cancelled and goes on: {', '.join(running)}"
    else:
        shutdown.clean_up()
        stopped += "; no unfinished output is left."
    print_text(f"batchverify: {stopped}", to_stderr=True)
    flush_streams()
    run_end.tell(128 + number, stopped, by_signal=True)
    exit_at_once(128 + number)
