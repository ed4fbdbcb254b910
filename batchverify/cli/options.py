"""The options of the job, and what they become."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from batchverify.config import (
    BAD_ROWS,
    COLORS,
    COMPARES,
    EMBEDDING_VERSIONS,
    FITS,
    ON_NAN,
    OUTPUTS,
    PIXELS,
    PRECISIONS,
    RESIZES,
    RUNTIMES,
    THRESHOLD,
    Limit,
    VerificationConfig,
)
from batchverify.errors import PreflightError
from batchverify.version import VERSION

_DEST = {"--manifest": "manifests", "--output": "output"}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(VerificationConfig)}


_EPILOG = """\
All other options are Beam's own. On Dataflow, with workers that have processors:
  python -m batchverify --manifest gs://BUCKET/pairs.parquet --output gs://BUCKET/scores --model gs://BUCKET/model.keras \\
    --runner=DataflowRunner --project=PROJECT --region=REGION --temp_location=gs://BUCKET/tmp
and with a GPU in each worker that encodes; IMAGE is built from deploy/Dockerfile:
    … --accelerator nvidia-tesla-t4 --sdk_container_image=IMAGE

Exit codes: 0 done, or submitted with --no-wait; 1 the run failed; 2 refused before anything ran; 3 done, but a gate is not
met; 130 and 143 stopped by SIGINT and SIGTERM, and a job on Dataflow cancelled."""


def parse(argv: Sequence[str]) -> tuple[VerificationConfig, list[str]]:
    """Returns the configuration, and the arguments that are Beam's.

    Raises:
        PreflightError: at an option that is neither ours nor Beam's, or a value that cannot be.
    """
    parser = make_parser()
    options, others = parser.parse_known_args(with_pixels_joined(argv))
    _refuse_unknown(others, parser)
    # Not argparse's `required`, which would speak of a missing --output before a misspelt --outptu.
    if missing := [f"{name} is missing; see --help." for name in ("--manifest", "--output") if not vars(options)[_DEST[name]]]:
        raise PreflightError(missing)
    settings = model_settings(options)
    for flag in ("check", "quiet", "no_wait"):  # they say how to run, and nothing of the run
        del settings[flag]
    return VerificationConfig(**settings), others


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this program's own options."""
    parser = argparse.ArgumentParser(
        prog="python -m batchverify",
        description="Scores the image pairs of a manifest with a trained Siamese network, and checks the network's sanity.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"batchverify {VERSION}")

    job = parser.add_argument_group("the job")
    job.add_argument(
        "--manifest",
        dest="manifests",
        metavar="FILE",
        action="append",
        default=[],
        help="CSV (also .gz, .bz2, .zst) or Parquet file, or a glob; may be given several times",
    )
    job.add_argument("--output", metavar="DIR", default="", help="directory to write the scores to")
    add_option(job, "--overwrite", action="store_true", help="replace the finished run in --output")
    job.add_argument("--quiet", action="store_true", help="show nothing but errors and gates that are not met")
    job.add_argument("--check", action="store_true", help="do everything but the work: look at all of it, and print the plan")
    add_option(job, "--limit", type=int, metavar="N", help="score only the first N rows of the manifest")
    add_option(job, "--baseline", metavar="DIR", help="an earlier run, its directory or summary.json, to compare this one with")
    add_option(
        job,
        "--baseline-optional",
        action="store_true",
        help="go on without --baseline where it holds no finished run, as on the first night",
    )

    add_model_options(parser)
    model = parser.add_argument_group("the decisions")
    add_option(
        model,
        "--threshold",
        type=float,
        metavar="T",
        help=f"a pair matches when its score is at least T (default: the model's sidecar, or {THRESHOLD})",
    )
    add_option(
        model,
        "--identity-tolerance",
        type=float,
        metavar="T",
        help="by how much a pair may outscore its own images before it is a fault",
    )

    add_option(
        model, "--on-nan", choices=ON_NAN, help="a score that is not a number fails the run, or is kept as a row without one"
    )

    gates = parser.add_argument_group("gates: beyond them the results are written, and the exit code is 3")
    for option, text in (
        ("--max-failed-rows", "rows without a score"),
        ("--max-identity-faults", "scored rows whose identity check is not sane"),
    ):
        add_option(gates, option, type=_limit, metavar="N|P%", help=f"{text}: a count, or a percentage such as 0.5%%")

    add_option(
        gates, "--max-drift", type=float, metavar="PSI", help="population stability index of the scores against --baseline"
    )

    kept = parser.add_argument_group("embeddings, kept from run to run")
    add_option(
        kept, "--embeddings", metavar="DIR", help="a store of embeddings: images that are in it unchanged are not encoded again"
    )
    add_option(
        kept,
        "--embeddings-version",
        choices=EMBEDDING_VERSIONS,
        help="what shows a change: size and time, or a store's etag; or the content, which is fetched, and not decoded",
    )
    add_option(kept, "--embeddings-rebuild", action="store_true", help="read nothing of the store, and replace it")
    add_option(kept, "--embeddings-days", type=int, metavar="N", help="drop embeddings that no run asked for in N days")

    columns = parser.add_argument_group("the manifest's columns")
    add_option(columns, "--left-column", metavar="NAME", help="column with the first image's path or URI")
    add_option(columns, "--right-column", metavar="NAME", help="column with the second image's path or URI")
    add_option(
        columns,
        "--label-column",
        metavar="NAME",
        help="column with 1 or true for genuine pairs, 0 or false for impostors; '' for none "
        "(default: genuine, if there is such a column)",
    )
    add_option(
        columns,
        "--fold-column",
        metavar="NAME",
        help="column with a benchmark's fold, for the accuracy of LFW's protocol; '' for none (default: fold, if there is one)",
    )
    add_option(
        columns,
        "--bad-rows",
        choices=BAD_ROWS,
        help="CSV rows of too few or too many fields, or not UTF-8: refuse the manifest, or keep them, with status bad_row",
    )
    add_option(columns, "--block-rows", type=int, metavar="N", help="rows that travel through the pipeline together")

    images = parser.add_argument_group("the images")
    add_option(
        images,
        "--image-root",
        metavar="DIR",
        help="folder of relative paths, outside of which no image is opened (default: the manifest's folder, no limit)",
    )
    add_option(images, "--max-image-pixels", type=int, metavar="N", help="an image of more pixels is too_large")
    add_option(images, "--max-image-bytes", type=int, metavar="N", help="a file of more bytes is too_large")
    add_option(images, "--image-timeout", type=float, metavar="S", help="seconds that fetching and decoding one image may take")
    add_option(
        images,
        "--fetch-threads",
        type=int,
        metavar="N",
        help="images read at the same time (default: one a core, or 16 from a store)",
    )

    dataflow = parser.add_argument_group("on Dataflow")
    add_option(
        dataflow,
        "--accelerator",
        metavar="TYPE",
        help="a GPU for each worker that encodes, such as nvidia-tesla-t4, and for no other; needs --sdk_container_image",
    )
    dataflow.add_argument(
        "--no-wait", action="store_true", help="submit the job and return; a Flex Template's launcher always does"
    )
    return parser  # fmt: skip


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model, and what its file does not say; `model_settings` reads them back."""
    model = parser.add_argument_group("the model")
    add_option(
        model,
        "--model",
        metavar="FILE",
        help="a .keras or .h5 file or a SavedModel folder: two images in, one score out (default: embedded)",
    )
    add_option(model, "--batch-size", type=int, metavar="N", help="images encoded at once")
    add_option(model, "--runtime", choices=RUNTIMES, help="what runs the network; openvino is an extra, for processors")
    add_option(
        model, "--precision", choices=PRECISIONS, help="what OpenVINO computes in; the log says by how much scores change"
    )
    add_option(model, "--signature", metavar="NAME", help="of a SavedModel: which signature to call (default: serving_default)")
    add_option(
        model, "--compare", choices=COMPARES, help="of a model with one input, an encoder: how embeddings become a score"
    )
    add_option(model, "--output-is", choices=OUTPUTS, help="what the model's output means (default: score)")
    add_option(
        model, "--match-column", type=int, choices=(0, 1), help="of a softmax of two: which is the probability of a match"
    )
    _repeat(model, "--lambda", "lambdas", "[NAME=]KIND", "what a Lambda layer computes, so that its code need not run")
    _repeat(
        model,
        "--custom-object",
        "custom_objects",
        "CLASS=WHAT",
        "what a class is that the file only names: a KIND, or module:attribute",
    )
    add_option(model, "--trust-model-code", action="store_true", help="run code that the model file holds, with your rights")
    add_option(
        model,
        "--mend-shared-encoder",
        action="store_true",
        help="rewire a file of Keras 3.2.1 in which both branches use the encoder's first call",
    )

    pixels = parser.add_argument_group("what the model was trained on (default: its sidecar, its graph)")
    add_option(pixels, "--pixels", choices=PIXELS, help="the scale of its pixels; needed where the graph does not show it")
    add_option(pixels, "--color", choices=COLORS, help="the order of its channels (default: rgb; grey for one channel)")
    add_option(
        pixels,
        "--resize",
        choices=RESIZES,
        metavar="METHOD",
        help=f"how images come to its size, as tf.image.resize does: {', '.join(RESIZES)} (default: bilinear)",
    )
    add_option(pixels, "--fit", choices=FITS, help="what becomes of images of another shape (default: stretch)")
    add_option(
        pixels, "--image-size", type=_image_size, metavar="HxW", help="height and width, where the model leaves them open"
    )


def with_pixels_joined(argv: Sequence[str]) -> list[str]:
    """Returns `argv` with `--pixels -1..1` as one argument; argparse would take -1..1 for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--pixels" and argument == "-1..1":
            joined[-1] = "--pixels=-1..1"
        else:
            joined.append(argument)
    return joined


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the parsed options as the fields of a `ModelConfig`."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()}


def _limit(text: str) -> Limit:
    try:
        return Limit.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no limit; give a count such as 100, or a percentage such as 0.5%"
        ) from None


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    try:
        height, width = (int(side) for side in (sides if len(sides) == 2 else sides * 2))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; give HEIGHTxWIDTH, such as 160x120, or one number") from None
    return height, width


