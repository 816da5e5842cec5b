"""The negative log-likelihood: a loss that can learn the inverse temperature too."""

from __future__ import annotations

from torch import Tensor

from lebm_kernels.checks import check_kind
from lebm_kernels.models.latent_model import LatentModel


def density_loss(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    backend: str | None = None,
) -> Tensor:
    """The mean of -log p(y), in nats: beta F and the normaliser, which depends on beta.

    The mean free energy alone decreases with beta and has no best beta. With the normaliser the
    best beta is 1 / (2 sigma^2), where sigma^2 is the variance that the latents leave unexplained.
    See :meth:`lebm_kernels.models.latent_model.LatentModel.log_density` for the formula.

    Args:
        model: the model whose density is evaluated.
        y: observations, ``[M, D]``, in the model's dtype.
        x: conditions, ``[M]``; conditional models only.
        beta: inverse temperature, positive and finite.
        backend: as in :func:`lebm_kernels.free_energy`.

    Returns:
        A scalar.

    Raises:
        TypeError: ``model`` isn't a LatentModel.
        ValueError: ``beta`` is a number out of range.

    Example:
        >>> import torch
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> point = Ellipse(radii=torch.zeros(2))  # a Gaussian about the origin, exp(-pi |y|^2)
        >>> round(density_loss(point, torch.tensor([[1.0, 0.0]]), beta=torch.pi).item(), 4)
        3.1416
    """
    check_kind("model", model, LatentModel, "a LatentModel")
    return -model.log_density(y, x, beta=beta, backend=backend).mean()
