"""D > 4: sums of vectors over a tile of pairs, from the tile's posterior weights in memory.

A program writes its tile of weights to a scratch, so that every thread can read every weight. Then
a thread has some kept items and some dimensions, and goes through the summed items one by one. It
loads a weight of each of its kept items and a coordinate of each of its dimensions, and computes
the differences anew. Nothing is summed across threads. The sums are ``[AT_ONCE, KEPT // T,
DIMENSIONS // U, T, U]``, where kept item i T + t and dimension j U + u are at [_, i, j, t, u]. Only
Triton's interpreter takes several summed items AT_ONCE. After a tile the sums are added in double
to those of the split, once for each kept item and dimension.

The summed items' data are in slabs of DIMENSIONS dimensions, ``[slab, item, DIMENSIONS]``, with
zeros at the end. The scratch holds CHUNK weights of each kept item at a time, ``[chunk, kept item,
CHUNK]``: both those who write and those who read find neighbours together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.packed import THREADS, kept_places, summed_threads

# Summed items of a pass through the loop over summed items.
CHUNK = tl.constexpr(8)
# The numbers that wide kernels are not compiled anew for.
WIDE_SIZES = ["M", "N", "D", "split_size", "num_splits", "first_program", "programs"]


@triton.jit
def weight_places(KEPT: tl.constexpr, SUMMED: tl.constexpr):
    """Where the scratch has the weights of a tile of pairs, in the tile's arrangement."""
    U: tl.constexpr = summed_threads(SUMMED, KEPT)
    slow = tl.arange(0, SUMMED // U)[None, :, None, None] * (U * KEPT)
    fast = tl.arange(0, U)[None, None, None, :]
    fast = fast // CHUNK * (KEPT * CHUNK) + fast % CHUNK
    return kept_places(KEPT) * CHUNK + slow + fast


@triton.constexpr_function
def _dimension_threads(DIMENSIONS):
    """How many dimensions are in different threads."""
    return {8: 4, 16: 8, 32: 8}.get(DIMENSIONS, 16)


@triton.constexpr_function
def _kept_threads(KEPT, DIMENSIONS):
    return min(KEPT, THREADS // _dimension_threads(DIMENSIONS))


@triton.jit
def vector_places(KEPT: tl.constexpr, DIMENSIONS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Places in [0, AT_ONCE), of kept items and of dimensions, each to be broadcast to the sums."""
    U: tl.constexpr = _dimension_threads(DIMENSIONS)
    T: tl.constexpr = _kept_threads(KEPT, DIMENSIONS)
    at_once = tl.arange(0, AT_ONCE)[:, None, None, None, None]
    kept = tl.arange(0, KEPT // T)[None, :, None, None, None] * T
    kept += tl.arange(0, T)[None, None, None, :, None]
    dimension = tl.arange(0, DIMENSIONS // U)[None, None, :, None, None] * U
    return at_once, kept, dimension + tl.arange(0, U)[None, None, None, None, :]
