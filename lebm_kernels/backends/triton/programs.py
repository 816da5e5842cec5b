"""Where a program is: which part of what is kept and of what is summed over, and what lies there.

The programs of a pass over [B, kept] with ``shares`` of what is summed over are one dimension:
tiles of BLOCK of what is kept run first, then shares, then grids. Partial sums are
``[field, share, B, kept]``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def own_tile(kept, shares, BLOCK: tl.constexpr):
    """The grid, the share and the tile's places, and which of these are beyond the last.

    Also what separates two fields of partial sums, and where in a field the tile's own are.
    """
    tiles = tl.cdiv(kept, BLOCK).to(tl.int32)
    program = tl.program_id(0)
    share = program // tiles % shares
    grid = (program // tiles // shares).to(tl.int64)
    offs = (program % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    field = tl.num_programs(0).to(tl.int64) // tiles * kept
    return grid, share, offs, offs < kept, field, share * (field // shares) + grid * kept + offs


@triton.jit
def own_share(share, share_size, summed):
    """The first of what is summed over, and the one beyond the last."""
    first = share.to(tl.int64) * share_size
    return first, tl.minimum(first + share_size, summed)


@triton.jit
def query_pointers(a, grid, at, D):
    """To the first dimension of some queries, of their scales, and to their temperatures."""
    return (
        a.y_ptr + grid * a.y_stride + at * D,
        a.scale_ptr + grid * a.scale_stride_b + at * a.scale_stride_m,
        a.beta_ptr + grid * a.beta_stride_b + at * a.beta_stride_m,
    )


@triton.jit
def latent_pointers(a, grid, at, D):
    """To the first dimension of some latents, their log-weights and their latent energies."""
    return (
        a.decoded_ptr + grid * a.decoded_stride + at * D,
        a.log_weight_ptr + grid * a.log_weight_stride + at,
        a.latent_energy_ptr + grid * a.latent_energy_stride + at,
    )


@triton.jit
def share_pointers(at, inside, first, shares, stride, BLOCK_S: tl.constexpr):
    """From those to the first share's, to those of BLOCK_S shares from ``first`` on; a mask."""
    share = first + tl.arange(0, BLOCK_S)
    there = inside[:, None] & (share < shares)[None, :]
    # Beyond the last share: that one again.
    return at[:, None] + tl.minimum(share, shares - 1).to(tl.int64)[None, :] * stride, there


@triton.jit
def sum_of_shares(at, inside, shares, stride, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    """What the shares have of some places, added in one order; float64."""
    total = tl.zeros((BLOCK, BLOCK_S), tl.float64)
    for first in range(0, shares, BLOCK_S):
        pointers, there = share_pointers(at, inside, first, shares, stride, BLOCK_S)
        total += tl.load(pointers, mask=there, other=0.0).to(tl.float64)
    return tl.sum(total, axis=1)
