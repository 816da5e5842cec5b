"""The figures of the practicum on latent-variable energy-based models.

:class:`Practicum` draws the data and trains each model when a figure first needs it. ``FIGURES``
maps names to figures. ``docs/practicum.md`` explains them.
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

from lebm_kernels.figures import latents, manifolds, maps, overview, sections
from lebm_kernels.figures.drawing import spaced
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training.datasets import Dataset
from lebm_kernels.training.loop import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WARM_BETA = 1.0
"""The inverse temperature of the practicum's warm training."""

BETAS = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.0)
"""The inverse temperatures of the figure ``sections``, from cold to hot."""

SAMPLES = (23, 10)
"""Indices of the observations that the practicum examines one by one."""


def lattice() -> Tensor:
    """The practicum's 25 x 17 points of the plane with spacing 1/4, ``[425, 2]``, float32."""
    return torch.cartesian_prod(spaced(-3.0, 3.0, 25), spaced(-2.0, 2.0, 17))


class Trained:
    """A recipe's model before and after training, with its data.

    Args:
        recipe: a name of :data:`lebm_kernels.practicum.recipes.RECIPES`.
        seed: of the data, the model's first parameters and the shuffling.
        changes: fields of the recipe's configuration to replace.

    Attributes:
        untrained: the model before training.
        data: the training data.

    Raises:
        ValueError: the seed or a changed field is out of range.
    """

    untrained: LatentModel
    data: Dataset

    def __init__(self, recipe: str, seed: int, **changes: Any) -> None:
        self.untrained, self.data, self._config = RECIPES[recipe].start(seed, **changes)

    @cached_property
    def model(self) -> LatentModel:
        """The trained model; the first access trains it."""
        model = copy.deepcopy(self.untrained)
        train(model, self.data, self._config, progress=False)
        return model


@dataclass
class Practicum:
    """The practicum's models, each trained at its first use.

    Attributes:
        seed: of the data, the models' first parameters and the shuffling.
        epochs: passes over the data; ``None`` takes the recipe's number.
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
    return overview.overview_figure(run.cold.model, run.cold.data)


def _energies(run: Practicum) -> Figure:
    return latents.energy_curves_figure(run.cold.untrained, run.cold.data)


def _restored(run: Practicum) -> Figure:
    return latents.restored_figure(run.cold.untrained, lattice())


def _gradient(run: Practicum) -> Figure:
    return maps.gradient_figure(run.cold.untrained, lattice())


def _surface(run: Practicum) -> Figure:
    return sections.surface_figure(run.cold.untrained)


def _section(run: Practicum) -> Figure:
    return sections.section_figure(run.cold.untrained)


def _likelihood(run: Practicum) -> Figure:
    chosen = [(f"$Y[{i}]$", run.cold.data.y[i]) for i in SAMPLES]
    return latents.likelihood_figure(
        run.cold.untrained, [*chosen, ("$(0, 0)$", run.cold.data.y.new_zeros(2))]
    )


def _sections(run: Practicum) -> Figure:
    panels = [("Untrained", run.cold.untrained), ("Trained cold", run.cold.model)]
    return sections.sections_figure(panels, BETAS)


def _pulls(run: Practicum) -> Figure:
    panels = [
        ("Untrained, cold", run.cold.untrained, math.inf),
        ("Trained cold", run.cold.model, math.inf),
        ("Untrained, warm", run.warm.untrained, WARM_BETA),
        ("Trained warm", run.warm.model, WARM_BETA),
    ]
    return latents.pulls_figure(panels, run.cold.data, chosen=SAMPLES[0])


def _horn_data(run: Practicum) -> Figure:
    return manifolds.horn_data_figure(run.horn.data)


def _horn(run: Practicum) -> Figure:
    return manifolds.horn_points_figure(run.horn.untrained, run.horn.model, run.horn.data)


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
"""The figures by name, in the practicum's order; the last is the README's overview."""
