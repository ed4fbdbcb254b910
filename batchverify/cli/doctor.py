"""`batchverify doctor --model M`: the truth about a trained model, on one page.

    batchverify doctor --model model.keras [--images DIR | --manifest pairs.csv] [--json]

It takes every option of `batchverify` that says what a model is. Exit codes: 0 sane, 1 failed, 2 refused, 3 not sane.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.messages import diagnosis_message
from batchverify.cli.options import add_model_options, add_pixel_options, add_threshold_option, config_fields
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, RunError

_LOG = logging.getLogger(__name__)
# The fields of a configuration that a sidecar holds under their own names.
_SIDECAR_FIELDS = (
    "pixels", "color", "loader", "resize", "orientation", "alpha", "fit", "signature", "compare", "output_is", "threshold",
    "match_column", "image_size", "mend_shared_encoder",
)  # fmt: skip


def make_parser() -> Parser:
    """Returns the parser of the doctor's options."""
    parser = Parser(
        prog="batchverify doctor",
        description="Examines a trained Siamese network: can its scores be believed?",
        epilog="Beam's own options say how stores are reached. Exit codes: 0 sane, 1 failed, 2 refused, 3 not sane.",
    )
    add_model_options(parser)
    add_pixel_options(parser)
    group = parser.add_argument_group("the examination")
    add_threshold_option(group)
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--images", type=path_option, metavar="DIR", help="folder of images to measure on; its subfolders are searched, too"
    )
    source.add_argument("--manifest", type=path_option, metavar="FILE", help="manifest of pairs to measure on")
    group.add_argument("--json", action="store_true", help="print the findings as JSON")
    group.add_argument("--write-sidecar", action="store_true", help="write MODEL.batchverify.json from the options given")
    return parser


def names_code(options: argparse.Namespace) -> bool:
    """Returns whether options name code of the user's, which a sidecar cannot: a file beside a model could run anything."""
    return bool(options.preprocess or any(":" in text for text in options.custom_objects or ()))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ModelConfig, list[str]]:
    """Returns the options, the model that they describe, and Beam's arguments."""
    options, beam_args = make_parser().parse_with_beam(argv)
    fields = config_fields(options)
    return options, ModelConfig(**{field.name: fields[field.name] for field in dataclasses.fields(ModelConfig)}), beam_args


def run(argv: Sequence[str]) -> int:
    """Examines the model that `argv` names, prints what was found and returns the exit code."""
    options, config, beam_args = parse(argv)
    from batchverify.images.pillow_settings import configure_pillow
    from batchverify.io.object_store import set_storage_arguments
    from batchverify.model.start_tensorflow import start_tensorflow

    start_tensorflow()
    from batchverify.model.diagnosis import examine

    configure_pillow()
    set_storage_arguments(beam_args, [("--model", options.model), ("--manifest", options.manifest)])
    sidecar = _new_sidecar(config) if options.write_sidecar else None
    diagnosis = examine(config, options.images, options.manifest)
    if options.json:
        print_text(json.dumps({**diagnosis.findings, "sane": not diagnosis.faults, "faults": diagnosis.faults}, indent=2))
    else:
        print_text(diagnosis_message(diagnosis))
    if sidecar:
        _write_sidecar(sidecar, config)
        if names_code(options):
            _LOG.warning(
                "%s cannot name code: give --custom-object CLASS=module:attribute and --preprocess with every run.", sidecar
            )
    return ExitCode.NOT_SANE if diagnosis.faults else ExitCode.DONE


def _new_sidecar(config: ModelConfig) -> str:
    """Returns the path of the model's sidecar, which does not exist yet.

    Raises:
        PreflightError: if it exists, or cannot be written.
    """
    from batchverify.model.registry import is_registry_name
    from batchverify.model.sidecar import sidecar_path
    from batchverify.uris import is_remote

    if config.model is None or is_remote(config.model) or is_registry_name(config.model):
        raise PreflightError("--write-sidecar needs a --model on this machine; copy the file to its store yourself.")
    path = sidecar_path(config.model)
    if os.path.exists(path):
        raise PreflightError(f"{path}: it exists already; take it away first, or edit it.")
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if os.path.isdir(folder):  # Without it there is no model either, which is refused with a sentence of its own.
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PreflightError(
            f"--write-sidecar: {path} cannot be written ({error.strerror}); copy the model elsewhere, or leave it out."
        ) from None
    return path


def _write_sidecar(path: str, config: ModelConfig) -> None:
    """Writes what the options say about the model beside it, so that runs need not be told."""
    from batchverify.io.atomic_output import atomic_output

    settings = {name: getattr(config, name) for name in _SIDECAR_FIELDS}
    settings["lambda"] = list(config.lambdas)
    settings["custom_object"] = [text for text in config.custom_objects if ":" not in text]
    known = {name: value for name, value in settings.items() if value is not None and value is not False and value != []}
    try:
        with atomic_output(path) as unfinished:
            Path(unfinished).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); free space there, or write it yourself.") from None
