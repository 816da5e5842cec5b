"""Recomputes F - m, L, KL and dF/dbeta of hot queries: a sum of exponentials near 1 loses digits.

With e = E - m, psi_1(x) = (e^x - 1)/x, psi_2(x) = (e^x (x - 1) + 1)/x^2, E0 = m + sum p (E - m) as
the row pass found it, and u = E - E0:

    B = sum w e psi_1(-beta e)          L = log1p(-beta B),   F - m = B log1p(-beta B)/(-beta B)
    B0 = sum w u psi_1(-beta u)         F - E0 = B0 log1p(-beta B0)/(-beta B0)
    K = sum w u^2 psi_2(-beta u)
    KL(p|w)/beta^2 = K/(1 - beta B0) - (F - E0)^2 R(beta (F - E0)),      R(x) = (e^x - 1 - x)/x^2

All are exact for any E0, and down to beta = 0. In B0 and K energies are times Z, the larger of
beta and 1/E0: their squares would leave the range of the dtype. A first kernel sums B, B0 and K
over splits of the latents, for the queries that finish.py has listed. A second one merges the
splits, which are as many as fill the device. Both return at once where no query is hot.

Some listed queries only look hot: L is near 0 because m lies above the least energy. F is right all
the same, but R is a series of few terms. So KL(p|w) and dF/dbeta stay as they were where KL(p|w),
which does not depend on m, is not small.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.finish import HOT
from lebm_kernels.backends.triton.narrow_rows import ENERGY
from lebm_kernels.backends.triton.packed import kept_places, sum_over, summed_places
from lebm_kernels.backends.triton.pairs import (
    GAP,
    LATENT_ENERGY,
    LOG_NORMALISER,
    LOG_WEIGHT,
    SHIFT,
    STATE_SIZE,
    coldness,
    entropy_series,
    expm1_ratio,
    rounding,
    split_shift,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    query_pointers,
    sum_of_splits,
)

# A split has at least this many blocks of latents.
_LEAST_BLOCKS = tl.constexpr(4)


@triton.jit
def _splits(count, N, programs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tiles of a grid's hot queries; the number and size of the splits of its latents."""
    tiles = tl.cdiv(count, BLOCK_M)
    blocks = tl.cdiv(N, BLOCK_N).to(tl.int32)
    num_splits = tl.minimum(programs // tl.maximum(tiles, 1), blocks // _LEAST_BLOCKS)
    split_size = tl.cdiv(blocks, tl.maximum(num_splits, 1)).to(tl.int64) * BLOCK_N
    return tiles, tl.cdiv(N, split_size).to(tl.int32), split_size


@triton.jit(do_not_specialize=["M", "N", "D", "programs", "slots"])
def hot_kernel(
    a, hot, state_ptr, M, N, D, programs, slots, HAS: tl.constexpr, WANT: tl.constexpr,
    NARROW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The ``programs`` of a grid loop over its tiles of hot queries and splits of latents.

    ``hot`` is a :class:`~.launch.Hot`. Its sums are ``[field, b, slots]``; each split takes BLOCK_M
    slots for each tile.
    """
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    grid = (tl.program_id(0) // programs).to(tl.int64)
    count = tl.load(hot.count_ptr + grid)
    tiles, num_splits, split_size = _splits(count, N, programs, BLOCK_M, BLOCK_N)
    field = tl.num_programs(0).to(tl.int64) // programs * slots
    for item in range(tl.program_id(0) % programs, tiles * num_splits, programs):
        number = item % tiles * BLOCK_M + kept_places(BLOCK_M)
        inside = number < count
        # Past the last query, take the last one again.
        at = grid * M + tl.load(hot.query_ptr + grid * M + tl.minimum(number, count - 1))
        y_at, scale_at, beta_at = query_pointers(a, grid, at - grid * M, D, NARROW)
        beta = tl.load(beta_at)
        m = tl.load(state_ptr + at * STATE_SIZE + SHIFT).to(dtype)
        free, late, strict = split_shift(coldness(beta), m, HAS, NARROW)
        mean, z = m, m
        if ENERGY & WANT:
            mean = tl.load(hot.energy_ptr + at)
            shift = tl.load(state_ptr + at * STATE_SIZE + SHIFT)
            z = inverse_size(beta, shift, mean, dtype)
            mean = mean.to(dtype)
        sums = tl.zeros(number.shape, tl.float64)
        drift, spread = sums, sums
        first, stop = own_split(item // tiles, split_size, N)
        for start in range(first, stop, BLOCK_N):
            offs_n = start + summed_places(BLOCK_N, BLOCK_M)
            decoded_at, log_weight_at, latent_energy_at = latent_pointers(
                a, grid, tl.minimum(offs_n, stop - 1), D, NARROW
            )
            w = tl.where(offs_n < stop, 1.0, 0.0).to(dtype)
            if LOG_WEIGHT & HAS:
                w *= tl.exp2(tl.load(log_weight_at))
            above = -free
            if LATENT_ENERGY & HAS:
                above = tl.load(latent_energy_at) - free
            e = tile_energy(y_at, scale_at, decoded_at, above, D, HAS, NARROW) - late
            ratio, less_1 = expm1_ratio(tl.where(beta == 0, 0.0, -beta * e))
            sums += _weighted(_without_infinity(e, beta, 1.0, e * ratio), 1.0, w)
            if ENERGY & WANT:
                u = e - mean
                x = tl.where(beta == 0, 0.0, -beta * u)
                ratio, less_1 = expm1_ratio(x)
                u = z * u
                drift += _weighted(_without_infinity(e, beta, z, u * ratio), 1.0, w)
                near = tl.abs(x) <= 0.5
                series = u * entropy_series(tl.where(near, x, 0.0))
                # e^x (x - 1) + 1, which is 1 where e^x is 0
                far = tl.where(less_1 > -1, (less_1 + 1) * x - less_1, 1.0)
                by = tl.where(near, 1.0, beta / z)
                spread += _weighted(
                    tl.where(near, u, 1.0 / by), tl.where(near, series, far / by), w
                )
        if (LOG_WEIGHT & HAS) == 0:
            latents = N.to(tl.float64)
            sums, drift, spread = sums / latents, drift / latents, spread / latents
        out = hot.sums_ptr + grid * slots + item // tiles * (tiles * BLOCK_M) + number
        tl.store(out, sums, mask=inside)
        if ENERGY & WANT:
            tl.store(out + field, drift, mask=inside)
            tl.store(out + 2 * field, spread, mask=inside)


@triton.jit
def _without_infinity(e, beta, z, term):
    """The term z e psi_1(-beta e). For an infinite e: z/beta if beta > 0, and inf at beta = 0."""
    return tl.where((e == float("inf")) & (beta > 0), z / beta, term)


@triton.jit
def inverse_size(beta, m, mean, dtype: tl.constexpr):
    """Z: the larger of beta and 1/E0, in a unit of which energies have ordinary size."""
    size = tl.abs(m) + tl.abs(mean)
    z = tl.maximum(beta.to(tl.float64), 1.0 / tl.where(size > 0, size, 1.0)).to(dtype)
    return tl.where((size > 0) & (z < float("inf")), z, tl.where(beta > 0, beta, 1.0).to(dtype))


@triton.jit
def _weighted(first, second, w):
    """The sum over n of w first second: one number for each query of a tile.

    The weight comes first: the product of the others may leave the range where it is small.
    """
    return sum_over(tl.where(w == 0, 0.0, w * first * second)).to(tl.float64)


@triton.jit
def _log1p_ratio(a):
    """The ratio log(1 + a)/a, which is 1 at 0, for an exact a > -1 (Kahan's method)."""
    whole = 1.0 + a
    rounded = whole - 1.0
    safe = tl.where(rounded == 0, 1.0, rounded)
    return tl.where(rounded == 0, 1.0, tl.log(whole) / safe)


@triton.jit
def _expm1_remainder(x):
    """(e^x - 1 - x)/x^2 for ``|x| <= 1/2``; float64."""
    series = x * 0.0 + 1.0
    for i in tl.static_range(15):
        series = tl.fma(series, x * (1.0 / (17 - i)), 1.0)
    return 0.5 * series


@triton.jit(do_not_specialize=["M", "N", "programs", "slots", "tiles"])
def hot_finish_kernel(
    a, hot, outputs, M, N, programs, slots, tiles, WANT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """``tiles`` programs for each grid, each for BLOCK of its hot queries, if there are as many."""
    dtype: tl.constexpr = outputs.free_energy_ptr.dtype.element_ty
    grid = (tl.program_id(0) // tiles).to(tl.int64)
    number = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(hot.count_ptr + grid)
    if tl.program_id(0) % tiles * BLOCK < count:
        inside = number < count
        hot_tiles, num_splits, _ = _splits(count, N, programs, BLOCK_M, BLOCK_N)
        stride = hot_tiles * BLOCK_M
        field = tl.num_programs(0).to(tl.int64) // tiles * slots
        place = tl.load(hot.query_ptr + grid * M + number, mask=inside, other=0)
        at = grid * M + place
        beta_at = a.beta_ptr + grid * a.beta_stride_b + place * a.beta_stride_m
        beta = tl.load(beta_at, mask=inside, other=1.0).to(tl.float64)
        state_at = outputs.state_ptr + at * STATE_SIZE
        m = tl.load(state_at + SHIFT, mask=inside, other=0.0)
        from_sums = hot.sums_ptr + grid * slots + number
        mean = sum_of_splits(from_sums, inside, num_splits, stride, BLOCK, BLOCK_S)
        gap = tl.where(mean == float("inf"), mean, mean * _log1p_ratio(-beta * mean))
        tl.store(state_at + LOG_NORMALISER, -beta * gap, mask=inside)
        tl.store(state_at + GAP, gap, mask=inside)
        tl.store(outputs.free_energy_ptr + at, (m + gap).to(dtype), mask=inside)
        if ENERGY & WANT:
            tl.store(outputs.energy_ptr + at, (m + gap).to(dtype), mask=inside & (beta == 0))
            energy = tl.load(hot.energy_ptr + at, mask=inside, other=1.0)
            z = inverse_size(beta, m, energy, dtype).to(tl.float64)
            rate = beta / z
            drift = sum_of_splits(from_sums + field, inside, num_splits, stride, BLOCK, BLOCK_S)
            spread = sum_of_splits(
                from_sums + 2 * field, inside, num_splits, stride, BLOCK, BLOCK_S
            )
            # F lies `rise` / Z above the mean energy about which the spread was taken.
            offset = -rate * drift
            rise = drift * _log1p_ratio(offset)
            curvature = spread / (1.0 + offset) - rise * rise * _expm1_remainder(rate * rise)
            # Energies that differ by less than their rounding count as equal.
            noise = rounding(dtype) * m * z
            curvature = tl.where((spread <= noise * noise) | (curvature < 0), 0.0, curvature)
            curvature = tl.where(gap == gap, curvature, gap)
            # KL(p|w) = beta (<E> - F), at most -HOT where every p is within that factor of w.
            mine = inside & (tl.abs(rate * rise) <= -HOT)
            tl.store(outputs.slope_beta_ptr + at, -(curvature / z) / z, mask=mine)
            entropy = tl.where(rate == 0, 0.0, rate * rate * curvature)
            tl.store(outputs.relative_entropy_ptr + at, entropy.to(dtype), mask=mine)
