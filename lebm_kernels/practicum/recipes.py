"""Recipes: each model with the data it is for and a configuration that trains it well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lebm_kernels.models.latent_model import Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data
from lebm_kernels.training.loop import TrainConfig
from lebm_kernels.training.schedules import Annealing


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its configuration.

    Attributes:
        model: called with ``generator=``, makes an untrained model.
        data: called with ``generator=``, draws observations.
        config: the configuration for zero temperature; it serves for warm training too.

    Example:
        >>> model, data, config = RECIPES["ellipse"].start(seed=0)
        >>> type(model).__name__, len(data)
        ('Ellipse', 24)
    """

    model: Callable[..., LatentModel]
    data: Callable[..., Dataset]
    config: TrainConfig

    def start(self, seed: int = 0, **changes: Any) -> tuple[LatentModel, Dataset, TrainConfig]:
        """Make the first arguments of :func:`lebm_kernels.training.loop.train`, all from one seed.

        An annealing ends at beta, where beta is warmer than the recipe's end of it.

        Args:
            seed: of the data, of the model's first parameters and of the shuffling.
            changes: fields of :class:`lebm_kernels.training.loop.TrainConfig` to replace.

        Raises:
            ValueError: a changed field is out of range.
        """
        config = replace(self.config, seed=seed, **changes)
        warmth = config.annealing
        if warmth is not None and 0.0 < config.beta < warmth.end:
            warmth = replace(warmth, start=min(warmth.start, config.beta), end=config.beta)
            config = replace(config, annealing=warmth)
        generator = torch.Generator().manual_seed(seed)
        data = self.data(generator=generator)
        return self.model(generator=generator), data, config

    def held_out(self, seed: int = 0, num: int = 2000) -> Dataset:
        """Observations that no run with a seed of at least 0 has seen.

        Args:
            seed: of the draw; the same seed gives every recipe of one kind of data the same.
            num: how many, at least 1.
        """
        # Training's seeds are not negative, so that the complement of one is none of them.
        return self.data(num, generator=torch.Generator().manual_seed(~seed))


RECIPES: dict[str, Recipe] = {
    "ellipse": Recipe(Ellipse, ellipse_data, TrainConfig(epochs=200, learning_rate=0.1)),
    "horn": Recipe(Horn, horn_data, TrainConfig(epochs=100, batch_size=50, learning_rate=0.03)),
    "neural-horn": Recipe(
        neural_horn,
        horn_data,
        # Warm at first: cold, a curve that starts folded stays so.
        TrainConfig(
            annealing=Annealing(0.03, 300.0, 0.7), epochs=100, batch_size=100, learning_rate=0.01
        ),
    ),
}
"""The recipes by the model's name."""
