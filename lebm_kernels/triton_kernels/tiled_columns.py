"""Latents outside, any D: gradients of what belongs to the latents, by tiles.

The sums are those of columns.py, in ``partial[field, share, b, n]``. A tile of shares q is held
while it is summed over the queries once for each dimension, the differences y - s g anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.triton_kernels.columns import DECODED, ENERGIES, share_of
from lebm_kernels.triton_kernels.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    add_to,
    coldness,
    difference,
    tile_energy,
)


@triton.jit(do_not_specialize=["M", "N", "D", "share_size", "shares"])
def tiled_columns_kernel(
    a, grad_ptr, state_ptr, partial_ptr, M, N, D, share_size, shares, HAS: tl.constexpr,
    WANT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program a tile of latents and share of queries."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    tiles = tl.cdiv(N, BLOCK_N).to(tl.int32)
    tile = tl.program_id(0) % tiles
    share = tl.program_id(0) // tiles % shares
    grid = (tl.program_id(0) // tiles // shares).to(tl.int64)
    offs_n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = offs_n < N
    safe_n = tl.minimum(offs_n, N - 1)
    lw, r = 0.0, 0.0
    if LOG_WEIGHT & HAS:
        lw = tl.load(a.log_weight_ptr + grid * a.log_weight_stride + safe_n)[:, None]
    if LATENT_ENERGY & HAS:
        r = tl.load(a.latent_energy_ptr + grid * a.latent_energy_stride + safe_n)[:, None]
    decoded_at = (a.decoded_ptr + grid * a.decoded_stride + safe_n * D)[:, None]
    size = tl.num_programs(0).to(tl.int64) // tiles * N
    out = partial_ptr + share * (size // shares) + grid * N + offs_n
    total = tl.zeros((BLOCK_N,), tl.float64)
    for i in range(0, D * (WANT & 1)):
        tl.store(out + i * size, total, mask=inside_n)
    first = share.to(tl.int64) * share_size
    stop = tl.minimum(first + share_size, M)
    for start in range(first, stop, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        inside = offs_m < stop
        safe_m = tl.minimum(offs_m, stop - 1)
        y_at = (a.y_ptr + grid * a.y_stride + safe_m * D)[None, :]
        scale_at = (a.scale_ptr + grid * a.scale_stride_b + safe_m * a.scale_stride_m)[None, :]
        beta = tl.load(a.beta_ptr + grid * a.beta_stride_b + safe_m * a.beta_stride_m)
        grad = tl.load(grad_ptr + grid * M + safe_m)
        state_at = state_ptr + (grid * M + safe_m) * 3
        m = tl.load(state_at).to(dtype)[None, :]
        c = coldness(beta)
        factor, whole, rest = share_of(grad, state_at, N, beta, HAS)
        factor, whole, rest = factor[None, :], whole[None, :], rest[None, :]
        e = tile_energy(y_at, scale_at, decoded_at, r, D, BLOCK_N, BLOCK_M, HAS) - m
        if LOG_WEIGHT & HAS:
            whole = whole + lw
        rest = whole + rest
        q = factor * tl.exp2(tl.fma(-c[None, :], e, rest))
        q = tl.where(inside[None, :], q, 0.0)
        if LOG_WEIGHT & HAS:
            q = tl.where(lw == float("-inf"), 0.0, q)
        if ENERGIES & WANT:
            total += tl.sum(q, axis=1).to(tl.float64)
        if DECODED & WANT:
            # What the threads of this program wrote, others of its threads read.
            tl.debug_barrier()
            for i in range(0, D):
                g = tl.load(decoded_at + i)
                if LOG_WEIGHT & HAS:
                    g = tl.where(lw == float("-inf"), 0.0, g)
                s = 1.0
                if SCALE & HAS:
                    s = tl.load(scale_at + i)
                pull = q * difference(tl.load(y_at + i), s, g, HAS)
                if SCALE & HAS:
                    pull = pull * s
                add_to(out + i * size, inside_n, 1.0, pull)
    if ENERGIES & WANT:
        tl.store(out + D * (WANT & 1) * size, total, mask=inside_n)
