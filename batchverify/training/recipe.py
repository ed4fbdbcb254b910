"""What decides the trained weights, together with the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from batchverify.errors import PreflightError

LAYERS = ("backbone", "dense", "embedding", "score")
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # of MobileNetV2, for which ImageNet weights exist
HEADS = ("repaired", "published")
DISTORTIONS = ("none", "affine", "strokes")
_AT_LEAST = {
    "size": 32, "steps": 1, "steps_per_epoch": 1, "batch_groups": 1, "batch_classes": 2, "batch_pairs": 2,
    "patience": 0, "momentum_epochs": 1,
}  # fmt: skip
_SHARES = ("dropout", "joined", "momentum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. Make one with `Recipe.named`, which knows what belongs to each name.

    Attributes:
        name: `batch`, which learns from all pairs within a batch of images; `published`, drawn pairs with binary
            cross-entropy and Adam; `koch`, the same pairs with a rate and a momentum for each layer.
        head: `repaired` or `published`.
        freeze_bias: whether the published head's bias stays at 0, its initial value, as the published case ended.
        size: height and width of the images in pixels.
        width: multiplier of MobileNetV2's channels (alpha).
        dropout: share of the values before the embedding that a step leaves out.
        distortion: one of `DISTORTIONS`.
        steps: of the optimiser, in all.
        steps_per_epoch: after so many the network is validated and a checkpoint written.
        batch_groups: `batch`: groups in a batch.
        batch_classes: `batch`: classes of each of them; two images of each are encoded.
        joined: `batch`: share of these groups whose classes are made of two of theirs, squeezed side by side.
        batch_pairs: the other recipes: pairs in a batch.
        learning_rate: its peak.
        layer_rates: `koch`: a factor on the learning rate for layers named in `LAYERS`.
        momentum: `koch`: where the momentum ends.
        layer_momenta: `koch`: the same for layers of their own.
        momentum_epochs: `koch`: epochs in which the momentum rises to its end.
        patience: epochs without a better validation after which training stops; 0 means never.
        frozen_statistics: whether to train with batch statistics and dropout as they are at inference, which suits a
            start from a trained encoder.
        seed: of the weights, the batches and the distortions.
    """

    name: str = "batch"
    head: str = "repaired"
    freeze_bias: bool = False
    size: int = 96
    width: float = 0.35
    dropout: float = 0.0
    distortion: str = "affine"
    steps: int = 10_000
    steps_per_epoch: int = 500
    batch_groups: int = 4
    batch_classes: int = 16
    joined: float = 0.0
    batch_pairs: int = 32
    learning_rate: float = 2e-3
    layer_rates: tuple[tuple[str, float], ...] = ()
    momentum: float = 0.9
    layer_momenta: tuple[tuple[str, float], ...] = ()
    momentum_epochs: int = 20
    patience: int = 0
    frozen_statistics: bool = False
    seed: int = 0

    @classmethod
    def named(cls, name: str, **said: Any) -> Recipe:
        """Returns a recipe by name, with what `said` says otherwise; None says nothing.

        Raises:
            PreflightError: with all that is wrong, one sentence each.
        """
        told = {field: value for field, value in said.items() if value is not None}
        return cls(**{"name": name, **RECIPES.get(name, {}), **told})

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise PreflightError(problems)

    def _problems(self) -> Iterator[str]:
        for field, least in _AT_LEAST.items():
            if getattr(self, field) < least:
                yield f"--{field.replace('_', '-')} is {getattr(self, field)}; give at least {least}."
        for field in _SHARES:
            if not 0 <= getattr(self, field) < 1:
                yield f"--{field} is {getattr(self, field)}; give a number from 0 to below 1."
        for field, choices in (("name", tuple(RECIPES)), ("head", HEADS), ("width", WIDTHS), ("distortion", DISTORTIONS)):
            if getattr(self, field) not in choices:
                option = "recipe" if field == "name" else field
                yield f"--{option} is {getattr(self, field)}; give one of {', '.join(map(str, choices))}."
        if not 0 < self.learning_rate < 10:
            yield f"--learning-rate is {self.learning_rate}; give a positive number, such as 0.002."
        for option, chosen in (("--layer-rate", self.layer_rates), ("--layer-momentum", self.layer_momenta)):
            for layer, value in chosen:
                if layer not in LAYERS or not 0 <= value < 1000:
                    yield f"{option} is {layer}={value}; give LAYER=NUMBER, the layer one of {', '.join(LAYERS)}."
        if (self.layer_rates or self.layer_momenta) and self.name != "koch":
            yield f"--layer-rate and --layer-momentum belong to --recipe koch, and the recipe is {self.name}."
        if self.freeze_bias and self.head != "published":
            yield "--freeze-bias belongs to --head published; the repaired head needs its bias."


# What a name stands for, where it differs from the defaults above. The published case: 10 epochs of 126 steps.
RECIPES: dict[str, dict[str, Any]] = {
    "batch": {},
    "published": {"dropout": 0.2, "steps": 1260, "steps_per_epoch": 126, "learning_rate": 1e-3},
    "koch": {"dropout": 0.2, "steps": 200 * 126, "steps_per_epoch": 126, "learning_rate": 1e-2, "patience": 20},
}
