"""Training from first step to last: validation, the best model kept, checkpoints, the log, and clean interruption."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from batchverify.errors import PreflightError
from batchverify.training.curves import plot_curves
from batchverify.training.data import Group
from batchverify.training.evaluate import evaluate
from batchverify.training.history import Epoch, History, write_log
from batchverify.training.network import assemble
from batchverify.training.trainer import Trainer

_VALIDATION_PAIRS = 4_000


@dataclasses.dataclass(frozen=True)
class Files:
    """What training writes: the model, and beside it what tells how it came about.

    Attributes:
        model: the `.keras` file.
    """

    model: Path

    @property
    def log(self) -> Path:
        """CSV, a line an epoch."""
        return self.model.with_suffix(".log.csv")

    @property
    def curves(self) -> Path:
        """The log as a picture."""
        return self.model.with_suffix(".curves.png")

    @property
    def checkpoint(self) -> Path:
        """What interrupted training goes on from; gone when it is done."""
        return self.model.with_suffix(".checkpoint.npz")

    @property
    def figures(self) -> Path:
        """The recipe, and what was measured."""
        return self.model.with_suffix(".json")


def fit(
    trainer: Trainer,
    validation: Sequence[Group],
    files: Files,
    fingerprint: str,
    resume: bool = False,
    on_step: Callable[[int, float, float], None] = lambda *_: None,
    on_epoch: Callable[[Epoch], None] = lambda *_: None,
) -> tuple[History, int]:
    """Trains to the end of the recipe, or until SIGINT or SIGTERM; either way `files.model` is a model to use.

    Args:
        trainer: as it was made.
        validation: groups of classes that are not trained on; with none, the last model is kept, not the best.
        files: to write.
        fingerprint: of the recipe and the data; training resumes only with the same.
        resume: whether to go on from `files.checkpoint`.
        on_step: called after each step with its number, loss and accuracy.
        on_epoch: called after each epoch.

    Returns:
        What happened, and the number of the signal that interrupted training; 0 if none did.

    Raises:
        PreflightError: if there is nothing to resume from, or it is of another recipe or other data.
    """
    recipe = trainer.recipe
    history = _resume(trainer, files, fingerprint) if resume else History()
    with _interruptible() as interrupted:
        while trainer.step < recipe.steps and not interrupted():
            if recipe.patience and history.epochs_without_gain() >= recipe.patience:
                break
            started = time.monotonic()
            loss, accuracy = trainer.train_step()
            history.loss, history.accuracy = history.loss + loss, history.accuracy + accuracy
            history.seconds += time.monotonic() - started
            on_step(trainer.step, loss, accuracy)
            if trainer.step % recipe.steps_per_epoch == 0 or trainer.step == recipe.steps:
                _end_epoch(trainer, history, validation, files)
                _write_checkpoint(trainer, history, files, fingerprint)
                on_epoch(history.epochs[-1])
        if interrupted():
            if not history.epochs:
                _save_model(trainer, files)
            _write_checkpoint(trainer, history, files, fingerprint)
        else:
            files.checkpoint.unlink(missing_ok=True)
        return history, interrupted()


def _end_epoch(trainer: Trainer, history: History, validation: Sequence[Group], files: Files) -> None:
    started, steps = time.monotonic(), trainer.step - (history.epochs[-1].step if history.epochs else 0)
    measured = evaluate(trainer.encode, trainer.compare, validation, 0, _VALIDATION_PAIRS, 1) if validation else None
    history.seconds += time.monotonic() - started
    epoch = Epoch(
        epoch=len(history.epochs) + 1,
        step=trainer.step,
        loss=history.loss / steps,
        accuracy=history.accuracy / steps,
        validation_accuracy=measured.accuracy if measured else None,
        validation_eer=measured.eer if measured else None,
        seconds=round(history.seconds, 1),
    )
    history.epochs.append(epoch)
    history.loss = history.accuracy = 0.0
    if history.best() is epoch:
        _save_model(trainer, files)
    write_log(history.epochs, files.log)
    plot_curves(history.epochs, files.curves)


def _save_model(trainer: Trainer, files: Files) -> None:
    part = files.model.with_suffix(".part.keras")
    assemble(trainer.encoder, trainer.head).save(part)
    os.replace(part, files.model)


def _write_checkpoint(trainer: Trainer, history: History, files: Files, fingerprint: str) -> None:
    part = files.checkpoint.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, history=history.to_json(), fingerprint=fingerprint, **trainer.state())  # type: ignore[arg-type]
    os.replace(part, files.checkpoint)


def _resume(trainer: Trainer, files: Files, fingerprint: str) -> History:
    if not files.checkpoint.exists():
        raise PreflightError(f"--resume: there is no {files.checkpoint}; training there is done, or was never begun.")
    with np.load(files.checkpoint) as state:
        if str(state["fingerprint"]) != fingerprint:
            raise PreflightError(
                f"--resume: {files.checkpoint} was made with other options or images; give the same, or --overwrite."
            )
        trainer.restore(state)
        return History.from_json(str(state["history"]))


@contextmanager
def _interruptible() -> Iterator[Callable[[], int]]:
    """Gives a function that says which of SIGINT and SIGTERM came, 0 if none; a second one ends the process at once."""
    came: list[int] = []
    kept: dict[int, Any] = {int(s): signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, kept[number])

    for number in kept:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
