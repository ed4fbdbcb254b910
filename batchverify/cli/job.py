"""The command line: argv to a configuration and Beam's own arguments, the job, its closing words, an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from batchverify import shutdown
from batchverify.cli.logging import quieten_libraries
from batchverify.cli.messages import closing_words, show, submission_words
from batchverify.cli.options import parse
from batchverify.errors import PreflightError, RunError

DONE, FAILED, REFUSED, BEYOND_GATE = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job that `argv` asks for and returns its exit code."""
    with _swept_when_stopped():
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        except PreflightError as refused:
            for problem in refused.problems:
                print(f"batchverify: {problem}", file=sys.stderr)
            return REFUSED
        except RunError as failed:
            print(f"batchverify: the run failed: {failed}", file=sys.stderr)
            return FAILED


def run_as_process() -> NoReturn:
    """Runs the job of this process's arguments, and ends the process with its exit code."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == FAILED:
        os._exit(code)  # The runner may have threads that wait for ever for a worker that is gone.
    sys.exit(code)


def _run(argv: Sequence[str]) -> int:
    quieten_libraries()
    config, beam_args = parse(argv)
    if config.model is None and "--quiet" not in argv:
        print("No --model given: scoring with the embedded demo model, trained on handwritten characters.")
    if "--check" in argv:
        from batchverify.cli.check import format_check
        from batchverify.pipeline.check import check_run

        print(format_check(check_run(config, beam_args)))
        return DONE
    from batchverify.cli.progress import watcher
    from batchverify.images.pillow_settings import configure_pillow
    from batchverify.pipeline.dataflow import is_dataflow, is_template_launch
    from batchverify.pipeline.plan import pipeline_options
    from batchverify.pipeline.run import run, submit

    configure_pillow()
    quiet = "--quiet" in argv
    if quiet:
        logging.getLogger("batchverify").setLevel(logging.WARNING)
    beams = pipeline_options(beam_args)
    if "--no-wait" in argv or is_template_launch(beams):
        submitted = submit(config, beam_args)
        if not quiet:
            print(submission_words(submitted.output, submitted.link))
        return DONE
    with ExitStack() as stack:
        result = run(config, beam_args, None if quiet or is_dataflow(beams) else watcher(stack))
    if not quiet:
        show(closing_words(result.output, result.summary))
    return BEYOND_GATE if _tell_gates(result.summary) else DONE


@contextmanager
def _swept_when_stopped() -> Iterator[None]:
    """Ends the process at SIGINT or SIGTERM with its job cancelled and its output swept, exit code 130 or 143.

    At once, because Beam's in-process runner would first wait for its workers to end their bundles.
    """

    def stop(number: int, _: Any) -> None:
        stopped = f"batchverify: stopped by {signal.Signals(number).name}"
        if going_on := shutdown.cancel_jobs():
            print(f"{stopped}; the job could not be cancelled and goes on: {', '.join(going_on)}", file=sys.stderr, flush=True)
            os._exit(128 + number)
        shutdown.clean_up()
        print(f"{stopped}; no unfinished output is left.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _tell_gates(summary: dict[str, Any]) -> bool:
    """Says which gates are not met, and returns whether there is one."""
    from batchverify.evaluation.gates import Gate

    broken = [gate for gate in (Gate(**found) for found in summary["gates"]) if not gate.met]
    for gate in broken:
        print(f"batchverify: gate not met: {gate}.", file=sys.stderr)
    return bool(broken)
