"""The pairs of a problem in tiles of bounded size, in plain PyTorch.

``chunked``, the second derivatives and the draws are made of these pieces. A tile is some queries
with some latents: no tensor here is larger. With the shift m, any energy that is subtracted before
the exponential, and the normalised weights w:

    L = log sum_n w exp(-beta (E - m))            the log-normaliser
    t = beta (E - m)                              what an energy costs in nats
    p = w exp(-t - L)                             the posterior weight
    tau = log(p/w) = -t - L = -beta (E - F)

    psi_j(x) = x^-j int_0^x t^(j-1) e^t dt = sum_k x^k / (k! (k + j))

psi_1(x) = (e^x - 1) / x and psi_2(x) = (e^x (x - 1) + 1) / x^2 are what derivatives by beta and by
log-weights come to where beta is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from lebm_kernels.arguments import TENSORS
from lebm_kernels.backends.contract import Problem

# Dimensions summed at once. A sum of partial sums rounds less than one long sum.
_SLAB = 32


def _tile_pairs(device: torch.device) -> int:
    """Pairs a tile: small enough for a CPU's caches, large enough to fill a GPU."""
    return 1 << 18 if device.type == "cpu" else 1 << 23


def steps(size: int, step: int) -> Iterator[slice]:
    """``range(size)`` in slices of ``step``."""
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def latents_per_tile(problem: Problem) -> int:
    """How many latents a tile holds."""
    return min(problem.decoded.shape[1], _tile_pairs(problem.y.device), 1 << 14)


