"""Recipes: models with suitable data and configurations that train them well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lebm_kernels.checks import check_seed
from lebm_kernels.models.latent_model import Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data
from lebm_kernels.training.loop import TrainConfig
from lebm_kernels.training.schedules import Annealing


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its configuration.

    Attributes:
        model: makes an untrained model; takes ``generator=``.
        data: draws observations; takes ``generator=``.
        config: the configuration for zero temperature, which also suits warm training.

    Example:
        >>> model, data, config = RECIPES["ellipse"].start(seed=0)
        >>> type(model).__name__, len(data)
        ('Ellipse', 24)
    """

    model: Callable[..., LatentModel]
    data: Callable[..., Dataset]
    config: TrainConfig

    def start(self, seed: int = 0, **changes: Any) -> tuple[LatentModel, Dataset, TrainConfig]:
        """Make the model, data and config for :func:`lebm_kernels.training.loop.train`.

        If ``beta`` is warmer than the end of the recipe's annealing, then the annealing ends at
        ``beta``.

        Args:
            seed: of the data, the model's first parameters and the shuffling.
            changes: fields of :class:`lebm_kernels.training.loop.TrainConfig` to replace.

        Raises:
            ValueError: a changed field is out of range.
        """
        config = replace(self.config, seed=seed, **changes)
        annealing = config.annealing
        if annealing is not None and 0.0 < config.beta < annealing.end:
            start = min(annealing.start, config.beta)
            annealing = replace(annealing, start=start, end=config.beta)
            config = replace(config, annealing=annealing)
        generator = torch.Generator().manual_seed(seed)
        data = self.data(generator=generator)
        return self.model(generator=generator), data, config

    def held_out(self, seed: int = 0, num: int = 2000) -> Dataset:
        """Draw held-out observations, which :meth:`start` does not draw from any seed.

        Args:
            seed: of the draw, at least 0. Recipes with the same ``data`` get the same observations
                from the same seed.
            num: number of observations, at least 1.

        Raises:
            ValueError: ``seed`` or ``num`` is out of range.
        """
        check_seed("seed", seed)
        # Seeds of training are at least 0, and the complement of such a seed is negative.
        return self.data(num, generator=torch.Generator().manual_seed(~seed))


RECIPES: dict[str, Recipe] = {
    "ellipse": Recipe(Ellipse, ellipse_data, TrainConfig(epochs=200, learning_rate=0.1)),
    "horn": Recipe(Horn, horn_data, TrainConfig(epochs=100, batch_size=50, learning_rate=0.03)),
    "neural-horn": Recipe(
        neural_horn,
        horn_data,
        # Warm at first, because cold training cannot unfold a curve that starts folded.
        TrainConfig(
            annealing=Annealing(0.03, 300.0, 0.7), epochs=100, batch_size=100, learning_rate=0.01
        ),
    ),
}
"""The recipes by name of the model."""
