"""Row pass, D > 4: partial sums over a split of the latents, tile by tile.

The sums and their places in ``partial[field, split, b, m]`` are those of narrow_rows.py. A tile of
posterior weights is held and summed over the latents once for each dimension, with the differences
y - s g computed anew. That costs as much as the energies did, and no product y.g or mean of g can
cancel. The shift (m, k) is updated with every tile: m is the least energy, so without weights no
latent lies below it. Sums of vectors live in ``partial``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.narrow_rows import ENERGY, MEAN, PULL, STRETCH
from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    add_to,
    coldness,
    difference,
    largest,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    own_tile,
    query_pointers,
)


@triton.jit(do_not_specialize=["M", "N", "D", "split_size", "num_splits"])
def wide_rows_kernel(
    a, partial_ptr, M, N, D, split_size, num_splits, HAS: tl.constexpr, WANT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program for each tile of queries and split of latents."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    grid, split, offs_m, inside, field, own = own_tile(M, num_splits, BLOCK_M)
    y_at, scale_at, beta_at = query_pointers(a, grid, tl.minimum(offs_m, M - 1), D)
    beta = tl.load(beta_at)
    y_at, scale_at = y_at[:, None], scale_at[:, None]
    # Invalid queries: their energies must not become a shift.
    sound = (beta >= 0)[:, None]
    for i in range(0, D):
        y = tl.load(y_at + i)
        sound = sound & (y == y)
        if SCALE & HAS:
            s = tl.load(scale_at + i)
            sound = sound & (s == s)
    c = coldness(beta)[:, None]

    out = partial_ptr + own
    m = tl.full((BLOCK_M, 1), largest(dtype), dtype)
    k = tl.zeros((BLOCK_M, 1), dtype)
    total = tl.zeros((BLOCK_M,), tl.float64)
    energy = total
    for i in range(4, 4 + D * ((WANT // 2 & 1) + (WANT // 4 & 1) + WANT // 8)):
        tl.store(out + i * field, total, mask=inside)
    first, stop = own_split(split, split_size, N)
    for start in range(first, stop, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        decoded_at, log_weight_at, latent_energy_at = latent_pointers(
            a, grid, tl.minimum(offs_n, stop - 1), D
        )
        kept = (offs_n < stop)[None, :]
        lw = 0.0
        if LOG_WEIGHT & HAS:
            lw = tl.load(log_weight_at)[None, :]
            kept = kept & (lw != float("-inf"))
        r = 0.0
        if LATENT_ENERGY & HAS:
            r = tl.load(latent_energy_at)[None, :]
        decoded_at = decoded_at[None, :]
        e = tile_energy(y_at, scale_at, decoded_at, r, D, BLOCK_M, BLOCK_N, HAS)
        e = tl.where(kept, e, float("inf"))
        new_m = tl.minimum(m, tl.min(e, axis=1)[:, None])
        new_m = tl.where(new_m == new_m, new_m, m)
        e = e - new_m
        moved = k - c * (m - new_m)
        new_k = k
        exponent = -c * e
        if LOG_WEIGHT & HAS:
            exponent = tl.fma(-c, e, lw)
            found = tl.max(tl.where(kept, exponent, float("-inf")), axis=1)[:, None]
            new_k = tl.where(found > moved, found, moved)
            new_k = tl.where(new_k == float("-inf"), 0.0, new_k)
            exponent = exponent - new_k
        p = tl.where(kept, tl.exp2(exponent), 0.0)
        shrink = tl.reshape(tl.exp2(moved - new_k), (BLOCK_M,)).to(tl.float64)
        if ENERGY & WANT:
            rise = tl.reshape(m.to(tl.float64) - new_m.to(tl.float64), (BLOCK_M,))
            above = tl.where(kept, tl.minimum(e, largest(dtype)), 0.0)
            energy = shrink * (energy + rise * total) + tl.sum(p * above, axis=1).to(tl.float64)
        total = shrink * total + tl.sum(p, axis=1).to(tl.float64)
        m, k = new_m, new_k
        if (WANT // 2) > 0:
            # Threads of this program read what its other threads wrote.
            tl.debug_barrier()
            for i in range(0, D):
                at = out + (4 + i) * field
                g = tl.where(kept, tl.load(decoded_at + i), 0.0)
                s = 1.0
                if SCALE & HAS:
                    s = tl.load(scale_at + i)
                pull = p * difference(tl.load(y_at + i), s, g, HAS)
                if PULL & WANT:
                    add_to(at, inside, shrink, pull)
                    at += D * field
                if STRETCH & WANT:
                    add_to(at, inside, shrink, pull * g)
                    at += D * field
                if MEAN & WANT:
                    add_to(at, inside, shrink, p * g)
    m = tl.where(sound, m.to(tl.float64), float("nan"))
    tl.store(out, tl.reshape(m, (BLOCK_M,)), mask=inside)
    tl.store(out + field, tl.reshape(k, (BLOCK_M,)).to(tl.float64), mask=inside)
    tl.store(out + 2 * field, total, mask=inside)
    if ENERGY & WANT:
        tl.store(out + 3 * field, energy, mask=inside)
