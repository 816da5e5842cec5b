"""Row pass, D <= 4: partial sums over a split of the latents.

For query m, over the latents n of one split, with the shift (m, k) of that query and split:

    p = exp2(l - k - c (E - m))                   c = beta log2 e, l = log2 w, or 0
    sums: p;  p (E - m);  p (y - s g);  p (y - s g) g;  p g

They go to ``partial[field, split, b, m]``, float64: m, k, sum p, sum p (E - m), then the vectors
wanted. Without weights k would be 0. Its field then holds a bound on how much c (m - E) rises: the
logarithm of the largest mean of p over the latents that one thread has of a chunk, and at least 0.

A program has BLOCK_M queries, the same in all threads, and BLOCK_N latents at a time, one or a few
a thread, so that sums stay within a thread. After every CHUNK blocks the threads' sums are added
into float64. The shift is not the running minimum: it starts from a sample of the latents. It is
replaced only when the sum of a chunk shows that a latent lies far below it; that chunk is then
summed again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.pairs import (
    LOG_WEIGHT,
    SCALE,
    any_of,
    coldness,
    differences,
    energy_from,
    largest,
    split_shift,
)
from lebm_kernels.backends.triton.programs import (
    latent_pointers,
    own_split,
    own_tile,
    query_pointers,
)
from lebm_kernels.backends.triton.shifts import find_shift, load_latents

# What a row pass sums in addition to p, as bits of WANT.
ENERGY = tl.constexpr(1)
PULL = tl.constexpr(2)
STRETCH = tl.constexpr(4)
MEAN = tl.constexpr(8)

# A sum above this limit has a latent far below the shift. Below it, exponents are at most 20, the
# limit's logarithm, and their rounding keeps the promise on accuracy.
_LIMIT = tl.constexpr(2.0**20)
# The shift starts from an eighth of a split, and from at most this many blocks of latents.
_SAMPLE = tl.constexpr(4)


@triton.jit
def _sum_block(
    sums,
    latents,
    query,
    D: tl.constexpr,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    STRICT: tl.constexpr,
    valid,
    MASKED: tl.constexpr,
):
    g, lw, r = latents
    y, s, c, m, k = query
    d = differences(y, s, g, D, HAS)
    # STRICT: the shifts of some queries are subtracted last, see split_shift.
    free, late, _ = split_shift(c, m, HAS)
    energy = energy_from(r - (free if STRICT else m), d, D)
    if STRICT:
        energy = energy - late
    p = tl.exp2(tl.fma(-c, energy, lw - k) if LOG_WEIGHT & HAS else -c * energy)
    if MASKED:
        p = tl.where(valid, p, 0.0)
    out = (sums[0] + p,)
    if ENERGY & WANT:
        # An infinite energy has posterior weight 0, and 0 times infinity would be NaN.
        out = out + (tl.fma(p, tl.minimum(energy, largest(energy.dtype)), sums[1]),)
    NEXT: tl.constexpr = 2 if ENERGY & WANT else 1
    AFTER: tl.constexpr = NEXT + D if PULL & WANT else NEXT
    LAST: tl.constexpr = AFTER + D if STRETCH & WANT else AFTER
    if PULL & WANT:
        for i in tl.static_range(D):
            out = out + (tl.fma(p, d[i], sums[NEXT + i]),)
    if STRETCH & WANT:
        for i in tl.static_range(D):
            out = out + (tl.fma(p * d[i], g[i], sums[AFTER + i]),)
    if MEAN & WANT:
        for i in tl.static_range(D):
            out = out + (tl.fma(p, g[i], sums[LAST + i]),)
    return out


@triton.jit
def _sum_chunk(
    a,
    grid,
    first,
    steps,
    stop,
    query,
    D: tl.constexpr,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    STRICT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The sums over ``steps`` whole blocks; if MASKED, over one block's latents before ``stop``.

    After them comes the largest mean of p of any thread.
    """
    at = first + tl.arange(0, BLOCK_N)
    sums = ()
    for _ in tl.static_range(FIELDS):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), a.decoded_ptr.dtype.element_ty),)
    if MASKED:
        pointers = latent_pointers(a, grid, tl.minimum(at, stop - 1), D)
        latents = load_latents(pointers, 0, D, HAS)
        valid = (at < stop)[None, :]
        sums = _sum_block(sums, latents, query, D, HAS, WANT, STRICT, valid, True)
    else:
        pointers = latent_pointers(a, grid, at, D)
        for i in tl.range(0, steps, loop_unroll_factor=UNROLL):
            latents = load_latents(pointers, i * BLOCK_N, D, HAS)
            sums = _sum_block(sums, latents, query, D, HAS, WANT, STRICT, None, False)
    totals = ()
    for i in tl.static_range(FIELDS):
        totals = totals + (tl.sum(sums[i], axis=1).to(tl.float64),)
    if (LOG_WEIGHT & HAS) == 0:
        peak = tl.max(sums[0], axis=1) / tl.maximum(steps, 1).to(sums[0].dtype)
        totals = totals + (peak,)
    return totals


