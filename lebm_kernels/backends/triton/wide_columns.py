"""Column pass, D > 4: gradients of the latent-side arguments, tile by tile.

The sums are those of narrow_columns.py, in ``partial[field, split, b, n]``. A program has BLOCK_N
latents and BLOCK_M queries at a time, 8 x 8 pairs a thread (packed.py), and computes their energies
in registers. Where dF/dg is wanted, the tile of q = G p goes to a scratch, and the differences y -
s g are computed anew (moments.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.moments import (
    CHUNK,
    WIDE_SIZES,
    vector_places,
    weight_places,
)
from lebm_kernels.backends.triton.narrow_columns import DECODED, ENERGIES, scaled_grad
from lebm_kernels.backends.triton.packed import PACK, kept_places, sum_over, summed_places
from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    SHIFT,
    STATE_SIZE,
    coldness,
    difference,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    query_pointers,
    tile_of,
)


@triton.jit
def _vector_sum(
    q_at, y_at, scale_at, g, HAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The sum of q s (y - s g) over a tile of queries."""
    sums = tl.zeros((AT_ONCE, g.shape[1], g.shape[2], g.shape[3], g.shape[4]), g.dtype)
    for i in range(0, BLOCK_M // AT_ONCE, CHUNK):
        for j in tl.static_range(CHUNK):
            q = tl.load(q_at + (i * BLOCK_N + j))
            y = tl.load(y_at + (i + j) * BLOCK_D)
            if SCALE & HAS:
                s = tl.load(scale_at + (i + j) * BLOCK_D)
                sums = tl.fma(q * difference(y, s, g, HAS), s, sums)
            else:
                sums = tl.fma(q, difference(y, 1.0, g, HAS), sums)
    return tl.sum(sums, axis=0, keep_dims=True)


@triton.jit
def _add_vectors(
    a, slabs, tile, fresh, M, N, D, start, num_splits, program, programs, partial_ptr,
    HAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Add the vectors of a tile of q to their sums; ``fresh`` ones are 0."""
    at_once, place, dimension = vector_places(BLOCK_N, BLOCK_D, AT_ONCE)
    grid, _, _, inside, size, own = tile_of(program, programs, N, num_splits, place, BLOCK_N)
    # A tile lies within one packed block.
    first = tile_of(program, programs, N, num_splits, 0, BLOCK_N)[2]
    decoded_at = latent_pointers(a, grid, first, D, False)[0]
    at_once = at_once * (BLOCK_M // AT_ONCE)
    q_at = tile + at_once * BLOCK_N + place * CHUNK
    of_query = (start + at_once) * BLOCK_D + dimension
    y_at = slabs.ptr + grid * slabs.stride + of_query
    scale_at = slabs.scale_ptr + grid * slabs.scale_stride + of_query
    for slab in range(0, tl.cdiv(D, BLOCK_D)):
        i = slab * BLOCK_D + dimension
        g = tl.load(decoded_at + (i * PACK + place), mask=i < D, other=0.0)
        if LOG_WEIGHT & HAS:
            # A dropped latent may be infinite or NaN, and 0 times it is not 0.
            g = tl.where(tl.abs(g) < float("inf"), g, 0.0)
        sums = _vector_sum(q_at, y_at, scale_at, g, HAS, BLOCK_M, BLOCK_N, BLOCK_D, AT_ONCE)
        at = partial_ptr + own + i * size
        old = tl.load(at, mask=inside & (i < D) & (fresh == 0), other=0.0)
        tl.store(at, old + sums.to(tl.float64), mask=inside & (i < D))
        y_at += slabs.slab_stride
        scale_at += slabs.slab_stride


@triton.jit(do_not_specialize=WIDE_SIZES)
def wide_columns_kernel(
    a, slabs, tile_ptr, grad_ptr, state_ptr, partial_ptr, M, N, D, split_size, num_splits,
    first_program, programs, HAS: tl.constexpr, WANT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One program for each tile of latents and split of queries; ``a`` is packed."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    program = first_program + tl.program_id(0)
    place_n, place_m = kept_places(BLOCK_N), summed_places(BLOCK_M, BLOCK_N)
    grid, split, offs_n, inside_n, size, own = tile_of(
        program, programs, N, num_splits, place_n, BLOCK_N
    )
    decoded_at = latent_pointers(a, grid, offs_n, D, False)[0]
    of_scalars = latent_pointers(a, grid, tl.minimum(offs_n, N - 1), D, False)
    lw, r = 0.0, 0.0
    if LOG_WEIGHT & HAS:
        lw = tl.load(of_scalars[1])
    if LATENT_ENERGY & HAS:
        r = tl.load(of_scalars[2])
    tile = tile_ptr + tl.program_id(0).to(tl.int64) * (BLOCK_M * BLOCK_N)
    total = tl.zeros(place_n.shape, tl.float64)
    first, stop = own_split(split, split_size, M)
    for block in range(first // BLOCK_M, tl.cdiv(stop, BLOCK_M)):
        offs_m = block * BLOCK_M + place_m
        inside = offs_m < stop
        y_at, scale_at, _ = query_pointers(a, grid, offs_m, D, False)
        safe_m = tl.minimum(offs_m, M - 1)
        beta = tl.load(query_pointers(a, grid, safe_m, D, False)[2])
        grad = tl.load(grad_ptr + grid * M + safe_m)
        state_at = state_ptr + (grid * M + safe_m) * STATE_SIZE
        m = tl.load(state_at + SHIFT).to(dtype)
        c = coldness(beta)
        factor, whole, rest = scaled_grad(grad, state_at, N, beta, HAS)
        e = tile_energy(y_at, scale_at, decoded_at, r, D, HAS, False) - m
        if LOG_WEIGHT & HAS:
            whole = whole + lw
        rest = whole + rest
        q = factor * tl.exp2(tl.fma(-c, e, rest))
        q = tl.where(inside, q, 0.0)
        if LOG_WEIGHT & HAS:
            q = tl.where(lw == float("-inf"), 0.0, q)
        if ENERGIES & WANT:
            total += sum_over(q).to(tl.float64)
        if DECODED & WANT:
            tl.store(tile + weight_places(BLOCK_N, BLOCK_M), q)
            # Threads of this program read what its other threads wrote.
            tl.debug_barrier()
            _add_vectors(
                a, slabs, tile, block * BLOCK_M == first, M, N, D, block * BLOCK_M, num_splits,
                program, programs, partial_ptr, HAS, BLOCK_M, BLOCK_N, BLOCK_D, AT_ONCE,
            )  # fmt: skip
            tl.debug_barrier()
    if ENERGIES & WANT:
        tl.store(partial_ptr + own + D * (WANT & 1) * size, total, mask=inside_n)
