"""The command line: argv to a configuration and Beam's own arguments, the job, its closing words, an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from batchverify import shutdown
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
from batchverify.errors import WORKER_DIED, PreflightError, RunError, printable
from batchverify.version import VERSION

DONE, FAILED, REFUSED, BEYOND_GATE = 0, 1, 2, 3

# How the traceback ends of a failure of ours, of the operating system's, of a worker's death, or of a service's.
_TOLD_ELSEWHERE = re.compile(
    rf"^({RunError.__module__}\.{RunError.__name__}: |\w+Error: \[Errno |\w+Error: {WORKER_DIED}|grpc\.\S+Error: )", re.M
)

# What other threads do while a run waits for them.
_IN_THREADS = ("fetch", "decode", "encode")
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
        from batchverify.check import check_run, words

        print(words(check_run(config, beam_args)))
        return DONE
    from batchverify.dataflow import is_dataflow, is_template_launch
    from batchverify.pipeline import pipeline_options, run, submit
    from batchverify.progress import watcher

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


def show(words: str) -> None:
    """Prints closing words, their verdict and labels set off where the terminal can."""
    from rich.console import Console
    from rich.text import Text

    text = Text(words)
    text.highlight_regex(r"(?m)^[A-Z][a-z]+(?=  )", "bold")
    text.highlight_words(["SANE."], "bold green")
    text.highlight_words(["FAULT.", "NOT CHECKED."], "bold red")
    Console(soft_wrap=True, highlight=False).print(text)


def closing_words(output: str, summary: dict[str, Any]) -> str:
    """Returns what the terminal shows at the end of a run: counts, the verdict explained, where the files are."""
    rows, images, rates = summary["rows"], summary["images"], summary["error_rates"]
    failed = images.get("total", 0) - images.get("ok", 0)
    kinds = ", ".join(f"{n} {kind}" for kind, n in images.items() if kind not in ("total", "ok"))
    kept = summary.get("embeddings")
    lines = [
        "",
        f"Rows      {rows.get('total', 0):,}: {rows.get('scored', 0):,} scored, {rows.get('failed', 0):,} without a score"
        + (f" (of the first {summary['run']['limit']:,}, --limit)" if summary["run"].get("limit") else ""),
        f"Images    {images.get('total', 0):,} distinct: {kept['encoded'] if kept else images.get('ok', 0):,} encoded, "
        + (f"{kept['reused']:,} from the store, " if kept else "")
        + f"{failed:,} failed"
        + (f" ({kinds})" if kinds else ""),
        f"Matches   {rows.get('matches', 0):,} at threshold {summary['run']['threshold']:g}",
    ]
    if rates:
        known = [(name.upper(), rates[name]) for name in ("fmr", "fnmr", "eer") if rates[name] is not None]
        lines.append(
            f"Labels    {rates['genuine']:,} genuine, {rates['impostor']:,} impostor: "
            + ", ".join(f"{name} {value:.2%}" for name, value in known)
        )
        lines += [f"Suggest   {words}" for words in threshold_words(rates)]
    if kept:
        lines.append("Store     " + store_words(kept))
    if baseline := summary.get("baseline"):
        lines.append("Baseline  " + baseline_words(baseline))
    if profile := summary.get("profile"):
        lines.append("Time      " + profile_words(profile))
    lines += [
        "Identity  " + identity_words(summary),
        f"Files     {output}/scores-*.parquet, {output}/summary.json, {output}/report.html",
    ]
    return "\n".join(lines)


def submission_words(output: str, link: str | None) -> str:
    """Returns what the terminal shows of a job that was handed to Dataflow and is not waited for."""
    where = f"Submitted {link}" if link else "Submitted the job is written, and the Flex Template's launcher starts it"
    return (
        f"\n{where}\n"
        f"          Nothing is scored yet. When the job has done its work, {output}/_SUCCESS is there, and whether\n"
        f"          gates are met stands in {output}/summary.json; this exit code says nothing of them."
    )


def baseline_words(baseline: dict[str, Any]) -> str:
    """Returns what changed since the earlier run, in two lines."""
    from batchverify.evaluation.drift import describe_shift

    before, now = (f"{rate:.2%}" if rate is not None else "none" for rate in baseline["match_rate"])
    changed = [f"{now - before:+,} {status}" for status, (before, now) in baseline["failures"].items() if now != before]
    model = "ANOTHER MODEL" if baseline["model_changed"] else "the same model"
    one, other = baseline["threshold"]
    threshold = "" if one == other else f"; threshold {one:g} before, {other:g} now"
    told = (
        f"against {baseline['path']}: {describe_shift(baseline['psi'])}, with {model}{threshold};\n"
        f"          matches {before} before, {now} now; failures {', '.join(changed) or 'as before'}"
    )
    return printable(told, keep="\n")  # The earlier summary may be a stranger's.


def store_words(kept: dict[str, Any]) -> str:
    """Returns what a run had of its store of embeddings, in a line."""
    total = kept["reused"] + kept["encoded"]
    share = f"{kept['reused']:,} of {total:,} images were in it unchanged" if total else "no image could be read"
    return printable(f"{kept['path']}: {share}" + (f"; not used: {kept['ignored']}" if kept["ignored"] else ""))


def profile_words(profile: dict[str, Any]) -> str:
    """Returns where a run's time went, the larger shares first, and beside it what other threads did meanwhile."""
    wall, seconds = profile["wall_seconds"], profile["seconds"]
    alone = sorted(((seconds[name], name) for name in seconds if name not in _IN_THREADS), reverse=True)
    shares = ", ".join(f"{name} {spent / wall:.0%}" for spent, name in alone if spent >= wall / 200)
    idle = profile["device_idle_share"]
    return (
        f"{wall:,.1f} s, {profile['images_per_second']:,.0f} images/s, {profile['rows_per_second']:,.0f} rows/s: {shares}\n"
        "          in threads meanwhile: "
        + ", ".join(f"{name} {seconds[name]:,.1f} s" for name in _IN_THREADS)
        + (f"; the device was idle for {idle:.0%}" if idle is not None else "")
    )


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def threshold_words(rates: dict[str, Any]) -> list[str]:
    """Returns the thresholds that a run's labels suggest, a line each, and how far they are to be trusted."""
    lines = []
    if rates.get("eer_threshold") is not None:
        lines.append(f"threshold {rates['eer_threshold']:.4f} for the EER of {rates['eer']:.2%}")
    for point in rates.get("at_fmr", []):
        if point["threshold"] is None:
            lines.append(f"no threshold gives an FMR of {point['target']:g}")
            continue
        fnmr = "" if point["fnmr"] is None else f", FNMR {point['fnmr']:.2%}"
        needed = {"enough": 0, "rough": 30, "too_few": 3}[point["evidence"]] / point["target"]
        doubt = f" ({point['evidence'].replace('_', ' ')}: it takes {needed:,.0f} impostor pairs to show)" if needed else ""
        lines.append(f"threshold {point['threshold']:.4f} for FMR {point['target']:g}{fnmr}{doubt}")
    return lines


