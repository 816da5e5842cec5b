"""Inference: the latent of an observation, the restored observation, draws, and denoising.

::

    z_check = argmin_z E(y, z),      y_check = decoder(z_check),      E = |y - decoder(z)|^2 + R(z)

:func:`infer_on_grid` searches all points of the grid. :func:`infer` descends E over continuous z
from a start. It may end in a basin that is not the lowest, and reports this if the grid has a lower
point. :func:`sample` draws latents from the posterior. :func:`denoise` descends the free energy
over y instead of E over z. All run the model in evaluation mode, because a descent needs a function
that does not change; each module is then put back in the mode it had.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import check_floating, check_kind, is_real
from lebm_kernels.models.descent import descend
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.models.modes import evaluation_mode


class Inference(NamedTuple):
    """The inferred latents and restored observations, detached from autograd.

    Attributes:
        z: z_check, ``[M]``, or ``[M, K]`` for a grid of points ``[N, K]``.
        y: y_check = decoder(z_check), the restored observations, ``[M, D]``.
        energy: E(y, z_check), ``[M]``, in the units of ``y`` squared.
        converged: whether the search ended, ``[M]``, boolean: E is stationary at z_check, or the
            grid was searched. False for an observation with NaN.
        local: whether the grid has a point in a lower basin, ``[M]``, boolean; z_check is then a
            local minimum only. A lower basin goes unnoticed if its best grid point is no lower than
            z_check.
    """

    z: Tensor
    y: Tensor
    energy: Tensor
    converged: Tensor
    local: Tensor


class Denoised(NamedTuple):
    """The denoised observations, detached from autograd.

    Attributes:
        y: the ends of the descents, ``[M, D]``.
        free_energy: F of ``y``, ``[M]``.
        converged: whether F is stationary at ``y``, ``[M]``, boolean.
    """

    y: Tensor
    free_energy: Tensor
    converged: Tensor


class Sample(NamedTuple):
    """Draws from the posterior, detached from autograd.

    Attributes:
        z: latents, ``[M, num_samples]``, or ``[M, num_samples, K]`` for a grid ``[N, K]``.
        y: decoder(z), ``[M, num_samples, D]``.
    """

    z: Tensor
    y: Tensor


@torch.no_grad()
def infer_on_grid(
    model: LatentModel, y: Tensor, x: Tensor | None = None, *, backend: str | None = None
) -> Inference:
    """Find the grid point with the least energy for each observation; the first of equal ones.

    Args:
        model: the model, with its decoder and its latent grid.
        y: observations, ``[M, D]``, in the model's dtype.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: ``model`` isn't a LatentModel, ``x`` isn't a tensor, or ``x`` or ``y`` isn't of
            the model's dtype.
        ValueError: ``y`` isn't ``[M, D]``, or ``x`` is missing, unwanted or of another shape.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> found = infer_on_grid(model, torch.tensor([[3.0, 0.0]]))
        >>> found.y.detach(), found.energy.detach()
        (tensor([[2., 0.]]), tensor([1.]))
    """
    x = condition_each(model, y, x)
    with evaluation_mode(model):
        z = model.z[model.posterior(y, x, beta=torch.inf, backend=backend).index]
        energy = _energy(model, y, z, x)
        restored = model.decode_each(z, x)
    local = torch.zeros_like(energy, dtype=torch.bool)
    # An observation with NaN has no nearest point.
    return Inference(z, restored, energy, ~energy.isnan(), local)


def infer(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    start: Tensor | float | None = None,
    method: str = "gradient",
    max_steps: int = 200,
    tol: float | None = None,
    backend: str | None = None,
) -> Inference:
    """Descend E(y, z) over continuous z from a start, independently for each observation.

    z may leave the domain of the grid. Equivalent latents, such as angles a full turn apart, are
    not reduced to one.

    Args:
        model: the model, with its decoder and its latent grid.
        y: observations, ``[M, D]``, in the model's dtype.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        start: first latents, broadcastable to ``[M]``, or to ``[M, K]`` for a grid of points
            ``[N, K]``; the best grid points if absent.
        method: ``"gradient"``, ``"cg"`` or ``"lbfgs"``: see
            :func:`lebm_kernels.models.descent.descend`.
        max_steps: as in :func:`lebm_kernels.models.descent.descend`.
        tol: as in :func:`lebm_kernels.models.descent.descend`.
        backend: of the search on the grid, as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: as in :func:`infer_on_grid`, or ``start`` is neither a tensor nor a number.
        ValueError: as in :func:`infer_on_grid`; or ``start`` isn't finite or doesn't broadcast; or
            ``method``, ``max_steps`` or ``tol`` is out of range.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> found = infer(model, torch.tensor([[3.0, 0.0]]), start=0.4, method="lbfgs")
        >>> round(found.energy.item(), 4), found.converged.item(), found.local.item()
        (1.0, True, False)
    """
    best = infer_on_grid(model, y, x, backend=backend)
    y, x = y.detach(), condition_each(model, y, x)
    if not (start is None or is_real(start) or isinstance(start, Tensor)):
        raise TypeError(f"start must be a tensor or a number, got {type(start).__name__}")
    first = (
        best.z
        if start is None
        else torch.as_tensor(start, dtype=best.z.dtype, device=best.z.device)
    )
    if not first.isfinite().all():
        raise ValueError("start must be finite, got NaN or infinities")
    try:
        first = first.expand_as(best.z)
    except RuntimeError as error:
        raise ValueError(
            f"start must broadcast to {list(best.z.shape)}, got {list(first.shape)}"
        ) from error

    def function(z: Tensor, rows: Tensor) -> Tensor:
        return _energy(model, y[rows], z, None if x is None else x[rows])

    with evaluation_mode(model):
        found = descend(function, first, method=method, max_steps=max_steps, tol=tol)
        with torch.no_grad():
            restored = model.decode_each(found.point, x)
    # In a convex basin no point is lower than z_check by more than slope times distance. Rounding
    # adds to the difference of two energies.
    distance = (found.point - best.z).abs().reshape(len(y), model.grid.dim).sum(1)
    size = (y - restored).norm(dim=-1) * restored.norm(dim=-1) + found.value.abs()
    slack = found.slope * distance + 8.0 * torch.finfo(size.dtype).eps * size
    local = found.value > best.energy + slack
    return Inference(found.point, restored, found.value, found.converged, local)


def denoise(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    beta: float = torch.inf,
    method: str = "gradient",
    max_steps: int = 200,
    tol: float | None = None,
    backend: str | None = None,
) -> Denoised:
    """Descend the free energy F(y) over y from each observation, independently of the others.

    Cold, an observation ends on its nearest decoded grid point. Warm, it ends at a minimum of the
    smoothed energy. A small ``max_steps`` removes only a part of the noise.

    Args:
        model: the model whose free energy is descended.
        y: observations, ``[M, D]``, in the model's dtype.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        beta: inverse temperature; infinity is zero temperature.
        method: ``"gradient"``, ``"cg"`` or ``"lbfgs"``: see
            :func:`lebm_kernels.models.descent.descend`.
        max_steps: as in :func:`lebm_kernels.models.descent.descend`.
        tol: as in :func:`lebm_kernels.models.descent.descend`.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: as in :func:`infer_on_grid`.
        ValueError: as in :func:`infer_on_grid`; or ``beta``, ``method``, ``max_steps`` or ``tol``
            is out of range.
    """
    x = condition_each(model, y, x)
    check_floating("y", y, "[M, D]")

    def function(point: Tensor, rows: Tensor) -> Tensor:
        condition = None if x is None else x[rows]
        return model.free_energy(point, condition, beta=beta, backend=backend)

    with evaluation_mode(model):
        found = descend(function, y, method=method, max_steps=max_steps, tol=tol)
    return Denoised(found.point, found.value, found.converged)


@torch.no_grad()
def sample(
    model: LatentModel,
    y: Tensor,
    x: Tensor | None = None,
    *,
    num_samples: int,
    beta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Sample:
    """Draw latents of the grid from the posterior of each observation, and decode them.

    Args:
        model: the model, with its decoder and its latent grid.
        y: observations, ``[M, D]``, in the model's dtype.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        num_samples: draws per observation, at least 0.
        beta: inverse temperature; at infinity only exact minima are drawn.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        TypeError: as in :func:`infer_on_grid`.
        ValueError: as in :func:`infer_on_grid`; or ``num_samples`` or ``beta`` is out of range.
    """
    x = condition_each(model, y, x)
    with evaluation_mode(model):
        index = model.sample_latent(y, x, num_samples=num_samples, beta=beta, generator=generator)
        z = model.z[index]
        condition = None if x is None else x.repeat_interleave(num_samples)
        restored = model.decode_each(z.flatten(0, 1), condition)
    return Sample(z, restored.view(len(y), num_samples, y.shape[1]))


def condition_each(model: LatentModel, y: Tensor, x: Tensor | None) -> Tensor | None:
    """Check the model and y; the condition of each observation, ``[M]``."""
    check_kind("model", model, LatentModel, "a LatentModel")
    if not isinstance(y, Tensor) or y.dim() != 2:
        shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must have shape [M, D], got {shape}")
    if x is None:
        return None
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor that broadcasts to [M], got {type(x).__name__}")
    try:
        return x.detach().expand(len(y))
    except RuntimeError as error:
        raise ValueError(f"x must broadcast to [{len(y)}], got {list(x.shape)}") from error


def _energy(model: LatentModel, y: Tensor, z: Tensor, x: Tensor | None) -> Tensor:
    """E ``[m]`` of observations ``y[m, D]``, each with one latent ``z[m]`` or ``z[m, K]``."""
    energy = (y - model.decode_each(z, x)).square().sum(-1)
    if model.regulariser is None:
        return energy
    # A learned prior is normalised over the grid. Appended to it with weight 0, the latents do not
    # change the normaliser.
    grid = model.grid
    points = torch.cat((z.reshape(len(z), grid.dim), grid.points))
    log_measure = torch.cat((z.new_full((len(z),), -torch.inf), grid.log_measure))
    latent_energy: Tensor = model.regulariser(points, log_measure)[: len(z)]
    return energy + latent_energy
