"""The training loop: steps, validation, the best model, checkpoints, the log, and interruption by a signal."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.model.sidecar import sidecar_path
from batchverify.shutdown import stopping_signals
from batchverify.training.curves import plot_curves
from batchverify.training.data import Group
from batchverify.training.evaluate import evaluate
from batchverify.training.history import Epoch, History, write_log
from batchverify.training.network import assemble
from batchverify.training.trainer import Trainer

_VALIDATION_PAIRS = 4_000


@dataclasses.dataclass(frozen=True)
class TrainingFiles:
    """The files that training writes.

    Attributes:
        model: The `.keras` file; the other files are beside it.
    """

    model: Path

    def all(self) -> tuple[Path, ...]:
        """Returns all of them."""
        return self.model, self.log, self.curves, self.checkpoint, self.figures, self.sidecar

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Gives a name to write to; at the end what is written replaces `path`, and after an error it is deleted.

        Raises:
            RunError: if it cannot be written.
        """
        unfinished = path.with_suffix(f".part{path.suffix}")
        try:
            yield unfinished
            os.replace(unfinished, path)
        except OSError as error:
            then = ", and go on with --resume" if self.checkpoint.exists() else ""
            raise RunError(
                f"{path} cannot be written ({error.strerror or short_reason(error)}); free space there{then}."
            ) from None
        finally:
            with suppress(OSError):  # It is gone where it has replaced the file.
                unfinished.unlink()

    @property
    def log(self) -> Path:
        """The log: CSV with a line for each epoch."""
        return self.model.with_suffix(".log.csv")

    @property
    def curves(self) -> Path:
        """The curves of loss and accuracy: PNG."""
        return self.model.with_suffix(".curves.png")

    @property
    def checkpoint(self) -> Path:
        """The state from which training resumes; it is deleted when training is done."""
        return self.model.with_suffix(".checkpoint.npz")

    @property
    def figures(self) -> Path:
        """The recipe and the figures of the model: JSON."""
        return self.model.with_suffix(".json")

    @property
    def sidecar(self) -> Path:
        """What runs need not be told about the model: JSON."""
        return self.model.with_name(sidecar_path(self.model.name))


def fit(
    trainer: Trainer,
    validation: Sequence[Group],
    files: TrainingFiles,
    fingerprint: str,
    resume: bool = False,
    on_step: Callable[[int, float, float], None] = lambda *_: None,
    on_epoch: Callable[[Epoch], None] = lambda *_: None,
) -> tuple[History, int]:
    """Trains to the end of the recipe, or until a signal stops it. In both cases `files.model` is a usable model.

    Args:
        trainer: The network and its optimiser.
        validation: Groups of classes that are not trained on. They decide which model is the best; if there are none, the last
            model is written.
        files: The files to write.
        fingerprint: A digest of the recipe and the data; training resumes only with the same.
        resume: Whether to resume from `files.checkpoint`.
        on_step: Function that is called after each step with its number, loss and accuracy.
        on_epoch: Function that is called after each epoch.

    Returns:
        The history, and the number of the signal that interrupted training; 0 if none did.

    Raises:
        PreflightError: if there is nothing to resume from, or it is of another recipe or other data.
        RunError: if the training diverges, or a file cannot be written.
    """
    history = _resume(trainer, files, fingerprint) if resume else History()
    with _interruptible() as interrupted:
        while not interrupted() and not _is_done(trainer, history):
            _take_step(trainer, history, files, on_step)
            if _is_end_of_epoch(trainer):
                _end_epoch(trainer, history, validation, files)
                _write_checkpoint(trainer, history, files, fingerprint)
                on_epoch(history.epochs[-1])
        if interrupted():
            _save_progress(trainer, history, files, fingerprint)
        else:
            files.checkpoint.unlink(missing_ok=True)
        return history, interrupted()


def _save_progress(trainer: Trainer, history: History, files: TrainingFiles, fingerprint: str) -> None:
    """Writes a checkpoint, and the model if no epoch has written one."""
    _refuse_divergence(trainer, history, files)
    if not history.epochs:
        _save_model(trainer, files)
    _write_checkpoint(trainer, history, files, fingerprint)


