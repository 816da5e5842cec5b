"""Plain PyTorch in tiles of bounded size: the fallback that runs on any device.

A row pass reads the latents up to three times: for the least energy, which is the shift m; for the
log-normaliser L; and, where slopes are asked for, for the sums that they are made of. Partial sums
are kept in float64. In the notation of :mod:`lebm_kernels.backends.tiles`:

    <E>      = m + sum_n p (E - m)
    KL(p|w)  = beta^2 K,     K = sum_n w (E - F)^2 psi_2(tau) = -dF/dbeta
    dF/dl[n] = -(p - w) / beta = w (E - F) psi_1(tau)

The right-hand forms are exact for small beta, and at 0. Where one latent has nearly all of the
weight, F equals its energy c up to rounding, and the sum would be the square of a rounding error.
There, with a = E - c in place of E - F,

    delta = F - c = -log(1 - beta sum_n w a psi_1(-beta a)) / beta
    K = e^(beta delta) (sum_n w a^2 psi_2(-beta a) - delta^2 psi_2(-beta delta))

K is summed from Z (E - F), with the Z of :func:`~lebm_kernels.backends.tiles.inverse_size`: the
square of an energy may leave the range of the dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lebm_kernels.backends.contract import (
    STATE_SIZE,
    Columns,
    ColumnWants,
    Problem,
    Rows,
    RowWants,
)
from lebm_kernels.backends.hindrances import explained
from lebm_kernels.backends.tiles import (
    Normaliser,
    costs,
    differences,
    energies,
    inverse_size,
    latent_tiles,
    log_weights,
    narrowed,
    normalised,
    posterior_weights,
    present,
    psi,
    query_tiles,
)


def unavailable(device: str) -> str | None:
    """None: it runs wherever PyTorch does."""
    return None


def describe() -> str:
    """One line for the table of backends."""
    return "plain PyTorch in tiles of bounded memory"


# F counts as a latent's energy where they differ by at most this many roundings. Any sum has fewer,
# and the square of so small a difference does not show beside the energies' own roundings.
_GAP_ROUNDINGS = 1024


def _about_the_heaviest(normaliser: Normaliser, state: Tensor) -> Tensor:
    """The state with the heaviest latent's energy for F, where rounding hides the difference."""
    problem, grid = normaliser.problem, normaliser.grid
    if problem.log_weight is None:
        return state
    at = problem.log_weight[grid].argmax(-1, keepdim=True)
    tile = narrowed(problem, grid, normaliser.query, slice(0, 1))
    tile = tile._replace(decoded=problem.decoded[grid].take_along_dim(at[:, :, None], 1))
    if problem.latent_energy is not None:
        tile = tile._replace(latent_energy=problem.latent_energy[grid].take_along_dim(at, 1))
    excess = energies(tile._replace(log_weight=None)) - normaliser.least[:, :, None]
    cost, gap = costs(tile, excess)[..., 0].double(), excess[..., 0].double()
    size = normaliser.least.double().abs() + state[..., 2].abs()
    most = _GAP_ROUNDINGS * torch.finfo(excess.dtype).eps * size
    near = ((gap - state[..., 2]).abs() <= most) & ((cost + state[..., 1]).abs() < 0.25)
    about = torch.stack((state[..., 0], -cost, gap, state[..., 3]), -1)
    return torch.where(near[..., None], about, state)