def _repeat(group: Any, option: str, dest: str, metavar: str, text: str) -> None:
    group.add_argument(
        option, dest=dest, metavar=metavar, action="append", default=[], help=f"{text}; may be given several times"
    )


def add_option(group: Any, option: str, **settings: Any) -> None:
    """Adds an option whose default is the configuration's."""
    default = _DEFAULTS[option[2:].replace("-", "_")]
    if default is not None and default is not False:
        settings["help"] += f" (default: {default})"
    group.add_argument(option, default=default, **settings)


def refuse(message: str) -> NoReturn:
    raise PreflightError(f"{message}; see python -m batchverify --help.")


def _refuse_unknown(others: list[str], parser: argparse.ArgumentParser) -> None:
    """Refuses options that are neither ours nor Beam's, each with the nearest that exists."""
    names = [argument.split("=")[0] for argument in others if argument.startswith("--")]
    ours = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    beams: list[str] = []
    if others:
        from batchverify.io.storage_options import beam_option_names

        beams = beam_option_names()
    problems = []
    for name in names:
        if name in beams:
            continue
        near = difflib.get_close_matches(name, [*ours, *beams], 1, 0.75) or difflib.get_close_matches(name, ours, 1, 0.6)
        problems.append(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else "; see --help."))
    if others and not others[0].startswith("-"):
        problems.append(f"'{others[0]}' is no option; options begin with --, see --help.")
    if problems:
        raise PreflightError(problems)
