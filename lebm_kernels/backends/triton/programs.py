"""Where a Triton program is: its tile, its split of the summed dimension, and what lies there.

A pass keeps one dimension (queries or latents) and sums over the other. The summed dimension is cut
into ``num_splits`` splits. The programs of a pass over ``[B, kept]`` form one dimension: the tiles
of BLOCK kept items vary fastest, then the splits, then the grids. Partial sums are ``[field, split,
B, kept]``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lebm_kernels.backends.triton.packed import place_of


@triton.jit
def own_tile(kept, num_splits, places, BLOCK: tl.constexpr):
    """What :func:`tile_of` says of this program of its launch."""
    return tile_of(tl.program_id(0), tl.num_programs(0), kept, num_splits, places, BLOCK)


@triton.jit
def tile_of(program, programs, kept, num_splits, places, BLOCK: tl.constexpr):
    """A program's grid, split and items, at ``places`` of its tile; a mask of those that exist.

    Also the distance between two fields of partial sums, and the tile's places within a field.
    """
    tiles = tl.cdiv(kept, BLOCK).to(tl.int32)
    split = program // tiles % num_splits
    grid = (program // tiles // num_splits).to(tl.int64)
    offs = (program % tiles).to(tl.int64) * BLOCK + places
    field = programs.to(tl.int64) // tiles * kept
    return grid, split, offs, offs < kept, field, split * (field // num_splits) + grid * kept + offs


@triton.jit
def own_split(split, split_size, summed):
    """The first summed item of a split, and the one after its last."""
    first = split.to(tl.int64) * split_size
    return first, tl.minimum(first + split_size, summed)


@triton.jit
def query_pointers(a, grid, at, D, NARROW: tl.constexpr = True):
    """Pointers to the first dimension of queries and of their scales, and to their betas."""
    place = place_of(at, D, NARROW)
    return (
        a.y_ptr + grid * a.y_stride + place,
        a.scale_ptr + grid * a.scale_stride_b + (at * a.scale_stride_m if NARROW else place),
        a.beta_ptr + grid * a.beta_stride_b + at * a.beta_stride_m,
    )


@triton.jit
def latent_pointers(a, grid, at, D, NARROW: tl.constexpr = True):
    """Pointers to the first dimension of latents, to their log-weights and latent energies."""
    return (
        a.decoded_ptr + grid * a.decoded_stride + place_of(at, D, NARROW),
        a.log_weight_ptr + grid * a.log_weight_stride + at,
        a.latent_energy_ptr + grid * a.latent_energy_stride + at,
    )


@triton.jit
def split_pointers(at, inside, first, num_splits, stride, BLOCK_S: tl.constexpr):
    """Pointers to BLOCK_S splits from ``first`` on, from those to split 0; and a mask."""
    split = first + tl.arange(0, BLOCK_S)
    there = inside[:, None] & (split < num_splits)[None, :]
    # Past the last split, point to the last one again.
    return at[:, None] + tl.minimum(split, num_splits - 1).to(tl.int64)[None, :] * stride, there


@triton.jit
def sum_of_splits(at, inside, num_splits, stride, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    """The sum over all splits at some places, always in the same order; float64."""
    total = tl.zeros((BLOCK, BLOCK_S), tl.float64)
    for first in range(0, num_splits, BLOCK_S):
        pointers, there = split_pointers(at, inside, first, num_splits, stride, BLOCK_S)
        total += tl.load(pointers, mask=there, other=0.0).to(tl.float64)
    return tl.sum(total, axis=1)
