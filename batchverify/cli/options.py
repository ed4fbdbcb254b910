"""The options, one function a group; subcommands share them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from batchverify.cli.parser import path_option, separator_option
from batchverify.config import (
    ALPHAS,
    BAD_ROWS,
    COLORS,
    COMPARES,
    EMBEDDING_VERSIONS,
    FITS,
    LOADERS,
    ON_NAN,
    ORIENTATIONS,
    OUTPUTS,
    PIXELS,
    PRECISIONS,
    RESIZES,
    RUNTIMES,
    THRESHOLD,
    Limit,
    VerificationConfig,
    parse_share,
)

LOG_FORMATS = ("text", "json")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(VerificationConfig)}


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Adds what to read, where to write, and how to run."""
    group = parser.add_argument_group("the job")
    group.add_argument(
        "--manifest", dest="manifests", type=path_option, metavar="FILE", action="append", default=[],
        help="CSV (also .gz, .bz2, .zst) or Parquet file, or a glob; may be given several times",
    )  # fmt: skip
    group.add_argument("--output", type=path_option, metavar="DIR", default="", help="directory to write the scores to")
    add_option(group, "--overwrite", action="store_true", help="replace the finished run in --output when this one is complete")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors and gates that are not met")
    group.add_argument(
        "--check", action="store_true", help="check everything that the run needs, print the plan, write nothing"
    )
    group.add_argument(
        "--no-cache", action="store_true", help="load and prove the model again, and keep nothing of it in ~/.cache/batchverify"
    )
    add_option(group, "--limit", type=int, metavar="N", help="score only the first N rows of the manifest")
    add_option(
        group,
        "--baseline",
        type=path_option,
        metavar="DIR",
        help="an earlier run, its directory or _summary.json, to compare this one with",
    )
    add_option(
        group, "--baseline-optional", action="store_true",
        help="go on without --baseline where it holds no finished run, as on the first night",
    )  # fmt: skip


def add_monitoring_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is told of a run, to logs and at its end."""
    group = parser.add_argument_group("monitoring")
    group.add_argument(
        "--log-format", choices=LOG_FORMATS, default=LOG_FORMATS[0],
        help="json: everything that is said is a line of JSON on stderr (default: text)",
    )  # fmt: skip
    group.add_argument(
        "--metrics-file", type=path_option, metavar="FILE",
        help="write the run's figures and exit code for Prometheus' node_exporter, whatever the end; FILE ends in .prom",
    )  # fmt: skip
    group.add_argument(
        "--notify-command", metavar="COMMAND",
        help="run COMMAND in a shell, whatever the end; BATCHVERIFY_EXIT_CODE, _VERDICT, _SUMMARY and _OUTPUT tell of it",
    )  # fmt: skip


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds which model to use, and what its file does not say."""
    group = parser.add_argument_group("the model")
    add_option(
        group, "--model", type=path_option, metavar="FILE",
        help="a .keras, .h5 or .onnx file or a SavedModel folder: two images in, one score out; or "
        "models:/NAME@ALIAS in MLflow, or hf://ORG/REPO@REVISION/PATH (default: embedded)",
    )  # fmt: skip
    add_option(group, "--batch-size", type=int, metavar="N", help="number of images that are encoded at once")
    add_option(
        group, "--runtime", choices=RUNTIMES,
        help="what runs the network; openvino is an extra, for processors; auto takes it where that is installed",
    )  # fmt: skip
    add_option(
        group, "--precision", choices=PRECISIONS, help="what the encoder computes in; the log says by how much scores change"
    )
    add_option(
        group, "--architecture", type=path_option, metavar="FILE",
        help="the JSON of model.to_json(), for a file of weights alone (default: MODEL.json beside it)",
    )  # fmt: skip
    add_option(group, "--signature", metavar="NAME", help="the signature of a SavedModel to call (default: serving_default)")
    add_option(
        group, "--compare", choices=COMPARES, help="how the embeddings of a model with one input, an encoder, become a score"
    )
    add_option(group, "--output-is", choices=OUTPUTS, help="what the model's output means (default: score)")
    add_option(
        group, "--match-column", type=int, choices=(0, 1), help="which output of a softmax of two is the probability of a match"
    )
    _add_repeated(group, "--lambda", "lambdas", "[NAME=]KIND", "what a Lambda layer computes, so that its code need not run")
    _add_repeated(
        group, "--custom-object", "custom_objects", "CLASS=WHAT",
        "what a class is that the file only names: a KIND, or module:attribute",
    )  # fmt: skip
    add_option(group, "--trust-model-code", action="store_true", help="run code that the model file holds, with your rights")
    add_option(
        group, "--mend-shared-encoder", action="store_true",
        help="repair a file of Keras 3.2.1 in which both branches use the encoder's first call",
    )  # fmt: skip


