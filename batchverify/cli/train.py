"""`batchverify train`: trains the network of the published case on class folders or on a manifest.

    batchverify train --images classes/ --output model.keras
    batchverify train --manifest pairs.csv --output model.keras

Beside the model it writes the log (`.log.csv`), its curves (`.curves.png`), the recipe with the figures measured on
classes that were never trained on (`.json`), and the sidecar that says how images are resized (`.keras.batchverify.json`).
Exit codes: 0 done, 1 failed, 2 refused, 129, 130 or 143 interrupted by a signal; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchverify.cli.exit_code import ExitCode
from batchverify.cli.messages import epoch_message, interrupted_message, trained_message, training_data_message
from batchverify.cli.options import add_image_root_option, add_pair_column_options
from batchverify.cli.parser import Parser, path_option
from batchverify.cli.streams import print_text, unfailing
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.training.recipe import DISTORTIONS, HEADS, LAYERS, RECIPES, Recipe
from batchverify.training.settings import TrainingSettings

# Each number of a recipe as option, type and help.
_RECIPE_NUMBERS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("--steps", int, "number of steps of the optimiser"),
    ("--steps-per-epoch", int, "number of steps after which the network is validated and a checkpoint is written"),
    ("--batch-groups", int, "batch: number of groups in a batch"),
    ("--batch-classes", int, "batch: number of classes of each group, with two images of each class"),
    ("--joined", float, "batch: share of groups whose classes are joined of two; for characters"),
    ("--batch-pairs", int, "published, koch: number of pairs in a batch"),
    ("--learning-rate", float, "highest learning rate"),
    ("--momentum", float, "koch: momentum at the end"),
    ("--momentum-epochs", int, "koch: epochs in which the momentum rises from 0.5 to its end"),
    ("--patience", int, "epochs without a better validation after which training stops; 0 means never"),
    ("--seed", int, "seed of weights, batches and distortions"),
)


def make_parser() -> Parser:
    """Returns the parser of the training's options."""
    parser = Parser(
        prog="batchverify train",
        description="Trains a Siamese network whose score of an image against itself is the highest that there is.",
        epilog="Exit codes: 0 done, 1 failed, 2 refused, 129, 130 or 143 interrupted by SIGHUP, SIGINT or SIGTERM, which "
        "--resume goes on from.",
    )
    _add_data_options(parser)
    _add_network_options(parser)
    _add_recipe_options(parser)
    group = parser.add_argument_group("the result")
    group.add_argument(
        "--output", type=path_option, metavar="FILE", required=True, help="the .keras file to write; its log lies beside it"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a model that exists")
    group.add_argument("--resume", action="store_true", help="go on with interrupted training; give the same options again")
    return parser


def parse(argv: Sequence[str]) -> tuple[Recipe, TrainingSettings]:
    """Returns the recipe and the settings.

    Raises:
        PreflightError: with everything that is wrong, one sentence each.
    """
    options = make_parser().parse(argv)
    problems: list[str] = []
    recipe, settings = _try(problems, _recipe, options), _try(problems, _settings, options)
    problems += _problems_of_encoder(options)
    if problems:
        raise PreflightError(problems)
    return recipe, settings


def run(argv: Sequence[str]) -> int:
    """Trains as `argv` says and returns the exit code."""
    recipe, settings = parse(argv)
    from batchverify.images.pillow_settings import configure_pillow
    from batchverify.model.start_tensorflow import start_tensorflow

    start_tensorflow()
    from batchverify.training.session import measure, plan_training, train

    configure_pillow()
    plan = plan_training(recipe, settings)
    print_text(training_data_message(plan))
    with _progress(recipe.steps) as (on_step, on_epoch):
        history, interrupted = train(plan, on_step, on_epoch)
    if interrupted:
        print_text(interrupted_message(plan.files, history, plan.trainer.step))
        return 128 + interrupted
    figures = measure(plan, history)
    print_text(trained_message(plan.files, history, figures, plan.measured_on()))
    return ExitCode.DONE


def _try(problems: list[str], make: Callable[[argparse.Namespace], Any], options: argparse.Namespace) -> Any:
    """Returns what `make` returns; what it refuses is added to `problems`."""
    try:
        return make(options)
    except PreflightError as error:
        problems += error.problems


def _recipe(options: argparse.Namespace) -> Recipe:
    names = {field.name for field in dataclasses.fields(Recipe)} - {"name", "frozen_statistics"}
    given = {name: value for name, value in vars(options).items() if name in names}
    given |= {name: tuple(given[name]) for name in ("layer_rates", "layer_momenta") if given[name]}
    return Recipe.named(options.recipe, **given, frozen_statistics=options.start_from is not None)


def _problems_of_encoder(options: argparse.Namespace) -> list[str]:
    given = {"--width": options.width, "--dropout": options.dropout}
    return [
        f"{name} is for a new encoder, and --start-from brings its own; leave one of them out."
        for name, value in given.items()
        if value is not None and options.start_from is not None
    ]


def _settings(options: argparse.Namespace) -> TrainingSettings:
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    given |= {"output": Path(options.output), "hold_out": tuple(options.hold_out)}
    if options.manifest:
        given["manifest"] = VerificationConfig(
            manifests=(options.manifest,), output="-", image_root=options.image_root, left_column=options.left_column,
            right_column=options.right_column, label_column=options.label_column,
        )  # fmt: skip
    return TrainingSettings(**given)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to learn from")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=path_option, metavar="DIR", help="class folders: DIR/class/*, or DIR/group/class/*")
    source.add_argument(
        "--manifest",
        type=path_option,
        metavar="FILE",
        help="CSV or Parquet file of labelled pairs; images that genuine pairs connect are a class",
    )
    add_pair_column_options(group)
    add_image_root_option(group)
    group.add_argument("--hold-out", nargs="+", default=[], metavar="GROUP", help="groups to measure on and never train on")
    group.add_argument(
        "--validation", type=float, default=0.1, metavar="SHARE",
        help="share of each group's classes that the best model is chosen by (default: 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--turned-classes", action="store_true", help="a class that is turned or mirrored is another class; for characters"
    )
    group.add_argument(
        "--invented", type=int, default=0, metavar="N", help="number of alphabets to add that this package draws (default: 0)"
    )
    group.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="how often your groups count against invented ones (default: 1)"
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the network")
    group.add_argument("--head", choices=HEADS, help="published keeps the fault (default: repaired)")
    group.add_argument("--freeze-bias", action="store_true", default=None, help="published head: keep its bias at 0")
    group.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (default: 96)")
    group.add_argument("--width", type=float, metavar="ALPHA", help="width of MobileNetV2 (default: 0.35)")
    group.add_argument("--dropout", type=float, metavar="SHARE", help="dropout before the embedding (default: the recipe's)")
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--encoder-weights", type=path_option, metavar="FILE", help="MobileNetV2 weights without top, such as ImageNet's"
    )
    start.add_argument(
        "--start-from", type=path_option, metavar="FILE", help="a model trained by this command, whose encoder to start from"
    )


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the recipe")
    group.add_argument(
        "--recipe", choices=tuple(RECIPES), default="batch",
        help="all pairs of a batch, or drawn pairs as published or by Koch et al. (default: batch)",
    )  # fmt: skip
    group.add_argument("--distortion", choices=DISTORTIONS, help="strokes suits handwriting (default: affine)")
    for option, kind, text in _RECIPE_NUMBERS:
        group.add_argument(option, type=kind, metavar="N", help=f"{text} ({_default(option)})")
    group.add_argument(
        "--layer-rate", dest="layer_rates", type=_layer_number, action="append", metavar="LAYER=X",
        help=f"koch: factor on the learning rate of a layer: {', '.join(LAYERS)}; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--layer-momentum", dest="layer_momenta", type=_layer_number, action="append", metavar="LAYER=X",
        help="koch: momentum of a layer at the end; may be given several times",
    )  # fmt: skip


def _default(option: str) -> str:
    """Returns the default of a recipe's number, or of each recipe where they differ."""
    field = option[2:].replace("-", "_")
    values = {name: getattr(Recipe.named(name), field) for name in RECIPES}
    if len(set(values.values())) == 1:
        return f"default: {values['batch']}"
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _layer_number(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not LAYER=NUMBER, such as backbone=0.1") from None


@contextmanager
def _progress(steps: int) -> Iterator[tuple[Any, Any]]:
    """Gives what to call after a step and after an epoch: a terminal shows a bar, and all outputs get a line an epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=unfailing(sys.stdout), highlight=False, soft_wrap=True)
    columns = (
        BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(compact=True), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loss, accuracy: soon", total=steps)
        mean_loss = mean_accuracy = None

        def on_step(step: int, loss: float, accuracy: float) -> None:
            nonlocal mean_loss, mean_accuracy
            mean_loss, mean_accuracy = _running_mean(mean_loss, loss), _running_mean(mean_accuracy, accuracy)
            bar.update(task, completed=step, description=f"loss {mean_loss:.3f}  accuracy {mean_accuracy:.3f}")

        yield on_step, lambda epoch: console.print(epoch_message(epoch))


def _running_mean(mean: float | None, value: float) -> float:
    """Returns the mean over about the last twenty steps; the figures of a single step jump."""
    return value if mean is None else mean + 0.05 * (value - mean)
