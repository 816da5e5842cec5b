"""Draws from the posterior: its cumulative sum is inverted, a tile of latents at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lebm_kernels.backends import tiles
from lebm_kernels.backends.contract import STATE_SIZE, Problem

NO_POSTERIOR = "y must have a posterior to draw from, got a query with none: NaN or out of reach"
"""The error message when a query has no posterior to draw from."""


def sample(problem: Problem, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Indices of latents ``[B, M, num_samples]`` drawn from p; one tile of pairs in memory.

    A uniform u in (0, total) selects the first latent whose cumulative mass exceeds it. The total
    is rounded as the cumulative sums are, so that every u selects a latent of positive mass. The
    normaliser comes from the same arithmetic: at beta = inf, another backend's minimum may differ
    in the last bit, and then no latent would have any mass.

    Raises:
        ValueError: a query has no posterior.
    """
    problem = tiles.normalised(problem)
    state = problem.y.new_empty((*problem.beta.shape, STATE_SIZE), dtype=torch.float64)
    for where in tiles.query_tiles(problem):
        state[where] = tiles.Normaliser(problem, *where).state()
    # The shift and the normaliser must be finite. The gap F - m may be inf.
    if not state[..., :2].isfinite().all() or state[..., 2].isnan().any():
        raise ValueError(NO_POSTERIOR)
    num_grids, num_queries = problem.beta.shape
    index = torch.empty(
        (num_grids, num_queries, num_samples), dtype=torch.int64, device=problem.y.device
    )
    for where in tiles.query_tiles(problem):
        masses = [mass.sum(-1) for _, mass in _masses(problem, state, where)]
        ends = torch.stack(masses, -1).cumsum(-1)
        u = torch.rand(
            index[where].shape, dtype=torch.float64, device=index.device, generator=generator
        )
        u = u * ends[..., -1:]
        drawn = torch.searchsorted(ends, u, right=True)
        drawn = drawn.clamp_(max=len(masses) - 1)
        starts = torch.cat((torch.zeros_like(ends[..., :1]), ends[..., :-1]), -1)
        local = torch.zeros_like(drawn)
        for number, (start, mass) in enumerate(_masses(problem, state, where)):
            cumulative = mass.cumsum(-1)
            rest = u - starts[..., number : number + 1]
            # Rounding may leave the rest at or past the last sum: take the last latent with mass.
            last = (mass > 0).to(torch.int8).cumsum(-1).argmax(-1, keepdim=True)
            inside = torch.searchsorted(cumulative, rest, right=True).minimum(last)
            local = torch.where(drawn == number, start + inside, local)
        index[where] = local
    return index


def _masses(
    problem: Problem, state: Tensor, where: tuple[slice, slice]
) -> Iterator[tuple[int, Tensor]]:
    """The first latent and the posterior masses ``[b, m, n]``, float64, of every tile."""
    num_latents = problem.decoded.shape[1]
    step = tiles.latents_per_tile(problem)
    least, log_normaliser = state[where][..., None, 0], state[where][..., None, 1]
    for start in range(0, num_latents, step):
        tile = tiles.narrowed(problem, *where, slice(start, min(start + step, num_latents)))
        excess = tiles.energies(tile) - least.to(tile.y.dtype)
        tau = -tiles.costs(tile, excess).double() - log_normaliser
        yield start, (tiles.log_weights(tile, num_latents) + tau).exp()