def add_pixel_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the model was trained on."""
    group = parser.add_argument_group("what the model was trained on (default: its sidecar, its graph)")
    add_option(
        group, "--pixels", metavar="SCALE",
        help=f"the scale of its pixels, needed where the graph does not show it: {', '.join(PIXELS)}; -binary:T behind it "
        "makes pixels above T white and all others black first",
    )  # fmt: skip
    add_option(group, "--color", choices=COLORS, help="the order of its channels (default: the loader's; grey for one channel)")
    add_option(
        group, "--loader", choices=LOADERS, metavar="LIBRARY",
        help=f"the library that loaded its images, whose pixels are given bit for bit: {', '.join(LOADERS)} (default: tf)",
    )  # fmt: skip
    add_option(
        group, "--resize", choices=RESIZES, metavar="METHOD",
        help="how the loader resizes, by the names that it has for that (default: the loader's)",
    )  # fmt: skip
    add_option(group, "--orientation", choices=ORIENTATIONS, help="whether images are turned upright as EXIF says")
    add_option(group, "--alpha", choices=ALPHAS, help="what becomes of transparency: a background, or the channel is dropped")
    add_option(
        group, "--preprocess", metavar="MODULE:FUNCTION",
        help="your own function from a decoded image to what the model takes, in place of resizing and scaling",
    )  # fmt: skip
    add_option(group, "--fit", choices=FITS, help="what happens to images of another shape (default: stretch)")
    add_option(
        group, "--image-size", type=_image_size, metavar="HxW", help="height and width, where the model leaves them open"
    )


def add_decision_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is decided about a score."""
    group = parser.add_argument_group("the decisions")
    add_threshold_option(group)
    add_option(
        group, "--threshold-from", metavar="RUN:fmr=RATE",
        help="the threshold that keeps an FMR on the labels of an earlier run, such as scores/dt=2026-11-24:fmr=1e-3",
    )  # fmt: skip
    add_option(
        group, "--review", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="mark rows with a score from LOW to below HIGH in a column 'review', for people to look at",
    )  # fmt: skip
    add_option(
        group, "--prior", type=_share, metavar="P",
        help="the share of genuine pairs among all pairs: adds a column 'probability', for a model that batchverify calibrate "
        "has calibrated",
    )  # fmt: skip
    group.add_argument(
        "--fmr", type=_share, metavar="RATE", action="append", default=[],
        help="an FMR to name a threshold for, such as 1e-5 or 0.001%%, beside 0.01, 0.001 and 1e-4; may be given several times",
    )  # fmt: skip
    add_option(
        group, "--identity-tolerance", type=float, metavar="T",
        help="by how much a pair may outscore its own images before it is a fault",
    )  # fmt: skip
    add_option(
        group, "--on-nan", choices=ON_NAN,
        help="a score that is not a number in [0, 1] fails the run, or the row is kept without a score",
    )  # fmt: skip
    add_option(
        group, "--stranger-pairs", type=int, metavar="N",
        help="number of pairs of images that are drawn at random and compared; 0 for none",
    )  # fmt: skip
    add_option(
        group, "--steadiness-images", type=int, metavar="N",
        help="number of images that are compared with themselves after small changes, at most 0.2%% of them or 20; 0 for none",
    )  # fmt: skip


