"""Regularisers: the energy R(z) of a latent in ``E(y, z) = |y - decoder(z)|^2 + R(z)``.

A latent with as many dimensions as the data can decode to every point. The free energy is then low
everywhere, and does not distinguish data from other points. R gives most latents a high energy, so
that only a few explain the data. A regulariser is a module of the grid's points and log-weights.
Its result enters the free energy as ``latent_energy``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lebm_kernels.checks import check_count, check_not_negative
from lebm_kernels.models.placing import drawing_device


class _Penalty(nn.Module):
    """A regulariser with a factor ``strength``, at least 0."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        check_not_negative("strength", strength)
        self.strength = strength

    def extra_repr(self) -> str:
        """Show the strength in the module's repr."""
        return f"strength={self.strength:g}"


class L2(_Penalty):
    """``R(z) = strength |z|^2``: a Gaussian prior of variance 1/(2 beta strength) on the latents.

    Args:
        strength: at least 0, in units of ``y`` squared.

    Raises:
        ValueError: ``strength`` is out of range.

    Example:
        >>> L2(0.5)(torch.tensor([[1.0, 2.0]]), torch.zeros(1))
        tensor([2.5000])
    """

    def forward(self, z: Tensor, log_measure: Tensor) -> Tensor:
        """R ``[N]`` of points ``z[N, K]``; ``log_measure`` is ignored."""
        return self.strength * z.square().sum(-1)


class L1(_Penalty):
    """``R(z) = strength sum_k |z_k|``: a Laplace prior, which favours latents with many zeros.

    Args:
        strength: at least 0, in units of ``y`` squared.

    Raises:
        ValueError: ``strength`` is out of range.

    Example:
        >>> L1(0.5)(torch.tensor([[1.0, -2.0]]), torch.zeros(1))
        tensor([1.5000])
    """

    def forward(self, z: Tensor, log_measure: Tensor) -> Tensor:
        """R ``[N]`` of points ``z[N, K]``; ``log_measure`` is ignored."""
        return self.strength * z.abs().sum(-1)


class LearnedPrior(_Penalty):
    """``R(z) = -strength log p(z)``, where p is a learned density.

    log p is a network K -> hidden -> 1, normalised over the grid's weights w:
    sum_n w[n] p(z[n]) = 1. Therefore R cannot fall everywhere: it rises on latents that the data do
    not use. p starts uniform, with R = 0.

    Args:
        dim: K, the number of latent dimensions.
        strength: at least 0, in units of ``y`` squared. With strength 1/beta, p is the prior of
            the latents at beta.
        hidden: number of hidden units.
        generator: source of the first weights; the global generator if absent.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        strength: float = 1.0,
        *,
        hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(strength)
        for name, value in (("dim", dim), ("hidden", hidden)):
            check_count(name, value, 1)
        # PyTorch's own initialisation, skipped here, would draw from the global generator.
        device = drawing_device(generator)
        first = nn.utils.skip_init(nn.Linear, dim, hidden, device=device)
        last = nn.utils.skip_init(nn.Linear, hidden, 1, bias=False, device=device)
        nn.init.normal_(first.weight, std=2.0 / math.sqrt(dim), generator=generator)
        nn.init.uniform_(first.bias, -1.0, 1.0, generator=generator)
        nn.init.zeros_(last.weight)
        self.layers: nn.Sequential = nn.Sequential(first, nn.Tanh(), last)
        self.to(torch.get_default_device())

    def forward(self, z: Tensor, log_measure: Tensor) -> Tensor:
        """R ``[N]`` of points ``z[N, K]`` with normalised log-weights ``log_measure[N]``."""
        logit = self.layers(z).squeeze(-1)
        return -self.strength * (logit - torch.logsumexp(log_measure + logit, 0))
