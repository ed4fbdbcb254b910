"""What training remembers of its epochs: the log, and the best so far."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of the log: means since the line before, and the validation at its end.

    Attributes:
        epoch: its number, from 1.
        step: at its end.
        loss: mean over its steps.
        accuracy: mean share of training pairs on the right side of 0.5, as the network is while it learns.
        validation_accuracy: the same on classes that are not trained on, as the network is at inference; or None.
        validation_eer: equal error rate on them, or None.
        seconds: of training so far.
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
    """What training knows of its past, and takes along in its checkpoint.

    Attributes:
        epochs: that are done.
        loss: sum over the steps of the epoch that is not.
        accuracy: likewise.
        seconds: of training so far.
    """

    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0

    def best(self) -> Epoch | None:
        """Returns the epoch with the best validation, by EER among equals; the last where nothing is validated."""
        if not self.epochs or self.epochs[-1].validation_accuracy is None:
            return self.epochs[-1] if self.epochs else None
        return max(self.epochs, key=lambda epoch: (epoch.validation_accuracy or 0.0, -(epoch.validation_eer or 0.0)))

    def epochs_without_gain(self) -> int:
        """Returns how many epochs ago the best was."""
        best = self.best()
        return 0 if best is None else self.epochs[-1].epoch - best.epoch

    def to_json(self) -> str:
        """Returns all of it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> History:
        """Returns what `to_json` wrote."""
        said: dict[str, Any] = json.loads(text)
        return cls(**{**said, "epochs": [Epoch(**epoch) for epoch in said["epochs"]]})


def write_log(epochs: Sequence[Epoch], path: Path) -> None:
    """Writes the log: CSV, a line an epoch, columns as the attributes of `Epoch`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Epoch)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(epoch) for epoch in epochs)