def add_candidate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the second model, and what is decided about its scores."""
    group = parser.add_argument_group("a candidate: a second model that scores the same pairs, to compare both")
    add_option(
        group, "--candidate", type=path_option, metavar="FILE",
        help="its file or folder; all that its file does not say comes from its own sidecar, and from no option",
    )  # fmt: skip
    add_option(
        group, "--candidate-threshold", type=float, metavar="T",
        help="its threshold (default: its sidecar's, or else that of --model)",
    )  # fmt: skip


def add_threshold_option(group: Any) -> None:
    """Adds the threshold, which the doctor knows as well."""
    add_option(
        group, "--threshold", type=float, metavar="T",
        help=f"a pair matches when its score is at least T (default: the model's sidecar, or {THRESHOLD})",
    )  # fmt: skip


def add_gate_options(parser: argparse.ArgumentParser) -> None:
    """Adds the limits that decide exit code 3."""
    group = parser.add_argument_group("gates: beyond them the results are written, and the exit code is 3")
    for option, text in (
        ("--max-failed-rows", "rows without a score"),
        ("--max-identity-faults", "scored rows whose identity check is not sane"),
        ("--max-flips", "rows that only one of --model and --candidate finds a match"),
        ("--max-stranger-matches", "matches among images drawn at random; the verdict takes 10%% where this is not given"),
    ):
        add_option(group, option, type=_limit, metavar="N|P%", help=f"{text}: a count, or a percentage such as 0.5%%")
    add_option(group, "--allow-empty", action="store_true", help="a run in which no row has a score is no failure")
    add_option(
        group, "--max-group-ratio", type=float, metavar="R",
        help="ratio of the highest to the lowest FMR or FNMR of the groups of --group-column",
    )  # fmt: skip
    add_option(
        group, "--max-drift", type=float, metavar="PSI", help="population stability index of the scores against --baseline"
    )


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """Adds the store of embeddings."""
    group = parser.add_argument_group("embeddings, kept from run to run")
    add_option(
        group, "--embeddings", type=path_option, metavar="DIR",
        help="a store of embeddings: images that are in it unchanged are not encoded again",
    )  # fmt: skip
    add_option(
        group, "--embeddings-version", choices=EMBEDDING_VERSIONS,
        help="what shows that an image changed: its size and time, or a store's etag; or its content, which is fetched but not "
        "decoded",
    )  # fmt: skip
    add_option(group, "--embeddings-rebuild", action="store_true", help="read nothing of the store, and replace it")
    add_option(group, "--embeddings-days", type=int, metavar="N", help="drop embeddings that no run asked for in N days")


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Adds the manifest's columns, and how its rows are read."""
    group = parser.add_argument_group("the manifest's columns")
    add_pair_column_options(group)
    add_option(
        group, "--fold-column", metavar="NAME",
        help="column with a benchmark's fold, for the accuracy of LFW's protocol; '' for none (default: fold, if there is one)",
    )  # fmt: skip
    _add_repeated(
        group, "--group-column", "group_columns", "NAME", "column whose values are groups, to compute error rates for each"
    )
    group.add_argument(
        "--group-columns", dest="group_column_pairs", metavar=("LEFT", "RIGHT"), nargs=2, action="append", default=[],
        help="columns with the group of each image; a pair belongs to a group if both images do; may be given several times",
    )  # fmt: skip
    add_option(
        group, "--subject-columns", nargs=2, metavar=("LEFT", "RIGHT"),
        help="columns with the subject of each image, such as a person: images of one subject are no strangers",
    )  # fmt: skip
    add_option(
        group, "--separator", type=separator_option, metavar="CHARACTER",
        help="what separates the columns of CSV files; 'tab' for tabs (default: a comma, or what the header shows)",
    )  # fmt: skip
    add_option(
        group, "--bad-rows", choices=BAD_ROWS,
        help="CSV rows that have too few or too many fields, or are not UTF-8: refuse the manifest, or keep the rows, with "
        "status bad_row",
    )  # fmt: skip
    add_option(group, "--block-rows", type=int, metavar="N", help="number of rows that travel through the pipeline together")


