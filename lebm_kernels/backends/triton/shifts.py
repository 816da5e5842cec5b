"""The shift (m, k) of each query: what is subtracted from energies and log-weights, D <= 4.

    m = min E,    k = max (l - c (E - m))        over the latents looked at

Then no p = exp2(l - k - c (E - m)) of these latents is larger than 1. Without weights k is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.pairs import (
    LATENT_ENERGY,
    LOG_WEIGHT,
    differences,
    energy_from,
)
from lebm_kernels.backends.triton.programs import latent_pointers


@triton.jit
def load_latents(pointers, offset, D: tl.constexpr, HAS: tl.constexpr):
    """The points g, log-weights l and energies r of a block of latents, ``[1, BLOCK_N]``."""
    lw, r, g = 0.0, 0.0, ()
    if LOG_WEIGHT & HAS:
        lw = tl.load(pointers[1] + offset)[None, :]
    if LATENT_ENERGY & HAS:
        r = tl.load(pointers[2] + offset)[None, :]
    for i in tl.static_range(D):
        x = tl.load(pointers[0] + offset * D + i)[None, :]
        if LOG_WEIGHT & HAS:
            # A dropped latent may be infinite or NaN: 0 times its energy need not be 0.
            x = tl.where(lw == float("-inf"), 0.0, x)
        g = g + (x,)
    return g, lw, r


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
    """The least energy among every ``every``-th latent, ``[BLOCK_M]``."""
    dtype: tl.constexpr = a.decoded_ptr.dtype.element_ty
    least = tl.full((BLOCK_M, BLOCK_N), float("inf"), dtype)
    for i in range(0, tl.cdiv(stop - first, every), BLOCK_N):
        at = first + (i + tl.arange(0, BLOCK_N)) * every
        pointers = latent_pointers(a, grid, tl.minimum(at, stop - 1), D)
        g, lw, r = load_latents(pointers, 0, D, HAS)
        energy = energy_from(r, differences(y, s, g, D, HAS), D)
        if LOG_WEIGHT & HAS:
            energy = tl.where(lw == float("-inf"), float("inf"), energy)
        # Places past the end are copies of the last latent, which changes no minimum.
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
    """The largest l - c (E - m) among every ``every``-th latent, ``[BLOCK_M]``."""
    largest_yet = tl.full((BLOCK_M, BLOCK_N), float("-inf"), a.decoded_ptr.dtype.element_ty)
    for i in range(0, tl.cdiv(stop - first, every), BLOCK_N):
        at = first + (i + tl.arange(0, BLOCK_N)) * every
        pointers = latent_pointers(a, grid, tl.minimum(at, stop - 1), D)
        g, lw, r = load_latents(pointers, 0, D, HAS)
        energy = energy_from(r, differences(y, s, g, D, HAS), D) - m
        largest_yet = tl.maximum(largest_yet, tl.fma(-c, energy, lw))
    return tl.max(largest_yet, axis=1)


@triton.jit
def find_shift(
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
    """A shift (m, k) with p <= 1 for all latents looked at, where ``wanted``; and p's factor."""
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
