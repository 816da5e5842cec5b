"""The Generative Topographic Mapping: a latent-variable EBM of real data, on a 2-D latent grid.

The decoder is linear in Gaussian bumps, g(z) = phi(z) W. The density of the observations is a
mixture of equal Gaussians about the decoded latents, with variance sigma^2 = 1/(2 beta)::

    log p(y) = -beta F_beta(y) + D/2 log(beta/pi)

Bishop, Svensen and Williams (GTM: The Generative Topographic Mapping, 1998) fit it by
expectation-maximisation with a matrix of responsibilities, observations x latents. Here every sum
over that matrix is a gradient of the free energy; r is a latent energy of zero::

    G[n] = sum_b p[b,n] = dF/dr[n]        sum_b p[b,n] (y[b] - g[n]) = -1/2 dF/dg[n]
    sum_bn p[b,n] E[b,n] = F + beta dF/dbeta                      (F summed over the observations)

A step is one forward and backward of the fused operation and one small linear system. The model
is an ordinary :class:`~lebm_kernels.models.latent_model.DecoderModel` with a learned beta, which
:func:`lebm_kernels.training.likelihood.density_loss` can train as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lebm_kernels.checks import (
    check_callable,
    check_count,
    check_floating,
    check_kind,
    check_not_negative,
    check_positive,
    count_not_finite,
)
from lebm_kernels.functional import free_energy, posterior
from lebm_kernels.models.decoders import RBFDecoder
from lebm_kernels.models.grids import LatentGrid, interval_grid, product_grid
from lebm_kernels.models.latent_model import DecoderModel, LatentModel
from lebm_kernels.models.modes import evaluation_mode


def topographic_mapping(
    y: Tensor, *, latents: int = 20, bumps: int = 6, width: float = 1.0
) -> DecoderModel:
    """Make a mapping that starts as the plane of the data's first two principal components.

    Args:
        y: observations, ``[M, D]``, float32 or float64, M and D at least 2.
        latents: latents per side; the grid over [-1, 1]^2 has ``latents**2`` of equal weight.
        bumps: bumps per side; the decoder has ``bumps**2`` and a constant.
        width: standard deviation of a bump, as a multiple of the distance of neighbouring bumps.

    Returns:
        A model with a learned beta, 1/(2 sigma^2). sigma starts as the larger of two lengths: the
        standard deviation of the third principal component, and half the distance of neighbouring
        decoded latents.

    Raises:
        TypeError: ``y`` isn't a floating-point tensor.
        ValueError: an argument is out of range; or ``y`` isn't finite, has M or D below 2, or does
            not vary in two dimensions.

    Example:
        >>> model = topographic_mapping(torch.randn(20, 3), latents=4)
        >>> model.manifold().shape
        torch.Size([16, 3])
    """
    for name, value in (("latents", latents), ("bumps", bumps)):
        check_count(name, value, 2)
    check_positive("width", width)
    check_floating("y", y, "[M, D]")
    if y.dim() != 2 or min(y.shape) < 2:
        raise ValueError(f"y must have shape [M, D] with M, D >= 2, got {list(y.shape)}")
    _check_finite(y)
    grid = LatentGrid(_square(latents, y))
    centres = _square(bumps, y)
    distance = 2.0 / (bumps - 1)
    decoder = RBFDecoder(centres, width * distance, y.shape[1])

    y64 = y.detach().double()
    mean = y64.mean(0)
    _, size, direction = torch.linalg.svd(y64 - mean, full_matrices=False)
    variance = size.square() / len(y)
    points = grid.z.double()
    # Latents scaled to unit variance: the plane then covers the same region as the data.
    unit = (points - points.mean(0)) / points.std(0, correction=0)
    plane = mean + unit @ (variance[:2].sqrt().unsqueeze(1) * direction[:2])
    features = decoder.features(points)
    # The solution of least norm, because neighbouring bumps are almost linearly dependent.
    weight = torch.linalg.pinv(features) @ plane
    with torch.no_grad():
        decoder.weight.copy_(weight)
    square_distance = (plane[1] - plane[0]).norm().square()
    third = variance[2] if len(variance) > 2 else variance.new_zeros(())
    noise = max(float(third), float(square_distance) / 4.0)
    if not noise > 0.0:
        raise ValueError("y must vary in at least two dimensions, got observations on one line")
    return DecoderModel(decoder, grid=grid).to(y).learn_beta(0.5 / noise)


def fit(
    model: DecoderModel,
    y: Tensor,
    *,
    iterations: int = 50,
    decay: float = 0.1,
    backend: str | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit a mapping by expectation-maximisation, in place.

    Each iteration raises ``sum_b log p(y[b]) - decay/2 |W|^2``, where ``|W|^2`` excludes the row of
    the constant.

    Args:
        model: a mapping, as :func:`topographic_mapping` makes it.
        y: observations, ``[M, D]``, moved to the model's device and dtype.
        iterations: number of iterations, at least 0.
        decay: the precision of W's Gaussian prior, at least 0.
        backend: as in :func:`lebm_kernels.free_energy`.
        on_iteration: called after each iteration with the number of iterations done and the mean
            log-density of ``y`` before it.

    Returns:
        The mean log-density of ``y`` before each iteration, in nats.

    Raises:
        TypeError: ``y`` is not a floating-point tensor.
        ValueError: an argument is out of range, ``y`` isn't finite, or ``model`` isn't a mapping.
        FloatingPointError: the log-density is not finite.
    """
    if on_iteration is not None:
        check_callable("on_iteration", on_iteration, "None or a function")
    check_count("iterations", iterations, 0)
    check_not_negative("decay", decay)
    if (
        not isinstance(model, DecoderModel)
        or not isinstance(model.decoder, RBFDecoder)
        or model.log_beta is None
    ):
        raise ValueError("model must be a mapping: an RBFDecoder with a learned beta")
    if model.regulariser is not None:
        raise ValueError("model must have no regulariser to be fitted by EM")
    check_floating("y", y, "[M, D]")
    D = model.decoder.weight.shape[1]
    if y.dim() != 2 or y.shape[1] != D or len(y) == 0:
        raise ValueError(f"y must have shape [M, {D}] with M >= 1, got {list(y.shape)}")
    _check_finite(y)
    y = y.to(model.z)
    features = model.decoder.features(model.grid.points).double()
    history: list[float] = []
    for iteration in range(iterations):
        history.append(_step(model, y, features, decay, backend))
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the log-density is {history[-1]} in step {iteration + 1}")
        if on_iteration is not None:
            on_iteration(iteration + 1, history[-1])
    return history


