"""Two things that go wrong with latent-variable models, shown by training: memorising, collapsing.

Each function trains small models and returns what was seen, a row a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lebm_kernels.models.decoders import NeuralDecoder, circle
from lebm_kernels.models.grids import sobol_grid
from lebm_kernels.models.latent_model import DecoderModel, Ellipse
from lebm_kernels.models.regularisers import L1, L2, LearnedPrior
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_radii
from lebm_kernels.training.loop import TrainConfig, mean_free_energy, train

#: Dimensions of the latent that can memorise: more than the two of the plane.
MEMORISING_DIM = 4


class Memorising(NamedTuple):
    """A model of the ellipse's points whose latent could decode to the whole plane.

    Attributes:
        regulariser: its name, ``none`` for the first.
        on: mean F at zero temperature of held-out observations.
        off: mean F of points of the plane far from the ellipse.
    """

    regulariser: str
    on: float
    off: float

    @property
    def contrast(self) -> float:
        """How much higher F is off the data: what a regulariser adds everywhere cancels."""
        return self.off - self.on


def memorising(*, epochs: int = 200, seed: int = 0) -> list[Memorising]:
    """Train four-dimensional latents on the ellipse, without a regulariser and with three.

    Without one the latents cover the plane, and F is near zero everywhere: it tells nothing.

    Args:
        epochs: steps of training, each on all observations.
        seed: of the data, the decoder's start and the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    data, held_out = (ellipse_data(200, generator=generator) for _ in range(2))
    away = Dataset(_away())
    regularisers: dict[str, nn.Module | None] = {
        "none": None,
        "L2": L2(3.0),
        "L1": L1(1.0),
        "learned prior": LearnedPrior(MEMORISING_DIM, 0.3, generator=generator),
    }
    rows = []
    for name, regulariser in regularisers.items():
        start = torch.Generator().manual_seed(seed + 1)
        decoder = NeuralDecoder(MEMORISING_DIM, hidden=(32,), domain=(-1.0, 1.0), generator=start)
        last = decoder.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(4.0)  # wide enough to cover the data and what is between them
        grid = sobol_grid(1024, MEMORISING_DIM, low=-1.0, high=1.0, seed=seed)
        model = DecoderModel(decoder, grid=grid, regulariser=regulariser)
        train(model, data, TrainConfig(epochs=epochs, learning_rate=0.02), progress=False)
        values = (mean_free_energy(model, part) for part in (held_out, away))
        rows.append(Memorising(name, *values))
    return rows


class Collapsing(NamedTuple):
    """An ellipse trained warm.

    Attributes:
        ratio: beta in units of the least that keeps the first radius from zero.
        beta: inverse temperature.
        radii: what training found, without sign.
        predicted: whether each radius is to be zero, beta being below 1 / (2 <y_i^2>).
    """

    ratio: float
    beta: float
    radii: tuple[float, float]
    predicted: tuple[bool, bool]


def collapsing(
    ratios: Sequence[float] = (0.5, 0.9, 1.2, 2.0, 5.0, 50.0, math.inf),
    *,
    epochs: int = 300,
    seed: int = 0,
) -> list[Collapsing]:
    """Train the ellipse on the same data at several temperatures.

    About zero radii, F = |y|^2 + sum_i r_i^2 / 2 (1 - 2 beta y_i^2) + O(r^4): where beta is below
    1 / (2 <y_i^2>) the mean of F rises with r_i, and training shrinks it to nothing. Above, the
    radius is still less than the data's, the more the warmer.

    Args:
        ratios: of beta to 1 / (2 <y_1^2>), each positive.
        epochs: steps of training, each on all observations.
        seed: of the data and the start.
    """
    generator = torch.Generator().manual_seed(seed)
    data = ellipse_data(200, generator=generator)
    least = 0.5 / data.y.square().mean(0)
    rows = []
    for ratio in ratios:
        beta = ratio * float(least[0])
        model = Ellipse(radii=torch.tensor([1.0, 0.8]))
        train(
            model, data, TrainConfig(beta=beta, epochs=epochs, learning_rate=0.05), progress=False
        )
        first, second = model.scale().detach().abs().tolist()
        below = beta < least
        rows.append(Collapsing(ratio, beta, (first, second), (bool(below[0]), bool(below[1]))))
    return rows


def _away() -> Tensor:
    """Points of a box about the ellipse that are farther than 0.5 from it, ``[num, 2]``."""
    plane = torch.cartesian_prod(torch.linspace(-2.5, 2.5, 41), torch.linspace(-2.0, 2.0, 33))
    curve = horn_radii(torch.zeros(())) * circle(torch.linspace(0.0, 2.0 * math.pi, 721))
    return plane[torch.cdist(plane, curve).amin(1) > 0.5]
