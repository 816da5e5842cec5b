"""Column pass, D <= 4: gradients of the latent-side arguments.

With q = G exp2(l - c (E - m)) / exp(L), which is the incoming gradient G times p, m and L from the
state:

    dF/dg[n] = -2 sum_m q s (y - s g);       dF/dr[n] = sum_m q

A first kernel packs the fields of each query that the pairs need, a block of BLOCK_M queries at a
time, so that the second reads them contiguously and needs no mask: ``packed[b, block, field,
BLOCK_M]``. There log2 |q| at E = m is split into a power of two, 2^j, and a rest near 0 for the
exponent; otherwise the exponent's rounding would be that of log N. An integer that j cannot take is
added to l before rounding. Without a scale, the sign of G and 2^j cost nothing: they multiply y and
g, so that d = sign 2^j (y - g), exactly; E and m are then 4^j too large and c is 4^j too small,
exactly. Fields:

    without scale:  sign 2^j y (D of them), c 4^-j, m 4^j, rest, sign 2^j, m' 4^j, whole
    with one:       y (D), c, m, rest, sign 2^j, m', whole, s (D)

Here m and m' are the two parts of split_shift; whole is separate only where there are weights.

The second kernel has BLOCK_N latents, the same in all threads, and a block of queries at a time.
Sums stay within a thread for CHUNK blocks, then are added into float64. Where there are few
latents, splits of the queries go to ``partial[field, split, b, n]``, and a third kernel merges
them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG2_E,
    LOG_NORMALISER,
    LOG_WEIGHT,
    REST,
    SCALE,
    SHIFT,
    STATE_SIZE,
    any_of,
    coldness,
    energy_from,
    split_shift,
)
from lebm_kernels.backends.triton.programs import latent_pointers, own_tile, sum_of_splits

# Which gradients a column pass sums, as bits of WANT.
DECODED = tl.constexpr(1)
ENERGIES = tl.constexpr(2)

# Powers of two that keep squares of ordinary numbers within float32, even with c = COLDEST.
_REACH = tl.constexpr(24)
_COLD_REACH = tl.constexpr(12)


@triton.jit
def scaled_grad(grad, state_at, N, beta, HAS: tl.constexpr):
    """The factor sign 2^j of G exp2(-L log2 e) (/N without weights), and log2 of the rest.

    The logarithm comes as an integer and a fraction.
    """
    bits = tl.where(
        beta == float("inf"), tl.load(state_at + REST), tl.load(state_at + LOG_NORMALISER) * LOG2_E
    )
    if (LOG_WEIGHT & HAS) == 0:
        bits += tl.where(beta == float("inf"), 0.0, tl.log2(N.to(tl.float64)))
    whole = -tl.floor(bits + 0.5)
    level = tl.log2(tl.abs(grad.to(tl.float64))) - (bits + whole)
    # Where G or the sum is 0, the level is infinite and has no integer part.
    carry = tl.where(tl.abs(level) < 1e6, tl.floor(level + 0.5), 0.0)
    whole = tl.where(tl.abs(whole) < 1e6, whole, 0.0) + carry
    reach = tl.where(beta > 1e15, _COLD_REACH, _REACH)
    power = tl.minimum(tl.maximum(whole, -reach), reach)
    factor = tl.exp2(power) * tl.where(grad < 0, -1.0, 1.0)
    dtype: tl.constexpr = grad.dtype
    return factor.to(dtype), (whole - power).to(dtype), (level - carry).to(dtype)


@triton.jit(do_not_specialize=["M", "N"])
def pack_kernel(
    a,
    grad_ptr,
    state_ptr,
    packed_ptr,
    strict_ptr,
    M,
    N,
    D: tl.constexpr,
    HAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program for each block of queries; queries past the last weigh nothing."""
    dtype: tl.constexpr = packed_ptr.dtype.element_ty
    FIELDS: tl.constexpr = D + 6 + D * (SCALE & HAS)
    blocks = tl.cdiv(M, BLOCK_M)
    grid = (tl.program_id(0) // blocks).to(tl.int64)
    lanes = tl.arange(0, BLOCK_M)
    offs_m = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + lanes
    inside = offs_m < M
    grad = tl.load(grad_ptr + grid * M + offs_m, mask=inside, other=0.0)
    state_at = state_ptr + (grid * M + tl.minimum(offs_m, M - 1)) * STATE_SIZE
    m = tl.load(state_at + SHIFT).to(dtype)
    # Not 0 past the last query: infinite energies must have posterior weight 0 there as well.
    beta = tl.load(
        a.beta_ptr + grid * a.beta_stride_b + offs_m * a.beta_stride_m, mask=inside, other=1.0
    )
    c = coldness(beta)
    factor, whole, rest = scaled_grad(grad, state_at, N, beta, HAS)
    if (LOG_WEIGHT & HAS) == 0:
        rest += whole
    m, late, strict = split_shift(c, m, HAS)
    tl.store(strict_ptr + tl.program_id(0), any_of(inside & strict).to(tl.int32))
    out = packed_ptr + tl.program_id(0).to(tl.int64) * (FIELDS * BLOCK_M) + lanes
    for i in tl.static_range(D):
        y = tl.load(a.y_ptr + grid * a.y_stride + offs_m * D + i, mask=inside, other=0.0)
        if SCALE & HAS:
            scale_at = a.scale_ptr + grid * a.scale_stride_b + offs_m * a.scale_stride_m + i
            s = tl.load(scale_at, mask=inside, other=0.0)
            tl.store(out + (D + 6 + i) * BLOCK_M, s)
        else:
            y *= factor
        tl.store(out + i * BLOCK_M, y)
    if (SCALE & HAS) == 0:
        square = factor * factor
        c, m, late = c / square, m * square, late * square
    tl.store(out + D * BLOCK_M, c)
    tl.store(out + (D + 1) * BLOCK_M, m)
    tl.store(out + (D + 2) * BLOCK_M, rest)
    tl.store(out + (D + 3) * BLOCK_M, factor)
    tl.store(out + (D + 4) * BLOCK_M, late)
    tl.store(out + (D + 5) * BLOCK_M, whole)


@triton.jit
def _pull_block(
    sums, at, g, lw, r, D: tl.constexpr, HAS: tl.constexpr, WANT: tl.constexpr,
    BLOCK_M: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """The sums after adding one block of queries; ``at`` points to its first field."""
    c = tl.load(at + D * BLOCK_M)[None, :]
    m = tl.load(at + (D + 1) * BLOCK_M)[None, :]
    rest = tl.load(at + (D + 2) * BLOCK_M)[None, :]
    factor = tl.load(at + (D + 3) * BLOCK_M)[None, :]
    d, s = (), ()
    for i in tl.static_range(D):
        y = tl.load(at + i * BLOCK_M)[None, :]
        if SCALE & HAS:
            s = s + (tl.load(at + (D + 6 + i) * BLOCK_M)[None, :],)
            d = d + (tl.fma(-s[i], g[i], y),)
        else:
            d = d + (tl.fma(-factor, g[i], y),)
    start = -m
    if LATENT_ENERGY & HAS:
        start = r - m if SCALE & HAS else tl.fma(factor * factor, r, -m)
    energy = energy_from(start, d, D)
    if STRICT:
        energy = energy - tl.load(at + (D + 4) * BLOCK_M)[None, :]
    if LOG_WEIGHT & HAS:
        rest += lw + tl.load(at + (D + 5) * BLOCK_M)[None, :]
    q = tl.exp2(tl.fma(-c, energy, rest))
    out = ()
    if DECODED & WANT:
        for i in tl.static_range(D):
            if SCALE & HAS:
                out = out + (tl.fma(q * (factor * s[i]), d[i], sums[i]),)
            else:
                out = out + (tl.fma(q, d[i], sums[i]),)
    if ENERGIES & WANT:
        out = out + (tl.fma(q, factor, sums[D * (WANT & 1)]),)
    return out


@triton.jit(do_not_specialize=["M", "N", "split_blocks", "num_splits"])
def narrow_columns_kernel(
    a, packed_ptr, strict_ptr, partial_ptr, M, N, split_blocks, num_splits, D: tl.constexpr,
    HAS: tl.constexpr, WANT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program for each tile of latents and split of the blocks of queries."""
    dtype: tl.constexpr = packed_ptr.dtype.element_ty
    FIELDS: tl.constexpr = D + 6 + D * (SCALE & HAS)
    SUMS: tl.constexpr = D * (WANT & 1) + WANT // 2
    grid, split, offs_n, inside, size, own = own_tile(N, num_splits, tl.arange(0, BLOCK_N), BLOCK_N)
    decoded_at, log_weight_at, latent_energy_at = latent_pointers(a, grid, offs_n, D)
    lw, r, g = 0.0, 0.0, ()
    if LOG_WEIGHT & HAS:
        lw = tl.load(log_weight_at, mask=inside, other=0.0)[:, None]
    if LATENT_ENERGY & HAS:
        r = tl.load(latent_energy_at, mask=inside, other=0.0)[:, None]
    for i in tl.static_range(D):
        x = tl.load(decoded_at + i, mask=inside, other=0.0)[:, None]
        if LOG_WEIGHT & HAS:
            x = tl.where(lw == float("-inf"), 0.0, x)
        g = g + (x,)

    blocks = tl.cdiv(M, BLOCK_M)
    first = split * split_blocks
    stop = tl.minimum(first + split_blocks, blocks)
    lanes = tl.arange(0, BLOCK_M)
    totals = ()
    for _ in tl.static_range(SUMS):
        totals = totals + (tl.zeros((BLOCK_N,), tl.float64),)
    for start in range(first, stop, CHUNK):
        steps = tl.minimum(stop - start, CHUNK)
        block = grid * blocks + start
        chunk = tl.arange(0, CHUNK)
        strict = tl.load(strict_ptr + block + chunk, mask=chunk < steps, other=0)
        at = packed_ptr + block * (FIELDS * BLOCK_M) + lanes
        sums = ()
        for _ in tl.static_range(SUMS):
            sums = sums + (tl.zeros((BLOCK_N, BLOCK_M), dtype),)
        if tl.max(strict, axis=0) > 0:
            for step in tl.range(0, steps, loop_unroll_factor=UNROLL):
                at_i = at + step * (FIELDS * BLOCK_M)
                sums = _pull_block(sums, at_i, g, lw, r, D, HAS, WANT, BLOCK_M, True)
        else:
            for step in tl.range(0, steps, loop_unroll_factor=UNROLL):
                at_i = at + step * (FIELDS * BLOCK_M)
                sums = _pull_block(sums, at_i, g, lw, r, D, HAS, WANT, BLOCK_M, False)
        added = ()
        for i in tl.static_range(SUMS):
            added = added + (totals[i] + tl.sum(sums[i], axis=1).to(tl.float64),)
        totals = added

    kind: tl.constexpr = partial_ptr.dtype.element_ty
    out = partial_ptr + own
    for i in tl.static_range(SUMS):
        tl.store(out + i * size, totals[i].to(kind), mask=inside)


@triton.jit(do_not_specialize=["size", "D", "num_splits"])
def merge_kernel(
    partial_ptr, grad_decoded_ptr, grad_latent_energy_ptr, size, D, num_splits, WANT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program for each BLOCK latents of any grid: the sum of splits, BLOCK_S at once."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    kind: tl.constexpr = grad_decoded_ptr.dtype.element_ty
    field = num_splits * size.to(tl.int64)
    skip = D * (WANT & 1)
    if DECODED & WANT:
        for i in range(0, D):
            total = sum_of_splits(
                partial_ptr + i * field + at, inside, num_splits, size, BLOCK, BLOCK_S
            )
            tl.store(grad_decoded_ptr + at * D + i, (-2 * total).to(kind), mask=inside)
    if ENERGIES & WANT:
        total = sum_of_splits(
            partial_ptr + skip * field + at, inside, num_splits, size, BLOCK, BLOCK_S
        )
        tl.store(grad_latent_energy_ptr + at, total.to(kind), mask=inside)