def add_pair_column_options(group: Any) -> None:
    """Adds the columns of the two images and of the label, which training reads as well."""
    add_option(group, "--left-column", metavar="NAME", help="column with the first image's path or URI")
    add_option(group, "--right-column", metavar="NAME", help="column with the second image's path or URI")
    add_option(
        group, "--label-column", metavar="NAME",
        help="column with 1 or true for genuine pairs, 0 or false for impostors; '' for none "
        "(default: genuine, if there is such a column)",
    )  # fmt: skip


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Adds where images lie, and what an image may cost."""
    group = parser.add_argument_group(
        "the images", "The first frame of a file is taken. --loader decides on EXIF's orientation and on transparency."
    )
    add_image_root_option(group)
    add_option(group, "--max-image-pixels", type=int, metavar="N", help="an image of more pixels is too_large")
    add_option(group, "--max-image-bytes", type=int, metavar="N", help="a file of more bytes is too_large")
    add_option(
        group, "--max-decoding-pixels", type=int, metavar="N",
        help="pixels that all threads of a worker decode at the same time (default: what a quarter of the free memory holds)",
    )  # fmt: skip
    add_option(group, "--image-timeout", type=float, metavar="S", help="seconds that fetching and decoding one image may take")
    add_option(
        group, "--fetch-threads", type=int, metavar="N",
        help="number of images read at the same time (default: one a core, or 16 from a store)",
    )  # fmt: skip


def add_image_root_option(group: Any) -> None:
    """Adds where relative paths start, which training needs as well."""
    add_option(
        group, "--image-root", type=path_option, metavar="DIR",
        help="folder of relative paths, outside of which no image is opened (default: the manifest's folder, no limit)",
    )  # fmt: skip


def add_dataflow_options(parser: argparse.ArgumentParser) -> None:
    """Adds what concerns Dataflow and is not Beam's own."""
    group = parser.add_argument_group("on Dataflow")
    add_option(
        group, "--accelerator", metavar="TYPE",
        help="a GPU for each worker that encodes, such as nvidia-tesla-t4, and for no other; needs --sdk_container_image",
    )  # fmt: skip
    group.add_argument(
        "--no-wait", action="store_true", help="submit the job and return; a Flex Template's launcher always does"
    )


def add_option(group: Any, option: str, **settings: Any) -> None:
    """Adds an option whose default is the configuration's."""
    default = _DEFAULTS[option[2:].replace("-", "_")]
    if default is not None and default is not False:
        settings["help"] += f" (default: {default})"
    group.add_argument(option, default=default, **settings)


def config_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Returns parsed options as fields of a configuration."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()}


def _add_repeated(group: Any, option: str, dest: str, metavar: str, text: str) -> None:
    group.add_argument(
        option, dest=dest, metavar=metavar, action="append", default=[], help=f"{text}; may be given several times"
    )


def _limit(text: str) -> Limit:
    try:
        return Limit.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no limit; give a count such as 100, or a percentage such as 0.5%"
        ) from None


def _share(text: str) -> float:
    try:
        return parse_share(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no share; give a number such as 1e-3, or a percentage such as 0.1%"
        ) from None


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    try:
        height, width = (int(side) for side in (sides if len(sides) == 2 else sides * 2))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; give HEIGHTxWIDTH, such as 160x120, or one number") from None
    return height, width
