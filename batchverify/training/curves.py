"""The curves of a training: loss and accuracy over the steps, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from batchverify.training.history import Epoch


def plot_curves(epochs: Sequence[Epoch], path: Path) -> None:
    """Draws loss and accuracy over the steps, and writes them to the PNG file `path`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    steps = [epoch.step for epoch in epochs]
    loss.plot(steps, [epoch.loss for epoch in epochs], marker=".", color="tab:blue")
    loss.set(title="Loss", xlabel="step", ylim=(0, None))
    accuracy.plot(steps, [epoch.accuracy for epoch in epochs], marker=".", label="training, distorted", color="tab:blue")
    if validated := [(epoch.step, epoch.validation_accuracy) for epoch in epochs if epoch.validation_accuracy is not None]:
        accuracy.plot(*zip(*validated, strict=True), marker=".", label="validation, other classes", color="tab:orange")
        best = max(validated, key=lambda point: point[1])
        accuracy.plot(*best, marker="o", markersize=9, fillstyle="none", linestyle="", label="best", color="tab:orange")
    accuracy.set(title="Verification accuracy at 0.5", xlabel="step", ylim=(0.4, 1.01))
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