@explained("chunked")
def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`."""
    problem = normalised(problem)
    num_grids, num_queries, num_dims = problem.y.shape
    scalar, vector = (num_grids, num_queries), (num_grids, num_queries, num_dims)
    out = Rows(
        free_energy=problem.y.new_empty(scalar),
        state=problem.y.new_empty((*scalar, STATE_SIZE), dtype=torch.float64),
        slope_y=problem.y.new_empty(vector) if want.slope_y else None,
        slope_scale=problem.y.new_empty(vector) if want.slope_scale else None,
        slope_beta=problem.y.new_empty(scalar, dtype=torch.float64) if want.slope_beta else None,
        mean=problem.y.new_empty(vector) if want.mean else None,
        energy=problem.y.new_empty(scalar) if want.energy else None,
        relative_entropy=problem.y.new_empty(scalar) if want.relative_entropy else None,
        index=problem.y.new_empty(scalar, dtype=torch.int64) if want.index else None,
    )
    for grid, query in query_tiles(problem):
        normaliser = Normaliser(problem, grid, query)
        out.free_energy[grid, query] = normaliser.free_energy()
        state = normaliser.state()
        out.state[grid, query] = state
        if out.index is not None:
            out.index[grid, query] = normaliser.index
        if any(want._replace(index=False)):
            _slopes(normaliser, state, out, (grid, query))
    return out


def _slopes(normaliser: Normaliser, state: Tensor, out: Rows, where: tuple[slice, slice]) -> None:
    """The third pass over the latents, for a tile of queries; written into ``out`` at ``where``."""
    beta = normaliser.problem.beta[where]
    z = inverse_size(beta, state)
    coldness = torch.where(beta == torch.inf, 0.0, beta.double() / z)
    log_normaliser, value_gap = state[..., 1], state[..., 2]
    curved = out.slope_beta is not None or out.relative_entropy is not None
    if curved:
        state = _about_the_heaviest(normaliser, state)
    residual = torch.zeros(
        (*beta.shape, normaliser.problem.y.shape[-1]), dtype=torch.float64, device=beta.device
    )
    stretch, mean = torch.zeros_like(residual), torch.zeros_like(residual)
    # 1, except for the rounding of L, or of c where c stands for F.
    mass = torch.zeros_like(residual[..., :1])
    spread = torch.zeros_like(residual[..., 0])
    drift, above = torch.zeros_like(spread), torch.zeros_like(spread)
    for _, tile, energy, log_w in normaliser.tiles():
        excess = energy - normaliser.least[:, :, None]
        p, tau, gap = posterior_weights(tile, excess, log_w, state)
        mass += p.sum(-1, keepdim=True)
        if out.energy is not None:
            above += (p * present(excess)).double().sum(-1)
        for d in range(residual.shape[-1]) if out.slope_y is not None else ():
            difference = differences(tile, d)
            residual[..., d] += (p * difference).sum(-1)
        for d in range(residual.shape[-1]) if out.slope_scale is not None else ():
            difference = differences(tile, d)
            stretch[..., d] += (p * difference * tile.decoded[:, None, :, d]).sum(-1)
        # Not a matmul: autocast and TF32 would change it.
        for d in range(residual.shape[-1]) if out.mean is not None else ():
            mean[..., d] += (p * tile.decoded[:, None, :, d]).sum(-1)
        if curved:
            weight, close = log_w.exp(), tau.abs() <= 0.5
            rate = coldness[:, :, None].to(gap.dtype)
            relative, x = gap.mul_(z[:, :, None].to(gap.dtype)), torch.where(close, tau, 0.0)
            near = weight * relative * relative * psi(x, 2)
            far = p * (torch.where(p > 0, tau, 0.0) - 1) + weight
            # A dropped latent has weight 0 and would divide it by beta = 0.
            far = torch.where(log_w > -torch.inf, far / rate / rate, 0.0)
            spread += torch.where(close, near, far).sum(-1)
            near = weight * relative * psi(x, 1)
            far = torch.where(log_w > -torch.inf, (weight - p) / rate, 0.0)
            drift += torch.where(close, near, far).sum(-1)
    if out.slope_y is not None:
        out.slope_y[where] = (2 * residual / mass).to(out.slope_y.dtype)
    if out.slope_scale is not None:
        out.slope_scale[where] = (-2 * stretch / mass).to(out.slope_scale.dtype)
    if out.mean is not None:
        out.mean[where] = (mean / mass).to(out.mean.dtype)
    if out.energy is not None:
        energy = normaliser.least.double() + above / mass[..., 0]
        # At beta = 0 an infinite energy counts.
        energy = torch.where(value_gap == torch.inf, value_gap, energy)
        out.energy[where] = energy.to(beta.dtype)
    if curved:
        curvature = _curvature(coldness, spread, drift)
        if out.slope_beta is not None:
            out.slope_beta[where] = torch.where(beta == torch.inf, 0.0, -curvature / z / z)
        if out.relative_entropy is not None:
            warm = torch.where(beta == 0, 0.0 * log_normaliser, coldness.square() * curvature)
            entropy = torch.where(beta == torch.inf, -log_normaliser, warm)
            out.relative_entropy[where] = entropy.to(beta.dtype)


def _curvature(rate: Tensor, spread: Tensor, drift: Tensor) -> Tensor:
    """K Z^2 from the sums of w (Z a)^2 psi_2 (``spread``) and w Z a psi_1 (``drift``).

    ``rate`` is beta / Z.
    """
    rest = torch.where((rate * drift).abs() < 0.5, -rate * drift, 0.0)
    delta = -torch.log1p(rest) / torch.where(rate == 0, 1.0, rate)
    delta = torch.where(rate == 0, drift, delta)
    relative = (spread - delta.square() * psi(-rate * delta, 2)).clamp(min=0)
    return (rate * delta).exp() * relative


@explained("chunked")
def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`."""
    problem = normalised(problem)
    num_grids, num_latents, num_dims = problem.decoded.shape
    decoded = grad.new_zeros((num_grids, num_latents, num_dims), dtype=torch.float64)
    log_weight = torch.zeros_like(decoded[..., 0])
    latent_energy = torch.zeros_like(log_weight)
    for grid, query in query_tiles(problem):
        for latent in latent_tiles(problem):
            tile = narrowed(problem, grid, query, latent)
            log_w = log_weights(tile, num_latents)
            excess = energies(tile) - state[grid, query, None, 0].to(grad.dtype)
            p, tau, gap = posterior_weights(tile, excess, log_w, state[grid, query])
            pull = grad[grid, query, None] * p
            if want.latent_energy:
                latent_energy[grid, latent] += pull.sum(1)
            for d in range(num_dims) if want.decoded else ():
                moved = pull * differences(tile, d)
                if tile.scale is not None:
                    moved = moved * tile.scale[:, :, None, d]
                decoded[grid, latent, d] -= 2 * moved.sum(1)
            if want.log_weight:
                pulled = grad[grid, query, None] * log_w.exp()
                near = pulled * gap * psi(torch.where(tau.abs() <= 0.5, tau, 0.0), 1)
                far = (pulled - pull) / tile.beta[:, :, None]
                far = torch.where(log_w > -torch.inf, far, 0.0)
                log_weight[grid, latent] += torch.where(tau.abs() <= 0.5, near, far).sum(1)
    return Columns(
        decoded=decoded.to(grad.dtype) if want.decoded else None,
        log_weight=log_weight.to(grad.dtype) if want.log_weight else None,
        latent_energy=latent_energy.to(grad.dtype) if want.latent_energy else None,
    )
