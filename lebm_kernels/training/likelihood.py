"""The negative log-likelihood: the loss that can learn an inverse temperature too."""

from __future__ import annotations

from torch import Tensor

from lebm_kernels.models.latent_model import LatentModel


def density_loss(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    backend: str | None = None,
) -> Tensor:
    """The mean of -log p(y), in nats: beta F and the normaliser that beta changes.

    The mean free energy alone falls with beta without end; the normaliser holds against it, and
    the best beta is 1 / (2 sigma^2), with sigma^2 the variance that the latents leave unexplained.

    Args:
        model: gives the densities.
        y: observations, ``[M, D]``.
        x: conditions, ``[M]``; conditional models only.
        beta: inverse temperature, positive and finite.
        backend: as in :func:`lebm_kernels.free_energy`.

    Returns:
        A scalar.

    Raises:
        ValueError: ``beta`` is a number out of range.

    Example:
        >>> import torch
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> point = Ellipse(radii=torch.zeros(2))  # a Gaussian about the origin, exp(-pi |y|^2)
        >>> round(density_loss(point, torch.tensor([[1.0, 0.0]]), beta=torch.pi).item(), 4)
        3.1416
    """
    return -model.log_density(y, x, beta=beta, backend=backend).mean()
