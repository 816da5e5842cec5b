"""Which latent has the least energy: index[b, m] = argmin_n E, the first of equals.

The least E of a split of the latents and its place go to ``energy[split, b, m]`` and ``place[split,
b, m]``; a second kernel merges the splits in order. Dropped latents, and energies that are infinite
or NaN, are never the least; if there is no other, the place is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.packed import kept_places, least_over, summed_places
from lebm_kernels.backends.triton.pairs import LATENT_ENERGY, LOG_WEIGHT, tile_energy
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    own_tile,
    query_pointers,
    split_pointers,
)


@triton.jit(do_not_specialize=["M", "N", "D", "split_size", "num_splits"])
def least_kernel(
    a,
    energy_ptr,
    place_ptr,
    M,
    N,
    D,
    split_size,
    num_splits,
    HAS: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for each tile of queries and split of latents."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    place_m, place_n = kept_places(BLOCK_M), summed_places(BLOCK_N, BLOCK_M)
    grid, split, offs_m, inside, _, own = own_tile(M, num_splits, place_m, BLOCK_M)
    y_at, scale_at, _ = query_pointers(a, grid, tl.minimum(offs_m, M - 1), D, NARROW)
    place = tl.zeros((place_m + place_n).shape, tl.int64)
    least = tl.full(place.shape, float("inf"), dtype)
    first, stop = own_split(split, split_size, N)
    for start in range(first, stop, BLOCK_N):
        offs_n = start + place_n
        decoded_at, log_weight_at, latent_energy_at = latent_pointers(
            a, grid, tl.minimum(offs_n, stop - 1), D, NARROW
        )
        kept = offs_n < stop
        if LOG_WEIGHT & HAS:
            lw = tl.load(log_weight_at)
            kept = kept & (lw != float("-inf"))
        r = 0.0
        if LATENT_ENERGY & HAS:
            r = tl.load(latent_energy_at)
        e = tile_energy(y_at, scale_at, decoded_at, r, D, HAS, NARROW)
        better = kept & (e < least)
        least = tl.where(better, e, least)
        place = tl.where(better, offs_n, place)
    best = least_over(least)
    # Every thread has its own first minimum. Of equal ones, take the first of all.
    place = least_over(tl.where(least == best, place, N.to(tl.int64)))
    tl.store(energy_ptr + own, best, mask=inside)
    tl.store(place_ptr + own, place, mask=inside)


@triton.jit(do_not_specialize=["queries", "num_splits"])
def merge_least_kernel(
    energy_ptr,
    place_ptr,
    index_ptr,
    mean_ptr,
    queries,
    num_splits,
    RAISE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program for each BLOCK queries of any grid. RAISE: <E> is not below the least energy."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < queries
    least = tl.full((BLOCK, BLOCK_S), float("inf"), energy_ptr.dtype.element_ty)
    place = tl.zeros((BLOCK, BLOCK_S), tl.int64)
    for first in range(0, num_splits, BLOCK_S):
        pointers, there = split_pointers(
            at, inside, first, num_splits, queries.to(tl.int64), BLOCK_S
        )
        e = tl.load(energy_ptr + pointers, mask=there, other=float("inf"))
        other = tl.load(place_ptr + pointers, mask=there, other=0)
        place = tl.where(e < least, other, place)
        least = tl.minimum(least, e)
    # As within a split: of equal minima, take the first of all.
    best = tl.min(least, axis=1)
    place = tl.min(tl.where(least == best[:, None], place, 1 << 62), axis=1)
    tl.store(index_ptr + at, place, mask=inside)
    if RAISE:
        mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
        tl.store(mean_ptr + at, best, mask=inside & (mean < best))
