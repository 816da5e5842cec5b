"""Inference: the latent z of an observation, its restored y, and draws from the posterior.

::

    z_check = argmin_z E(y, z),      y_check = decoder(z_check),      E = |y - decoder(z)|^2 + R(z)

On the grid the search is exhaustive (:func:`infer_on_grid`). Between its points z is continuous and
E is descended from any start (:func:`infer`), which may end in a basin that is not the lowest: the
grid, which has looked everywhere, tells. Descending the free energy instead, in y, denoises
(:func:`denoise`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import check_floating, is_real
from lebm_kernels.models.descent import descend
from lebm_kernels.models.latent_model import LatentModel


class Inference(NamedTuple):
    """What was inferred for each observation, constants for autograd.

    Attributes:
        z: z_check, ``[M]``, or ``[M, ...]`` where the grid's points have more dimensions.
        y: y_check = decoder(z_check), the restored observations, ``[M, D]``.
        energy: E(y, z_check), ``[M]``.
        converged: whether the search came to its end, ``[M]``, boolean: E is stationary, or the
            grid was searched.
        local: whether the grid has a point of a lower basin, ``[M]``, boolean: z_check is a local
            minimum. Two basins are not told apart where their minima differ by less than the
            lower one and its nearest grid point.
    """

    z: Tensor
    y: Tensor
    energy: Tensor
    converged: Tensor
    local: Tensor


class Denoised(NamedTuple):
    """Where observations descended to, constants for autograd.

    Attributes:
        y: ``[M, D]``.
        free_energy: F there, ``[M]``.
        converged: whether F is stationary there, ``[M]``, boolean.
    """

    y: Tensor
    free_energy: Tensor
    converged: Tensor


class Sample(NamedTuple):
    """Draws from the posterior, constants for autograd.

    Attributes:
        z: latents, ``[M, num_samples]``, or ``[M, num_samples, ...]``.
        y: decoder(z), ``[M, num_samples, D]``.
    """

    z: Tensor
    y: Tensor


@torch.no_grad()
def infer_on_grid(
    model: LatentModel, y: Tensor, x: Tensor | None = None, *, backend: str | None = None
) -> Inference:
    """Take the grid's point of least energy for each observation, the first of equals.

    Args:
        model: decodes and has the grid.
        y: observations, ``[M, D]``.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        ValueError: ``y`` isn't ``[M, D]``, or ``x`` doesn't suit the model.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> found = infer_on_grid(model, torch.tensor([[3.0, 0.0]]))
        >>> found.y.detach(), found.energy.detach()
        (tensor([[2., 0.]]), tensor([1.]))
    """
    x = _each(y, x)
    z = model.z[model.posterior(y, x, beta=torch.inf, backend=backend).index]
    energy = _energy(model, y, z, x)
    never = torch.zeros_like(energy, dtype=torch.bool)
    # An observation of NaN has no nearest point.
    return Inference(z, model.decode_each(z, x), energy, ~energy.isnan(), never)


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
    """Descend E(y, z) over continuous z from a start, each observation by itself.

    Nothing keeps z in the domain of the grid. Latents that mean the same, as angles a full turn
    apart, are not reduced to one.

    Args:
        model: decodes and has the grid.
        y: observations, ``[M, D]``.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        start: first latents, broadcastable to ``[M]`` (``[M, ...]`` where the grid's points have
            more dimensions); the grid's best if absent.
        method: ``"gradient"``, ``"cg"`` or ``"lbfgs"``: see
            :func:`lebm_kernels.models.descent.descend`.
        max_steps: see there.
        tol: see there.
        backend: of the search on the grid, as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: ``start`` is neither a tensor nor a number.
        ValueError: ``y`` isn't ``[M, D]``, ``x`` doesn't suit the model, ``start`` doesn't
            broadcast, or a value is out of range.

    Example:
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([2.0, 1.5]))
        >>> found = infer(model, torch.tensor([[3.0, 0.0]]), start=0.4, method="lbfgs")
        >>> round(found.energy.item(), 4), found.converged.item(), found.local.item()
        (1.0, True, False)
    """
    best = infer_on_grid(model, y, x, backend=backend)
    y, x = y.detach(), _each(y, x)
    if not (start is None or is_real(start) or isinstance(start, Tensor)):
        raise TypeError(f"start must be a tensor or a number, got {type(start).__name__}")
    first = best.z if start is None else torch.as_tensor(start).to(best.z)
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

    found = descend(function, first, method=method, max_steps=max_steps, tol=tol)
    with torch.no_grad():
        restored = model.decode_each(found.point, x)
    # Within a convex basin no point is lower by more than slope times distance; two energies
    # differ by their rounding too.
    apart = (found.point - best.z).abs().reshape(len(y), model.grid.dim).sum(1)
    size = (y - restored).norm(dim=-1) * restored.norm(dim=-1) + found.value.abs()
    slack = found.slope * apart + 8.0 * torch.finfo(size.dtype).eps * size
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
    """Descend the free energy F(y) in y from the observations, each by itself.

    Cold, an observation ends on its nearest decoded grid point; warm, at a minimum of the
    smoothed energy. Few ``max_steps`` take out a part of the noise.

    Args:
        model: gives the free energies.
        y: observations, ``[M, D]``.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        beta: inverse temperature; infinity is zero temperature.
        method: ``"gradient"``, ``"cg"`` or ``"lbfgs"``: see
            :func:`lebm_kernels.models.descent.descend`.
        max_steps: see there.
        tol: see there.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: ``y`` is not a floating-point tensor.
        ValueError: ``y`` isn't ``[M, D]``, ``x`` doesn't suit the model, or a value is out of
            range.
    """
    x = _each(y, x)
    check_floating("y", y, "[M, D]")

    def function(point: Tensor, rows: Tensor) -> Tensor:
        at = None if x is None else x[rows]
        return model.free_energy(point, at, beta=beta, backend=backend)

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
        model: decodes and has the grid.
        y: observations, ``[M, D]``.
        x: conditions, broadcastable to ``[M]``; conditional models only.
        num_samples: how many draws an observation, at least 0.
        beta: inverse temperature; at infinity the draws are among the exact minima.
        generator: source of the draws, on y's device; the global generator if absent.

    Raises:
        ValueError: ``y`` isn't ``[M, D]``, ``x`` doesn't suit the model, or a value is out of
            range.
    """
    x = _each(y, x)
    index = model.sample_latent(y, x, num_samples=num_samples, beta=beta, generator=generator)
    z = model.z[index]
    each = None if x is None else x.repeat_interleave(num_samples)
    restored = model.decode_each(z.flatten(0, 1), each)
    return Sample(z, restored.view(len(y), num_samples, y.shape[1]))


def _each(y: Tensor, x: Tensor | None) -> Tensor | None:
    """The condition of each observation, ``[M]``."""
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
    """E ``[m]`` of observations ``y[m, D]`` with a latent ``z[m, ...]`` each."""
    energy = (y - model.decode_each(z, x)).square().sum(-1)
    if model.regulariser is None:
        return energy
    # A learned prior is normalised over the grid: the latents stand beside it without weight.
    grid = model.grid
    points = torch.cat((z.reshape(len(z), grid.dim), grid.points))
    log_measure = torch.cat((z.new_full((len(z),), -torch.inf), grid.log_measure))
    cost: Tensor = model.regulariser(points, log_measure)[: len(z)]
    return energy + cost
