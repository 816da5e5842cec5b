"""Queries outside, D <= 4: partial sums over a share of the latents.

Of query m, over the latents n of one share, with the reference (m, k) of that query and share,

    p = exp2(l - k - c (E - m))                   c = beta log2 e, l = log2 w, or 0
    sums: p;  p (E - m);  p (y - s g);  p (y - s g) g;  p g

to ``partial[field, share, b, m]``, float64: m, k, sum p, sum p (E - m), then the vectors wanted.

A program has BLOCK_M queries, alike in all threads, and BLOCK_N latents at a time, one or a few a
thread, so that sums stay in a thread. Every CHUNK blocks they cross threads, once, into float64.
The reference is not the running minimum: it starts from a sample of the latents, and is looked at
again only when a chunk's sum shows that it was beaten by far; that chunk is then done again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.triton_kernels.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    SCALE,
    any_of,
    coldness,
    differences,
    energy_from,
    largest,
    split_reference,
)

# What a row pass sums beside p, as bits of WANT.
ENERGY = tl.constexpr(1)
PULL = tl.constexpr(2)
STRETCH = tl.constexpr(4)
MEAN = tl.constexpr(8)

# A larger sum has a latent far below the reference. Up to it exponents are at most its logarithm,
# 20, and their rounding keeps the promise.
_LIMIT = tl.constexpr(2.0**20)
# Blocks of latents that the reference starts from, at most; an eighth of a share.
_SAMPLE = tl.constexpr(4)


@triton.jit
def _pointers(a, grid, at, D: tl.constexpr):
    """To the first dimension of some latents, their log-weights and their latent energies."""
    return (
        a.decoded_ptr + grid * a.decoded_stride + at * D,
        a.log_weight_ptr + grid * a.log_weight_stride + at,
        a.latent_energy_ptr + grid * a.latent_energy_stride + at,
    )


@triton.jit
def _load(pointers, offset, D: tl.constexpr, HAS: tl.constexpr):
    """G, l and r of a block of latents, ``[1, BLOCK_N]``."""
    lw, r, g = 0.0, 0.0, ()
    if LOG_WEIGHT & HAS:
        lw = tl.load(pointers[1] + offset)[None, :]
    if LATENT_ENERGY & HAS:
        r = tl.load(pointers[2] + offset)[None, :]
    for i in tl.static_range(D):
        x = tl.load(pointers[0] + offset * D + i)[None, :]
        if LOG_WEIGHT & HAS:
            # What is dropped is not looked at: 0 times its energy need not be 0.
            x = tl.where(lw == float("-inf"), 0.0, x)
        g = g + (x,)
    return g, lw, r


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
    # Where STRICT, some queries' references are subtracted last: see split_reference.
    free, late, _ = split_reference(c, m, HAS)
    energy = energy_from(r - (free if STRICT else m), d, D)
    if STRICT:
        energy = energy - late
    p = tl.exp2(tl.fma(-c, energy, lw - k) if LOG_WEIGHT & HAS else -c * energy)
    if MASKED:
        p = tl.where(valid, p, 0.0)
    out = (sums[0] + p,)
    if ENERGY & WANT:
        # An infinite energy has no share, and 0 times infinity is none.
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
    """The sums over ``steps`` whole blocks; or MASKED over one, of which those before ``stop``."""
    at = first + tl.arange(0, BLOCK_N)
    sums = ()
    for _ in tl.static_range(FIELDS):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), a.decoded_ptr.dtype.element_ty),)
    if MASKED:
        pointers = _pointers(a, grid, tl.minimum(at, stop - 1), D)
        latents = _load(pointers, 0, D, HAS)
        valid = (at < stop)[None, :]
        sums = _sum_block(sums, latents, query, D, HAS, WANT, STRICT, valid, True)
    else:
        pointers = _pointers(a, grid, at, D)
        for i in tl.range(0, steps, loop_unroll_factor=UNROLL):
            latents = _load(pointers, i * BLOCK_N, D, HAS)
            sums = _sum_block(sums, latents, query, D, HAS, WANT, STRICT, None, False)
    totals = ()
    for i in tl.static_range(FIELDS):
        totals = totals + (tl.sum(sums[i], axis=1).to(tl.float64),)
    return totals


@triton.jit
def _least_energy(
    a,
    grid,
    first,
    stop,
    every,
    y,
    s,
    D: tl.constexpr,
    HAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The least energy of every ``every``th latent, ``[BLOCK_M]``."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    least = tl.full((BLOCK_M, BLOCK_N), float("inf"), dtype)
    for i in range(0, tl.cdiv(stop - first, every), BLOCK_N):
        at = first + (i + tl.arange(0, BLOCK_N)) * every
        g, lw, r = _load(_pointers(a, grid, tl.minimum(at, stop - 1), D), 0, D, HAS)
        energy = energy_from(r, differences(y, s, g, D, HAS), D)
        if LOG_WEIGHT & HAS:
            energy = tl.where(lw == float("-inf"), float("inf"), energy)
        # Those beyond the end are copies of the last, which is as good as any.
        least = tl.minimum(least, energy)
    return tl.min(least, axis=1)


@triton.jit
def _largest_exponent(
    a,
    grid,
    first,
    stop,
    every,
    y,
    s,
    c,
    m,
    D: tl.constexpr,
    HAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The largest l - c (E - m) of every ``every``th latent, ``[BLOCK_M]``."""
    largest_yet = tl.full((BLOCK_M, BLOCK_N), float("-inf"), a.decoded_ptr.dtype.element_ty)
    for i in range(0, tl.cdiv(stop - first, every), BLOCK_N):
        at = first + (i + tl.arange(0, BLOCK_N)) * every
        g, lw, r = _load(_pointers(a, grid, tl.minimum(at, stop - 1), D), 0, D, HAS)
        energy = energy_from(r, differences(y, s, g, D, HAS), D) - m
        largest_yet = tl.maximum(largest_yet, tl.fma(-c, energy, lw))
    return tl.max(largest_yet, axis=1)


