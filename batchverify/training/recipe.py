"""The recipe of a training. Recipe and data together determine the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from batchverify.errors import PreflightError

LAYERS = ("backbone", "dense", "embedding", "score")
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # ImageNet weights of MobileNetV2 exist for these.
HEADS = ("repaired", "published")
DISTORTIONS = ("none", "affine", "strokes")
_AT_LEAST = {
    "size": 32, "steps": 1, "steps_per_epoch": 1, "batch_groups": 1, "batch_classes": 2, "batch_pairs": 2,
    "patience": 0, "momentum_epochs": 1,
}  # fmt: skip
_SHARES = ("dropout", "joined", "momentum")
_MAX_SEED = 2**32 - 1  # NumPy's and TensorFlow's generators take no larger one.
# The fields that only some recipes use.
_RECIPES_OF = {
    "batch_groups": ("batch",), "batch_classes": ("batch",), "joined": ("batch",), "batch_pairs": ("published", "koch"),
    "momentum": ("koch",), "momentum_epochs": ("koch",), "layer_rates": ("koch",), "layer_momenta": ("koch",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. `Recipe.named` makes a recipe with the defaults that belong to its name.

    Attributes:
        name: Name of the method. `batch` learns from all pairs within a batch of images. `published` learns from drawn pairs,
            with binary cross-entropy and Adam. `koch` learns from the same pairs, with a learning rate and a momentum for each
            layer.
        head: Kind of the head, `repaired` or `published`.
        freeze_bias: Whether the bias of the published head stays at its initial value 0, as it did in the published case.
        size: Height and width of the images in pixels.
        width: Multiplier of MobileNetV2's channels (alpha).
        dropout: Share of the values before the embedding that a step sets to 0.
        distortion: Kind of distortion, one of `DISTORTIONS`.
        steps: Number of steps in all.
        steps_per_epoch: Number of steps after which the network is validated and a checkpoint is written.
        batch_groups: Number of groups in a batch; only for `batch`.
        batch_classes: Number of classes of each group, with two images each; only for `batch`.
        joined: Share of the groups in a batch whose classes are joined in twos, side by side; only for `batch`.
        batch_pairs: Number of pairs in a batch; not for `batch`.
        learning_rate: Highest learning rate.
        layer_rates: Factors on the learning rate for layers named in `LAYERS`; only for `koch`.
        momentum: Final momentum; only for `koch`.
        layer_momenta: Final momenta of single layers; only for `koch`.
        momentum_epochs: Number of epochs in which the momentum rises to its final value; only for `koch`.
        patience: Number of epochs without a better validation after which training stops; 0 means that it does not stop early.
        frozen_statistics: Whether training uses batch statistics and dropout as at inference, which suits a start from a
            trained encoder.
        seed: Seed of the weights, the batches and the distortions.
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
    def named(cls, name: str, **fields: Any) -> Recipe:
        """Returns the recipe with this name.

        Args:
            name: Name of the recipe, one of `RECIPES`.
            fields: Values that replace the recipe's defaults; None keeps the default.

        Raises:
            PreflightError: if values are invalid; it has a sentence for each.
        """
        given = {field: value for field, value in fields.items() if value is not None}
        if problems := list(_problems_of_unused(name, given)):
            raise PreflightError(problems)
        return cls(**{"name": name, **RECIPES.get(name, {}), **given})

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise PreflightError(problems)

    def _problems(self) -> Iterator[str]:
        for field, least in _AT_LEAST.items():
            if getattr(self, field) < least:
                yield f"{_option(field)} is {getattr(self, field)}; give at least {least}."
        if not 0 <= self.seed <= _MAX_SEED:
            yield f"--seed is {self.seed}; give a number from 0 to {_MAX_SEED}."
        for field in _SHARES:
            if not 0 <= getattr(self, field) < 1:
                yield f"--{field} is {getattr(self, field)}; give a number from 0 to below 1."
        for field, choices in (("name", tuple(RECIPES)), ("head", HEADS), ("width", WIDTHS), ("distortion", DISTORTIONS)):
            if getattr(self, field) not in choices:
                yield f"{_option(field)} is {getattr(self, field)}; give one of {', '.join(map(str, choices))}."
        if not 0 < self.learning_rate < 10:
            yield f"--learning-rate is {self.learning_rate}; give a positive number, such as 0.002."
        for field in ("layer_rates", "layer_momenta"):
            for layer, value in getattr(self, field):
                if layer not in LAYERS or not 0 <= value < 1000:
                    layers = ", ".join(LAYERS)
                    yield f"{_option(field)} is {layer}={value}; give LAYER=NUMBER, where the layer is one of {layers}."
        if self.freeze_bias and self.head != "published":
            yield "--freeze-bias belongs to --head published; the repaired head needs its bias."


def _problems_of_unused(name: str, given: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each given field that the recipe does not use."""
    for field, recipes in _RECIPES_OF.items():
        if field in given and name in RECIPES and name not in recipes:
            yield f"{_option(field)} belongs to --recipe {' and '.join(recipes)}, and the recipe is {name}; leave it out."


def _option(field: str) -> str:
    return {"name": "--recipe", "layer_rates": "--layer-rate", "layer_momenta": "--layer-momentum"}.get(
        field, f"--{field.replace('_', '-')}"
    )


# The values of each recipe that differ from the defaults above. The published case trained for 10 epochs of 126 steps.
RECIPES: dict[str, dict[str, Any]] = {
    "batch": {},
    "published": {"dropout": 0.2, "steps": 1260, "steps_per_epoch": 126, "learning_rate": 1e-3},
    "koch": {"dropout": 0.2, "steps": 200 * 126, "steps_per_epoch": 126, "learning_rate": 1e-2, "patience": 20},
}
