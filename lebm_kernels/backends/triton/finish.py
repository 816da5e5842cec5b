"""The shares of a row pass merged, [shares, B, M] to [B, M]; then what a row pass returns.

    m = min m_s;   k = max (k_s - c (m_s - m));   S = sum_s S_s exp2(k_s - k - c (m_s - m))
    L = log S + k log 2   (- log N where there are no weights);      F = m - L/beta
    dF/dy = 2 sum p (y - s g) / S;       dF/ds = -2 sum p (y - s g) g / S;       mean = sum p g / S
    dF/dbeta = (sum p (E - m) / S + L/beta) / beta

Without weights k is 0, and the same maximum of what stands in its place, and of 0, is how far
c (m - E) is known to rise.

Hot are queries whose L is near 0, where the sum has lost what F - m is made of. They are listed,
for hot.py to find F - m, L and dF/dbeta anew. L is near 0, too, where p is far from w but m above
the least energy; most of these are known by that rise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.pairs import COLDEST, LN_2, LOG_WEIGHT, coldness
from lebm_kernels.backends.triton.programs import share_pointers
from lebm_kernels.backends.triton.rows import ENERGY, MEAN, PULL, STRETCH

# Where L is nearer to 0, the sum has lost what F - m is made of; and wherever every p is within a
# factor e^(1/2) of w, L, from the least energy, is.
HOT = tl.constexpr(-0.5)


@triton.jit
def _merged(
    from_m, inside, c, N, shares, share_stride, field_stride, HAS: tl.constexpr,
    WANT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """M, k, S, <E> - m and L of some queries, and which of them are hot; all float64.

    ``from_m`` points to what the first share has for m.
    """
    m = tl.load(from_m, mask=inside, other=0.0)
    sound = m == m
    least = tl.full((BLOCK, BLOCK_S), float("inf"), tl.float64)
    for first in range(1, shares, BLOCK_S):
        at, there = share_pointers(from_m, inside, first, shares, share_stride, BLOCK_S)
        least = tl.minimum(least, tl.load(at, mask=there, other=float("inf")))
    m = tl.where(sound, tl.minimum(m, tl.min(least, axis=1)), m)
    highest = tl.full((BLOCK, BLOCK_S), float("-inf"), tl.float64)
    for first in range(0, shares, BLOCK_S):
        at, there = share_pointers(from_m, inside, first, shares, share_stride, BLOCK_S)
        risen = tl.load(at + field_stride, mask=there, other=float("-inf"))
        risen -= c[:, None] * (tl.load(at, mask=there, other=0.0) - m[:, None])
        highest = tl.maximum(highest, tl.where(there, risen, float("-inf")))
    risen = tl.max(highest, axis=1)
    if LOG_WEIGHT & HAS:
        k, rise = tl.where(risen == float("-inf"), 0.0, risen), 0.0
    else:
        k, rise = m * 0.0, tl.maximum(risen, 0.0)
    total = tl.zeros((BLOCK, BLOCK_S), tl.float64)
    energy = total
    for first in range(0, shares, BLOCK_S):
        at, there = share_pointers(from_m, inside, first, shares, share_stride, BLOCK_S)
        shrink, above = _share_factor(at, there, m, k, c, field_stride, HAS)
        part = tl.load(at + 2 * field_stride, mask=there, other=0.0)
        total += shrink * part
        if ENERGY & WANT:
            part = tl.load(at + 3 * field_stride, mask=there, other=0.0) + above * part
            energy += tl.where(shrink > 0, shrink * part, shrink)
    total, energy = tl.sum(total, axis=1), tl.sum(energy, axis=1)
    log_sum = tl.log(total) + k * LN_2
    if (LOG_WEIGHT & HAS) == 0:
        log_sum -= tl.log(N.to(tl.float64))
    # At c = 0 infinite energies, if any, have spoilt the sum.
    hot = ((log_sum - rise * LN_2 > HOT) | (c == 0)) & (c < COLDEST) & sound
    return m, k, total, energy / total, log_sum, hot


@triton.jit
def _share_factor(at, there, m, k, c, field_stride, HAS: tl.constexpr):
    """What shares' sums are multiplied by, and how far their references lie above m."""
    above = tl.load(at, mask=there, other=0.0) - m[:, None]
    exponent = -c[:, None] * above
    if LOG_WEIGHT & HAS:
        exponent += tl.load(at + field_stride, mask=there, other=0.0) - k[:, None]
    return tl.where(there, tl.exp2(exponent), 0.0), above


