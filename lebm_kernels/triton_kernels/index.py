"""Which latent has the least energy: index[b, m] = argmin_n E, the first of equals.

The least E of a share of the latents and its place go to ``energy[share, b, m]`` and
``place[share, b, m]``; a second kernel merges the shares in order. Latents without weight, and
energies that are infinite or no number, are never the least; if there is no other, the place is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.triton_kernels.pairs import LATENT_ENERGY, LOG_WEIGHT, tile_energy


@triton.jit(do_not_specialize=["B", "M", "N", "D", "share_size", "shares"])
def least_kernel(
    a,
    energy_ptr,
    place_ptr,
    B,
    M,
    N,
    D,
    share_size,
    shares,
    HAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program a tile of queries and share of latents."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    tiles = tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0) % tiles
    share = tl.program_id(0) // tiles % shares
    grid = (tl.program_id(0) // tiles // shares).to(tl.int64)
    offs_m = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    safe_m = tl.minimum(offs_m, M - 1)
    y_at = (a.y_ptr + grid * a.y_stride + safe_m * D)[:, None]
    scale_at = (a.scale_ptr + grid * a.scale_stride_b + safe_m * a.scale_stride_m)[:, None]
    least = tl.full((BLOCK_M, BLOCK_N), float("inf"), dtype)
    place = tl.zeros((BLOCK_M, BLOCK_N), tl.int64)
    first = share.to(tl.int64) * share_size
    stop = tl.minimum(first + share_size, N)
    for start in range(first, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        safe_n = tl.minimum(offs_n, stop - 1)
        kept = offs_n < stop
        if LOG_WEIGHT & HAS:
            lw = tl.load(a.log_weight_ptr + grid * a.log_weight_stride + safe_n)
            kept = kept & (lw != float("-inf"))
        r = 0.0
        if LATENT_ENERGY & HAS:
            r = tl.load(a.latent_energy_ptr + grid * a.latent_energy_stride + safe_n)[None, :]
        decoded_at = (a.decoded_ptr + grid * a.decoded_stride + safe_n * D)[None, :]
        e = tile_energy(y_at, scale_at, decoded_at, r, D, BLOCK_M, BLOCK_N, HAS)
        better = kept[None, :] & (e < least)
        least = tl.where(better, e, least)
        place = tl.where(better, offs_n[None, :], place)
    best = tl.min(least, axis=1)
    # Every thread has its own first; of equals, the first of all.
    place = tl.min(tl.where(least == best[:, None], place, N.to(tl.int64)), axis=1)
    out = share * (B.to(tl.int64) * M) + grid * M + offs_m
    tl.store(energy_ptr + out, best, mask=offs_m < M)
    tl.store(place_ptr + out, place, mask=offs_m < M)


@triton.jit(do_not_specialize=["queries", "shares"])
def merge_least_kernel(energy_ptr, place_ptr, index_ptr, queries, shares, BLOCK: tl.constexpr):
    """One program for BLOCK queries of any grids."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < queries
    least = tl.load(energy_ptr + at, mask=inside, other=0.0)
    place = tl.load(place_ptr + at, mask=inside, other=0)
    for share in range(1, shares):
        from_share = share * queries.to(tl.int64) + at
        e = tl.load(energy_ptr + from_share, mask=inside, other=0.0)
        other = tl.load(place_ptr + from_share, mask=inside, other=0)
        place = tl.where(e < least, other, place)
        least = tl.where(e < least, e, least)
    tl.store(index_ptr + at, place, mask=inside)
