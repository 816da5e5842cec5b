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

The arithmetic is in float64, on data that are centred and divided by a power of two. Data in other
units thus give the same mapping in those units. Where a mapping can reproduce the data exactly, the
likelihood has no bound; sigma then stops at a few roundings of the decoded points in the model's
dtype, because with a smaller sigma their rounding would decide the density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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

_ROUNDINGS = {torch.float32: 4.0, torch.float64: 64.0}
"""The least sigma, in roundings of the largest number of the decoded points, by the model's dtype.

More in float64, because the arithmetic of the fit itself has that dtype.
"""

_LARGEST_PENALTY = 1e200
"""Limits the penalty of W, whose products are then finite; W is as good as zero there."""

_CERTAIN = 1e-10
"""The least energy, relative to its terms, that is certain to be more than their rounding."""


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
        TypeError: ``y`` isn't a tensor of float32 or float64.
        ValueError: an argument is out of range; or ``y`` isn't finite, has M or D below 2, does not
            vary in two dimensions by more than its rounding, or has squares beyond its dtype.

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
    _check_double_or_single("y", y)
    data = _scaled(y)
    grid = LatentGrid(_square(latents, y))
    centres = _square(bumps, y)
    distance = 2.0 / (bumps - 1)
    decoder = RBFDecoder(centres, width * distance, y.shape[1])

    _, size, direction = torch.linalg.svd(data.y, full_matrices=False)
    variance = size.square() / len(y)
    if not float(variance[1]) > data.least_deviation() ** 2:
        raise ValueError(
            "y must vary in at least two dimensions by more than its rounding, "
            "got observations on one line"
        )
    points = grid.z.double()
    # Latents scaled to unit variance: the plane then covers the same region as the data.
    unit = (points - points.mean(0)) / points.std(0, correction=0)
    plane = unit @ (variance[:2].sqrt().unsqueeze(1) * direction[:2])
    features = decoder.features(points)
    # The solution of least norm, because neighbouring bumps are almost linearly dependent.
    rounding = len(features) * torch.finfo(y.dtype).eps
    weight = torch.linalg.pinv(features, rtol=rounding) @ plane
    square_distance = (plane[1] - plane[0]).norm().square()
    third = variance[2] if len(variance) > 2 else variance.new_zeros(())
    noise = max(float(third), float(square_distance) / 4.0, data.least_deviation() ** 2)
    model = DecoderModel(decoder, grid=grid).to(y).learn_beta()
    _store(model, data, weight, 0.5 / noise)
    return model


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

    Except for rounding, no iteration lowers ``sum_b log p(y[b]) - decay/(2 v) |W|^2``, where
    ``|W|^2`` excludes the row of the constant, and v is the variance of ``y``, averaged over its
    dimensions.

    Args:
        model: a mapping, as :func:`topographic_mapping` makes it.
        y: observations, ``[M, D]``, moved to the model's device and dtype.
        iterations: number of iterations, at least 0.
        decay: the precision of W's Gaussian prior, at least 0, in units of 1/v: data in other units
            get the same mapping.
        backend: as in :func:`lebm_kernels.free_energy`.
        on_iteration: called after each iteration with the number of iterations done and the mean
            log-density of ``y`` before it.

    Returns:
        The mean log-density of ``y`` before each iteration, in nats, computed in float64.

    Raises:
        TypeError: ``y`` is not a floating-point tensor, or ``model`` isn't float32 or float64.
        ValueError: an argument is out of range, or ``model`` isn't a mapping; or ``y`` isn't
            finite, or, in the model's dtype, does not vary by more than its rounding or has squares
            out of range.
        FloatingPointError: the log-density is not finite, because the model is too far from ``y``.
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
    _check_double_or_single("model", model.z)
    check_floating("y", y, "[M, D]")
    D = model.decoder.weight.shape[1]
    if y.dim() != 2 or y.shape[1] != D or len(y) == 0:
        raise ValueError(f"y must have shape [M, {D}] with M >= 1, got {list(y.shape)}")
    data = _scaled(y.to(model.z))
    features = model.decoder.features(model.grid.points).double()
    log_weight = None if model.log_weight is None else model.log_weight.double()
    weight = model.decoder.weight.detach().double() / data.unit
    weight[-1] -= data.centre / data.unit
    beta = float((model.log_beta.detach().double() + 2.0 * math.log(data.unit)).exp())
    if not 0.0 < beta < math.inf:
        raise FloatingPointError(
            f"the log-density is not finite: beta times y's spread squared is {beta}"
        )
    history: list[float] = []
    for iteration in range(iterations):
        density, weight, beta = _step(
            data, features, log_weight, weight, beta, decay=decay, backend=backend
        )
        history.append(density - D * math.log(data.unit))
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the log-density is {history[-1]} in step {iteration + 1}")
        _store(model, data, weight, beta)
        if on_iteration is not None:
            on_iteration(iteration + 1, history[-1])
    return history


class _Scaled(NamedTuple):
    """Observations in float64, centred and in units of a power of two.

    ``rounding`` is the least deviation that counts, relative to the largest number.
    """

    y: Tensor
    centre: Tensor
    unit: float
    rounding: float

    def least_deviation(self, largest: float = 1.0) -> float:
        """The least sigma where the largest difference from the centre is ``largest``."""
        offset = float(self.centre.abs().max()) / self.unit
        return self.rounding * (offset + max(largest, 1.0))