def _is_done(trainer: Trainer, history: History) -> bool:
    recipe = trainer.recipe
    patience_is_over = recipe.patience > 0 and history.epochs_without_gain() >= recipe.patience
    return trainer.step >= recipe.steps or patience_is_over


def _is_end_of_epoch(trainer: Trainer) -> bool:
    return trainer.step % trainer.recipe.steps_per_epoch == 0 or trainer.step == trainer.recipe.steps


def _take_step(trainer: Trainer, history: History, files: TrainingFiles, on_step: Callable[[int, float, float], None]) -> None:
    started = time.monotonic()
    loss, accuracy = trainer.train_step()
    if not math.isfinite(loss):
        raise _divergence(f"the loss of step {trainer.step} is {loss}", trainer, history, files)
    history.loss, history.accuracy = history.loss + loss, history.accuracy + accuracy
    history.seconds += time.monotonic() - started
    on_step(trainer.step, loss, accuracy)


def _refuse_divergence(trainer: Trainer, history: History, files: TrainingFiles) -> None:
    """Refuses to go on with weights that are no numbers; a step makes such weights after its loss is known."""
    if not trainer.is_finite():
        raise _divergence(f"after step {trainer.step} the network has weights that are no numbers", trainer, history, files)


def _divergence(sign: str, trainer: Trainer, history: History, files: TrainingFiles) -> RunError:
    kept = f" {files.model} holds the network of step {best.step}." if (best := history.best()) else ""
    rate = f"{trainer.recipe.learning_rate:g}"
    return RunError(f"{sign}, so the training has diverged; train again with a --learning-rate below {rate}.{kept}")


def _end_epoch(trainer: Trainer, history: History, validation: Sequence[Group], files: TrainingFiles) -> None:
    _refuse_divergence(trainer, history, files)
    started, steps = time.monotonic(), trainer.step - (history.epochs[-1].step if history.epochs else 0)
    evaluation = evaluate(trainer.encode, trainer.compare, validation, 0, _VALIDATION_PAIRS, 1) if validation else None
    history.seconds += time.monotonic() - started
    epoch = Epoch(
        epoch=len(history.epochs) + 1,
        step=trainer.step,
        loss=history.loss / steps,
        accuracy=history.accuracy / steps,
        validation_accuracy=evaluation.accuracy if evaluation else None,
        validation_eer=evaluation.eer if evaluation else None,
        seconds=round(history.seconds, 1),
    )
    history.epochs.append(epoch)
    history.loss = history.accuracy = 0.0
    if history.best() is epoch:
        _save_model(trainer, files)
    with files.writing(files.log) as path:
        write_log(history.epochs, path)
    with files.writing(files.curves) as path:
        plot_curves(history.epochs, path)


def _save_model(trainer: Trainer, files: TrainingFiles) -> None:
    with files.writing(files.model) as path:
        assemble(trainer.encoder, trainer.head).save(path)


def _write_checkpoint(trainer: Trainer, history: History, files: TrainingFiles, fingerprint: str) -> None:
    with files.writing(files.checkpoint) as path, path.open("wb") as file:
        np.savez(file, history=history.to_json(), fingerprint=fingerprint, **trainer.state())  # type: ignore[arg-type]


def _resume(trainer: Trainer, files: TrainingFiles, fingerprint: str) -> History:
    if not files.checkpoint.exists():
        raise PreflightError(
            f"--resume: there is no {files.checkpoint}; the training is done, or never began: train without --resume."
        )
    try:
        with np.load(files.checkpoint) as archive:
            state = dict(archive)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise PreflightError(
            f"--resume: {files.checkpoint} cannot be read ({short_reason(error)}); train from the start with --overwrite."
        ) from None
    if str(state.get("fingerprint")) != fingerprint:
        raise PreflightError(
            f"--resume: {files.checkpoint} was made with other options or images; give the same ones, or --overwrite."
        )
    trainer.restore(state)
    return History.from_json(str(state["history"]))


@contextmanager
def _interruptible() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of the first signal to stop that came; 0 if none came.

    The first signal is only recorded. A second one has its usual effect, and ends the process at once.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {int(number): signal.getsignal(number) for number in stopping_signals()}

    def record(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
