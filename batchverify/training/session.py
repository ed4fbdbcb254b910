"""A training from its settings to its figures: what is needed is checked first, then the network is trained and measured."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from batchverify.errors import PreflightError
from batchverify.training import data, fit, network, sources
from batchverify.training.data import Group
from batchverify.training.evaluate import evaluate
from batchverify.training.fit import TrainingFiles
from batchverify.training.history import Epoch, History
from batchverify.training.recipe import Recipe
from batchverify.training.settings import TrainingSettings
from batchverify.training.trainer import Trainer

_INVENTED_CLASSES, _INVENTED_DRAWINGS = 24, 20  # of each invented alphabet


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Everything that a training needs, checked.

    Attributes:
        settings: The settings.
        recipe: The recipe.
        files: The files to write.
        trainer: The network and its optimiser, with the images to train on.
        training: The groups to train on, without invented ones.
        validation: The groups that the best model is chosen by.
        held_out: The groups that are never trained on.
        fingerprint: A digest of settings, recipe and images; a training resumes only with the same.
    """

    settings: TrainingSettings
    recipe: Recipe
    files: TrainingFiles
    trainer: Trainer
    training: list[Group]
    validation: list[Group]
    held_out: list[Group]
    fingerprint: str

    def measured_on(self) -> str:
        """Returns which classes the figures are measured on."""
        return "held out" if self.held_out else "validation"


def plan_training(recipe: Recipe, settings: TrainingSettings) -> TrainingPlan:
    """Reads the images and makes the network.

    Raises:
        PreflightError: if the images, the start or the output cannot be used; nothing is trained or written.
    """
    files = _output_files(settings)
    tf.config.experimental.enable_op_determinism()
    groups = _read_groups(settings, recipe.size)
    held_out, rest = _hold_out(groups, settings)
    training, validation = data.split_classes(rest, settings.validation, recipe.seed)
    if recipe.patience and not validation:
        raise PreflightError(
            f"--patience is {recipe.patience}, and with --validation 0 nothing tells when to stop; give one or the other."
        )
    trainer = _make_trainer(recipe, settings, training)
    return TrainingPlan(
        settings, recipe, files, trainer, training, validation, held_out, _fingerprint(recipe, settings, groups)
    )


def train(
    plan: TrainingPlan, on_step: Callable[[int, float, float], None], on_epoch: Callable[[Epoch], None]
) -> tuple[History, int]:
    """Trains, and writes the model with its log, curves and sidecar.

    Args:
        plan: What to train.
        on_step: Called after each step with its number, loss and accuracy.
        on_epoch: Called after each epoch.

    Returns:
        The history, and the number of the signal that interrupted training; 0 if none did.

    Raises:
        PreflightError: if there is nothing to resume from, or it is of another recipe or other data.
        RunError: if the training diverges, or a file cannot be written.
    """
    resume = plan.settings.resume
    history, interrupted = fit.fit(plan.trainer, plan.validation, plan.files, plan.fingerprint, resume, on_step, on_epoch)
    _write_sidecar(plan.files)
    return history, interrupted


def measure(plan: TrainingPlan, history: History) -> dict[str, Any] | None:
    """Measures the written model on classes that were not trained on, writes the figures beside it and returns them.

    The result is None if there are no such classes.
    """
    groups, figures = plan.held_out or plan.validation, None
    if groups:
        model = keras.models.load_model(plan.files.model, compile=False)
        encode = functools.partial(network.encode, model.get_layer("encoder"))
        compare = functools.partial(network.compare, model.get_layer("score"))
        figures = dataclasses.asdict(evaluate(encode, compare, groups, plan.recipe.seed))
    _write_figures(plan, history, figures)
    return figures


def _output_files(settings: TrainingSettings) -> TrainingFiles:
    files = TrainingFiles(settings.output)
    existing = [path for path in files.all() if path.exists()]
    if existing and not settings.resume and not settings.overwrite:
        raise PreflightError(f"--output: {existing[0]} exists; give --resume, --overwrite or another name.")
    try:
        files.model.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=files.model.parent).close()
    except OSError as error:
        raise PreflightError(
            f"--output {settings.output}: it cannot be written ({error.strerror}); choose another place."
        ) from None
    return files


def _read_groups(settings: TrainingSettings, size: int) -> list[Group]:
    if settings.images:
        return sources.read_folders(settings.images, size)
    assert settings.manifest is not None
    return sources.read_manifest(settings.manifest, size)


def _hold_out(groups: Sequence[Group], settings: TrainingSettings) -> tuple[list[Group], list[Group]]:
    """Returns the groups that are held out, and the rest."""
    names, known = settings.hold_out, sorted({group.name for group in groups})
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6) or known[:5]
            raise PreflightError(f"--hold-out {name}: there is no such group; there is {', '.join(near)}.")
    held_out, rest = [[group for group in groups if (group.name in names) is chosen] for chosen in (True, False)]
    for group in held_out:
        if len(group.classes) < 2:
            raise PreflightError(
                f"--hold-out {group.name}: it has one class of two images or more, and pairs are measured within a group; "
                "give it more classes, or hold out another group."
            )
    if not rest and not settings.invented:
        raise PreflightError("--hold-out names all groups, and none is left to train on; hold out fewer.")
    return held_out, rest


def _make_trainer(recipe: Recipe, settings: TrainingSettings, training: Sequence[Group]) -> Trainer:
    encoder = network.read_encoder(settings.start_from, recipe.size) if settings.start_from else None
    invented = sources.draw_groups(settings.invented, _INVENTED_CLASSES, _INVENTED_DRAWINGS, recipe.size, recipe.seed)
    if training:
        channels = training[0].classes[0].shape[-1]
        invented = [group.with_channels(channels) for group in invented]
    weighted = [dataclasses.replace(group, weight=settings.repeat) for group in training]
    orient = data.with_turns if settings.turned_classes else list
    return Trainer(recipe, orient(weighted) + orient(invented), encoder, settings.encoder_weights)


def _fingerprint(recipe: Recipe, settings: TrainingSettings, groups: Sequence[Group]) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(recipe)).encode())
    for name in ("hold_out", "validation", "turned_classes", "invented", "repeat", "start_from", "encoder_weights"):
        digest.update(f"{name}={getattr(settings, name)};".encode())
    for group in groups:
        digest.update(f"{group.name}:".encode())
        for images in group.classes:
            digest.update(hashlib.sha256(images.tobytes()).digest())
    return digest.hexdigest()


def _write_sidecar(files: TrainingFiles) -> None:
    # Pillow's bilinear filter, with which training resizes images, is TensorFlow's with antialiasing.
    with files.writing(files.sidecar) as path:
        path.write_text('{"loader": "batchverify"}\n', encoding="utf-8")


def _write_figures(plan: TrainingPlan, history: History, figures: dict[str, Any] | None) -> None:
    best = history.best()
    names = ("hold_out", "validation", "turned_classes", "invented", "repeat")
    content = {
        "recipe": dataclasses.asdict(plan.recipe),
        "data": {name: getattr(plan.settings, name) for name in names},
        "steps": history.epochs[-1].step if history.epochs else 0,
        "kept_step": best.step if best else 0,
        "minutes": round(history.seconds / 60, 1),
        "measured_on": plan.measured_on(),
        "figures": figures,
    }
    with plan.files.writing(plan.files.figures) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
