"""Column pass, D > 4: gradients of the latent-side arguments, tile by tile.

The sums are those of narrow_columns.py, in ``partial[field, split, b, n]``. A tile of q = G p is
held and summed over the queries once for each dimension, with the differences y - s g computed
anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.narrow_columns import DECODED, ENERGIES, scaled_grad
from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    SHIFT,
    STATE_SIZE,
    add_to,
    coldness,
    difference,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    own_tile,
    query_pointers,
)


@triton.jit(do_not_specialize=["M", "N", "D", "split_size", "num_splits"])
def wide_columns_kernel(
    a, grad_ptr, state_ptr, partial_ptr, M, N, D, split_size, num_splits, HAS: tl.constexpr,
    WANT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program for each tile of latents and split of queries."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    grid, split, offs_n, inside_n, size, own = own_tile(N, num_splits, BLOCK_N)
    decoded_at, log_weight_at, latent_energy_at = latent_pointers(
        a, grid, tl.minimum(offs_n, N - 1), D
    )
    decoded_at = decoded_at[:, None]
    lw, r = 0.0, 0.0
    if LOG_WEIGHT & HAS:
        lw = tl.load(log_weight_at)[:, None]
    if LATENT_ENERGY & HAS:
        r = tl.load(latent_energy_at)[:, None]
    out = partial_ptr + own
    total = tl.zeros((BLOCK_N,), tl.float64)
    for i in range(0, D * (WANT & 1)):
        tl.store(out + i * size, total, mask=inside_n)
    first, stop = own_split(split, split_size, M)
    for start in range(first, stop, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        inside = offs_m < stop
        safe_m = tl.minimum(offs_m, stop - 1)
        y_at, scale_at, beta_at = query_pointers(a, grid, safe_m, D)
        y_at, scale_at = y_at[None, :], scale_at[None, :]
        beta = tl.load(beta_at)
        grad = tl.load(grad_ptr + grid * M + safe_m)
        state_at = state_ptr + (grid * M + safe_m) * STATE_SIZE
        m = tl.load(state_at + SHIFT).to(dtype)[None, :]
        c = coldness(beta)
        factor, whole, rest = scaled_grad(grad, state_at, N, beta, HAS)
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
            # Threads of this program read what its other threads wrote.
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
