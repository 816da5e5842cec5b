"""Losses: differentiable numbers that training minimises.

A loss is any callable with the signature of :class:`Loss`. It takes the model, not free energies,
so that a contrastive loss can evaluate the free energies of its contrastive samples too.

Let f = F(y) of an observation and f_hat = F(y_hat) of a contrastive sample, at the same
temperature. Training lowers f and raises f_hat. Each loss is a mean over the batch:

- energy, f: :func:`energy_loss`;
- hinge, max(0, m - (f_hat - f)): :class:`HingeLoss`, :func:`hinge`;
- log, log(1 + exp(f - f_hat)): :class:`LogLoss`, :func:`log_ratio`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lebm_kernels.checks import check_callable, check_floating, check_kind, check_not_negative
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
        """Return a differentiable scalar for observations ``y[M, D]`` and conditions ``x[M]``."""
        ...


def energy_loss(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    beta: float = torch.inf,
    backend: str | None = None,
) -> Tensor:
    """The mean free energy of a batch: training lowers it and raises no other free energy.

    This suffices if the model cannot make its energy low everywhere, for example if the decoded
    points fill a curve and not the plane.

    Args:
        model: the model whose free energy is evaluated.
        y: observations, ``[M, D]``, in the model's dtype.
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
    check_kind("model", model, LatentModel, "a LatentModel")
    return model.free_energy(y, x, beta=beta, backend=backend).mean()


@dataclass(frozen=True)
class _Contrastive:
    """A loss of the free energies of observations and of contrastive samples."""

    negatives: Negatives

    def __post_init__(self) -> None:
        """Check the source."""
        check_callable("negatives", self.negatives, "a source of contrastive samples")

    def __call__(
        self,
        model: LatentModel,
        y: Tensor,
        x: Tensor | None = None,
        *,
        beta: float = torch.inf,
        backend: str | None = None,
    ) -> Tensor:
        """Draw the samples and compute the loss: see :class:`Loss`."""
        check_kind("model", model, LatentModel, "a LatentModel")
        y_hat = self.negatives(model, y, x, beta=beta, backend=backend).detach()
        f = model.free_energy(y, x, beta=beta, backend=backend)
        f_hat = model.free_energy(y_hat, x, beta=beta, backend=backend)
        return self._loss(f, f_hat)

    def _loss(self, f: Tensor, f_hat: Tensor) -> Tensor:
        """The loss from F of the observations ``[M]`` and F of the samples ``[..., M]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class HingeLoss(_Contrastive):
    """The hinge loss of observations and contrastive samples: see :func:`hinge`.

    Attributes:
        negatives: draws the contrastive samples.
        margin: m, at least 0 and finite, in the units of ``y`` squared.

    Raises:
        TypeError: ``negatives`` isn't a source of contrastive samples.
        ValueError: ``margin`` is out of range.
    """

    margin: float = 1.0

    def __post_init__(self) -> None:
        """Check the source and the margin."""
        super().__post_init__()
        check_not_negative("margin", self.margin)

    def _loss(self, f: Tensor, f_hat: Tensor) -> Tensor:
        return hinge(f, f_hat, self.margin)


@dataclass(frozen=True)
class LogLoss(_Contrastive):
    """The log loss of observations and contrastive samples: see :func:`log_ratio`.

    Attributes:
        negatives: draws the contrastive samples.

    Raises:
        TypeError: ``negatives`` isn't a source of contrastive samples.
    """

    def _loss(self, f: Tensor, f_hat: Tensor) -> Tensor:
        return log_ratio(f, f_hat)


def hinge(f: Tensor, f_hat: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of max(0, margin + f - f_hat), which asks f_hat to exceed f by the margin.

    If f_hat - f >= margin, the term and its gradients are exactly zero.

    Args:
        f: free energies of observations, ``[..., M]``.
        f_hat: free energies of contrastive samples, broadcastable with ``f``.
        margin: at least 0 and finite, in the units of ``f``.

    Returns:
        A scalar.

    Raises:
        TypeError: ``f`` or ``f_hat`` isn't a floating-point tensor.
        ValueError: ``margin`` is out of range.

    Example:
        >>> hinge(torch.tensor([1.0]), torch.tensor([1.5]))
        tensor(0.5000)
    """
    check_not_negative("margin", margin)
    _check_values(f, f_hat)
    # Subtract f from f_hat first: margin + f would round, and could change which side is larger.
    return (float(margin) - (f_hat - f)).relu().mean()


def log_ratio(f: Tensor, f_hat: Tensor) -> Tensor:
    """The mean of log(1 + exp(f - f_hat)), without overflow: a smooth hinge that never reaches 0.

    A term is -log of exp(-f) / (exp(-f) + exp(-f_hat)): the probability that the observation, and
    not the contrastive sample, was observed.

    Args:
        f: free energies of observations, ``[..., M]``.
        f_hat: free energies of contrastive samples, broadcastable with ``f``.

    Returns:
        A scalar.

    Raises:
        TypeError: ``f`` or ``f_hat`` isn't a floating-point tensor.

    Example:
        >>> log_ratio(torch.tensor([1.0]), torch.tensor([1.0]))  # log 2
        tensor(0.6931)
    """
    _check_values(f, f_hat)
    # Not softplus: PyTorch's is linear above a threshold, which is inexact in float64.
    return -logsigmoid(f_hat - f).mean()


def _check_values(f: Tensor, f_hat: Tensor) -> None:
    check_floating("f", f, "[..., M]")
    check_floating("f_hat", f_hat, "[..., M]")