def identity_words(summary: dict[str, Any]) -> str:
    """Returns the identity verdict of a run, explained to somebody who never heard of it."""
    identity, threshold = summary["identity"], summary["run"]["threshold"]
    compared = summary["images"].get("ok", 0)
    if not compared:
        return "NOT CHECKED. No image could be encoded, so none was compared with itself."
    low, high = identity["score_min"], identity["score_max"]
    scale = f"{low:.4f}" if f"{low:.4f}" == f"{high:.4f}" else f"{low:.4f} to {high:.4f}"
    refused, outscored = identity["images_below_threshold"], identity["outscored"]
    if not refused and not outscored:
        return (
            f"SANE. Each of {compared:,} images was compared with itself and scored {scale};\n"
            "          none fell below the threshold, and no pair scored higher than its own images do."
        )
    seen = []
    if refused:
        seen.append(f"{refused:,} of {compared:,} images, compared with themselves, fall below the threshold {threshold:g}")
    if outscored:
        seen.append(f"{outscored:,} pairs of different images score higher than an image against itself")
    return (
        f"FAULT. {'; '.join(seen)}.\n"
        f"          Seen:  an image compared with itself scores {scale}; nothing can be more alike, so it should be near 1.\n"
        "          Why:   of two equal images the distance is zero, and the head turns zero into sigmoid(bias),\n"
        "                 whatever the image shows. Ordinary training never shows it such a pair, so the bias is free;\n"
        "                 positive head weights then let pairs that differ a little score above pairs that don't differ.\n"
        "          Do:    don't trust matches of near-identical images from this model. Retrain its head with weights\n"
        "                 that can't be positive and with identity pairs. The column identity_check marks the rows."
    )


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
    _add(job, "--overwrite", action="store_true", help="replace the finished run in --output")
    job.add_argument("--quiet", action="store_true", help="show nothing but errors and gates that are not met")
    job.add_argument("--check", action="store_true", help="do everything but the work: look at all of it, and print the plan")
    _add(job, "--limit", type=int, metavar="N", help="score only the first N rows of the manifest")
    _add(job, "--baseline", metavar="DIR", help="an earlier run, its directory or summary.json, to compare this one with")
    _add(
        job,
        "--baseline-optional",
        action="store_true",
        help="go on without --baseline where it holds no finished run, as on the first night",
    )

    add_model_options(parser)
    model = parser.add_argument_group("the decisions")
    _add(
        model,
        "--threshold",
        type=float,
        metavar="T",
        help=f"a pair matches when its score is at least T (default: the model's sidecar, or {THRESHOLD})",
    )
    _add(
        model,
        "--identity-tolerance",
        type=float,
        metavar="T",
        help="by how much a pair may outscore its own images before it is a fault",
    )

    _add(model, "--on-nan", choices=ON_NAN, help="a score that is not a number fails the run, or is kept as a row without one")

    gates = parser.add_argument_group("gates: beyond them the results are written, and the exit code is 3")
    for option, text in (
        ("--max-failed-rows", "rows without a score"),
        ("--max-identity-faults", "scored rows whose identity check is not sane"),
    ):
        _add(gates, option, type=_limit, metavar="N|P%", help=f"{text}: a count, or a percentage such as 0.5%%")

    _add(gates, "--max-drift", type=float, metavar="PSI", help="population stability index of the scores against --baseline")

    kept = parser.add_argument_group("embeddings, kept from run to run")
    _add(
        kept, "--embeddings", metavar="DIR", help="a store of embeddings: images that are in it unchanged are not encoded again"
    )
    _add(
        kept,
        "--embeddings-version",
        choices=EMBEDDING_VERSIONS,
        help="what shows a change: size and time, or a store's etag; or the content, which is fetched, and not decoded",
    )
    _add(kept, "--embeddings-rebuild", action="store_true", help="read nothing of the store, and replace it")
    _add(kept, "--embeddings-days", type=int, metavar="N", help="drop embeddings that no run asked for in N days")

    columns = parser.add_argument_group("the manifest's columns")
    _add(columns, "--left-column", metavar="NAME", help="column with the first image's path or URI")
    _add(columns, "--right-column", metavar="NAME", help="column with the second image's path or URI")
    _add(
        columns,
        "--label-column",
        metavar="NAME",
        help="column with 1 or true for genuine pairs, 0 or false for impostors; '' for none "
        "(default: genuine, if there is such a column)",
    )
    _add(
        columns,
        "--fold-column",
        metavar="NAME",
        help="column with a benchmark's fold, for the accuracy of LFW's protocol; '' for none (default: fold, if there is one)",
    )
    _add(
        columns,
        "--bad-rows",
        choices=BAD_ROWS,
        help="CSV rows of too few or too many fields, or not UTF-8: refuse the manifest, or keep them, with status bad_row",
    )
    _add(columns, "--block-rows", type=int, metavar="N", help="rows that travel through the pipeline together")

    images = parser.add_argument_group("the images")
    _add(
        images,
        "--image-root",
        metavar="DIR",
        help="folder of relative paths, outside of which no image is opened (default: the manifest's folder, no limit)",
    )
    _add(images, "--max-image-pixels", type=int, metavar="N", help="an image of more pixels is too_large")
    _add(images, "--max-image-bytes", type=int, metavar="N", help="a file of more bytes is too_large")
    _add(images, "--image-timeout", type=float, metavar="S", help="seconds that fetching and decoding one image may take")
    _add(
        images,
        "--fetch-threads",
        type=int,
        metavar="N",
        help="images read at the same time (default: one a core, or 16 from a store)",
    )

    dataflow = parser.add_argument_group("on Dataflow")
    _add(
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
    _add(
        model,
        "--model",
        metavar="FILE",
        help="a .keras or .h5 file or a SavedModel folder: two images in, one score out (default: embedded)",
    )
    _add(model, "--batch-size", type=int, metavar="N", help="images encoded at once")
    _add(model, "--runtime", choices=RUNTIMES, help="what runs the network; openvino is an extra, for processors")
    _add(model, "--precision", choices=PRECISIONS, help="what OpenVINO computes in; the log says by how much scores change")
    _add(model, "--signature", metavar="NAME", help="of a SavedModel: which signature to call (default: serving_default)")
    _add(model, "--compare", choices=COMPARES, help="of a model with one input, an encoder: how embeddings become a score")
    _add(model, "--output-is", choices=OUTPUTS, help="what the model's output means (default: score)")
    _add(model, "--match-column", type=int, choices=(0, 1), help="of a softmax of two: which is the probability of a match")
    _repeat(model, "--lambda", "lambdas", "[NAME=]KIND", "what a Lambda layer computes, so that its code need not run")
    _repeat(
        model,
        "--custom-object",
        "custom_objects",
        "CLASS=WHAT",
        "what a class is that the file only names: a KIND, or module:attribute",
    )
    _add(model, "--trust-model-code", action="store_true", help="run code that the model file holds, with your rights")
    _add(
        model,
        "--mend-shared-encoder",
        action="store_true",
        help="rewire a file of Keras 3.2.1 in which both branches use the encoder's first call",
    )

    pixels = parser.add_argument_group("what the model was trained on (default: its sidecar, its graph)")
    _add(pixels, "--pixels", choices=PIXELS, help="the scale of its pixels; needed where the graph does not show it")
    _add(pixels, "--color", choices=COLORS, help="the order of its channels (default: rgb; grey for one channel)")
    _add(
        pixels,
        "--resize",
        choices=RESIZES,
        metavar="METHOD",
        help=f"how images come to its size, as tf.image.resize does: {', '.join(RESIZES)} (default: bilinear)",
    )
    _add(pixels, "--fit", choices=FITS, help="what becomes of images of another shape (default: stretch)")
    _add(pixels, "--image-size", type=_image_size, metavar="HxW", help="height and width, where the model leaves them open")


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


def _add(group: Any, option: str, **settings: Any) -> None:
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


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for the traceback that Beam logs of a failure which `main` tells in a sentence."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (RunError, PreflightError, OSError)) and not _TOLD_ELSEWHERE.search(record.getMessage())


def quieten_libraries() -> None:
    """Keeps the libraries' chatter off the terminal; their errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.basicConfig(level=logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
        handler.setFormatter(_PrintableFormatter())
    logging.getLogger("batchverify").setLevel(logging.INFO)
