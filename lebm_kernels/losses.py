"""Losses: what training minimises, a number from a model and a batch of observations.

A loss is any callable of the signature :class:`Loss`. It is given the model and not its free
energies, so that a contrastive loss can ask for the free energies of its own negatives too.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lebm_kernels.models import LatentModel


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
        """A differentiable scalar from observations ``y[M, 2]`` and conditions ``x[M]``."""
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
        y: observations, ``[M, 2]``.
        x: conditions, ``[M]``; conditional models only.
        beta: inverse temperature of the free energy; infinity is zero temperature.
        backend: as in :func:`lebm_kernels.free_energy`.

    Returns:
        A scalar.
    """
    return model.free_energy(y, x, beta=beta, backend=backend).mean()
