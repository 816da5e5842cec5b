"""The gradient of the log-weights, any D: a column pass.

    dF/dl[n] = -(p - w)/beta = w (E - F) psi_1(tau),    tau = log(p/w) = -beta (E - m) - L,
    psi_1(x) = (e^x - 1)/x

The second form is used where tau is near 0. The terms are multiplied by the incoming gradient G and
summed over queries. Splits of the queries go to ``partial[split, b, n]``, float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.packed import kept_places, sum_over, summed_places
from lebm_kernels.backends.triton.pairs import (
    GAP,
    LATENT_ENERGY,
    LN_2,
    LOG2_E,
    LOG_NORMALISER,
    SHIFT,
    STATE_SIZE,
    coldness,
    expm1_ratio,
    split_shift,
    tile_energy,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    own_tile,
    query_pointers,
)


@triton.jit(do_not_specialize=["M", "N", "D", "split_size", "num_splits"])
def weights_kernel(
    a, grad_ptr, state_ptr, partial_ptr, M, N, D, split_size, num_splits, HAS: tl.constexpr,
    NARROW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program for each tile of latents and split of the queries."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    place_n, place_m = kept_places(BLOCK_N), summed_places(BLOCK_M, BLOCK_N)
    grid, split, offs_n, inside_n, _, own = own_tile(N, num_splits, place_n, BLOCK_N)
    decoded_at, log_weight_at, latent_energy_at = latent_pointers(
        a, grid, tl.minimum(offs_n, N - 1), D, NARROW
    )
    lw = tl.load(log_weight_at)
    r = 0.0
    if LATENT_ENERGY & HAS:
        r = tl.load(latent_energy_at)
    w = tl.exp2(lw)
    total = tl.zeros(place_n.shape, tl.float64)
    first, stop = own_split(split, split_size, M)
    for start in range(first, stop, BLOCK_M):
        offs_m = start + place_m
        inside = offs_m < stop
        safe_m = tl.minimum(offs_m, stop - 1)
        y_at, scale_at, beta_at = query_pointers(a, grid, safe_m, D, NARROW)
        beta = tl.load(beta_at)
        grad = tl.load(grad_ptr + grid * M + offs_m, mask=inside, other=0.0)
        state_at = state_ptr + (grid * M + safe_m) * STATE_SIZE
        m = tl.load(state_at + SHIFT).to(dtype)
        log_sum = tl.load(state_at + LOG_NORMALISER)
        gap = tl.load(state_at + GAP).to(dtype)
        # L may be in the hundreds where weights are tiny: its integer part is added to l first.
        level = log_sum * LOG2_E
        whole = tl.floor(level + 0.5)
        rest = (level - whole).to(dtype)
        c = coldness(beta)
        free, late, strict = split_shift(c, m, HAS, NARROW)
        e = tile_energy(y_at, scale_at, decoded_at, r - free, D, HAS, NARROW)
        e = e - late
        cost = c * e
        p = tl.exp2((lw - whole.to(dtype)) - rest - cost)
        tau = -cost * LN_2 - log_sum.to(dtype)
        near = tl.abs(tau) <= 0.5
        ratio, less_1 = expm1_ratio(tl.where(near, tau, 0.0))
        term = tl.where(near, w * (e - gap) * ratio, (w - p) / tl.where(near, 1.0, beta))
        # A dropped latent has weight 0, and any energy.
        term = tl.where(lw == float("-inf"), 0.0, grad * term)
        total += sum_over(tl.where(inside, term, 0.0)).to(tl.float64)
    tl.store(partial_ptr + own, total.to(partial_ptr.dtype.element_ty), mask=inside_n)
