"""Recipes: each model with the data it is for and a configuration that trains it well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lebm_kernels.datasets import Dataset, ellipse_data, horn_data
from lebm_kernels.models import Ellipse, Horn, LatentModel
from lebm_kernels.training import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its configuration.

    Attributes:
        model: called with ``generator=``, makes an untrained model.
        data: called with ``generator=``, draws observations.
        config: the configuration for zero temperature; it serves for warm training too.
    """

    model: Callable[..., LatentModel]
    data: Callable[..., Dataset]
    config: TrainConfig

    def start(self, seed: int = 0, **changes: Any) -> tuple[LatentModel, Dataset, TrainConfig]:
        """Make the first arguments of :func:`lebm_kernels.training.train`, all from one seed.

        Args:
            seed: of the data, of the model's first parameters and of the shuffling.
            changes: fields of :class:`lebm_kernels.training.TrainConfig` to replace.

        Raises:
            ValueError: a changed field is out of range.
        """
        config = replace(self.config, seed=seed, **changes)
        generator = torch.Generator().manual_seed(seed)
        data = self.data(generator=generator)
        return self.model(generator=generator), data, config


RECIPES: dict[str, Recipe] = {
    "ellipse": Recipe(Ellipse, ellipse_data, TrainConfig(epochs=200, learning_rate=0.1)),
    "horn": Recipe(Horn, horn_data, TrainConfig(epochs=100, batch_size=50, learning_rate=0.03)),
}
"""The recipes by the model's name."""