@triton.jit(do_not_specialize=["M", "N", "split_size", "num_splits"])
def narrow_rows_kernel(
    a,
    partial_ptr,
    M,
    N,
    split_size,
    num_splits,
    D: tl.constexpr,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program for each tile of queries and split of latents; ``a`` is an ``Arguments``."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    FIELDS: tl.constexpr = 1 + (WANT & 1) + D * ((WANT // 2 & 1) + (WANT // 4 & 1) + WANT // 8)
    grid, split, offs_m, inside, field, own = own_tile(
        M, num_splits, tl.arange(0, BLOCK_M), BLOCK_M
    )
    y_at, scale_at, beta_at = query_pointers(a, grid, offs_m, D)
    beta = tl.load(beta_at, mask=inside, other=0.0)
    # Invalid queries are set to 0. Otherwise the whole tile would search for their shift.
    sound = beta >= 0
    y, s = (), ()
    for i in tl.static_range(D):
        x = tl.load(y_at + i, mask=inside, other=0.0)
        sound = sound & (tl.abs(x) < float("inf"))
        y = y + (x,)
        if SCALE & HAS:
            x = tl.load(scale_at + i, mask=inside, other=0.0)
            sound = sound & (tl.abs(x) < float("inf"))
        s = s + (x,)
    sound_y, sound_s = (), ()
    for i in tl.static_range(D):
        sound_y = sound_y + (tl.where(sound, y[i], 0.0)[:, None],)
        sound_s = sound_s + (tl.where(sound, s[i], 0.0)[:, None],)
    c = tl.where(sound, coldness(beta), 0.0)[:, None]

    first, stop = own_split(split, split_size, N)
    m = tl.full((BLOCK_M,), largest(dtype), dtype)
    k = tl.zeros((BLOCK_M,), dtype)
    sample = tl.minimum(tl.maximum((stop - first) // (8 * BLOCK_N), 1), _SAMPLE)
    every = tl.cdiv(stop - first, sample * BLOCK_N)
    query = (sound_y, sound_s, c, m[:, None], k[:, None])
    m, k, _ = find_shift(a, grid, first, stop, every, query, sound, D, HAS, BLOCK_M, BLOCK_N)
    totals = ()
    for _ in tl.static_range(FIELDS):
        totals = totals + (tl.zeros((BLOCK_M,), tl.float64),)
    peak = tl.zeros((BLOCK_M,), dtype)
    tried = first * 0
    while first < stop:
        query = (sound_y, sound_s, c, m[:, None], k[:, None])
        steps = tl.minimum((stop - first) // BLOCK_N, CHUNK).to(tl.int32)
        if steps == 0:
            sums = _sum_chunk(
                a, grid, first, steps, stop, query, D, HAS, WANT, FIELDS, BLOCK_M, BLOCK_N,
                UNROLL, True, True,
            )  # fmt: skip
        elif any_of(split_shift(tl.reshape(c, (BLOCK_M,)), m, HAS)[2]):
            sums = _sum_chunk(
                a, grid, first, steps, stop, query, D, HAS, WANT, FIELDS, BLOCK_M, BLOCK_N,
                UNROLL, True, False,
            )  # fmt: skip
        else:
            sums = _sum_chunk(
                a, grid, first, steps, stop, query, D, HAS, WANT, FIELDS, BLOCK_M, BLOCK_N,
                UNROLL, False, False,
            )  # fmt: skip
        next_first = tl.minimum(first + tl.maximum(steps, 1).to(tl.int64) * BLOCK_N, stop)
        beaten = (sums[0] <= _LIMIT) == 0
        beaten = beaten | (m >= largest(dtype))
        if any_of(beaten) & (tried == 0):
            new_m, k, shrink = find_shift(
                a, grid, first, next_first, 1, query, beaten, D, HAS, BLOCK_M, BLOCK_N
            )
            peak *= shrink
            shrink = shrink.to(tl.float64)
            if ENERGY & WANT:
                rise = (m.to(tl.float64) - new_m.to(tl.float64)) * totals[0]
                totals = (totals[0], totals[1] + rise) + totals[2:]
            scaled = ()
            for i in tl.static_range(FIELDS):
                scaled = scaled + (totals[i] * shrink,)
            totals = scaled
            m = new_m
            tried += 1
        else:
            added = ()
            for i in tl.static_range(FIELDS):
                added = added + (totals[i] + sums[i],)
            totals = added
            if (LOG_WEIGHT & HAS) == 0:
                peak = tl.maximum(peak, sums[FIELDS])
            first = next_first
            tried = tried * 0

    out = partial_ptr + own
    tl.store(out, tl.where(sound, m.to(tl.float64), float("nan")), mask=inside)
    if (LOG_WEIGHT & HAS) == 0:
        k = tl.log2(tl.maximum(peak, 1.0))
    tl.store(out + field, k.to(tl.float64), mask=inside)
    tl.store(out + 2 * field, totals[0], mask=inside)
    SKIP: tl.constexpr = 2 if ENERGY & WANT else 3
    for i in tl.static_range(1, FIELDS):
        tl.store(out + (i + SKIP) * field, totals[i], mask=inside)

    # No latent is within reach of an infinite query: its sums are meaningless, and F is inf.
    far = (sound == 0) & (tl.load(beta_at, mask=inside, other=0.0) >= 0)
    for i in tl.static_range(D):
        x = tl.load(y_at + i, mask=inside, other=0.0)
        far = far & (x == x)
        if SCALE & HAS:
            x = tl.load(scale_at + i, mask=inside, other=0.0)
            far = far & (x == x)
    tl.store(out, tl.full((BLOCK_M,), largest(dtype), dtype).to(tl.float64), mask=inside & far)
    tl.store(out + 2 * field, tl.zeros((BLOCK_M,), tl.float64), mask=inside & far)
