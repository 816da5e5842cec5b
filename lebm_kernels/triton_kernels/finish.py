"""The shares of a row pass merged, [shares, B, M] to [B, M]; then what a row pass returns.

    m = min m_s;   k = max (k_s - c (m_s - m));   S = sum_s S_s exp2(k_s - k - c (m_s - m))
    L = log S + k log 2   (- log N where there are no weights);      F = m - L/beta
    dF/dy = 2 sum p (y - s g) / S;       dF/ds = -2 sum p (y - s g) g / S;       mean = sum p g / S
    dF/dbeta = (sum p (E - m) / S + L/beta) / beta

For hot queries, whose L is near 0, F - m, L and dF/dbeta come from the sums of hot.py. Where the
reference lies above the least energy, L may be near 0 though p is far from w: that does F no harm,
and dF/dbeta comes from sum p (E - m) then. KL(p|w), which no reference changes, tells them apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.triton_kernels.pairs import COLDEST, LN_2, LOG_WEIGHT, coldness, rounding
from lebm_kernels.triton_kernels.rows import ENERGY, MEAN, PULL, STRETCH

# Where L is nearer to 0, the sum has lost what F - m is made of; and wherever every p is within a
# factor e^(1/2) of w, L is.
_HOT = tl.constexpr(-0.5)


@triton.jit
def merged(partial_ptr, at, inside, c, N, shares, share_stride, field_stride, HAS: tl.constexpr,
           WANT: tl.constexpr):  # fmt: skip
    """M, k, S, <E> - m and L of some queries, and which of them are hot; all float64."""
    m = tl.load(partial_ptr + at, mask=inside, other=0.0)
    for share in range(1, shares):
        other = tl.load(partial_ptr + at + share * share_stride, mask=inside, other=0.0)
        m = tl.where(other < m, other, m)
    k = m * 0.0
    if LOG_WEIGHT & HAS:
        k += float("-inf")
        for share in range(0, shares):
            from_m = partial_ptr + at + share * share_stride
            other = tl.load(from_m + field_stride, mask=inside, other=0.0)
            other -= c * (tl.load(from_m, mask=inside, other=0.0) - m)
            k = tl.where(other > k, other, k)
        k = tl.where(k == float("-inf"), 0.0, k)
    total = m * 0.0
    energy = total
    for share in range(0, shares):
        from_m = partial_ptr + at + share * share_stride
        shrink, rise = share_factor(from_m, inside, m, k, c, field_stride)
        part = tl.load(from_m + 2 * field_stride, mask=inside, other=1.0)
        total += shrink * part
        if ENERGY & WANT:
            above = tl.load(from_m + 3 * field_stride, mask=inside, other=0.0)
            energy += tl.where(shrink > 0, shrink * (above + rise * part), shrink)
    log_sum = tl.log(total) + k * LN_2
    if (LOG_WEIGHT & HAS) == 0:
        log_sum -= tl.log(N.to(tl.float64))
    # At c = 0 infinite energies, if any, have spoilt the sum.
    hot = ((log_sum > _HOT) | (c == 0)) & (c < COLDEST) & (m == m)
    return m, k, total, energy / total, log_sum, hot


@triton.jit
def share_factor(from_m, inside, m, k, c, field_stride):
    """What a share's sums are multiplied by, and how far its reference lies above m."""
    rise = tl.load(from_m, mask=inside, other=0.0) - m
    other = tl.load(from_m + field_stride, mask=inside, other=0.0)
    return tl.exp2(other - k - c * rise), rise


@triton.jit
def _vector(
    partial_ptr,
    out_ptr,
    at,
    inside,
    first_field,
    factor,
    total,
    m,
    k,
    c,
    shares,
    share_stride,
    field_stride,
    D,
):
    """``factor`` times the merged sums of one vector over the merged sum of p."""
    for i in range(0, D):
        value = m * 0.0
        for share in range(0, shares):
            from_m = partial_ptr + at + share * share_stride
            shrink, _ = share_factor(from_m, inside, m, k, c, field_stride)
            part = tl.load(from_m + (first_field + i) * field_stride, mask=inside, other=0.0)
            value += tl.where(shrink > 0, shrink * part, shrink)
        tl.store(
            out_ptr + at * D + i, (factor * value / total).to(out_ptr.dtype.element_ty), inside
        )


@triton.jit
def log1p_ratio(a):
    """Log(1 + a)/a, and 1 at 0, for a > -1 that is itself as good as exact (Kahan)."""
    whole = 1.0 + a
    rounded = whole - 1.0
    safe = tl.where(rounded == 0, 1.0, rounded)
    return tl.where(rounded == 0, 1.0, tl.log(whole) / safe)


