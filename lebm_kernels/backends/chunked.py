"""Plain PyTorch in tiles of bounded size: the fallback that runs on any device.

Queries and latents are cut into tiles of ``_tile_pairs`` pairs; no tensor is larger than a tile.
A row pass sweeps the latents up to three times: for the least energy m; for the log-normaliser
L = log sum_n w exp(-beta (E - m)); and, where asked, for the slopes, from p = w exp(-t - L) with
t = beta (E - m). Partial sums are carried in float64.

With tau = log(p/w) = -t - L = -beta (E - F):

    dF/dbeta = -KL(p|w) / beta^2 = -sum_n w (E - F)^2 Phi(tau),   Phi(x) = (e^x (x - 1) + 1) / x^2
    dF/dl[n] = -(p - w) / beta   =  w (E - F) Psi(tau),           Psi(x) = (e^x - 1) / x

the right-hand forms being exact for small beta, and at 0. Where one latent has nearly all of the
weight, F cannot be told from its energy c, and that sum would be the square of a rounding: there,
with a = E - c in place of E - F,

    delta = F - c = -log(1 - beta sum_n w a Psi(-beta a)) / beta
    dF/dbeta = -e^(beta delta) (sum_n w a^2 Phi(-beta a) - delta^2 Phi(-beta delta))
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants
from lebm_kernels.backends.hindrances import explained
from lebm_kernels.reference import power_series

# Dimensions summed at once: a sum of partial sums rounds less than one long sum.
_SLAB = 32


def unavailable(device: str) -> str | None:
    """None: it runs wherever PyTorch does."""
    return None


def describe() -> str:
    """One line for the table of backends."""
    return "plain PyTorch in tiles of bounded memory"


def _tile_pairs(device: torch.device) -> int:
    """Pairs a tile: small enough for a CPU's caches, large enough to fill a GPU."""
    return 1 << 18 if device.type == "cpu" else 1 << 23


def steps(size: int, step: int) -> Iterator[slice]:
    """``range(size)`` in slices of ``step``."""
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def latent_tile(problem: Problem) -> int:
    """How many latents a tile holds."""
    return min(problem.decoded.shape[1], _tile_pairs(problem.y.device), 1 << 14)