@triton.jit
def _reference(
    a,
    grid,
    first,
    stop,
    every,
    query,
    wanted,
    D: tl.constexpr,
    HAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(m, k) under which no latent looked at has p > 1, where ``wanted``; and what p shrinks by."""
    y, s, c, m, k = query
    c, m, k = tl.reshape(c, (BLOCK_M,)), tl.reshape(m, (BLOCK_M,)), tl.reshape(k, (BLOCK_M,))
    least = _least_energy(a, grid, first, stop, every, y, s, D, HAS, BLOCK_M, BLOCK_N)
    new_m = tl.where(wanted & (least < m), least, m)
    moved = k - c * (m - new_m)
    new_k = k
    if LOG_WEIGHT & HAS:
        found = _largest_exponent(
            a, grid, first, stop, every, y, s, query[2], new_m[:, None], D, HAS, BLOCK_M, BLOCK_N
        )
        new_k = tl.where(wanted & (found > moved), found, moved)
        new_k = tl.where(new_k == float("-inf"), 0.0, new_k)  # nothing but dropped latents
    return new_m, new_k, tl.exp2(moved - new_k)


@triton.jit(do_not_specialize=["M", "N", "share_size", "shares"])
def rows_kernel(
    a,
    partial_ptr,
    M,
    N,
    share_size,
    shares,
    D: tl.constexpr,
    HAS: tl.constexpr,
    WANT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """One program a tile of queries and share of latents; ``a`` is an ``Arguments``."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    FIELDS: tl.constexpr = 1 + (WANT & 1) + D * ((WANT // 2 & 1) + (WANT // 4 & 1) + WANT // 8)
    tiles = tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0) % tiles
    share = tl.program_id(0) // tiles % shares
    grid = (tl.program_id(0) // tiles // shares).to(tl.int64)
    offs_m = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < M
    beta = tl.load(
        a.beta_ptr + grid * a.beta_stride_b + offs_m * a.beta_stride_m, mask=inside, other=0.0
    )
    # A bad number is kept apart, lest the whole tile look for a reference that is none.
    sound = beta >= 0
    y, s = (), ()
    for i in tl.static_range(D):
        x = tl.load(a.y_ptr + grid * a.y_stride + offs_m * D + i, mask=inside, other=0.0)
        sound = sound & (tl.abs(x) < float("inf"))
        y = y + (x,)
        if SCALE & HAS:
            scale_at = a.scale_ptr + grid * a.scale_stride_b + offs_m * a.scale_stride_m + i
            x = tl.load(scale_at, mask=inside, other=0.0)
            sound = sound & (tl.abs(x) < float("inf"))
        s = s + (x,)
    sound_y, sound_s = (), ()
    for i in tl.static_range(D):
        sound_y = sound_y + (tl.where(sound, y[i], 0.0)[:, None],)
        sound_s = sound_s + (tl.where(sound, s[i], 0.0)[:, None],)
    c = tl.where(sound, coldness(beta), 0.0)[:, None]

    first = share.to(tl.int64) * share_size
    stop = tl.minimum(first + share_size, N)
    m = tl.full((BLOCK_M,), largest(dtype), dtype)
    k = tl.zeros((BLOCK_M,), dtype)
    sample = tl.minimum(tl.maximum((stop - first) // (8 * BLOCK_N), 1), _SAMPLE)
    every = tl.cdiv(stop - first, sample * BLOCK_N)
    query = (sound_y, sound_s, c, m[:, None], k[:, None])
    m, k, _ = _reference(a, grid, first, stop, every, query, sound, D, HAS, BLOCK_M, BLOCK_N)
    totals = ()
    for _ in tl.static_range(FIELDS):
        totals = totals + (tl.zeros((BLOCK_M,), tl.float64),)
    tried = first * 0
    while first < stop:
        query = (sound_y, sound_s, c, m[:, None], k[:, None])
        steps = tl.minimum((stop - first) // BLOCK_N, CHUNK).to(tl.int32)
        if steps == 0:
            sums = _sum_chunk(
                a, grid, first, steps, stop, query, D, HAS, WANT, FIELDS, BLOCK_M, BLOCK_N,
                UNROLL, True, True,
            )  # fmt: skip
        elif any_of(split_reference(tl.reshape(c, (BLOCK_M,)), m, HAS)[2]):
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
            new_m, k, shrink = _reference(
                a, grid, first, next_first, 1, query, beaten, D, HAS, BLOCK_M, BLOCK_N
            )
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
            first = next_first
            tried = tried * 0

    field = tl.num_programs(0).to(tl.int64) // tiles * M
    out = partial_ptr + share * (field // shares) + grid * M + offs_m
    tl.store(out, tl.where(sound, m.to(tl.float64), float("nan")), mask=inside)
    tl.store(out + field, k.to(tl.float64), mask=inside)
    tl.store(out + 2 * field, totals[0], mask=inside)
    SKIP: tl.constexpr = 2 if ENERGY & WANT else 3
    for i in tl.static_range(1, FIELDS):
        tl.store(out + (i + SKIP) * field, totals[i], mask=inside)
