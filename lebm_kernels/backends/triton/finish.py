"""Merges the splits of a row pass, [num_splits, B, M] to [B, M], and computes its results.

    m = min m_s;   k = max (k_s - c (m_s - m));   S = sum_s S_s exp2(k_s - k - c (m_s - m))
    L = log S + k log 2   (- log N without weights);      F = m - L/beta
    dF/dy = 2 sum p (y - s g) / S;       dF/ds = -2 sum p (y - s g) g / S;       mean = sum p g / S
    <E> = m + sum p (E - m) / S;       KL = -beta <E - m> - L;       dF/dbeta = -KL / beta^2

Without weights k is 0; the maximum of the lower bounds stored in its place, and of 0, then is a
lower bound of how much c (m - E) rises.

Hot queries are those whose L is near 0: the sum has lost the digits of F - m. They are listed, and
hot.py computes their F - m, L and dF/dbeta anew. L is near 0 as well where p is far from w but m
lies above the least energy; the bound on the rise recognises most of these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.narrow_rows import ENERGY, MEAN, PULL, STRETCH
from lebm_kernels.backends.triton.pairs import (
    COLDEST,
    GAP,
    LN_2,
    LOG_NORMALISER,
    LOG_WEIGHT,
    REST,
    SHIFT,
    STATE_SIZE,
    coldness,
)
from lebm_kernels.backends.triton.programs import split_pointers

# Where L is nearer to 0 than this, the sum has lost the digits of F - m. If every p is within a
# factor e^(1/2) of w, and m is the least energy, L is that near.
HOT = tl.constexpr(-0.5)


@triton.jit
def _merged(
    from_m, splits, c, N, HAS: tl.constexpr, WANT: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The merged m, k, S, <E> - m and L of some queries, and which are hot; all float64.

    ``from_m`` points to m in split 0. ``splits`` is the mask of the queries, the number of splits,
    and the distances between two splits and between two fields.
    """
    inside, num_splits, split_stride, field_stride = splits
    m = tl.load(from_m, mask=inside, other=0.0)
    sound = m == m
    least = tl.full((BLOCK, BLOCK_S), float("inf"), tl.float64)
    for first in range(1, num_splits, BLOCK_S):
        at, there = split_pointers(from_m, inside, first, num_splits, split_stride, BLOCK_S)
        least = tl.minimum(least, tl.load(at, mask=there, other=float("inf")))
    m = tl.where(sound, tl.minimum(m, tl.min(least, axis=1)), m)
    highest = tl.full((BLOCK, BLOCK_S), float("-inf"), tl.float64)
    for first in range(0, num_splits, BLOCK_S):
        at, there = split_pointers(from_m, inside, first, num_splits, split_stride, BLOCK_S)
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
    for first in range(0, num_splits, BLOCK_S):
        at, there = split_pointers(from_m, inside, first, num_splits, split_stride, BLOCK_S)
        shrink, above = _split_factor(at, there, m, k, c, field_stride, HAS)
        part = tl.load(at + 2 * field_stride, mask=there, other=0.0)
        total += shrink * part
        if ENERGY & WANT:
            part = tl.load(at + 3 * field_stride, mask=there, other=0.0) + above * part
            energy += tl.where(shrink > 0, shrink * part, shrink)
    total, energy = tl.sum(total, axis=1), tl.sum(energy, axis=1)
    log_sum = tl.log(total) + k * LN_2
    if (LOG_WEIGHT & HAS) == 0:
        log_sum -= tl.log(N.to(tl.float64))
    # At c = 0 an infinite energy, if any, has spoilt the sum.
    hot = ((log_sum - rise * LN_2 > HOT) | (c == 0)) & (c < COLDEST) & sound
    return m, k, total, energy / total, log_sum, hot


@triton.jit
def _split_factor(at, there, m, k, c, field_stride, HAS: tl.constexpr):
    """The factor of each split's sums, and how far its shift lies above m."""
    above = tl.load(at, mask=there, other=0.0) - m[:, None]
    exponent = -c[:, None] * above
    if LOG_WEIGHT & HAS:
        exponent += tl.load(at + field_stride, mask=there, other=0.0) - k[:, None]
    return tl.where(there, tl.exp2(exponent), 0.0), above


