"""`python -m batchverify.doctor --model M`: the truth about a trained model, in a page.

    python -m batchverify.doctor --model model.keras [--images DIR | --manifest pairs.csv] [--json]

Takes every option of `python -m batchverify` that says what a model is. Exit codes: 0 sane, 2 refused, 3 not sane.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchverify.cli.logging import quieten_libraries
from batchverify.cli.options import add_model_options, model_settings, refuse, with_pixels_joined
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, printable
from batchverify.model.diagnosis import Diagnosis, examine
from batchverify.uris import is_remote

SANE, REFUSED, NOT_SANE = 0, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the model that `argv` names, prints what was found and returns the exit code."""
    try:
        quieten_libraries()
        options = _parse(sys.argv[1:] if argv is None else list(argv))
        config = ModelConfig(**{field.name: options[field.name] for field in dataclasses.fields(ModelConfig)})
        _open_stores(options)
        diagnosis = examine(config, options["images"], options["manifest"])
        if options["write_sidecar"]:
            write_sidecar(config, diagnosis)
    except PreflightError as refused:
        for problem in refused.problems:
            print(f"batchverify: {problem}", file=sys.stderr)
        return REFUSED
    if options["json"]:
        print(json.dumps({**diagnosis.findings, "sane": not diagnosis.faults, "faults": diagnosis.faults}, indent=2))
    else:
        print(printable(format_diagnosis(diagnosis), keep="\n"))
    return NOT_SANE if diagnosis.faults else SANE


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Returns the diagnosis as text for a terminal."""
    lines = []
    for title, findings in diagnosis.findings.items():
        lines.append(title.capitalize())
        lines += [f"  {name.replace('_', ' '):<24} {_shown(value)}" for name, value in findings.items()]
        lines.append("")
    if not diagnosis.faults:
        lines.append("SANE. Every image is accepted as itself, and no pair was seen to outscore an identity score.")
    else:
        lines.append("NOT SANE.")
        lines += [f"  - {fault}" for fault in diagnosis.faults]
    return "\n".join(lines)


def write_sidecar(config: ModelConfig, diagnosis: Diagnosis) -> None:
    """Writes what is known of the model beside it, so that runs need not be told."""
    from batchverify.model.sidecar import sidecar_path

    if config.model is None or is_remote(config.model):
        raise PreflightError("--write-sidecar needs a --model on this machine; copy the file to its store yourself.")
    said = {name: getattr(config, name) for name in ("pixels", "color", "resize", "fit", "signature", "compare", "output_is")}
    said |= {"threshold": config.threshold, "match_column": config.match_column, "image_size": config.image_size}
    said |= {"lambda": list(config.lambdas), "mend_shared_encoder": config.mend_shared_encoder}
    said["custom_object"] = [text for text in config.custom_objects if ":" not in text]
    kept = {name: value for name, value in said.items() if value is not None and value is not False and value != []}
    path = sidecar_path(config.model)
    if os.path.exists(path):
        raise PreflightError(f"{path}: it exists already; take it away first, or edit it.")
    Path(path).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m batchverify.doctor",
        description="Examines a trained Siamese network: can its scores be believed?",
        epilog="Beam's own options say how stores are reached. Exit codes: 0 sane, 2 refused, 3 not sane.",
        allow_abbrev=False,
    )
    parser.error = refuse  # type: ignore[method-assign]
    add_model_options(parser)
    parser.add_argument("--threshold", type=float, metavar="T", help="of a match (default: the model's sidecar, or 0.5)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", metavar="DIR", help="folder of images to measure on, searched through")
    source.add_argument("--manifest", metavar="FILE", help="manifest of pairs to measure on")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--write-sidecar", action="store_true", help="write MODEL.batchverify.json from the options given")
    options, beam_args = parser.parse_known_args(with_pixels_joined(argv))
    return model_settings(options) | {"beam_args": beam_args}


def _open_stores(options: dict[str, Any]) -> None:
    from batchverify.io.object_store import set_storage_arguments

    set_storage_arguments(options["beam_args"], [(f"--{name}", options[name]) for name in ("model", "manifest")])


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
