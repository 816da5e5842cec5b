"""Losses: what training minimises, a number from a model and a batch of observations.

A loss is any callable of the signature :class:`Loss`. It is given the model and not its free
energies, so that a contrastive loss can ask for the free energies of its own negatives too.

With f = F(y), pulled down, and f_hat = F(y_hat), pushed up, at the same temperature, each the mean
of the batch:

- energy, f: :func:`energy_loss`;
- hinge, max(0, m - (f_hat - f)): :class:`HingeLoss`, :func:`hinge`;
- log, log(1 + exp(f - f_hat)): :class:`LogLoss`, :func:`log_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lebm_kernels.checks import number
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.training.negatives import Negatives


class Loss(Protocol):
    """The signature of a loss."""

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """A differentiable scalar from observations ``y[M, D]`` and conditions ``x[M]``."""
        ...


def energy_loss(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    beta: float = torch.inf,
    backend: str | None = None,
) -> Tensor:
    """The mean free energy of a batch: the observations are pulled down, nothing is pushed up.

    It suffices where the model can't make its energy low everywhere, as here, where a decoder's
    points fill a curve and not the plane.

    Args:
        model: gives the free energies.
        y: observations, ``[M, D]``.
        x: conditions, ``[M]``; conditional models only.
        beta: inverse temperature of the free energy; infinity is zero temperature.
        backend: as in :func:`lebm_kernels.free_energy`.

    Returns:
        A scalar.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> energy_loss(model, torch.tensor([[3.0, 0.0]])).item()
        1.0
    """
    return model.free_energy(y, x, beta=beta, backend=backend).mean()


@dataclass(frozen=True)
class _Contrastive:
    """Compares the free energies of observations with those of their contrastive samples."""

    negatives: Negatives

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Draw the samples and score both sides: see :class:`Loss`."""
        y_hat = self.negatives(model, y, x, beta=beta, backend=backend).detach()
        f = model.free_energy(y, x, beta=beta, backend=backend)
        return self._compared(f, model.free_energy(y_hat, x, beta=beta, backend=backend))

    def _compared(self, f: Tensor, f_hat: Tensor) -> Tensor:
        """The loss of F of the observations ``[M]`` and of their samples ``[..., M]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class HingeLoss(_Contrastive):
    """The hinge of observations and contrastive samples: see :func:`hinge`.

    Attributes:
        negatives: draws the contrastive samples.
        margin: m, finite, in the units of ``y`` squared.

    Raises:
        ValueError: ``margin`` isn't finite.
    """

    margin: float = 1.0

    def __post_init__(self) -> None:
        """Check the margin."""
        if not math.isfinite(number(self.margin)):
            raise ValueError(f"margin must be finite, got {self.margin!r}")

    def _compared(self, f: Tensor, f_hat: Tensor) -> Tensor:
        return hinge(f, f_hat, self.margin)


@dataclass(frozen=True)
class LogLoss(_Contrastive):
    """The log loss of observations and contrastive samples: see :func:`log_ratio`.

    Attributes:
        negatives: draws the contrastive samples.
    """

    def _compared(self, f: Tensor, f_hat: Tensor) -> Tensor:
        return log_ratio(f, f_hat)


def hinge(f: Tensor, f_hat: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of max(0, margin + f - f_hat): f_hat is to be above f by a margin, and no more.

    Exactly zero, and so are its gradients, where f_hat - f >= margin.

    Args:
        f: free energies of observations, ``[..., M]``.
        f_hat: free energies of contrastive samples, broadcastable with ``f``.
        margin: finite.

    Returns:
        A scalar.

    Example:
        >>> hinge(torch.tensor([1.0]), torch.tensor([1.5]))
        tensor(0.5000)
    """
    # The difference first: margin + f may round to what f_hat exceeds, or no longer exceeds.
    return (margin - (f_hat - f)).relu().mean()


def log_ratio(f: Tensor, f_hat: Tensor) -> Tensor:
    """The mean of log(1 + exp(f - f_hat)): a hinge whose margin never ends, without overflow.

    It is -log of the probability, exp(-f) / (exp(-f) + exp(-f_hat)), that the observation is the
    one of the two that was observed.

    Args:
        f: free energies of observations, ``[..., M]``.
        f_hat: free energies of contrastive samples, broadcastable with ``f``.

    Returns:
        A scalar.

    Example:
        >>> log_ratio(torch.tensor([1.0]), torch.tensor([1.0]))  # log 2
        tensor(0.6931)
    """
    # PyTorch's softplus is linear beyond a threshold, which float64 can tell; this is exact.
    return -logsigmoid(f_hat - f).mean()