def _check_finite(y: Tensor) -> None:
    if bad := count_not_finite(y):
        raise ValueError(
            f"y must be finite, got NaN or infinities in {bad} of {len(y)} observations"
        )


@torch.no_grad()
def mean_log_density(model: DecoderModel, y: Tensor, *, backend: str | None = None) -> float:
    """The mean of log p(y) in nats, at the model's learned beta.

    Args:
        model: with a learned beta.
        y: observations, ``[M, D]``, moved to the model's device and dtype.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        TypeError: ``y`` is not a floating-point tensor.
        ValueError: ``model`` has no learned beta.
    """
    check_kind("model", model, LatentModel, "a LatentModel")
    if model.beta is None:
        raise ValueError("model must have a learned beta to have a density, got beta None")
    check_floating("y", y, "[M, D]")
    with evaluation_mode(model):
        value = model.log_density(y.to(model.z), beta=model.beta, backend=backend)
    return float(value.double().mean())


@torch.no_grad()
def restore(
    model: DecoderModel, y: Tensor, seen: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """The posterior mean of complete observations, given their seen elements.

    Unseen elements do not enter the energy, E = sum_d seen[d] (y[d] - g[d])^2: their scale is zero.
    The mean is over the whole decoded points g.

    Args:
        model: with a learned beta.
        y: observations, ``[M, D]``, noisy or incomplete.
        seen: which elements of ``y`` are known, boolean, broadcastable to ``y``; all if absent. The
            values of the other elements do not matter.
        backend: as in :func:`lebm_kernels.free_energy`.

    Returns:
        ``[M, D]``, in the model's dtype.

    Raises:
        TypeError: ``y`` is not a floating-point tensor, or ``seen`` is not boolean.
        ValueError: ``model`` has no learned beta, ``y`` isn't ``[M, D]``, or ``seen`` does not
            broadcast.
    """
    check_kind("model", model, LatentModel, "a LatentModel")
    if model.beta is None:
        raise ValueError("model must have a learned beta to restore with, got beta None")
    check_floating("y", y, "[M, D]")
    decoded = model.manifold()
    D = decoded.shape[-1]
    if y.dim() != 2 or y.shape[1] != D:
        raise ValueError(f"y must have shape [M, {D}], got {list(y.shape)}")
    y = y.to(model.z)
    scale = None
    if seen is not None:
        if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
            kind = seen.dtype if isinstance(seen, Tensor) else type(seen).__name__
            raise TypeError(f"seen must be a boolean tensor, got {kind}")
        try:
            seen = seen.to(y.device).expand_as(y)
        except RuntimeError as error:
            shapes = f"{list(y.shape)}, got {list(seen.shape)}"
            raise ValueError(f"seen must broadcast to {shapes}") from error
        y, scale = torch.where(seen, y, 0.0), seen.to(y.dtype)
    return posterior(
        y,
        decoded,
        model.beta,
        scale=scale,
        log_weight=model.log_weight,
        latent_energy=model.latent_energy,
        backend=backend,
    ).mean


def _step(
    model: DecoderModel, y: Tensor, features: Tensor, decay: float, backend: str | None
) -> float:
    """Do one iteration; return the mean log-density before it."""
    assert isinstance(model.decoder, RBFDecoder)
    assert model.log_beta is not None  # checked by the caller
    M, D = y.shape
    weight = model.decoder.weight
    with torch.no_grad():
        decoded = model.decoder(model.grid.points)
        beta = model.log_beta.exp()
        latent_energy = torch.zeros_like(decoded[:, 0])
    inputs = [t.detach().requires_grad_() for t in (decoded, beta, latent_energy)]
    value = free_energy(
        y,
        inputs[0],
        inputs[1],
        log_weight=model.log_weight,
        latent_energy=inputs[2],
        backend=backend,
    )
    total = value.double().sum()
    gradients = torch.autograd.grad(total, inputs)
    # The rest is small, and in float64: the system is almost singular if bumps overlap.
    # responsibility is G of the module's docstring.
    grad_decoded, grad_beta, responsibility = (g.double() for g in gradients)
    b = float(beta)
    density = 0.5 * D * math.log(b / math.pi) - b * float(total.detach()) / M
    if not math.isfinite(density):
        return density  # the caller raises; the model is unchanged
    energy = float(total.detach()) + b * float(grad_beta)

    penalty = torch.full_like(features[0], decay / (2.0 * b))
    penalty[-1] = 0.0
    system = features.T @ (responsibility.unsqueeze(1) * features) + penalty.diag()
    # Solve for the change of W, not for the new W: no large numbers cancel.
    right = -0.5 * features.T @ grad_decoded - penalty.unsqueeze(1) * weight.detach().double()
    step = _solve(system, right)
    moved = features @ step
    energy += float(
        (moved * grad_decoded).sum() + (responsibility.unsqueeze(1) * moved.square()).sum()
    )
    with torch.no_grad():
        weight.add_(step)
        model.log_beta.fill_(math.log(0.5 * M * D / energy))
    return density


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """The solution of least norm of a symmetric system that rounding may make singular."""
    value, vector = torch.linalg.eigh(system)
    floor = value[-1] * len(value) * torch.finfo(value.dtype).eps
    inverse = torch.where(value > floor, 1.0 / value.clamp_min(floor), 0.0)
    return vector @ (inverse.unsqueeze(1) * (vector.T @ right))


def _square(side: int, like: Tensor) -> Tensor:
    """``side**2`` equally spaced points of [-1, 1]^2, ``[side**2, 2]``."""
    line = interval_grid(-1.0, 1.0, side, dtype=like.dtype, device=like.device)
    return product_grid(line, line).z
