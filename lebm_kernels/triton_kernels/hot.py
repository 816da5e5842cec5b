"""Queries whose exponents are all near 0: what a sum of exponentials near one loses.

With e = E - m, psi(x) = (e^x - 1)/x, phi(x) = (e^x (x - 1) + 1)/x^2, and E0 = m + sum p (E - m) as
the row pass found it, u = E - E0:

    B = sum w e psi(-beta e)            L = log1p(-beta B),   F - m = B log1p(-beta B)/(-beta B)
    B0 = sum w u psi(-beta u)           F - E0 = B0 log1p(-beta B0)/(-beta B0)
    K = sum w u^2 phi(-beta u)
    KL(p|w)/beta^2 = K/(1 - beta B0) - (F - E0)^2 R(beta (F - E0)),      R(x) = (e^x - 1 - x)/x^2

all of them exact for any E0, and down to beta = 0. B, B0 and K go to ``hot[field, share, b, m]``,
float64; programs without a hot query return at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.triton_kernels.finish import merged
from lebm_kernels.triton_kernels.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    any_of,
    coldness,
    entropy_series,
    expm1_ratio,
    split_reference,
    tile_energy,
)
from lebm_kernels.triton_kernels.rows import ENERGY


@triton.jit(do_not_specialize=["B", "M", "N", "D", "share_size", "shares"])
def hot_kernel(
    a,
    partial_ptr,
    hot_ptr,
    B,
    M,
    N,
    D,
    share_size,
    shares,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program a tile of queries and share of latents, as in the row pass."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    tiles = tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0) % tiles
    share = tl.program_id(0) // tiles % shares
    grid = (tl.program_id(0) // tiles // shares).to(tl.int64)
    offs_m = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < M
    at = grid * M + offs_m
    share_stride = B.to(tl.int64) * M
    field_stride = shares * share_stride
    beta = tl.load(
        a.beta_ptr + grid * a.beta_stride_b + offs_m * a.beta_stride_m, mask=inside, other=0.0
    )
    c = coldness(beta).to(tl.float64)
    m, _, _, energy, _, hot = merged(
        partial_ptr, at, inside, c, N, shares, share_stride, field_stride, HAS, WANT
    )
    if any_of(hot & inside):
        # A hot query's energies are summed; the others of the tile must do no harm.
        least = tl.where(hot, m, 0.0).to(dtype)[:, None]
        free, late, strict = split_reference(coldness(beta)[:, None], least, HAS, LOW)
        b = tl.where(hot, beta, 0.0)[:, None]
        mean = tl.where(hot, energy, 0.0).to(dtype)[:, None]
        safe_m = tl.minimum(offs_m, M - 1)
        y_at = (a.y_ptr + grid * a.y_stride + safe_m * D)[:, None]
        scale_at = (a.scale_ptr + grid * a.scale_stride_b + safe_m * a.scale_stride_m)[:, None]
        sums = tl.zeros((BLOCK_M,), tl.float64)
        shift, spread = sums, sums
        first = share.to(tl.int64) * share_size
        stop = tl.minimum(first + share_size, N)
        for start in range(first, stop, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            valid = offs_n < stop
            safe_n = tl.minimum(offs_n, stop - 1)
            w = tl.where(valid, 1.0, 0.0).to(dtype)
            if LOG_WEIGHT & HAS:
                w *= tl.exp2(tl.load(a.log_weight_ptr + grid * a.log_weight_stride + safe_n))
            above = -free
            if LATENT_ENERGY & HAS:
                at_r = a.latent_energy_ptr + grid * a.latent_energy_stride + safe_n
                above = tl.load(at_r)[None, :] - free
            decoded_at = (a.decoded_ptr + grid * a.decoded_stride + safe_n * D)[None, :]
            e = tile_energy(y_at, scale_at, decoded_at, above, D, BLOCK_M, BLOCK_N, HAS) - late
            ratio, less_1 = expm1_ratio(tl.where(b == 0, 0.0, -b * e))
            term = _without_infinity(e, b, e * ratio)
            sums += _weighted(term, w)
            if ENERGY & WANT:
                u = e - mean
                x = tl.where(b == 0, 0.0, -b * u)
                ratio, less_1 = expm1_ratio(x)
                shift += _weighted(_without_infinity(e, b, u * ratio), w)
                near = tl.abs(x) <= 0.5
                series = u * u * entropy_series(tl.where(near, x, 0.0))
                # e^x (x - 1) + 1, which is 1 where e^x is 0
                far = tl.where(less_1 > -1, (less_1 + 1) * x - less_1, 1.0)
                by = tl.where(near, 1.0, b)
                spread += _weighted(tl.where(near, series, far / by / by), w)
        if (LOG_WEIGHT & HAS) == 0:
            number = N.to(tl.float64)
            sums, shift, spread = sums / number, shift / number, spread / number
        tl.store(hot_ptr + share * share_stride + at, sums, mask=inside)
        if ENERGY & WANT:
            tl.store(hot_ptr + share * share_stride + at + field_stride, shift, mask=inside)
            tl.store(hot_ptr + share * share_stride + at + 2 * field_stride, spread, mask=inside)


@triton.jit
def _without_infinity(e, beta, term):
    """E psi(-beta e), which is 1/beta where e is infinite, and infinite only at beta = 0."""
    return tl.where((e == float("inf")) & (beta > 0), 1.0 / beta, term)


@triton.jit
def _weighted(term, w):
    """Sum_n w term, a tile to one number a query."""
    w = w[None, :]
    return tl.sum(tl.where(w == 0, 0.0, w * term), axis=1).to(tl.float64)
