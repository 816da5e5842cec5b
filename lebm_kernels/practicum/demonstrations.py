"""Two failures of latent-variable models, shown by training: memorising and collapsing.

Each function trains small models and returns one row per model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lebm_kernels.checks import check_seed
from lebm_kernels.models.decoders import NeuralDecoder, circle
from lebm_kernels.models.grids import sobol_grid
from lebm_kernels.models.latent_model import DecoderModel, Ellipse
from lebm_kernels.models.regularisers import L1, L2, LearnedPrior
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_radii
from lebm_kernels.training.loop import TrainConfig, mean_free_energy, train

#: Dimensions of the latent that memorises: more than the two of the data.
MEMORISING_DIM = 4


class Memorising(NamedTuple):
    """A trained model of the ellipse whose latent could decode to the whole plane.

    Attributes:
        regulariser: the regulariser's name; ``none`` for the model without one.
        on: mean F of held-out observations at zero temperature.
        off: mean F of points far from the ellipse at zero temperature.
    """

    regulariser: str
    on: float
    off: float

    @property
    def contrast(self) -> float:
        """``off - on``, in which a constant that a regulariser adds everywhere cancels."""
        return self.off - self.on


def memorising(*, epochs: int = 200, seed: int = 0) -> list[Memorising]:
    """Train models with four-dimensional latents on the ellipse, with and without a regulariser.

    Without a regulariser the decoded latents cover the plane. F is then near zero everywhere, and
    does not distinguish data from other points.

    Args:
        epochs: steps of training, each on all observations.
        seed: of the data, the decoder's first weights and the latents.
    """
    check_seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    data, held_out = (ellipse_data(200, generator=generator) for _ in range(2))
    away = Dataset(_points_off_the_ellipse(data.y))
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
            last.weight.mul_(4.0)  # the decoded latents cover the data and the region between them
        grid = sobol_grid(1024, MEMORISING_DIM, low=-1.0, high=1.0, seed=seed)
        model = DecoderModel(decoder, grid=grid, regulariser=regulariser)
        train(model, data, TrainConfig(epochs=epochs, learning_rate=0.02), progress=False)
        values = (mean_free_energy(model, part) for part in (held_out, away))
        rows.append(Memorising(name, *values))
    return rows


class Collapsing(NamedTuple):
    """An ellipse trained warm.

    Attributes:
        ratio: beta divided by 1 / (2 <y_1^2>), below which the first radius collapses.
        beta: inverse temperature.
        radii: the trained radii, without sign.
        predicted: whether each radius should be zero, because beta is below 1 / (2 <y_i^2>).
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

    Near zero radii, F = |y|^2 + sum_i r_i^2 / 2 (1 - 2 beta y_i^2) + O(r^4). If beta is below
    1 / (2 <y_i^2>), the mean of F rises with r_i, and training shrinks r_i to zero. Above that, the
    trained radius is still smaller than the data's; the warmer, the smaller.

    Args:
        ratios: beta divided by 1 / (2 <y_1^2>), each positive.
        epochs: steps of training, each on all observations.
        seed: of the data.
    """
    check_seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    data = ellipse_data(200, generator=generator)
    threshold = 0.5 / data.y.square().mean(0)
    rows = []
    for ratio in ratios:
        beta = ratio * float(threshold[0])
        model = Ellipse(radii=data.y.new_tensor([1.0, 0.8]))
        train(
            model, data, TrainConfig(beta=beta, epochs=epochs, learning_rate=0.05), progress=False
        )
        first, second = model.scale().detach().abs().tolist()
        below = beta < threshold
        rows.append(Collapsing(ratio, beta, (first, second), (bool(below[0]), bool(below[1]))))
    return rows


def _points_off_the_ellipse(like: Tensor) -> Tensor:
    """Points of a box around the ellipse that are farther than 0.5 from it, ``[num, 2]``."""
    placed: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    sides = torch.linspace(-2.5, 2.5, 41, **placed), torch.linspace(-2.0, 2.0, 33, **placed)
    plane = torch.cartesian_prod(*sides)
    angle = torch.linspace(0.0, 2.0 * math.pi, 721, **placed)
    curve = horn_radii(like.new_zeros(())) * circle(angle)
    return plane[torch.cdist(plane, curve).amin(1) > 0.5]
