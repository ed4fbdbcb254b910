"""The optimisers: those of this package's recipe, of the published case, and of Koch et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from batchverify.training.recipe import Recipe

# The published case uses Keras 2's Adam with `decay=2.5e-4`, which is an inverse time decay over steps.
_TIME_DECAY = 2.5e-4
# Koch, Zemel, Salakhutdinov (2015), section 3.2: rates fall by 1% in each epoch; momentum starts at 0.5 and rises linearly.
_KOCH_DECAY = 0.99
_KOCH_FIRST_MOMENTUM = 0.5


def build_optimizer(recipe: Recipe, layers: Mapping[str, Sequence[Any]]) -> keras.optimizers.Optimizer:
    """Returns the optimiser of `recipe`, built for the variables of `layers`, in their order.

    Args:
        recipe: The recipe; its `name` decides which optimiser.
        layers: Trainable variables by layer, with the names of `recipe.LAYERS`.
    """
    optimizer = _make_optimizer(recipe, layers)
    optimizer.build([variable for variables in layers.values() for variable in variables])
    return optimizer


class LayerwiseMomentum(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Gradient descent with a learning rate and a momentum for each layer; the momentum rises linearly from epoch to epoch.

    The rule is that of Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition" (2015), section
    3.2: Δw(t) = −η_j ∇w + μ_j Δw(t−1), where μ_j starts at 0.5 and reaches its final value after `rise_epochs`.

    Args:
        learning_rate: η, or a schedule of it.
        rates: Factor on η for each variable.
        momenta: Final value of μ_j for each variable.
        steps_per_epoch: Number of steps after which the momentum rises.
        rise_epochs: Number of epochs after which the momentum has its final value.
    """

    def __init__(
        self,
        learning_rate: Any,
        rates: Sequence[float],
        momenta: Sequence[float],
        steps_per_epoch: int,
        rise_epochs: int,
        name: str = "layerwise_momentum",
    ):
        super().__init__(learning_rate=learning_rate, name=name)
        self._rates, self._momenta = list(rates), list(momenta)
        self._steps_per_epoch, self._rise_epochs = steps_per_epoch, rise_epochs

    def build(self, variables: list[Any]) -> None:
        """Adds a state variable for the last change of each variable."""
        super().build(variables)
        self._changes = [self.add_variable_from_reference(variable, name="change") for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        number = self._get_variable_index(variable)
        rate = keras.ops.cast(learning_rate, variable.dtype) * self._rates[number]
        momentum = keras.ops.cast(self.momentum(number), variable.dtype)
        change = self._changes[number]
        self.assign(change, momentum * change - rate * gradient)
        self.assign_add(variable, change)

    def momentum(self, number: int) -> Any:
        """Returns μ of the variable with this number, at the present step."""
        epoch = keras.ops.floor(keras.ops.cast(self.iterations, "float32") / self._steps_per_epoch)
        progress = keras.ops.minimum(epoch / self._rise_epochs, 1.0)
        return _KOCH_FIRST_MOMENTUM + (self._momenta[number] - _KOCH_FIRST_MOMENTUM) * progress


def _make_optimizer(recipe: Recipe, layers: Mapping[str, Sequence[Any]]) -> keras.optimizers.Optimizer:
    schedules = keras.optimizers.schedules
    if recipe.name == "published":
        return keras.optimizers.Adam(schedules.InverseTimeDecay(recipe.learning_rate, decay_steps=1, decay_rate=_TIME_DECAY))
    if recipe.name == "koch":
        rate = schedules.ExponentialDecay(recipe.learning_rate, recipe.steps_per_epoch, _KOCH_DECAY, staircase=True)
        rates, momenta = dict(recipe.layer_rates), dict(recipe.layer_momenta)
        names = [name for name, variables in layers.items() for _ in variables]
        return LayerwiseMomentum(
            rate,
            [rates.get(name, 1.0) for name in names],
            [momenta.get(name, recipe.momentum) for name in names],
            recipe.steps_per_epoch,
            recipe.momentum_epochs,
        )
    warmup_steps = max(1, recipe.steps // 20)
    return keras.optimizers.Adam(
        schedules.CosineDecay(
            0.0, recipe.steps - recipe.steps // 20, warmup_target=recipe.learning_rate, warmup_steps=warmup_steps
        )
    )