@triton.jit
def _vector(
    from_m, out_ptr, inside, first_field, factor, total, m, k, c, shares, share_stride,
    field_stride, D, HAS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """``factor`` times the merged sums of one vector over the merged sum of p."""
    for i in range(0, D):
        value = tl.zeros((BLOCK, BLOCK_S), tl.float64)
        for first in range(0, shares, BLOCK_S):
            at, there = share_pointers(from_m, inside, first, shares, share_stride, BLOCK_S)
            shrink, _ = _share_factor(at, there, m, k, c, field_stride, HAS)
            part = tl.load(at + (first_field + i) * field_stride, mask=there, other=0.0)
            value += tl.where(shrink > 0, shrink * part, shrink)
        value = factor * tl.sum(value, axis=1)
        tl.store(out_ptr + i, (value / total).to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["B", "M", "N", "D", "shares"])
def finish_kernel(
    a, partial_ptr, hot, outputs, B, M, N, D, shares, HAS: tl.constexpr, WANT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK queries of any grids; see launch.py for ``hot`` and ``outputs``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    share_stride = B.to(tl.int64) * M
    field_stride = shares * share_stride
    inside = at < share_stride
    grid, place = at // M, at % M
    beta_at = a.beta_ptr + grid * a.beta_stride_b + place * a.beta_stride_m
    beta = tl.load(beta_at, mask=inside, other=1.0)
    c = coldness(beta).to(tl.float64)
    beta = beta.to(tl.float64)
    from_m = partial_ptr + at
    m, k, total, energy, log_sum, is_hot = _merged(
        from_m, inside, c, N, shares, share_stride, field_stride, HAS, WANT, BLOCK, BLOCK_S
    )
    # In whatever order the programs come: what is found of a query does not depend on its number.
    mine = inside & is_hot
    number = tl.atomic_add(hot.count_ptr + grid, 1, mask=mine, sem="relaxed")
    tl.store(hot.query_ptr + grid * M + number, place, mask=mine)
    cold = beta == float("inf")
    gap = tl.where(cold, 0.0, -log_sum / beta)
    gap = tl.where(log_sum == float("-inf"), float("inf"), gap)  # no latent within reach
    gap = tl.where(log_sum == log_sum, gap, log_sum)
    tl.store(outputs.state_ptr + at * 3, m, mask=inside)
    tl.store(outputs.state_ptr + at * 3 + 1, log_sum, mask=inside)
    # At infinity F - m is 0, and what rounds a log-weight's -300 would be seen:
    # log2 sum p + k, exactly.
    tl.store(outputs.state_ptr + at * 3 + 2, tl.where(cold, tl.log2(total) + k, gap), mask=inside)
    dtype: tl.constexpr = outputs.free_energy_ptr.dtype.element_ty
    tl.store(outputs.free_energy_ptr + at, (m + gap).to(dtype), mask=inside)
    if ENERGY & WANT:
        tl.store(hot.energy_ptr + at, energy, mask=mine)
        slope = (energy - gap) / beta
        slope = tl.where(cold, 0.0, tl.where(slope > 0, 0.0, slope))
        slope = tl.where(gap == gap, slope, gap)
        tl.store(outputs.slope_beta_ptr + at, slope.to(dtype), mask=inside)
    FIRST: tl.constexpr = 4
    if PULL & WANT:
        _vector(
            from_m, outputs.slope_y_ptr + at * D, inside, FIRST, 2.0, total, m, k, c, shares,
            share_stride, field_stride, D, HAS, BLOCK, BLOCK_S,
        )  # fmt: skip
    if STRETCH & WANT:
        first = FIRST + D * ((PULL & WANT) // PULL)
        _vector(
            from_m, outputs.slope_scale_ptr + at * D, inside, first, -2.0, total, m, k, c, shares,
            share_stride, field_stride, D, HAS, BLOCK, BLOCK_S,
        )  # fmt: skip
    if MEAN & WANT:
        first = FIRST + D * ((PULL & WANT) // PULL + (STRETCH & WANT) // STRETCH)
        _vector(
            from_m, outputs.mean_ptr + at * D, inside, first, 1.0, total, m, k, c, shares,
            share_stride, field_stride, D, HAS, BLOCK, BLOCK_S,
        )  # fmt: skip
