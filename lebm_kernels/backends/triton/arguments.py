"""The problem in the form that the kernels take, and the plan of tiles and splits of a pass."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

from lebm_kernels.backends.contract import Problem
from lebm_kernels.backends.triton.moments import CHUNK
from lebm_kernels.backends.triton.packed import PACK, STEP, THREADS

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


class Arguments(NamedTuple):
    """Pointers, and the strides of grids and queries; within a grid everything is dense.

    An absent argument points to the latents and is not read. The sizes, and the bits of the
    arguments present, are passed separately.
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
    """The sizes of a problem, the bits of its arguments, and whether it is float64."""

    B: int
    M: int
    N: int
    D: int
    has: int
    double: bool

    @property
    def narrow(self) -> bool:
        """Whether all dimensions fit into registers: D <= 4."""
        return self.D <= 4


def _dense(x: Tensor) -> tuple[Tensor, int]:
    """The tensor with each grid contiguous, copied only if needed; and the stride of grids."""
    if x.shape[0] == 0 or x[0].is_contiguous():
        return x, x.stride(0)
    return x.contiguous(), math.prod(x.shape[1:])


def unpack(problem: Problem) -> tuple[Arguments, Shape]:
    """The arguments of the kernels; log-weights must be log2 w already."""
    (B, M, D), N = problem.y.shape, problem.decoded.shape[1]
    y, y_stride = _dense(problem.y)
    decoded, decoded_stride = _dense(problem.decoded)
    scale, log_weight, latent_energy = decoded, decoded, decoded
    scale_strides, log_weight_stride, latent_energy_stride, has = (0, 0), 0, 0, 0
    if problem.scale is not None:
        # A scale shared by all queries stays shared.
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


def _pad(x: Tensor, items: int, dimensions: int) -> Tensor:
    """``[B, size, D]`` with zeros up to multiples of both; B is 1 if all grids share the data."""
    x = x[:1] if x.stride(0) == 0 else x
    return torch.nn.functional.pad(x, (0, -x.shape[2] % dimensions, 0, -x.shape[1] % items))


def _stride(x: Tensor, B: int) -> int:
    """The distance between two grids; 0 if all share the data."""
    return x.stride(0) if x.shape[0] == B else 0


def _pack(x: Tensor, items: int) -> Tensor:
    """``[B, size, D]`` to ``[B, block, dimension, PACK]``, see packed.py."""
    x = _pad(x, items, STEP.value)
    return x.view(x.shape[0], -1, PACK.value, x.shape[2]).transpose(2, 3).contiguous()


def packed(problem: Problem, arguments: Arguments, inner: int) -> Arguments:
    """The arguments of the kernels for D > 4, with y, decoded and scale packed.

    A block of ``inner`` summed items is there as a whole.
    """
    B, items = problem.y.shape[0], max(inner, PACK.value)
    y, decoded = _pack(problem.y, items), _pack(problem.decoded, items)
    arguments = arguments._replace(
        y_ptr=y,
        y_stride=_stride(y, B),
        decoded_ptr=decoded,
        decoded_stride=_stride(decoded, B),
    )
    if problem.scale is not None:
        scale = -_pack(problem.scale, items)
        arguments = arguments._replace(scale_ptr=scale, scale_stride_b=_stride(scale, B))
    return arguments


# D > 4: the packed numbers of the grids that are launched together, 256 MB in float32.
MOST_PACKED = 1 << 26


