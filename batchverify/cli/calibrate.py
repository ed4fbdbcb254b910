"""`batchverify calibrate RUN`: fits scores to log-likelihood ratios on a labelled run, and writes that into the sidecar.

    batchverify calibrate labelled/ [--method logistic|isotonic] [--model MODEL | --sidecar PATH]

Later runs of the model then have a column `llr`. Exit codes: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.messages import calibrated_message
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text
from batchverify.config import CALIBRATION_METHODS as METHODS
from batchverify.errors import PreflightError

if TYPE_CHECKING:
    from batchverify.evaluation.calibration import LabelledRun


def make_parser() -> Parser:
    """Returns the parser of the calibration's options."""
    parser = Parser(
        prog="batchverify calibrate",
        description="Fits scores to log-likelihood ratios on a labelled run, and writes the fit into the model's sidecar.",
        epilog="Beam's own options say how stores are reached. Exit codes: 0 done, 2 refused.",
    )
    parser.add_argument("run", type=path_option, metavar="RUN", help="run directory, or _summary.json, of a finished run")
    parser.add_argument(
        "--method", choices=METHODS, default=METHODS[0],
        help="logistic: a line from the logit of the score to the llr; isotonic: any mapping that does not fall, which takes "
        f"more pairs (default: {METHODS[0]})",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--model", type=path_option, metavar="MODEL", help="where the run's model lies now (default: where the run found it)"
    )
    place.add_argument("--sidecar", type=path_option, metavar="PATH", help="file to write (default: MODEL.batchverify.json)")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and Beam's arguments."""
    return make_parser().parse_with_beam(argv)


def run(argv: Sequence[str]) -> int:
    """Calibrates the model of the run that `argv` names, prints what was written and returns the exit code."""
    options, beam_args = parse(argv)
    from batchverify.evaluation.baseline import read_labelled_run
    from batchverify.evaluation.calibration import describe_calibration, fit_calibration
    from batchverify.io.object_store import set_storage_arguments
    from batchverify.model.registry import is_registry_name
    from batchverify.model.sidecar import sidecar_path, write_calibration

    places = [("the run", options.run), ("--model", options.model), ("--sidecar", options.sidecar)]
    set_storage_arguments(beam_args, places)
    labelled = read_labelled_run(options.run)
    calibration = fit_calibration(labelled, options.method, options.run)
    path = options.sidecar or sidecar_path(_find_model(labelled, options.model))
    if is_registry_name(path):
        raise PreflightError(
            f"{path} lies in a registry, whose versions never change; name a file with --sidecar, and register it."
        )
    write_calibration(path, calibration)
    figures = describe_calibration(calibration, labelled.genuine, labelled.impostor)
    print_text(calibrated_message(str(calibration), calibration.knots, figures or {}, path, options.sidecar is None))
    return ExitCode.DONE


def _find_model(run: LabelledRun, given: str | None) -> str:
    """Returns the path or URI of the run's model, whose sidecar is written; one of another digest is refused."""
    from batchverify.model.find_model import locate_model, require_digest
    from batchverify.model.registry import is_registry_name, resolve_model

    model = given or locate_model(run.model, run.working_directory)
    remedy = "name the right one" if given else "say where that lies with --model, or name a file with --sidecar"
    if is_registry_name(model):
        model, _ = resolve_model(model)
    require_digest(model, run.model_digest, run.options, remedy)
    return model