def query_tiles(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """Tiles of (grids, queries) such that a tile of latents with them stays within bounds."""
    num_grids, num_queries = problem.beta.shape
    room = max(1, _tile_pairs(problem.y.device) // latent_tile(problem))
    queries = min(max(num_queries, 1), room)
    for grid in steps(num_grids, max(1, room // queries)):
        for query in steps(num_queries, queries):
            yield grid, query


def narrowed(problem: Problem, grid: slice, query: slice, latent: slice) -> Problem:
    """The part of the problem in one tile, as views."""
    scale, log_weight, latent_energy = problem.scale, problem.log_weight, problem.latent_energy
    return Problem(
        y=problem.y[grid, query],
        decoded=problem.decoded[grid, latent],
        beta=problem.beta[grid, query],
        scale=None if scale is None else scale[grid, query],
        log_weight=None if log_weight is None else log_weight[grid, latent],
        latent_energy=None if latent_energy is None else latent_energy[grid, latent],
        tol=problem.tol,
    )


def predictions(tile: Problem, d: int) -> Tensor:
    """The d-th number of s g, broadcastable to the tile's energies."""
    prediction = tile.decoded[:, None, :, d]
    return prediction if tile.scale is None else tile.scale[:, :, None, d] * prediction


def energies(tile: Problem) -> Tensor:
    """E[b, m, n] of one tile; inf where the log-weight drops the latent."""
    num_dims = tile.y.shape[-1]
    slabs = (
        sum(
            (tile.y[:, :, None, d] - predictions(tile, d)).square_() for d in range(s.start, s.stop)
        )
        for s in steps(num_dims, _SLAB)
    )
    energy = torch.as_tensor(sum(slabs))
    if tile.latent_energy is not None:
        energy = energy + tile.latent_energy[:, None, :]
    if tile.log_weight is not None:
        energy = energy.masked_fill(tile.log_weight[:, None, :] == -torch.inf, torch.inf)
    return energy


def normalised(problem: Problem) -> Problem:
    """The same problem with log w in place of l (uniform weights stay None)."""
    if problem.log_weight is None:
        return problem
    # Relative to the largest, which takes a common offset away without rounding.
    wide = problem.log_weight.double()
    wide = wide - wide.amax(-1, keepdim=True)
    log_w = wide - torch.logsumexp(wide, -1, keepdim=True)
    # The difference of two may be beyond the dtype, which drops no latent.
    given = problem.log_weight
    least = torch.where(given == -torch.inf, given, torch.finfo(given.dtype).min)
    return problem._replace(log_weight=torch.maximum(log_w, least).to(given.dtype))


def log_weights(tile: Problem, num_latents: int) -> Tensor:
    """Log w of a tile of a :func:`normalised` problem, broadcastable to its energies."""
    if tile.log_weight is None:
        return torch.full_like(tile.decoded[:1, :1, 0], -math.log(num_latents))[:, None]
    return tile.log_weight[:, None, :]


def cooled(tile: Problem, excess: Tensor) -> Tensor:
    """T = beta (E - m) >= 0, without the NaN of inf * 0."""
    beta = tile.beta[:, :, None]
    frozen = torch.where(excess > 0, torch.inf, excess)
    t = torch.where(beta == 0, 0.0, torch.where(beta == torch.inf, frozen, beta * excess))
    # Negative or NaN temperatures have no free energy; theirs must not look like one.
    t = torch.where(beta >= 0, t, torch.nan)
    return torch.where(excess == torch.inf, torch.inf, t)


def _present(energy: Tensor) -> Tensor:
    """The energies with those of dropped latents (which carry no weight) made finite."""
    return torch.where(energy == torch.inf, 0.0, energy)


def _phi(x: Tensor) -> Tensor:
    safe = torch.where(x.abs() <= 0.5, 1.0, x)
    closed = (safe.exp() * (safe - 1) + 1) / safe.square()
    return power_series(x, closed, [(k - 1) / math.factorial(k) for k in range(2, 18)])


def _psi(x: Tensor) -> Tensor:
    safe = torch.where(x == 0, 1.0, x)
    return torch.where(x == 0, 1.0, torch.expm1(safe) / safe)


class Normaliser:
    """m, L and F - m of a tile of queries, by sweeping the latents twice."""

    problem: Problem
    grid: slice
    query: slice
    num_latents: int
    least: Tensor
    index: Tensor
    log_normaliser: Tensor
    gap: Tensor

    def __init__(self, problem: Problem, grid: slice, query: slice) -> None:
        self.problem, self.grid, self.query = problem, grid, query
        self.num_latents = problem.decoded.shape[1]
        self._find_least()
        self._sum()

    def tiles(self) -> Iterator[tuple[slice, Problem, Tensor, Tensor]]:
        """Every tile of latents with its energies and its log-weights."""
        for latent in steps(self.num_latents, latent_tile(self.problem)):
            tile = narrowed(self.problem, self.grid, self.query, latent)
            yield latent, tile, energies(tile), log_weights(tile, self.num_latents)

    def _find_least(self) -> None:
        shape = self.problem.beta[self.grid, self.query].shape
        self.least = self.problem.y.new_full(shape, torch.inf)
        self.index = torch.zeros(shape, dtype=torch.int64, device=self.least.device)
        for latent, _, energy, _ in self.tiles():
            least, index = energy.min(-1)
            better = (least < self.least) | least.isnan()
            self.index = torch.where(better, index + latent.start, self.index)
            self.least = torch.where(better, least, self.least)

    def _sum(self) -> None:
        shape, device = self.least.shape, self.least.device
        log_sum = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        # sum w (exp(-t) - 1), and sum w (E - m): what log_sum would lose where t is small.
        deficit, mean_excess = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
        largest = torch.zeros_like(self.least)
        infinite = torch.zeros_like(self.least, dtype=torch.bool)
        for _, tile, energy, log_w in self.tiles():
            excess = torch.where(energy == torch.inf, energy, energy - self.least[:, :, None])
            t = cooled(tile, excess)
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w - t, -1).double())
            weight = log_w.exp()
            kept = excess < torch.inf
            infinite |= ((excess == torch.inf) & (weight > 0)).any(-1)
            minus = torch.where(kept | (weight > 0), torch.expm1(-t), 0.0)
            deficit += (weight * minus).sum(-1).double()
            excess = torch.where(kept, excess, 0.0)
            mean_excess += (weight * excess).sum(-1).double()
            largest = torch.maximum(largest, excess.amax(-1))
        beta = self.problem.beta[self.grid, self.query].double()
        small = deficit > -0.25
        self.log_normaliser = torch.where(small, torch.log1p(deficit), log_sum)
        # Below rounding, the second-order term -beta Var/2 cannot be seen, and t may underflow.
        # An infinite energy is beyond it: log w of the rest, over beta, is then all there is.
        hot = (beta * largest.double() <= torch.finfo(self.least.dtype).eps / 4) & ~infinite
        warm = -self.log_normaliser / torch.where(hot, 1.0, beta)
        self.gap = torch.where(hot, mean_excess, torch.where(beta == torch.inf, 0.0, warm))
        self.gap = torch.where(self.least.isinf(), 0.0, self.gap)
        # No temperature, weights that are not numbers, or a query that is none.
        invalid = ~(beta >= 0) | self.log_normaliser.isnan() | self.least.isnan()
        invalid |= self.least == -torch.inf
        self.gap = torch.where(invalid, torch.nan, self.gap)

    def state(self) -> Tensor:
        """As :class:`Rows` has it, ``[b, m, 3]``."""
        return torch.stack((self.least.double(), self.log_normaliser, self.gap), -1)

    def free_energy(self) -> Tensor:
        """F, ``[b, m]``."""
        return (self.least.double() + self.gap).to(self.least.dtype)


def shares(
    tile: Problem, excess: Tensor, log_w: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """P, tau = log(p/w) and E - F of a tile, from the state of its queries.

    L may be in the hundreds where weights are tiny: its integer part meets log w before rounding.
    """
    log_normaliser = state[:, :, None, 1]
    whole = log_normaliser.round()
    rest = (log_normaliser - whole).to(excess.dtype)
    cooling = cooled(tile, excess)
    p = (log_w - cooling - whole.to(excess.dtype) - rest).exp()
    tau = -cooling - log_normaliser.to(excess.dtype)
    return p, tau, _present(excess) - state[:, :, None, 2].to(excess.dtype)


# How many roundings F may be from the energy of a latent, to count as that: more than any sum has,
# and too few for the square of the difference to show beside the energies' roundings.
_GAP_ROUNDINGS = 1024


def _about_the_heaviest(normaliser: Normaliser, state: Tensor) -> Tensor:
    """The state with the heaviest latent's energy as F, where these cannot be told apart."""
    problem, grid = normaliser.problem, normaliser.grid
    if problem.log_weight is None:
        return state
    at = problem.log_weight[grid].argmax(-1, keepdim=True)
    tile = narrowed(problem, grid, normaliser.query, slice(0, 1))
    tile = tile._replace(decoded=problem.decoded[grid].take_along_dim(at[:, :, None], 1))
    if problem.latent_energy is not None:
        tile = tile._replace(latent_energy=problem.latent_energy[grid].take_along_dim(at, 1))
    excess = energies(tile._replace(log_weight=None)) - normaliser.least[:, :, None]
    cooling, gap = cooled(tile, excess)[..., 0].double(), excess[..., 0].double()
    size = normaliser.least.double().abs() + state[..., 2].abs()
    most = _GAP_ROUNDINGS * torch.finfo(excess.dtype).eps * size
    near = ((gap - state[..., 2]).abs() <= most) & ((cooling + state[..., 1]).abs() < 0.25)
    about = torch.stack((state[..., 0], -cooling, gap), -1)
    return torch.where(near[..., None], about, state)


@explained("chunked")
def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`."""
    problem = normalised(problem)
    num_grids, num_queries, num_dims = problem.y.shape
    scalar, vector = (num_grids, num_queries), (num_grids, num_queries, num_dims)
    out = Rows(
        free_energy=problem.y.new_empty(scalar),
        state=problem.y.new_empty((*scalar, 3), dtype=torch.float64),
        slope_y=problem.y.new_empty(vector) if want.slope_y else None,
        slope_scale=problem.y.new_empty(vector) if want.slope_scale else None,
        slope_beta=problem.y.new_empty(scalar) if want.slope_beta else None,
        mean=problem.y.new_empty(vector) if want.mean else None,
        index=problem.y.new_empty(scalar, dtype=torch.int64) if want.index else None,
    )
    for grid, query in query_tiles(problem):
        normaliser = Normaliser(problem, grid, query)
        out.free_energy[grid, query] = normaliser.free_energy()
        state = normaliser.state()
        out.state[grid, query] = state
        if out.index is not None:
            out.index[grid, query] = normaliser.index
        if want.slope_y or want.slope_scale or want.slope_beta or want.mean:
            _slopes(normaliser, state, out, (grid, query))
    return out


def _slopes(normaliser: Normaliser, state: Tensor, out: Rows, where: tuple[slice, slice]) -> None:
    """The third sweep of a tile of queries, written into ``out`` at ``where``."""
    beta = normaliser.problem.beta[where]
    if out.slope_beta is not None:
        state = _about_the_heaviest(normaliser, state)
    residual = torch.zeros(
        (*beta.shape, normaliser.problem.y.shape[-1]), dtype=torch.float64, device=beta.device
    )
    stretch, mean = torch.zeros_like(residual), torch.zeros_like(residual)
    # 1, but for what the rounding of L, or the choice of c, makes of it.
    mass = torch.zeros_like(residual[..., :1])
    spread = torch.zeros_like(residual[..., 0])
    shift = torch.zeros_like(spread)
    for _, tile, energy, log_w in normaliser.tiles():
        p, tau, gap = shares(tile, energy - normaliser.least[:, :, None], log_w, state)
        mass += p.sum(-1, keepdim=True)
        for d in range(residual.shape[-1]) if out.slope_y is not None else ():
            difference = tile.y[:, :, None, d] - predictions(tile, d)
            residual[..., d] += (p * difference).sum(-1)
        for d in range(residual.shape[-1]) if out.slope_scale is not None else ():
            difference = tile.y[:, :, None, d] - predictions(tile, d)
            stretch[..., d] += (p * difference * tile.decoded[:, None, :, d]).sum(-1)
        # No matmul: autocast and TF32 would reach into it.
        for d in range(residual.shape[-1]) if out.mean is not None else ():
            mean[..., d] += (p * tile.decoded[:, None, :, d]).sum(-1)
        if out.slope_beta is not None:
            weight = log_w.exp()
            near = weight * gap.square() * _phi(torch.where(tau.abs() <= 0.5, tau, 0.0))
            far = p * (torch.where(p > 0, tau, 0.0) - 1) + weight
            # A dropped latent has weight 0 and would divide it by beta = 0.
            far = torch.where(log_w > -torch.inf, far / tile.beta[:, :, None].square(), 0.0)
            spread += torch.where(tau.abs() <= 0.5, near, far).sum(-1)
            near = weight * gap * _psi(torch.where(tau.abs() <= 0.5, tau, 0.0))
            far = torch.where(log_w > -torch.inf, (weight - p) / tile.beta[:, :, None], 0.0)
            shift += torch.where(tau.abs() <= 0.5, near, far).sum(-1)
    if out.slope_y is not None:
        out.slope_y[where] = (2 * residual / mass).to(out.slope_y.dtype)
    if out.slope_scale is not None:
        out.slope_scale[where] = (-2 * stretch / mass).to(out.slope_scale.dtype)
    if out.mean is not None:
        out.mean[where] = (mean / mass).to(out.mean.dtype)
    if out.slope_beta is not None:
        slope = _slope_about(beta.double(), spread, shift)
        out.slope_beta[where] = torch.where(beta == torch.inf, 0.0, slope).to(beta.dtype)


def _slope_about(beta: Tensor, spread: Tensor, shift: Tensor) -> Tensor:
    """DF/dbeta from the sums of w a^2 Phi and of w a Psi."""
    rest = torch.where((beta * shift).abs() < 0.5, -beta * shift, 0.0)
    delta = -torch.log1p(rest) / torch.where(beta == 0, 1.0, beta)
    delta = torch.where(beta == 0, shift, delta)
    relative = (spread - delta.square() * _phi(-beta * delta)).clamp(min=0)
    return -(beta * delta).exp() * relative


@explained("chunked")
def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`."""
    problem = normalised(problem)
    num_grids, num_latents, num_dims = problem.decoded.shape
    decoded = grad.new_zeros((num_grids, num_latents, num_dims), dtype=torch.float64)
    log_weight = torch.zeros_like(decoded[..., 0])
    latent_energy = torch.zeros_like(log_weight)
    for grid, query in query_tiles(problem):
        for latent in steps(num_latents, latent_tile(problem)):
            tile = narrowed(problem, grid, query, latent)
            log_w = log_weights(tile, num_latents)
            excess = energies(tile) - state[grid, query, None, 0].to(grad.dtype)
            p, tau, gap = shares(tile, excess, log_w, state[grid, query])
            share = grad[grid, query, None] * p
            if want.latent_energy:
                latent_energy[grid, latent] += share.sum(1)
            for d in range(num_dims) if want.decoded else ():
                pull = share * (tile.y[:, :, None, d] - predictions(tile, d))
                if tile.scale is not None:
                    pull = pull * tile.scale[:, :, None, d]
                decoded[grid, latent, d] -= 2 * pull.sum(1)
            if want.log_weight:
                pulled = grad[grid, query, None] * log_w.exp()
                near = pulled * gap * _psi(torch.where(tau.abs() <= 0.5, tau, 0.0))
                far = (pulled - share) / tile.beta[:, :, None]
                far = torch.where(log_w > -torch.inf, far, 0.0)
                log_weight[grid, latent] += torch.where(tau.abs() <= 0.5, near, far).sum(1)
    return Columns(
        decoded=decoded.to(grad.dtype) if want.decoded else None,
        log_weight=log_weight.to(grad.dtype) if want.log_weight else None,
        latent_energy=latent_energy.to(grad.dtype) if want.latent_energy else None,
    )