@triton.jit
def expm1_remainder(x):
    """(e^x - 1 - x)/x^2 for ``|x| <= 1/2``; float64."""
    series = x * 0.0 + 1.0
    for i in tl.static_range(15):
        series = tl.fma(series, x * (1.0 / (17 - i)), 1.0)
    return 0.5 * series


@triton.jit(do_not_specialize=["B", "M", "N", "D", "shares"])
def finish_kernel(
    a,
    partial_ptr,
    hot_ptr,
    outputs,
    B,
    M,
    N,
    D,
    shares,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for BLOCK queries of any grids; ``outputs`` is :class:`~.launch.Outputs`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    share_stride = B.to(tl.int64) * M
    field_stride = shares * share_stride
    inside = at < share_stride
    beta = tl.load(
        a.beta_ptr + at // M * a.beta_stride_b + at % M * a.beta_stride_m, mask=inside, other=1.0
    )
    c = coldness(beta).to(tl.float64)
    beta = beta.to(tl.float64)
    m, k, total, energy, log_sum, hot = merged(
        partial_ptr, at, inside, c, N, shares, share_stride, field_stride, HAS, WANT
    )
    cold = beta == float("inf")
    gap = tl.where(cold, 0.0, -log_sum / beta)
    gap = tl.where(log_sum == float("-inf"), float("inf"), gap)  # no latent within reach
    gap = tl.where(log_sum == log_sum, gap, log_sum)
    slope = (energy - gap) / beta
    # The sums of a query that is not hot were not written.
    mine = inside & hot
    mean = m * 0.0
    for share in range(0, shares):
        mean += tl.load(hot_ptr + at + share * share_stride, mask=mine, other=0.0)
    deficit = -beta * mean
    hot_gap = tl.where(mean == float("inf"), mean, mean * log1p_ratio(deficit))
    gap = tl.where(hot, hot_gap, gap)
    log_sum = tl.where(hot, -beta * hot_gap, log_sum)
    tl.store(outputs.state_ptr + at * 3, m, mask=inside)
    tl.store(outputs.state_ptr + at * 3 + 1, log_sum, mask=inside)
    # At infinity F - m is 0, and what rounds a log-weight's -300 would be seen:
    # log2 sum p + k, exactly.
    tl.store(outputs.state_ptr + at * 3 + 2, tl.where(cold, tl.log2(total) + k, gap), mask=inside)
    dtype: tl.constexpr = outputs.free_energy_ptr.dtype.element_ty
    tl.store(outputs.free_energy_ptr + at, (m + gap).to(dtype), mask=inside)
    if ENERGY & WANT:
        shift, spread = m * 0.0, m * 0.0
        for share in range(0, shares):
            from_hot = hot_ptr + at + share * share_stride
            shift += tl.load(from_hot + field_stride, mask=mine, other=0.0)
            spread += tl.load(from_hot + 2 * field_stride, mask=mine, other=0.0)
        # F lies this far above the mean energy that the spread was taken about.
        offset = -beta * shift
        rise = shift * log1p_ratio(offset)
        hot_slope = rise * rise * expm1_remainder(beta * rise) - spread / (1.0 + offset)
        # Energies that differ by less than their rounding do not differ.
        noise = rounding(dtype) * m
        hot_slope = tl.where(spread <= noise * noise, 0.0, hot_slope)
        # KL(p|w) = beta (<E> - F), at most -_HOT where every p is within that factor of w.
        near = hot & (tl.abs(beta * rise) <= -_HOT)
        slope = tl.where(cold, 0.0, tl.where(near, hot_slope, tl.where(slope > 0, 0.0, slope)))
        slope = tl.where(gap == gap, slope, gap)
        tl.store(outputs.slope_beta_ptr + at, slope.to(dtype), mask=inside)
    if PULL & WANT:
        _vector(
            partial_ptr, outputs.slope_y_ptr, at, inside, 4, 2.0, total, m, k, c, shares,
            share_stride, field_stride, D,
        )  # fmt: skip
    if STRETCH & WANT:
        first = 4 + D * ((PULL & WANT) // PULL)
        _vector(
            partial_ptr, outputs.slope_scale_ptr, at, inside, first, -2.0, total, m, k, c, shares,
            share_stride, field_stride, D,
        )  # fmt: skip
    if MEAN & WANT:
        first = 4 + D * ((PULL & WANT) // PULL + (STRETCH & WANT) // STRETCH)
        _vector(
            partial_ptr, outputs.mean_ptr, at, inside, first, 1.0, total, m, k, c, shares,
            share_stride, field_stride, D,
        )  # fmt: skip