@triton.jit
def _vector(
    from_m, out_ptr, splits, first_field, factor, merged, D, HAS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Store ``factor`` times the merged sums of one vector, divided by the merged sum of p.

    ``merged`` is S, m, k and c.
    """
    inside, num_splits, split_stride, field_stride = splits
    total, m, k, c = merged
    for i in range(0, D):
        value = tl.zeros((BLOCK, BLOCK_S), tl.float64)
        for first in range(0, num_splits, BLOCK_S):
            at, there = split_pointers(from_m, inside, first, num_splits, split_stride, BLOCK_S)
            shrink, _ = _split_factor(at, there, m, k, c, field_stride, HAS)
            part = tl.load(at + (first_field + i) * field_stride, mask=there, other=0.0)
            value += tl.where(shrink > 0, shrink * part, shrink)
        value = factor * tl.sum(value, axis=1)
        tl.store(out_ptr + i, (value / total).to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["B", "M", "N", "D", "num_splits"])
def finish_kernel(
    a, partial_ptr, hot, outputs, B, M, N, D, num_splits, HAS: tl.constexpr, WANT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program for each BLOCK queries of any grid; see launch.py for ``hot``, ``outputs``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    split_stride = B.to(tl.int64) * M
    field_stride = num_splits * split_stride
    inside = at < split_stride
    splits = (inside, num_splits, split_stride, field_stride)
    grid, place = at // M, at % M
    beta_at = a.beta_ptr + grid * a.beta_stride_b + place * a.beta_stride_m
    beta = tl.load(beta_at, mask=inside, other=1.0)
    c = coldness(beta).to(tl.float64)
    beta = beta.to(tl.float64)
    from_m = partial_ptr + at
    m, k, total, energy, log_sum, is_hot = _merged(from_m, splits, c, N, HAS, WANT, BLOCK, BLOCK_S)
    # The programs' order does not matter: a query's result does not depend on its place in the
    # list.
    mine = inside & is_hot
    number = tl.atomic_add(hot.count_ptr + grid, 1, mask=mine, sem="relaxed")
    tl.store(hot.query_ptr + grid * M + number, place, mask=mine)
    cold = beta == float("inf")
    gap = tl.where(cold, 0.0, -log_sum / beta)
    gap = tl.where(log_sum == float("-inf"), float("inf"), gap)  # no latent within reach
    gap = tl.where(log_sum == log_sum, gap, log_sum)
    state_at = outputs.state_ptr + at * STATE_SIZE
    tl.store(state_at + SHIFT, m, mask=inside)
    tl.store(state_at + LOG_NORMALISER, log_sum, mask=inside)
    tl.store(state_at + GAP, gap, mask=inside)
    # Tiny weights make L large: it rounds by more than the minima's posterior weights may err.
    tl.store(state_at + REST, tl.where(cold, tl.log2(total) + k, 0.0), mask=inside)
    dtype: tl.constexpr = outputs.free_energy_ptr.dtype.element_ty
    tl.store(outputs.free_energy_ptr + at, (m + gap).to(dtype), mask=inside)
    if ENERGY & WANT:
        tl.store(hot.energy_ptr + at, energy, mask=mine)
        entropy = tl.where(cold, 0.0, -beta * energy) - log_sum
        entropy = tl.where(entropy < 0, 0.0, entropy)
        entropy = tl.where(gap == gap, entropy, gap)
        slope = tl.where(cold, 0.0 * entropy, -(entropy / beta) / beta)
        mean = m + tl.where(cold, 0.0 * energy, energy)
        tl.store(outputs.energy_ptr + at, mean.to(dtype), mask=inside)
        tl.store(outputs.relative_entropy_ptr + at, entropy.to(dtype), mask=inside)
        tl.store(outputs.slope_beta_ptr + at, slope, mask=inside)
    FIRST: tl.constexpr = 4
    merged = (total, m, k, c)
    if PULL & WANT:
        _vector(
            from_m, outputs.slope_y_ptr + at * D, splits, FIRST, 2.0, merged, D, HAS, BLOCK,
            BLOCK_S,
        )  # fmt: skip
    if STRETCH & WANT:
        first = FIRST + D * ((PULL & WANT) // PULL)
        _vector(
            from_m, outputs.slope_scale_ptr + at * D, splits, first, -2.0, merged, D, HAS, BLOCK,
            BLOCK_S,
        )  # fmt: skip
    if MEAN & WANT:
        first = FIRST + D * ((PULL & WANT) // PULL + (STRETCH & WANT) // STRETCH)
        _vector(
            from_m, outputs.mean_ptr + at * D, splits, first, 1.0, merged, D, HAS, BLOCK, BLOCK_S,
        )  # fmt: skip
