"""Row pass, D > 4: partial sums over a split of the latents, tile by tile.

The sums and their places in ``partial[field, split, b, m]`` are those of narrow_rows.py. A program
has BLOCK_M queries and BLOCK_N latents at a time, 8 x 8 pairs a thread (packed.py). It computes
their energies, dimension after dimension, in registers. The shift (m, k) is updated with every
tile: m is the least energy, so without weights no latent lies below it.

Where vectors are wanted, the tile of p goes to a scratch, and the differences y - s g are computed
anew (moments.py). That costs as much as the energies did, and no product y.g or mean of g can
cancel.
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
from lebm_kernels.backends.triton.narrow_rows import ENERGY, PULL, STRETCH
from lebm_kernels.backends.triton.packed import (
    PACK,
    STEP,
    kept_places,
    largest_over,
    least_over,
    sum_over,
    summed_places,
    whole_steps,
)
from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    coldness,
    difference,
    largest,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    query_pointers,
    tile_of,
)


@triton.jit
def _sound(y_at, scale_at, beta, D, HAS: tl.constexpr):
    """Whether a query is valid. The energies of others must not become a shift."""
    some = tl.arange(0, STEP)[None, :, None, None] * PACK
    wrong = (beta >= 0) == 0
    for i in range(0, whole_steps(D), STEP):
        y = tl.load(y_at + (i * PACK + some))
        nan = y != y
        if SCALE & HAS:
            s = tl.load(scale_at + (i * PACK + some))
            nan = nan | (s != s)
        wrong = wrong | (tl.max(nan.to(tl.int32), axis=1, keep_dims=True) > 0)
    return wrong == 0


@triton.jit
def _vector_sum(
    p_at, g_at, y, s, HAS: tl.constexpr, KIND: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The sum of p (y - s g), of p (y - s g) g or of p g over a tile of latents."""
    sums = tl.zeros((AT_ONCE, y.shape[1], y.shape[2], y.shape[3], y.shape[4]), y.dtype)
    for i in range(0, BLOCK_N // AT_ONCE, CHUNK):
        for j in tl.static_range(CHUNK):
            p = tl.load(p_at + (i * BLOCK_M + j))
            g = tl.load(g_at + (i + j) * BLOCK_D)
            if KIND == PULL:
                sums = tl.fma(p, difference(y, s, g, HAS), sums)
            elif KIND == STRETCH:
                sums = tl.fma(p * difference(y, s, g, HAS), g, sums)
            else:
                sums = tl.fma(p, g, sums)
    return tl.sum(sums, axis=0, keep_dims=True)


@triton.jit
def _add_vectors(
    a, slabs, tile, shrink, fresh, M, N, D, start, num_splits, program, programs, partial_ptr,
    HAS: tl.constexpr, WANT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Multiply the vectors' sums, ``fresh`` ones are 0, by ``shrink``; add those of a tile of p."""
    at_once, place, dimension = vector_places(BLOCK_M, BLOCK_D, AT_ONCE)
    grid, _, _, inside, field, own = tile_of(program, programs, M, num_splits, place, BLOCK_M)
    first = tile_of(program, programs, M, num_splits, 0, BLOCK_M)[2]
    shrink = tl.reshape(shrink, (1, place.shape[1], 1, place.shape[3], 1))
    # A tile lies within one packed block.
    y_at, scale_at, _ = query_pointers(a, grid, first, D, False)
    at_once = at_once * (BLOCK_N // AT_ONCE)
    p_at = tile + at_once * BLOCK_M + place * CHUNK
    g_at = slabs.ptr + grid * slabs.stride + (start + at_once) * BLOCK_D + dimension
    for slab in range(0, tl.cdiv(D, BLOCK_D)):
        i = slab * BLOCK_D + dimension
        y = tl.load(y_at + (i * PACK + place), mask=i < D, other=0.0)
        s = 1.0
        if SCALE & HAS:
            s = -1.0 * tl.load(scale_at + (i * PACK + place), mask=i < D, other=0.0)
        at = partial_ptr + own + (4 + i) * field
        # PULL, STRETCH and MEAN, by the number of the bit.
        for KIND in tl.static_range(1, 4):
            if WANT >> KIND & 1:
                sums = _vector_sum(
                    p_at, g_at, y, s, HAS, 1 << KIND, BLOCK_M, BLOCK_N, BLOCK_D, AT_ONCE
                )
                old = tl.load(at, mask=inside & (i < D) & (fresh == 0), other=0.0)
                tl.store(at, tl.fma(old, shrink, sums.to(tl.float64)), mask=inside & (i < D))
                at += D * field
        g_at += slabs.slab_stride


@triton.jit(do_not_specialize=WIDE_SIZES)
def wide_rows_kernel(
    a, slabs, tile_ptr, partial_ptr, M, N, D, split_size, num_splits, first_program, programs,
    HAS: tl.constexpr, WANT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One program for each tile of queries and split of latents; ``a`` is packed."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    program = first_program + tl.program_id(0)
    place_m, place_n = kept_places(BLOCK_M), summed_places(BLOCK_N, BLOCK_M)
    grid, split, offs_m, inside, field, own = tile_of(
        program, programs, M, num_splits, place_m, BLOCK_M
    )
    y_at, scale_at, _ = query_pointers(a, grid, offs_m, D, False)
    beta = tl.load(query_pointers(a, grid, tl.minimum(offs_m, M - 1), D, False)[2])
    sound = _sound(y_at, scale_at, beta, D, HAS)
    c = coldness(beta)

    tile = tile_ptr + tl.program_id(0).to(tl.int64) * (BLOCK_M * BLOCK_N)
    m = tl.full(place_m.shape, largest(dtype), dtype)
    k = tl.zeros(place_m.shape, dtype)
    total = tl.zeros(place_m.shape, tl.float64)
    energy = total
    first, stop = own_split(split, split_size, N)
    for block in range(first // BLOCK_N, tl.cdiv(stop, BLOCK_N)):
        offs_n = block * BLOCK_N + place_n
        decoded_at = latent_pointers(a, grid, offs_n, D, False)[0]
        of_scalars = latent_pointers(a, grid, tl.minimum(offs_n, N - 1), D, False)
        kept = offs_n < stop
        lw = 0.0
        if LOG_WEIGHT & HAS:
            lw = tl.load(of_scalars[1])
            kept = kept & (lw != float("-inf"))
        r = 0.0
        if LATENT_ENERGY & HAS:
            r = tl.load(of_scalars[2])
        e = tile_energy(y_at, scale_at, decoded_at, r, D, HAS, False)
        e = tl.where(kept, e, float("inf"))
        new_m = tl.minimum(m, least_over(e))
        new_m = tl.where(new_m == new_m, new_m, m)
        e = e - new_m
        moved = k - c * (m - new_m)
        new_k = k
        exponent = -c * e
        if LOG_WEIGHT & HAS:
            exponent = tl.fma(-c, e, lw)
            found = largest_over(tl.where(kept, exponent, float("-inf")))
            new_k = tl.where(found > moved, found, moved)
            new_k = tl.where(new_k == float("-inf"), 0.0, new_k)
            exponent = exponent - new_k
        p = tl.where(kept, tl.exp2(exponent), 0.0)
        shrink = tl.exp2(moved - new_k).to(tl.float64)
        if ENERGY & WANT:
            rise = m.to(tl.float64) - new_m.to(tl.float64)
            above = tl.where(kept, tl.minimum(e, largest(dtype)), 0.0)
            energy = shrink * (energy + rise * total) + sum_over(p * above).to(tl.float64)
        total = shrink * total + sum_over(p).to(tl.float64)
        m, k = new_m, new_k
        if (WANT // 2) > 0:
            tl.store(tile + weight_places(BLOCK_M, BLOCK_N), p)
            # Threads of this program read what its other threads wrote.
            tl.debug_barrier()
            _add_vectors(
                a, slabs, tile, shrink, block * BLOCK_N == first, M, N, D, block * BLOCK_N,
                num_splits, program, programs, partial_ptr, HAS, WANT, BLOCK_M, BLOCK_N, BLOCK_D,
                AT_ONCE,
            )  # fmt: skip
            tl.debug_barrier()
    out = partial_ptr + own
    tl.store(out, tl.where(sound, m.to(tl.float64), float("nan")), mask=inside)
    tl.store(out + field, k.to(tl.float64), mask=inside)
    tl.store(out + 2 * field, total, mask=inside)
    if ENERGY & WANT:
        tl.store(out + 3 * field, energy, mask=inside)
