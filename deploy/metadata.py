"""Writes metadata.json, which describes the parameters of the Flex Template, from the options of `batchverify`."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from batchverify.cli.job import make_parser
from batchverify.config import PIXELS

# These options are for people at a terminal.
_NOT_FOR_LAUNCHERS = {
    "--help",
    "--version",
    "--print-completion",
    "--check",
    "--quiet",
    "--no-wait",
    "--no-cache",
    "--metrics-file",
    "--notify-command",
}
# Without a model, the demo model would score the pairs.
_REQUIRED = ("manifest", "output", "model")
_URI = r"[a-z][a-z0-9+.-]*://.+"
_MODEL = f"{_URI}|models:/.+"
_NUMBER = r"-?[0-9]*\.?[0-9]+(e-?[0-9]+)?"
_REGEXES = {
    "pixels": f"({'|'.join(map(re.escape, PIXELS))})(-binary:[0-9.]+)?".replace(r"\-", "-"),
    "manifest": _URI, "output": _URI, "model": _MODEL, "image_root": _URI, "baseline": _URI, "embeddings": _URI,
    "candidate": _MODEL,
    "max_failed_rows": r"[0-9]+|[0-9]*\.?[0-9]+%", "max_identity_faults": r"[0-9]+|[0-9]*\.?[0-9]+%",
    "image_size": r"[0-9]+(x[0-9]+)?", "match_column": "[01]", "custom_object": ".+=.+",
    "accelerator": r"[a-z][a-z0-9-]*|type:[a-z][a-z0-9-]*;count:1(;[A-Za-z0-9:._-]+)*",
    "max_stranger_matches": r"[0-9]+|[0-9]*\.?[0-9]+%", "max_flips": r"[0-9]+|[0-9]*\.?[0-9]+%",
    "subject_columns": "[^,]+,[^,]+",
    "prior": r"0?\.[0-9]+(e-[0-9]+)?|[1-9](\.[0-9]+)?e-[0-9]+|[0-9]*\.?[0-9]+%",
    "fmr": rf"{_NUMBER}%?",
    "review": r"[0-9]*\.?[0-9]+,[0-9]*\.?[0-9]+",
    "threshold_from": ".+:fmr=[0-9.e-]+%?",
    "label_column": ".*", "fold_column": ".*",
}  # fmt: skip
_DAY = {
    "name": "day",
    "label": "Day",
    "helpText": "What {day} stands for in other parameters, and {day_before} the day before it: YYYY-MM-DD, or today, in UTC.",
    "isOptional": True,
    "regexes": ["^(today|[0-9]{4}-[0-9]{2}-[0-9]{2})$"],
}


def describe() -> dict[str, Any]:
    """Returns the metadata."""
    parser = make_parser()
    actions = [action for action in parser._actions if not _NOT_FOR_LAUNCHERS & set(action.option_strings)]
    return {
        "name": "batchverify",
        "description": parser.description,
        "parameters": [*map(_describe, actions), _DAY],
    }


def _describe(action: argparse.Action) -> dict[str, Any]:
    name = action.option_strings[0][2:].replace("-", "_")
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": _help(name, action),
        "isOptional": name not in _REQUIRED,
        "regexes": [f"^({_regex(name, action)})$"],
    }


def _help(name: str, action: argparse.Action) -> str:
    text = (action.help or "") % vars(action) + (", separated by a comma" if action.nargs == 2 else "")
    text = text.removesuffix("; may be given several times")  # One parameter has one value.
    text = re.sub(r" \(default: .*\)$", "", text) if name in _REQUIRED else text
    return text[:1].upper() + text[1:] + "."


def _regex(name: str, action: argparse.Action) -> str:
    if name in _REGEXES:
        return _REGEXES[name]
    if action.nargs == 0:
        return "true|false"
    if action.choices is not None:
        return "|".join(re.escape(str(choice)).replace(r"\-", "-") for choice in action.choices)
    return {int: "[0-9]+", float: _NUMBER}.get(action.type, ".+")


if __name__ == "__main__":
    text = json.dumps(describe(), indent=2, ensure_ascii=False) + "\n"
    Path(__file__).with_name("metadata.json").write_text(text, encoding="utf-8")
