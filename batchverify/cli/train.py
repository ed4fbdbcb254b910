"""`python -m batchverify.train`: trains the network of the published case on class folders or on a manifest.

    python -m batchverify.train --images classes/ --output model.keras
    python -m batchverify.train --manifest pairs.csv --output model.keras

Beside the model it writes the log (`.log.csv`), its curves (`.curves.png`), the recipe with the figures measured on
classes that were never trained on (`.json`), and the sidecar that tells a run how to resize (`.keras.batchverify.json`).
Exit codes: 0 done, 2 refused, 130 interrupted (143 by SIGTERM); go on with `--resume`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchverify.cli.logging import quieten_libraries
from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError
from batchverify.training.recipe import DISTORTIONS, HEADS, LAYERS, RECIPES, Recipe

if TYPE_CHECKING:
    from batchverify.training.data import Group
    from batchverify.training.fit import Files
    from batchverify.training.history import Epoch, History


DONE, REFUSED, INTERRUPTED = 0, 2, 130
_LOG = logging.getLogger("batchverify.cli.train")
# Said by the recipe unless the command line does.
_RECIPE_OPTIONS = (
    "head", "freeze_bias", "size", "width", "dropout", "distortion", "steps", "steps_per_epoch", "batch_groups",
    "batch_classes", "joined", "batch_pairs", "learning_rate", "layer_rates", "momentum", "layer_momenta", "momentum_epochs",
    "patience", "seed",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as `argv` says and returns the exit code."""
    try:
        quieten_libraries()
        return train(_parser().parse_args(sys.argv[1:] if argv is None else list(argv)))
    except PreflightError as refused:
        for problem in refused.problems:
            print(f"batchverify: {problem}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("batchverify: interrupted before training began; nothing is lost.", file=sys.stderr)
        return INTERRUPTED


def train(options: argparse.Namespace) -> int:
    """Trains as the parsed `options` say and returns the exit code.

    Raises:
        PreflightError: with what is wrong with them, before anything is trained.
    """
    recipe = _recipe(options)
    files = _files(options)

    import keras
    import tensorflow as tf

    from batchverify.training import data, fit, network, sources
    from batchverify.training.trainer import Trainer

    tf.config.experimental.enable_op_determinism()
    read = _read(options, recipe.size)
    held_out, rest = _hold_out(read, options.hold_out)
    seen, validation = data.split_classes(rest, options.validation, recipe.seed)
    invented = sources.draw_groups(options.invented, 24, 20, recipe.size, recipe.seed)
    if recipe.patience and not validation:
        raise PreflightError(
            f"--patience is {recipe.patience}, and with --validation 0 nothing tells when to stop; give one or the other."
        )

    encoder = network.read_encoder(options.start_from, recipe.size) if options.start_from else None
    orient = data.with_turns if options.turned_classes else list
    trainer = Trainer(recipe, orient(seen) * options.repeat + orient(invented), encoder, options.encoder_weights)
    _say_data(seen, validation, held_out)
    with _shown(recipe.steps) as (on_step, on_epoch):
        history, interrupted = fit.fit(
            trainer, validation, files, _fingerprint(options, recipe, read), options.resume, on_step, on_epoch
        )
    _write_sidecar(files.model)
    if interrupted:
        print(f"Interrupted after step {trainer.step}. {files.model} holds {_kept(history)}; go on with --resume.")
        return 128 + interrupted
    model = keras.models.load_model(files.model, compile=False)
    figures = _measure(model, held_out or validation, recipe.seed)
    _write_figures(files, recipe, options, history, figures)
    print(_closing_words(files, history, figures, "held out" if held_out else "validation"))
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batchverify.train",
        description="Trains a Siamese network whose score of an image against itself is the highest that there is.",
        epilog="Exit codes: 0 done, 2 refused, 130 or 143 interrupted by SIGINT or SIGTERM; go on with --resume.",
        allow_abbrev=False,
    )
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    _add_sources(parser)
    _add_network(parser)
    _add_recipe(parser)
    output = parser.add_argument_group("the result")
    output.add_argument("--output", metavar="FILE", required=True, help="the .keras file to write; its log lies beside it")
    output.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    output.add_argument("--resume", action="store_true", help="go on with interrupted training; give the same options again")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to learn from")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="class folders: DIR/class/*, or DIR/group/class/*")
    source.add_argument("--manifest", metavar="FILE", help="CSV or Parquet file of labelled pairs; genuine ones join classes")
    group.add_argument("--left-column", default="left", metavar="NAME", help="of the manifest (default: left)")
    group.add_argument("--right-column", default="right", metavar="NAME", help="of the manifest (default: right)")
    group.add_argument("--label-column", metavar="NAME", help="of the manifest (default: genuine)")
    group.add_argument("--image-root", metavar="DIR", help="where the manifest's relative paths start (default: its folder)")
    group.add_argument("--hold-out", nargs="+", default=[], metavar="GROUP", help="groups to measure on and never train on")
    group.add_argument(
        "--validation",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of each group's classes, to choose the best model by (0.1)",
    )
    group.add_argument(
        "--turned-classes", action="store_true", help="a class turned or mirrored is a class too; for characters"
    )
    group.add_argument(
        "--invented", type=int, default=0, metavar="N", help="alphabets drawn by this package to add (default: 0)"
    )
    group.add_argument("--repeat", type=int, default=1, metavar="N", help="weight of your groups against invented ones (1)")


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the network")
    group.add_argument("--head", choices=HEADS, help="published keeps the fault (default: repaired)")
    group.add_argument("--freeze-bias", action="store_true", default=None, help="published head: keep its bias at 0")
    group.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (default: 96)")
    group.add_argument("--width", type=float, metavar="ALPHA", help="of MobileNetV2 (default: 0.35)")
    group.add_argument("--dropout", type=float, metavar="SHARE", help="before the embedding (default: the recipe's)")
    start = group.add_mutually_exclusive_group()
    start.add_argument("--encoder-weights", metavar="FILE", help="MobileNetV2 weights without top, such as ImageNet's")
    start.add_argument("--start-from", metavar="FILE", help="a model trained by this command: go on from its encoder")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the recipe")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="batch",
        help="all pairs of a batch, or drawn pairs as published or by Koch et al.",
    )
    group.add_argument("--distortion", choices=DISTORTIONS, help="strokes suits handwriting (default: affine)")
    for option, kind, text in (
        ("--steps", int, "of the optimiser"),
        ("--steps-per-epoch", int, "after so many: validation and checkpoint"),
        ("--batch-groups", int, "batch: groups in a batch"),
        ("--batch-classes", int, "batch: classes of each, two images of each class"),
        ("--joined", float, "batch: share of groups whose classes are joined of two; for characters"),
        ("--batch-pairs", int, "published, koch: pairs in a batch"),
        ("--learning-rate", float, "its peak"),
        ("--momentum", float, "koch: where momentum ends"),
        ("--momentum-epochs", int, "koch: epochs in which it rises from 0.5"),
        ("--patience", int, "epochs without a better validation until training stops; 0: never"),
        ("--seed", int, "of weights, batches and distortions"),
    ):
        group.add_argument(option, type=kind, metavar="N", help=f"{text} ({_default(option)})")
    layers = ", ".join(LAYERS)
    group.add_argument(
        "--layer-rate", dest="layer_rates", type=_layer, action="append", metavar="LAYER=X",
        help=f"koch: factor on the learning rate of a layer: {layers}; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--layer-momentum", dest="layer_momenta", type=_layer, action="append", metavar="LAYER=X",
        help="koch: where a layer's momentum ends; may be given several times",
    )  # fmt: skip


def _default(option: str) -> str:
    field = option[2:].replace("-", "_")
    values = [getattr(Recipe.named(name), field) for name in RECIPES]
    return (
        f"default: {values[0]}"
        if len(set(values)) == 1
        else ", ".join(f"{n}: {v}" for n, v in zip(RECIPES, values, strict=True))
    )


def _layer(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not LAYER=NUMBER, such as backbone=0.1") from None


def _refuse(message: str) -> None:
    raise PreflightError(f"{message}; see python -m batchverify.train --help.")


def _recipe(options: argparse.Namespace) -> Recipe:
    problems = []
    if not 0 <= options.validation < 1:
        problems.append(f"--validation is {options.validation}; give a share of the classes, from 0 to below 1.")
    for name, least in (("invented", 0), ("repeat", 1)):
        if getattr(options, name) < least:
            problems.append(f"--{name} is {getattr(options, name)}; give at least {least}.")
    for option in ("encoder_weights", "start_from"):
        path = getattr(options, option)
        if path is not None and not Path(path).is_file():
            problems.append(f"--{option.replace('_', '-')} {path}: there is no such file; check the path.")
    said = {name: getattr(options, name) for name in _RECIPE_OPTIONS}
    said |= {name: tuple(said[name]) for name in ("layer_rates", "layer_momenta") if said[name]}
    try:
        recipe = Recipe.named(options.recipe, **said, frozen_statistics=options.start_from is not None)
    except PreflightError as refused:
        problems += refused.problems
    if problems:
        raise PreflightError(problems)
    return recipe


def _files(options: argparse.Namespace) -> Files:
    from batchverify.training.fit import Files

    files = Files(Path(options.output))
    if files.model.suffix != ".keras":
        raise PreflightError(f"--output {options.output}: give a name that ends in .keras.")
    if not options.resume and not options.overwrite:
        for path in (files.model, files.checkpoint):
            if path.exists():
                raise PreflightError(f"--output: {path} exists; give --resume, --overwrite or another name.")
    try:
        files.model.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=files.model.parent).close()
    except OSError as error:
        raise PreflightError(
            f"--output {options.output}: it cannot be written ({error.strerror}); choose another place."
        ) from None
    return files


def _read(options: argparse.Namespace, size: int) -> list[Group]:
    from batchverify.training import sources

    if options.images:
        return sources.read_folders(options.images, size)
    config = VerificationConfig(
        manifests=(options.manifest,), output="-", image_root=options.image_root, left_column=options.left_column,
        right_column=options.right_column, label_column=options.label_column,
    )  # fmt: skip
    return sources.read_manifest(config, size)


def _hold_out(groups: Sequence[Group], names: Sequence[str]) -> tuple[list[Group], list[Group]]:
    there = sorted({group.name for group in groups})
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1, 0.6) or there[:5]
            raise PreflightError(f"--hold-out {name}: there is no such group; there is {', '.join(near)}.")
    return [g for g in groups if g.name in names], [g for g in groups if g.name not in names]


def _fingerprint(options: argparse.Namespace, recipe: Recipe, groups: Sequence[Group]) -> str:
    said = hashlib.sha256(json.dumps(dataclasses.asdict(recipe)).encode())
    for name in ("hold_out", "validation", "turned_classes", "invented", "repeat", "start_from", "encoder_weights"):
        said.update(f"{name}={getattr(options, name)};".encode())
    for group in groups:
        said.update(f"{group.name}:".encode())
        for images in group.classes:
            said.update(hashlib.sha256(images.tobytes()).digest())
    return said.hexdigest()


def _say_data(seen: Sequence[Group], validation: Sequence[Group], held_out: Sequence[Group]) -> None:
    for kind, groups in (("training", seen), ("validation", validation), ("held out", held_out)):
        classes = [images for group in groups for images in group.classes]
        if classes:
            print(
                f"{kind}: {sum(map(len, classes)):,} images of {len(classes):,} classes in {len(groups):,} groups", flush=True
            )


@contextmanager
def _shown(steps: int) -> Iterator[tuple[Any, Any]]:
    """Shows a bar with loss and accuracy on a terminal, and a line for each epoch anywhere."""
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(highlight=False, soft_wrap=True)
    columns = (
        BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(compact=True), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loss, accuracy: soon", total=steps)
        means: np.ndarray | None = None

        def on_step(step: int, loss: float, accuracy: float) -> None:
            # A running mean over the last twenty steps or so; a single step's figures jump.
            nonlocal means
            found = np.array([loss, accuracy])
            means = found if means is None else means + 0.05 * (found - means)
            bar.update(task, completed=step, description=f"loss {means[0]:.3f}  accuracy {means[1]:.3f}")

        yield on_step, lambda epoch: console.print(_epoch_words(epoch))


def _epoch_words(epoch: Epoch) -> str:
    words = f"epoch {epoch.epoch:3d}  step {epoch.step:6d}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
    if epoch.validation_accuracy is not None:
        words += f"  validation accuracy {epoch.validation_accuracy:.4f}  EER {epoch.validation_eer:.4f}"
    return f"{words}  {epoch.seconds:.0f} s"


def _kept(history: History) -> str:
    best = history.best()
    if best is None:
        return "the network as it is"
    if best.validation_accuracy is None:
        return f"the network of step {best.step}"
    return f"the best so far, of step {best.step} (validation accuracy {best.validation_accuracy:.4f})"


def _measure(model: Any, groups: Sequence[Group], seed: int) -> dict[str, Any] | None:
    from batchverify.training import network
    from batchverify.training.evaluate import evaluate

    if not groups:
        return None
    encode = functools.partial(network.encode, model.get_layer("encoder"))
    compare = functools.partial(network.compare, model.get_layer("score"))
    return dataclasses.asdict(evaluate(encode, compare, groups, seed))


def _write_sidecar(model: Path) -> None:
    from batchverify.model.sidecar import sidecar_path

    # Pillow's bilinear filter, by which training reads its images, is TensorFlow's with antialiasing.
    Path(sidecar_path(str(model))).write_text('{"resize": "bilinear-antialias"}\n', encoding="utf-8")


def _write_figures(files: Files, recipe: Recipe, options: argparse.Namespace, history: History, figures: Any) -> None:
    best = history.best()
    said = {
        "recipe": dataclasses.asdict(recipe),
        "data": {name: getattr(options, name) for name in ("hold_out", "validation", "turned_classes", "invented", "repeat")},
        "steps": history.epochs[-1].step if history.epochs else 0,
        "kept_step": best.step if best else 0,
        "minutes": round(history.seconds / 60, 1),
        "measured_on": "held out" if options.hold_out else "validation",
        "figures": figures,
    }
    files.figures.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _closing_words(files: Files, history: History, figures: dict[str, Any] | None, on: str) -> str:
    ways = figures["one_shot_ways"] if figures else 0
    lines = [f"Trained for {history.seconds / 60:.1f} minutes. {files.model} holds {_kept(history)}."]
    if figures:
        lines += [
            f"On {on} classes, {figures['pairs']:,} pairs:",
            f"  verification accuracy  {figures['accuracy']:.4f}   EER {figures['eer']:.4f}",
            f"  {ways:2d}-way one-shot       {figures['one_shot']:.4f}   of {figures['one_shot_trials']:,} trials",
            f"  identity score f(x, x) {figures['identity_score']:.4f}   outscored by {figures['outscored']:.1%} of genuine",
        ]
    lines.append(f"Log {files.log}, curves {files.curves}, figures {files.figures}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
