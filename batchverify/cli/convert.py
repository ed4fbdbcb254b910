"""`batchverify convert`: the field's lists of pairs into manifests, and a run's scores into the field's files.

    batchverify convert lfw pairs.txt --images lfw/ --output pairs.csv
    batchverify convert list pairs.lst --images faces/ --output pairs.parquet
    batchverify convert scores out/ --format bob --output scores.txt
    batchverify convert scores out/ --format pyeer --output scores/

Files are read and written a piece at a time, and appear whole or not at all. Exit codes: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.messages import manifest_written_message, scores_written_message
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text
from batchverify.errors import PreflightError
from batchverify.manifest.pair_lists import ORDERS, read_lfw_pairs, read_lines, read_pair_list
from batchverify.uris import is_remote


def make_parser() -> Parser:
    """Returns the parser of the conversions."""
    parser = Parser(
        prog="batchverify convert",
        description="Turns lists of pairs into manifests, and the scores of a run into files that other tools read.",
        epilog="Beam's own options say to scores how stores are reached. Exit codes: 0 done, 2 refused.",
    )
    conversions = parser.add_subparsers(dest="conversion", metavar="WHAT", required=True)
    _add_lfw(conversions)
    _add_list(conversions)
    _add_scores(conversions)
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and Beam's arguments, which belong to scores alone: the other conversions open no store."""
    parser = make_parser()
    if list(argv[:1]) == ["scores"]:
        return parser.parse_with_beam(argv)
    return parser.parse(argv), []


def run(argv: Sequence[str]) -> int:
    """Converts what `argv` names, prints what was written and returns the exit code."""
    options, beam_args = parse(argv)
    try:
        if is_remote(options.output):
            raise PreflightError(f"--output {options.output} lies in a store, and files are written on this machine; name one.")
        if os.path.lexists(options.output) and not options.overwrite:
            raise PreflightError(f"--output {options.output} exists; name another one, or add --overwrite.")
        print_text(_convert_scores(options, beam_args) if options.conversion == "scores" else _convert_list(options))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise PreflightError(f"{reason}; check the path, your rights and the free space.") from None
    return ExitCode.DONE


def _convert_list(options: argparse.Namespace) -> str:
    from batchverify.manifest.write_manifest import write_manifest

    lines = read_lines(options.source)
    if options.conversion == "lfw":
        pairs = read_lfw_pairs(lines, options.source, options.ending)
    else:
        pairs = read_pair_list(lines, options.source, options.order)
    return manifest_written_message(write_manifest(pairs, options.images, options.output), options.output)


def _convert_scores(options: argparse.Namespace, beam_args: list[str]) -> str:
    from batchverify.output.score_files import write_score_files

    if beam_args or is_remote(options.source):
        from batchverify.io.object_store import set_storage_arguments

        set_storage_arguments(beam_args, [("the run", options.source)])
    counts = write_score_files(options.source, options.output, options.format, options.label_column)
    return scores_written_message(counts, options.output)


def _add_lfw(conversions: Any) -> None:
    parser = _add_conversion(conversions, "lfw", "pairs.txt or pairsDevTrain.txt of Labeled Faces in the Wild", "FILE")
    parser.add_argument("--ending", default=".jpg", metavar="SUFFIX", help="ending of the image files (default: .jpg)")
    _add_images(parser)


def _add_list(conversions: Any) -> None:
    parser = _add_conversion(conversions, "list", "a label and two paths in each line, as InsightFace has them", "FILE")
    parser.add_argument("--order", choices=ORDERS, default=ORDERS[0], help=f"order of the fields (default: {ORDERS[0]})")
    _add_images(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=path_option, default="", metavar="DIR", help="folder or URI that the paths start from")


def _add_scores(conversions: Any) -> None:
    parser = _add_conversion(conversions, "scores", "the scores of a finished run, genuine and impostor", "DIR")
    parser.add_argument(
        "--format", choices=("bob", "pyeer"), required=True,
        help="bob: a file with 1 or -1 and the score in each line, as bob.measure reads; pyeer: a folder with genuine.txt and "
        "impostor.txt, a score in each line",
    )  # fmt: skip
    parser.add_argument("--label-column", default="genuine", metavar="NAME", help="column with labels (default: genuine)")


def _add_conversion(conversions: Any, name: str, text: str, source: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = conversions.add_parser(name, help=text, description=text)
    parser.add_argument("source", type=path_option, metavar=source)
    parser.add_argument("--output", type=path_option, required=True, metavar="PATH", help="what to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    return parser