def grid_slices(problem: Problem) -> list[slice]:
    """The grids, as many at a time as may be packed: small grids are packed with many zeros."""
    (B, M, D), N = problem.y.shape, problem.decoded.shape[1]
    if D <= 4:
        return [slice(0, B)]
    numbers = 2 * (M + N + 2 * PACK.value) * (D + STEP.value)
    step = max(1, MOST_PACKED // numbers)
    return [slice(first, min(first + step, B)) for first in range(0, B, step)]


def of_grids(problem: Problem, grids: slice) -> Problem:
    """The problem of some of the grids."""
    tensors = ((name, x) for name, x in problem._asdict().items() if isinstance(x, Tensor))
    parts: dict[str, Any] = {name: x[grids] for name, x in tensors}
    return problem._replace(**parts)


class Slabs(NamedTuple):
    """What a pass sums over, ``[B, slab, item, dimension]``, see moments.py; strides of B and slab.

    The scale is there in a column pass only.
    """

    ptr: Tensor
    scale_ptr: Tensor
    stride: int
    scale_stride: int
    slab_stride: int


def _slab(x: Tensor, dimensions: int, items: int) -> Tensor:
    x = _pad(x, items, dimensions)
    return x.view(*x.shape[:2], -1, dimensions).transpose(1, 2).contiguous()


def slabs(problem: Problem, dimensions: int, inner: int, *, columns: bool = False) -> Slabs:
    """The latents in slabs of dimensions; for columns the queries, and their scales."""
    B, items = problem.y.shape[0], max(inner, PACK.value)
    if columns:
        x = _slab(problem.y, dimensions, items)
        scale = x if problem.scale is None else _slab(problem.scale, dimensions, items)
    else:
        x = scale = _slab(problem.decoded, dimensions, items)
        if problem.log_weight is not None:
            # A dropped latent may be infinite or NaN, and 0 times it is not 0.
            x = x.nan_to_num(0, 0, 0)
    return Slabs(x, scale, _stride(x, B), _stride(scale, B), x.stride(1))


class Device(NamedTuple):
    """The facts about the device that a plan depends on."""

    interpreted: bool
    multiprocessors: int

    @property
    def programs(self) -> int:
        """Enough programs to fill the device; in the interpreter, a few that need merging."""
        return 3 if self.interpreted else _WAVES * self.multiprocessors


class Plan(NamedTuple):
    """How a pass is cut: ``outer`` kept items a tile, ``inner`` summed items a block, and splits.

    Results depend on ``inner``, ``chunk`` and ``num_splits`` through the order of the sums. So none
    of the three depends on which outputs are wanted.
    """

    outer: int
    inner: int
    chunk: int
    unroll: int
    num_splits: int
    split_size: int
    warps: int
    device: Device

    def programs(self, size: int, B: int) -> tuple[int]:
        """Triton's launch grid for ``size`` kept items in each of B grids."""
        return (-(-size // self.outer) * self.num_splits * B,)

    def vectors(self, shape: Shape) -> dict[str, int]:
        """D > 4: the dimensions of a slab, and how many summed items are taken at once."""
        # Registers for 32 sums a thread, and for as many y and s.
        most = 32 if shape.double and shape.has & 1 else 64
        at_once = self.inner // CHUNK.value if self.device.interpreted else 1
        return {"BLOCK_D": max(8, min(most, _power_of_two(shape.D))), "AT_ONCE": at_once}

    def rounds(self, programs: int) -> list[tuple[int, int]]:
        """D > 4: the first program and the number of programs of each launch.

        Each program of a launch has a scratch, so that a launch has no more of them than it needs.
        """
        most = self.device.programs
        return [(first, min(most, programs - first)) for first in range(0, programs, most)]

    def small_tiles(self) -> Plan:
        """The plan with a smaller tile, for kernels that hold more numbers of each pair."""
        return self if self.device.interpreted else self._replace(outer=max(self.outer // 4, 1))

    def looping_programs(self, size: int, summed: int, B: int) -> int:
        """How many programs of each grid loop over tiles and splits not known at launch."""
        most = -(-size // self.outer) * -(-summed // self.inner)
        return max(1, min(self.device.programs // B, most))

    def merging(self, size: int) -> dict[str, int]:
        """How many of ``size`` items, and of their splits, a program merges at once."""
        across = next(x for x in _ACROSS if self.num_splits <= x or x == _ACROSS[-1])
        return {"BLOCK": self._block(size, across), "BLOCK_S": across}

    def merging_any_splits(self, size: int) -> dict[str, int]:
        """The same where the number of splits is not known at launch."""
        across = _ACROSS[1]
        return {"BLOCK": self._block(size, across), "BLOCK_S": across}

    def _block(self, size: int, across: int) -> int:
        if self.device.interpreted:
            return min(_INTERPRETED_PAIRS // across, _power_of_two(size))
        return min(_MERGED // across, 32 * _WARPS)


@functools.cache
def device_facts(device: torch.device) -> Device:
    """The facts about the GPU of the tensors; on the CPU, about the interpreter."""
    if device.type != "cuda":
        return Device(INTERPRETED, 1)
    return Device(INTERPRETED, torch.cuda.get_device_properties(device).multi_processor_count)


# Warps of a program; blocks that a thread sums before the threads' sums are added in float64. 128
# terms, added in one float32, round by a few eps at most.
_WARPS, _CHUNK, _UNROLL = 4, 128, 4
# In the interpreter an operation takes the same time for any tile of up to about this many pairs.
_INTERPRETED_PAIRS, _INTERPRETED_CHUNK = 1 << 15, 4
# Numbers that a program merges at once, and of how many splits: few values, for each is compiled.
_MERGED, _ACROSS = 512, (1, 16, 256)
# Enough programs to fill every multiprocessor a few times over. At D > 4 a program has so many kept
# items that more of them would cost memory.
_WAVES, _WIDE_WAVES = 8, 3
# D > 4: the warps of a program, and its summed items.
_WIDE_WARPS, _WIDE_INNER, _WIDE_INNER_DOUBLE = THREADS // 32, 128, 64


def _pairs_a_thread(shape: Shape, columns: bool) -> int:
    """The pairs a thread holds in 255 registers without spills, on sm_80 to sm_100; D <= 4.

    ======================  ====  ==========  =====
    D                       1, 2  with scale  3, 4
    ======================  ====  ==========  =====
    rows, float32           16    8           8 (4)
    columns, float32        16    16          8
    float64                 4     2           2 (1)
    ======================  ====  ==========  =====

    In brackets: with scale. The number does not depend on the outputs wanted: that would change the
    order of sums. 16 pairs use each load of a latent.
    """
    scale = shape.has & 1
    pairs = 16
    if shape.D > 2:
        pairs //= 2
    if scale and not columns:
        pairs //= 2
    if shape.double:
        pairs //= 4
    return pairs


def _power_of_two(x: int) -> int:
    return 1 << max(x - 1, 0).bit_length()


def plan(shape: Shape, device: Device, *, columns: bool = False) -> Plan:
    """The plan of a pass: queries kept and latents summed over, or the other way for columns."""
    kept, summed = (shape.N, shape.M) if columns else (shape.M, shape.N)
    if device.interpreted:
        inner = 512 if summed <= 1 << 14 else 1 << 14
        outer = _INTERPRETED_PAIRS // min(inner, _power_of_two(summed))
        chunk, warps, programs, least_blocks = _INTERPRETED_CHUNK, _WARPS, device.programs, 1
    elif shape.narrow:
        inner, chunk, warps = 32 * _WARPS, _CHUNK, _WARPS
        outer = _pairs_a_thread(shape, columns) * inner // min(inner, _power_of_two(summed))
        programs, least_blocks = device.programs, 4
    else:
        inner = _WIDE_INNER_DOUBLE if shape.double else _WIDE_INNER
        outer, chunk, warps = PACK.value, _CHUNK, _WIDE_WARPS
        programs, least_blocks = _WIDE_WAVES * device.multiprocessors, 1
    inner = min(inner, _power_of_two(summed))
    if not shape.narrow:
        # Both kinds of sums need whole chunks; kept items lie within one packed block.
        inner, outer = max(inner, 2 * CHUNK.value), min(outer, PACK.value)
    outer = min(outer, _power_of_two(kept))
    tiles = -(-kept // outer) * max(shape.B, 1)
    blocks = -(-summed // inner)
    num_splits = max(1, min(programs // max(tiles, 1), blocks // least_blocks))
    split_size = -(-blocks // num_splits) * inner
    num_splits = -(-summed // split_size)
    return Plan(outer, inner, chunk, _UNROLL, num_splits, split_size, warps, device)