def query_tiles(problem: Problem) -> Iterator[tuple[slice, slice]]:
    """The queries in tiles of (grids, queries), small enough to go with a tile of latents."""
    num_grids, num_queries = problem.beta.shape
    room = max(1, _tile_pairs(problem.y.device) // latents_per_tile(problem))
    queries = min(max(num_queries, 1), room)
    for grid in steps(num_grids, max(1, room // queries)):
        for query in steps(num_queries, queries):
            yield grid, query


def latent_tiles(problem: Problem) -> Iterator[slice]:
    """The latents in tiles."""
    return steps(problem.decoded.shape[1], latents_per_tile(problem))


def narrowed(problem: Problem, grid: slice, query: slice, latent: slice) -> Problem:
    """The part of the problem in one tile, as views."""
    *given, tol = problem
    parts = (
        None if x is None else x[grid, query if row.of_queries else latent]
        for x, row in zip(given, TENSORS, strict=True)
    )
    return Problem._make((*parts, tol))


def predictions(tile: Problem, d: int) -> Tensor:
    """Dimension d of s g, broadcastable to the tile's energies."""
    prediction = tile.decoded[:, None, :, d]
    return prediction if tile.scale is None else tile.scale[:, :, None, d] * prediction


def differences(tile: Problem, d: int) -> Tensor:
    """Dimension d of y - s g, ``[b, m, n]``."""
    return tile.y[:, :, None, d] - predictions(tile, d)


def energies(tile: Problem) -> Tensor:
    """E[b, m, n] of one tile; inf where a log-weight of -inf drops the latent."""
    num_dims = tile.y.shape[-1]
    slabs = (
        sum(differences(tile, d).square_() for d in range(s.start, s.stop))
        for s in steps(num_dims, _SLAB)
    )
    energy = cast(Tensor, sum(slabs))
    if tile.latent_energy is not None:
        energy = energy + tile.latent_energy[:, None, :]
    if tile.log_weight is not None:
        energy = energy.masked_fill(tile.log_weight[:, None, :] == -torch.inf, torch.inf)
    return energy


def normalised(problem: Problem) -> Problem:
    """The same problem with log w in place of l; uniform weights stay None."""
    if problem.log_weight is None:
        return problem
    # Relative to the largest, which removes a common offset without rounding.
    wide = problem.log_weight.double()
    wide = wide - wide.amax(-1, keepdim=True)
    log_w = wide - torch.logsumexp(wide, -1, keepdim=True)
    # A difference beyond the dtype's range stays finite: only a log-weight of -inf drops a latent.
    given = problem.log_weight
    lowest = torch.where(given == -torch.inf, given, torch.finfo(given.dtype).min)
    return problem._replace(log_weight=torch.maximum(log_w, lowest).to(given.dtype))


def log_weights(tile: Problem, num_latents: int) -> Tensor:
    """Normalised log-weights of a tile of a :func:`normalised` problem, beside its energies."""
    if tile.log_weight is None:
        return torch.full_like(tile.decoded[:1, :1, 0], -math.log(num_latents))[:, None]
    return tile.log_weight[:, None, :]


def costs(tile: Problem, excess: Tensor) -> Tensor:
    """The cost t = beta (E - m) of an ``excess`` E - m >= 0, without the NaN of inf * 0."""
    beta = tile.beta[:, :, None]
    frozen = torch.where(excess > 0, torch.inf, excess)
    t = torch.where(beta == 0, 0.0, torch.where(beta == torch.inf, frozen, beta * excess))
    # A negative or NaN beta has no free energy: the result must not look like one.
    t = torch.where(beta >= 0, t, torch.nan)
    return torch.where(excess == torch.inf, torch.inf, t)


def present(energy: Tensor) -> Tensor:
    """The energies, with 0 for those of dropped latents, which have no weight."""
    return torch.where(energy == torch.inf, 0.0, energy)


def posterior_weights(
    tile: Problem, excess: Tensor, log_w: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior weights p, tau = log(p/w) and E - F of a tile, from its queries' state.

    L may be in the hundreds where weights are tiny. Its integer part is added to log w before it
    can round the rest away.
    """
    log_normaliser = state[:, :, None, 1]
    whole = log_normaliser.round()
    rest = (log_normaliser - whole).to(excess.dtype)
    cost = costs(tile, excess)
    p = (log_w - cost - whole.to(excess.dtype) - rest).exp()
    tau = -cost - log_normaliser.to(excess.dtype)
    return p, tau, present(excess) - state[:, :, None, 2].to(excess.dtype)


def inverse_size(beta: Tensor, state: Tensor) -> Tensor:
    """Z, the larger of beta and 1/F, and 1 where neither is a positive number; float64.

    A sum of squared energies may leave the range of the dtype where F does not. Z (E - F) has no
    unit: it is at most 1 where beta (E - F) is, except for latents far above the others.
    """
    size = state[..., 0].abs() + state[..., 2].abs()
    z = torch.maximum(torch.where(beta < torch.inf, beta.double(), 0.0), 1 / size)
    usable = (z > 0) & (z <= torch.finfo(beta.dtype).max)
    return torch.where(usable, z, torch.where((beta > 0) & (beta < torch.inf), beta.double(), 1.0))


def psi(x: Tensor, j: int) -> Tensor:
    """psi_j(x) for j >= 1 and |x| <= 1; psi_1 for any x."""
    if j == 1:
        safe = torch.where(x == 0, 1.0, x)
        return torch.where(x == 0, 1.0, torch.expm1(safe) / safe)
    num_terms = 19 if x.dtype == torch.float64 else 11
    total = torch.zeros_like(x)
    for k in reversed(range(num_terms)):
        total = total * x + 1 / (math.factorial(k) * (k + j))
    return total


def psis(x: Tensor, order: int) -> list[Tensor]:
    """psi_1 to psi_order for |x| <= 1: the last by its series, the others from it."""
    found, power = [psi(x, order)], x.exp()
    for j in range(order - 1, 0, -1):
        # int t^j e^t = x^j e^x - j int t^(j-1) e^t; in this direction nothing cancels.
        found.insert(0, (power - x * found[0]) / j)
    return found


class Normaliser:
    """m = min E, L and F - m of a tile of queries, in two passes over the latents."""

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
        for latent in latent_tiles(self.problem):
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
        # sum w (exp(-t) - 1) and sum w (E - m) are exact where t is small and log_sum is not.
        deficit, mean_excess = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
        largest = torch.zeros_like(self.least)
        infinite = torch.zeros_like(self.least, dtype=torch.bool)
        for _, tile, energy, log_w in self.tiles():
            excess = torch.where(energy == torch.inf, energy, energy - self.least[:, :, None])
            t = costs(tile, excess)
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w - t, -1).double())
            weight = log_w.exp()
            kept = excess < torch.inf
            infinite |= ((excess == torch.inf) & (weight > 0)).any(-1)
            minus = torch.where(kept | (weight > 0), torch.expm1(-t), 0.0)
            deficit += (weight * minus).sum(-1).double()
            excess = torch.where(kept, excess, 0.0)
            mean_excess += (weight * excess).sum(-1, dtype=torch.float64)
            largest = torch.maximum(largest, excess.amax(-1))
        beta = self.problem.beta[self.grid, self.query].double()
        small = deficit > -0.25
        self.log_normaliser = torch.where(small, torch.log1p(deficit), log_sum)
        # Hot: the second-order term -beta Var/2 is below rounding, and t may underflow. Not where
        # an energy is infinite: then the gap is log w of the other latents, over beta.
        hot = (beta * largest.double() <= torch.finfo(self.least.dtype).eps / 4) & ~infinite
        warm = -self.log_normaliser / torch.where(hot, 1.0, beta)
        self.gap = torch.where(hot, mean_excess, torch.where(beta == torch.inf, 0.0, warm))
        self.gap = torch.where(self.least.isinf(), 0.0, self.gap)
        # An invalid beta, weights that are not numbers, or a query that is not a number.
        invalid = ~(beta >= 0) | self.log_normaliser.isnan() | self.least.isnan()
        invalid |= self.least == -torch.inf
        self.gap = torch.where(invalid, torch.nan, self.gap)

    def state(self) -> Tensor:
        """The state that :class:`~lebm_kernels.backends.contract.Rows` describes, ``[b, m, 4]``."""
        cold = self.problem.beta[self.grid, self.query] == torch.inf
        rest = torch.where(cold, self.log_normaliser / math.log(2), 0.0)
        return torch.stack((self.least.double(), self.log_normaliser, self.gap, rest), -1)

    def free_energy(self) -> Tensor:
        """F, ``[b, m]``."""
        return (self.least.double() + self.gap).to(self.least.dtype)
