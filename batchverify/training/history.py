"""The history of a training: its epochs, the best of them, and the log."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of the log: means over the steps of an epoch, and the validation at its end.

    Attributes:
        epoch: Number of the epoch, from 1.
        step: Number of the last step of the epoch.
        loss: Mean loss over the steps.
        accuracy: Mean share of training pairs that are decided correctly at 0.5, with dropout and distortions.
        validation_accuracy: Share of validation pairs that are decided correctly at 0.5, without dropout and distortions; None
            without validation.
        validation_eer: Equal error rate of the validation pairs; None without validation.
        seconds: Seconds of training up to the end of the epoch.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    validation_accuracy: float | None
    validation_eer: float | None
    seconds: float


@dataclasses.dataclass
class History:
    """The epochs of a training, and the sums of the epoch that is not finished. The checkpoint contains it.

    Attributes:
        epochs: Epochs that are finished.
        loss: Sum of the losses in the unfinished epoch.
        accuracy: Sum of the accuracies in the unfinished epoch.
        seconds: Seconds of training so far.
    """

    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0

    def best(self) -> Epoch | None:
        """Returns the epoch with the highest validation accuracy; without validation, the last epoch.

        The lower EER decides among epochs with the same accuracy.
        """
        if not self.epochs or self.epochs[-1].validation_accuracy is None:
            return self.epochs[-1] if self.epochs else None
        return max(self.epochs, key=lambda epoch: (epoch.validation_accuracy or 0.0, -(epoch.validation_eer or 0.0)))

    def epochs_without_gain(self) -> int:
        """Returns the number of epochs since the best one."""
        best = self.best()
        return 0 if best is None else self.epochs[-1].epoch - best.epoch

    def to_json(self) -> str:
        """Returns the history as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> History:
        """Returns the history that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "epochs": [Epoch(**epoch) for epoch in fields["epochs"]]})


def write_log(epochs: Sequence[Epoch], path: Path) -> None:
    """Writes the log: CSV with a line for each epoch and a column for each attribute of `Epoch`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Epoch)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(epoch) for epoch in epochs)
