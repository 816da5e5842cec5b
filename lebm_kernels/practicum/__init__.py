"""The figures of the practicum on latent-variable energy-based models, each from models at hand.

:class:`Practicum` draws the data and trains what a figure asks for, once; ``FIGURES`` has the
figures by name. ``docs/practicum.md`` walks through them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lebm_kernels import figures
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training.datasets import Dataset
from lebm_kernels.training.loop import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WARM_BETA = 1.0
"""The practicum's temperature of warm training."""

BETAS = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.0)
"""Inverse temperatures of the family of sections, from cold to hot."""

SAMPLES = (23, 10)
"""The observations that the practicum looks at one by one."""


def lattice() -> Tensor:
    """The practicum's 25 x 17 points of the plane, a quarter apart, ``[425, 2]``."""
    return torch.cartesian_prod(torch.linspace(-3.0, 3.0, 25), torch.linspace(-2.0, 2.0, 17))


class Trained:
    """A recipe's model before and after training, with its data.

    Args:
        recipe: a name of :data:`lebm_kernels.practicum.recipes.RECIPES`.
        seed: of the data and of the model's start.
        changes: fields of the recipe's configuration to replace.

    Attributes:
        untrained: the model before training.
        data: what it is trained on.

    Raises:
        ValueError: the seed or a changed field is out of range.
    """

    untrained: LatentModel
    data: Dataset

    def __init__(self, recipe: str, seed: int, **changes: Any) -> None:
        self.untrained, self.data, self._config = RECIPES[recipe].start(seed, **changes)

    @cached_property
    def model(self) -> LatentModel:
        """The trained model."""
        model = copy.deepcopy(self.untrained)
        train(model, self.data, self._config, progress=False)
        return model


@dataclass
class Practicum:
    """The practicum's models, trained when first asked for.

    Attributes:
        seed: of the data, the starts and the shuffling.
        epochs: passes over the data; the recipes' own if ``None``.
    """

    seed: int = 0
    epochs: int | None = None

    @cached_property
    def cold(self) -> Trained:
        """The ellipse, trained at zero temperature."""
        return self._train("ellipse")

    @cached_property
    def warm(self) -> Trained:
        """The same ellipse, trained warm."""
        return self._train("ellipse", beta=WARM_BETA)

    @cached_property
    def horn(self) -> Trained:
        """The horn, trained at zero temperature."""
        return self._train("horn")

    def _train(self, recipe: str, **changes: Any) -> Trained:
        if self.epochs is not None:
            changes["epochs"] = self.epochs
        return Trained(recipe, self.seed, **changes)


def _overview(run: Practicum) -> Figure:
    return figures.overview_figure(run.cold.model, run.cold.data)


def _energies(run: Practicum) -> Figure:
    return figures.energy_curves_figure(run.cold.untrained, run.cold.data)


def _restored(run: Practicum) -> Figure:
    return figures.restored_figure(run.cold.untrained, lattice())


def _gradient(run: Practicum) -> Figure:
    return figures.gradient_figure(run.cold.untrained, lattice())


def _surface(run: Practicum) -> Figure:
    return figures.surface_figure(run.cold.untrained)


def _section(run: Practicum) -> Figure:
    return figures.section_figure(run.cold.untrained)


def _likelihood(run: Practicum) -> Figure:
    chosen = [(f"$Y[{i}]$", run.cold.data.y[i]) for i in SAMPLES]
    return figures.likelihood_figure(run.cold.untrained, [*chosen, ("$(0, 0)$", torch.zeros(2))])


def _sections(run: Practicum) -> Figure:
    panels = [("Untrained", run.cold.untrained), ("Trained cold", run.cold.model)]
    return figures.sections_figure(panels, BETAS)


def _pulls(run: Practicum) -> Figure:
    panels = [
        ("Untrained, cold", run.cold.untrained, math.inf),
        ("Trained cold", run.cold.model, math.inf),
        ("Untrained, warm", run.warm.untrained, WARM_BETA),
        ("Trained warm", run.warm.model, WARM_BETA),
    ]
    return figures.pulls_figure(panels, run.cold.data, chosen=SAMPLES[0])


def _horn_data(run: Practicum) -> Figure:
    return figures.horn_data_figure(run.horn.data)


def _horn(run: Practicum) -> Figure:
    return figures.horn_points_figure(run.horn.untrained, run.horn.model, run.horn.data)


FIGURES: dict[str, Callable[[Practicum], Figure]] = {
    "energies": _energies,
    "restored": _restored,
    "gradient": _gradient,
    "surface": _surface,
    "section": _section,
    "likelihood": _likelihood,
    "sections": _sections,
    "pulls": _pulls,
    "horn-data": _horn_data,
    "horn": _horn,
    "overview": _overview,
}
"""The figures by name, in the practicum's order, and last the one that sums up the package."""
