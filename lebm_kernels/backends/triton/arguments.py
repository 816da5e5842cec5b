"""The problem as the kernels take it, and the table of block sizes."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs

from lebm_kernels.backends.contract import Problem

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


class Arguments(NamedTuple):
    """Pointers and what separates grids (and queries); within a grid all is dense.

    An argument that the problem lacks points to the latents and is not read. The sizes and the
    bits of what there is, are passed beside it.
    """

    y_ptr: Tensor
    decoded_ptr: Tensor
    beta_ptr: Tensor
    scale_ptr: Tensor
    log_weight_ptr: Tensor
    latent_energy_ptr: Tensor
    y_stride: int
    decoded_stride: int
    beta_stride_b: int
    beta_stride_m: int
    scale_stride_b: int
    scale_stride_m: int
    log_weight_stride: int
    latent_energy_stride: int


class Shape(NamedTuple):
    """The sizes of a problem and the bits of the arguments it has."""

    B: int
    M: int
    N: int
    D: int
    has: int
    wide: bool

    @property
    def low(self) -> bool:
        """Whether all dimensions fit into registers."""
        return self.D <= 4


def _dense(x: Tensor) -> tuple[Tensor, int]:
    """The tensor with each grid's part contiguous, copied only if it is not; the grids' stride."""
    if x.shape[0] == 0 or x[0].is_contiguous():
        return x, x.stride(0)
    return x.contiguous(), math.prod(x.shape[1:])


def unpack(problem: Problem) -> tuple[Arguments, Shape]:
    """The arguments of the kernels; log-weights are to be log2 w already."""
    (B, M, D), N = problem.y.shape, problem.decoded.shape[1]
    y, y_stride = _dense(problem.y)
    decoded, decoded_stride = _dense(problem.decoded)
    scale, log_weight, latent_energy = decoded, decoded, decoded
    scale_strides, log_weight_stride, latent_energy_stride, has = (0, 0), 0, 0, 0
    if problem.scale is not None:
        # One for all queries stays one.
        scale = problem.scale if problem.scale.stride(-1) == 1 else problem.scale.contiguous()
        scale_strides, has = (scale.stride(0), scale.stride(1)), has | 1
    if problem.log_weight is not None:
        (log_weight, log_weight_stride), has = _dense(problem.log_weight), has | 2
    if problem.latent_energy is not None:
        (latent_energy, latent_energy_stride), has = _dense(problem.latent_energy), has | 4
    arguments = Arguments(
        y,
        decoded,
        problem.beta,
        scale,
        log_weight,
        latent_energy,
        y_stride,
        decoded_stride,
        problem.beta.stride(0),
        problem.beta.stride(1),
        *scale_strides,
        log_weight_stride,
        latent_energy_stride,
    )
    return arguments, Shape(B, M, N, D, has, y.dtype == torch.float64)


class Facts(NamedTuple):
    """What a plan asks of the device."""

    interpreted: bool
    multiprocessors: int

    @property
    def programs(self) -> int:
        """As many as fill it; in the interpreter, as many as make a difference."""
        return 3 if self.interpreted else _WAVES * self.multiprocessors


class Plan(NamedTuple):
    """How a pass is cut: a tile of what is kept, blocks of what is summed over, and shares of it.

    Results depend on ``inner``, ``chunk`` and ``shares`` by the order of their sums, so none of
    them depends on what is wanted.
    """

    outer: int
    inner: int
    chunk: int
    unroll: int
    shares: int
    share_size: int
    warps: int
    device: Facts

    def programs(self, size: int, B: int) -> tuple[int]:
        """The grid of programs for ``size`` of what is kept, in each of B grids."""
        return (-(-size // self.outer) * self.shares * B,)

    def beside(self) -> Plan:
        """For kernels that run beside a pass and hold more of each pair: a smaller tile."""
        return self if self.device.interpreted else self._replace(outer=max(self.outer // 4, 1))

    def turns(self, size: int, summed: int, B: int) -> int:
        """Programs a grid that take turns with what comes of a tile or many, cut in any shares."""
        most = -(-size // self.outer) * -(-summed // self.inner)
        return max(1, min(self.device.programs // B, most))

    def merging(self, size: int) -> dict[str, int]:
        """Of ``size`` and of its shares, how many a program merges at once."""
        across = next(x for x in _ACROSS if self.shares <= x or x == _ACROSS[-1])
        return {"BLOCK": self._block(size, across), "BLOCK_S": across}

    def merging_any(self, size: int) -> dict[str, int]:
        """The same where it is not known into how many shares :meth:`turns` cut."""
        across = _ACROSS[1]
        return {"BLOCK": self._block(size, across), "BLOCK_S": across}

    def _block(self, size: int, across: int) -> int:
        if self.device.interpreted:
            return min(_INTERPRETED_PAIRS // across, _power_of_two(size))
        return min(_MERGED // across, 32 * _WARPS)


@functools.cache
def facts(device: torch.device) -> Facts:
    """Of the GPU that tensors are on; of the CPU, the interpreter's."""
    if device.type != "cuda":
        return Facts(INTERPRETED, 1)
    return Facts(INTERPRETED, torch.cuda.get_device_properties(device).multi_processor_count)


