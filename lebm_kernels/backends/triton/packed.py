"""The places of a tile's pairs among threads, and of the data in memory.

A tile of pairs is ``[KEPT // T, SUMMED // U, T, U]``: kept item i T + t and summed item j U + u is
pair [i, j, t, u]. Triton gives the last dimensions to threads and leaves the first ones in a
thread, here 8 x 8 pairs: it loads 16 numbers for 64 differences. Operands are ``[KEPT // T, 1, T,
1]`` and ``[1, SUMMED // U, 1, U]``. Triton loads an operand where it is used, without a way through
shared memory, if it has fewer numbers than the program has threads: so have 128 kept items and 128
summed ones with 256 threads.

At D <= 4 an item's dimensions are contiguous. At D > 4 the data are packed: ``[block, dimension,
PACK]``, with zeros up to a multiple of PACK items and of STEP dimensions. Threads then read
contiguously, at offsets that the compiler knows, and zeros add nothing to an energy. A scale is
packed with a minus: an fma takes no other sign for nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Items of a packed block, a power of two.
PACK = tl.constexpr(128)
_PACK_BITS = tl.constexpr(7)
# Dimensions of a pass through the loop over dimensions.
STEP = tl.constexpr(8)
# The threads of a program, and those along its kept items.
THREADS = 256
_KEPT_THREADS = 16


@triton.constexpr_function
def kept_threads(KEPT):
    """How many kept items of a tile are in different threads."""
    return min(KEPT, _KEPT_THREADS)


@triton.constexpr_function
def summed_threads(SUMMED, KEPT):
    """How many summed items of a tile are in different threads."""
    return min(SUMMED, THREADS // min(KEPT, _KEPT_THREADS))


@triton.jit
def kept_places(KEPT: tl.constexpr):
    """Places 0 to KEPT - 1 of kept items, ``[KEPT // T, 1, T, 1]``."""
    T: tl.constexpr = kept_threads(KEPT)
    slow = tl.arange(0, KEPT // T)[:, None, None, None]
    return slow * T + tl.arange(0, T)[None, None, :, None]


@triton.jit
def summed_places(SUMMED: tl.constexpr, KEPT: tl.constexpr):
    """Places 0 to SUMMED - 1 of summed items, ``[1, SUMMED // U, 1, U]``."""
    U: tl.constexpr = summed_threads(SUMMED, KEPT)
    slow = tl.arange(0, SUMMED // U)[None, :, None, None]
    return slow * U + tl.arange(0, U)[None, None, None, :]


@triton.jit
def sum_over(x):
    """The sum of a tile over its summed items."""
    return tl.sum(tl.sum(x, axis=1, keep_dims=True), axis=3, keep_dims=True)


@triton.jit
def least_over(x):
    """The least of a tile's summed items."""
    return tl.min(tl.min(x, axis=1, keep_dims=True), axis=3, keep_dims=True)


@triton.jit
def largest_over(x):
    """The largest of a tile's summed items."""
    return tl.max(tl.max(x, axis=1, keep_dims=True), axis=3, keep_dims=True)


@triton.jit
def step_of(NARROW: tl.constexpr):
    """The distance between two dimensions of an item."""
    return 1 if NARROW else PACK


@triton.jit
def whole_steps(D):
    """D with the zeros up to a multiple of STEP."""
    return (D + (STEP - 1)) // STEP * STEP


@triton.jit
def place_of(at, D, NARROW: tl.constexpr):
    """The place of dimension 0 of the items ``at``, int64."""
    of_packed = whole_steps(D) * PACK
    return at * D if NARROW else (at >> _PACK_BITS) * of_packed + (at & (PACK - 1))