def _scaled(y: Tensor) -> _Scaled:
    """Scale observations ``[M, D]`` that have the model's dtype."""
    if bad := count_not_finite(y):
        raise ValueError(
            f"y must be finite in {y.dtype}, "
            f"got NaN or infinities in {bad} of {len(y)} observations"
        )
    info = torch.finfo(y.dtype)
    rounding = _ROUNDINGS[y.dtype] * info.eps
    largest = float(y.abs().max())
    # The squares of the least sigma and of distances are then normal numbers.
    low, high = math.sqrt(info.tiny) / rounding, math.sqrt(info.max) / 2**8
    if largest != 0.0 and not low <= largest <= high:
        raise ValueError(
            f"y must have its largest number between {low:.0e} and {high:.0e} in {y.dtype}, "
            f"got {largest:.1e}"
        )
    y = y.detach().double()
    centre = y.mean(0)
    y = y - centre
    spread = float(y.abs().max())
    if not spread > rounding * largest:
        raise ValueError(
            f"y must vary by more than its rounding, got {len(y)} observations within "
            f"{spread:.1e} of their mean"
        )
    unit = 2.0 ** math.frexp(spread)[1]  # a power of two: dividing by it does not round
    return _Scaled(y / unit, centre, unit, rounding)


def _check_double_or_single(name: str, value: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {value.dtype}")


@torch.no_grad()
def _store(model: DecoderModel, data: _Scaled, weight: Tensor, beta: float) -> None:
    """Give the model a mapping of scaled data."""
    assert isinstance(model.decoder, RBFDecoder)
    assert model.log_beta is not None  # the callers' models have both
    weight = weight * data.unit
    weight[-1] += data.centre
    model.decoder.weight.copy_(weight)
    model.log_beta.fill_(math.log(beta) - 2.0 * math.log(data.unit))


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
    data: _Scaled,
    features: Tensor,
    log_weight: Tensor | None,
    weight: Tensor,
    beta: float,
    *,
    decay: float,
    backend: str | None,
) -> tuple[float, Tensor, float]:
    """The mean log-density of the scaled data, and W and beta after an iteration."""
    M, D = data.y.shape
    decoded = features @ weight
    inputs = [
        decoded,
        decoded.new_tensor(beta),
        torch.zeros_like(decoded[:, 0]),  # the latent energy
    ]
    for tensor in inputs:
        tensor.requires_grad_()
    value = free_energy(
        data.y,
        inputs[0],
        inputs[1],
        log_weight=log_weight,
        latent_energy=inputs[2],
        backend=backend,
    )
    # responsibility is G of the module's docstring.
    grad_decoded, grad_beta, responsibility = torch.autograd.grad(value.sum(), inputs)
    total = float(value.detach().sum())
    density = 0.5 * D * math.log(beta / math.pi) - beta * total / M
    if not math.isfinite(density):
        return density, weight, beta
    energy = total + beta * float(grad_beta)
    certain = _CERTAIN * (abs(energy) + M / beta)

    variance = float(data.y.square().mean())
    penalty = torch.full_like(features[0], min(decay / variance / (2.0 * beta), _LARGEST_PENALTY))
    penalty[-1] = 0.0
    system = features.T @ (responsibility.unsqueeze(1) * features) + penalty.diag()
    # Solve for the change of W, not for the new W: no large numbers cancel.
    right = -0.5 * features.T @ grad_decoded - penalty.unsqueeze(1) * weight
    # In these units the largest diagonal element is about 1, however large the penalty is.
    scale = (M + penalty).rsqrt().unsqueeze(1)
    step = scale * _solve(scale * system * scale.T, scale * right)
    moved = features @ step
    energy += float(
        (moved * grad_decoded).sum() + (responsibility.unsqueeze(1) * moved.square()).sum()
    )
    weight = weight + step
    # As if no products of the decoder cancelled, because their roundings do not.
    least = data.least_deviation(float((features @ weight.abs()).max()))
    # Not below the last beta: that would lower the density where W has grown.
    highest = max(beta, 0.5 / least**2)
    return density, weight, min(0.5 * M * D / max(energy, certain), highest)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """The solution of least norm of a symmetric system that rounding may make singular.

    An eigensolver mixes eigenvectors of nearly equal eigenvalues at random, which would carry the
    rounding of a large unknown into a small one. So a system that is far from singular is factored
    instead.
    """
    rounding = len(right) * torch.finfo(right.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(system)
    pivot = factor.diagonal().square()
    if not failed and float(pivot.min()) > math.sqrt(rounding) * float(pivot.max()):
        return torch.cholesky_solve(right, factor)
    value, vector = torch.linalg.eigh(system)
    floor = value[-1] * rounding
    inverse = torch.where(value > floor, 1.0 / value.clamp_min(floor), 0.0)
    return vector @ (inverse.unsqueeze(1) * (vector.T @ right))


def _square(side: int, like: Tensor) -> Tensor:
    """``side**2`` equally spaced points of [-1, 1]^2, ``[side**2, 2]``."""
    line = interval_grid(-1.0, 1.0, side, dtype=like.dtype, device=like.device)
    return product_grid(line, line).z