# Threads of a program, and blocks between two crossings of them: 128 terms, added in one float32,
# round by a few eps at most.
_WARPS, _CHUNK, _UNROLL = 4, 128, 4
# In the interpreter an operation takes as long for any tile of up to about this many pairs.
_INTERPRETED_PAIRS, _INTERPRETED_CHUNK = 1 << 15, 4
# Numbers that a program merges at once, and of how many shares: few numbers, for each is compiled.
_MERGED, _ACROSS = 512, (1, 16, 256)
# Programs worth having: enough for every multiprocessor to hold its fill, a few times over.
_WAVES = 8


def _pairs_a_thread(shape: Shape, columns: bool) -> int:
    """As many as 255 registers hold without spills, for sm_80 to sm_100; 16 share a latent's loads.

    ======================  ====  ==========  =====  =====
    D                       1, 2  with scale  3, 4   more
    ======================  ====  ==========  =====  =====
    rows, float32           16    8           8 (4)  16 (8)
    columns, float32        16    16          8      16 (8)
    float64                 4     2           2 (1)  4 (2)
    ======================  ====  ==========  =====  =====

    In brackets: with scale. Never by what is wanted: that would change the order of sums.
    """
    scale = shape.has & 1
    pairs = 16
    if shape.low and shape.D > 2:
        pairs //= 2
    if scale and not (columns and shape.low):
        pairs //= 2
    if shape.wide:
        pairs //= 4
    return pairs


def _power_of_two(x: int) -> int:
    return 1 << max(x - 1, 0).bit_length()


def plan(shape: Shape, device: Facts, *, columns: bool = False) -> Plan:
    """The plan of a pass: queries kept and latents summed over, or the other way for columns."""
    kept, summed = (shape.N, shape.M) if columns else (shape.M, shape.N)
    threads = 32 * _WARPS
    pairs, chunk = _pairs_a_thread(shape, columns) * threads, _CHUNK
    if device.interpreted:
        pairs, chunk = _INTERPRETED_PAIRS, _INTERPRETED_CHUNK
        inner = 512 if summed <= 1 << 14 else 1 << 14
    else:
        # By tiles, float32 has room for several latents a thread; more of what is kept is better.
        inner = threads if shape.low or shape.wide else 4 * threads
    inner = min(inner, _power_of_two(summed))
    outer = min(pairs // inner, _power_of_two(kept))
    tiles = -(-kept // outer) * max(shape.B, 1)
    blocks = -(-summed // inner)
    shares = max(
        1, min(device.programs // max(tiles, 1), blocks // (1 if device.interpreted else 4))
    )
    share_size = -(-blocks // shares) * inner
    shares = -(-summed // share_size)
    return Plan(outer, inner, chunk, _UNROLL, shares, share_size, _WARPS, device)
