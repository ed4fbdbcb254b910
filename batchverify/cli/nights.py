"""`batchverify nights DIR`: one HTML page from the summaries of many runs, night by night.

Only names of files and the `_summary.json` of finished runs are read. Exit codes: 0 done, 1 the page could not be written,
2 refused.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text
from batchverify.errors import RunError, printable, short_reason


def make_parser() -> Parser:
    """Returns the parser of the options."""
    parser = Parser(
        prog="batchverify nights",
        description="Makes one HTML page of many runs: what changed from night to night, and which nights are missing.",
        epilog="Beam's own options say how stores are reached. Exit codes: 0 done, 1 it could not be written, 2 refused.",
    )
    parser.add_argument(
        "directory", type=path_option, metavar="DIR", help="folder of the run directories, such as dt=2026-11-24, at any depth"
    )
    parser.add_argument("--output", type=path_option, metavar="FILE", help="file to write (default: _nights.html in DIR)")
    parser.add_argument(
        "--baseline", type=path_option, metavar="RUN",
        help="a run to compare every night with, its directory or _summary.json (default: the baseline that each run had)",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=_day, metavar="DAY",
        help="the last day that should have a run, YYYY-MM-DD, so that it shows where it is missing",
    )  # fmt: skip
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and Beam's arguments."""
    return make_parser().parse_with_beam(argv)


def run(argv: Sequence[str]) -> int:
    """Makes the page of the nights that `argv` names, prints where it is, and returns the exit code."""
    options, beam_args = parse(argv)
    from batchverify.evaluation.baseline import read_finished_run
    from batchverify.io.atomic_output import refuse_folder
    from batchverify.io.object_store import set_storage_arguments
    from batchverify.report.nights import read_nights
    from batchverify.report.nights_page import Place, render_nights

    if options.output:
        refuse_folder("--output", options.output)
    set_storage_arguments(beam_args, [("the nights", options.directory), ("--baseline", options.baseline)])
    baseline = read_finished_run(options.baseline) if options.baseline else None
    nights = read_nights(options.directory, baseline, options.until)
    place = Place(options.directory, options.output or f"{options.directory.rstrip('/')}/_nights.html")
    _write(place.page, render_nights(nights, place, options.baseline))
    print_text(printable(place.page))
    return ExitCode.DONE


def _write(path: str, page: str) -> None:
    from batchverify.io.atomic_output import atomic_output
    from batchverify.io.filesystem import write_text
    from batchverify.uris import is_remote

    try:
        if is_remote(path):
            write_text(path, page)
            return
        with atomic_output(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            file.write(page)
    except Exception as error:  # Beam wraps any exception of the store's client.
        raise RunError(f"the page {path} cannot be written ({short_reason(error)}); name another --output.") from None


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no day; give it as 2026-11-24") from None
