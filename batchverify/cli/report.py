"""`batchverify report DIR`: makes the report of a finished run again, as one HTML file.

A run writes its own report. This makes it again, for a run of an older version or where images are readable again.
Exit codes: 0 done, 1 the report could not be written, 2 refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text
from batchverify.errors import printable


def make_parser() -> Parser:
    """Returns the parser of the report's options."""
    parser = Parser(
        prog="batchverify report",
        description="Makes the report of a finished run from its _summary.json, as one HTML file.",
        epilog="Beam's own options say how stores are reached. Exit codes: 0 done, 1 it could not be written, 2 refused.",
    )
    parser.add_argument("directory", type=path_option, metavar="DIR", help="run directory: the --output of a finished run")
    parser.add_argument("--output", type=path_option, metavar="FILE", help="file to write (default: _report.html in DIR)")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and Beam's arguments."""
    return make_parser().parse_with_beam(argv)


def run(argv: Sequence[str]) -> int:
    """Makes the report of the run directory that `argv` names, prints where it is, and returns the exit code."""
    options, beam_args = parse(argv)
    from batchverify.io.object_store import set_storage_arguments
    from batchverify.report.render import rebuild

    set_storage_arguments(beam_args, [("the run", options.directory)])
    print_text(printable(rebuild(options.directory, options.output)))
    return ExitCode.DONE
