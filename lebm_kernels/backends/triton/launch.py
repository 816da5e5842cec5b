"""Launches the kernels of a row pass and of a column pass, and allocates their workspace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.backends.contract import (
    STATE_SIZE,
    Columns,
    ColumnWants,
    Problem,
    Rows,
    RowWants,
)
from lebm_kernels.backends.tiles import normalised
from lebm_kernels.backends.triton.arguments import (
    Arguments,
    Plan,
    Shape,
    Slabs,
    device_facts,
    grid_slices,
    of_grids,
    packed,
    plan,
    slabs,
    unpack,
)
from lebm_kernels.backends.triton.finish import finish_kernel
from lebm_kernels.backends.triton.hot import hot_finish_kernel, hot_kernel
from lebm_kernels.backends.triton.index import least_kernel, merge_least_kernel
from lebm_kernels.backends.triton.narrow_columns import (
    DECODED,
    ENERGIES,
    merge_kernel,
    narrow_columns_kernel,
    pack_kernel,
)
from lebm_kernels.backends.triton.narrow_rows import ENERGY, MEAN, PULL, STRETCH, narrow_rows_kernel
from lebm_kernels.backends.triton.pairs import LOG2_E, SCALE
from lebm_kernels.backends.triton.weights import weights_kernel
from lebm_kernels.backends.triton.wide_columns import wide_columns_kernel
from lebm_kernels.backends.triton.wide_rows import wide_rows_kernel

# A product is fused with a sum only by an explicit fma: see pairs.py.
OPTIONS: dict[str, int | bool] = {"num_stages": 1, "enable_fp_fusion": False}


class Outputs(NamedTuple):
    """Where finish_kernel writes; outputs that are not wanted point to the free energy."""

    free_energy_ptr: Tensor
    state_ptr: Tensor
    slope_y_ptr: Tensor
    slope_scale_ptr: Tensor
    mean_ptr: Tensor
    slope_beta_ptr: Tensor
    energy_ptr: Tensor
    relative_entropy_ptr: Tensor


class Hot(NamedTuple):
    """The list of hot queries that finish_kernel makes, and the sums that hot_kernel adds to it.

    The number in each grid, ``[B]``; their places, ``[B, M]``; E0 - m of query m, ``[B, M]``; the
    sums B, B0 and K, ``[3, B, slots]``.
    """

    count_ptr: Tensor
    query_ptr: Tensor
    energy_ptr: Tensor
    sums_ptr: Tensor


def _prepared(problem: Problem) -> Problem:
    """The problem with its log-weights normalised and in bits."""
    if problem.log_weight is None:
        return problem
    problem = normalised(problem)
    return problem._replace(log_weight=problem.log_weight * LOG2_E.value)


def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`."""
    B, M, D = problem.y.shape
    new, vector = problem.y.new_empty, (B, M, D)
    out = Rows(
        free_energy=new((B, M)),
        state=new((B, M, STATE_SIZE), dtype=torch.float64),
        slope_y=new(vector) if want.slope_y else None,
        slope_scale=new(vector) if want.slope_scale else None,
        slope_beta=new((B, M), dtype=torch.float64) if want.slope_beta else None,
        mean=new(vector) if want.mean else None,
        energy=new((B, M)) if want.energy else None,
        relative_entropy=new((B, M)) if want.relative_entropy else None,
        index=new((B, M), dtype=torch.int64) if want.index else None,
    )
    if B * M == 0:
        return out
    problem = _prepared(problem)
    with torch.cuda.device_of(problem.y):
        for grids in grid_slices(problem):
            _launch_rows(of_grids(problem, grids), Rows(*_each(out, grids)))
    return out


def _each(outputs: Rows | Columns, grids: slice) -> Iterator[Any]:
    """The places of some grids in each output that is wanted."""
    return (None if x is None else x[grids] for x in outputs)


def _planned(problem: Problem, *, columns: bool = False) -> tuple[Arguments, Shape, Plan]:
    """The arguments as the pass takes them, and its plan."""
    arguments, shape = unpack(problem)
    cut = plan(shape, device_facts(problem.y.device), columns=columns)
    if not shape.narrow:
        arguments = packed(problem, arguments, cut.inner)
    return arguments, shape, cut


def _launch_wide_rows(
    problem: Problem, a: Arguments, shape: Shape, cut: Plan, want: int, partial: Tensor,
    blocks: dict[str, Any],
) -> None:  # fmt: skip
    _, M, N, D, has, _ = shape
    vectors, (all_programs,) = cut.vectors(shape), cut.programs(M, shape.B)
    rounds = [(0, all_programs)]
    summed, tile = Slabs(a.y_ptr, a.y_ptr, 0, 0, 0), a.y_ptr
    if want > ENERGY.value:
        summed = slabs(problem, vectors["BLOCK_D"], cut.inner)
        rounds = cut.rounds(all_programs)
        tile = a.y_ptr.new_empty(rounds[0][1] * cut.outer * cut.inner)
    for first, programs in rounds:
        wide_rows_kernel[(programs,)](
            a, summed, tile, partial, M, N, D, cut.split_size, cut.num_splits, first, all_programs,
            HAS=has, WANT=want, **vectors, **blocks,
        )  # fmt: skip


def _launch_rows(problem: Problem, out: Rows) -> None:
    a, shape, cut = _planned(problem)
    B, M, N, D, has, _ = shape
    vectors = {PULL: out.slope_y, STRETCH: out.slope_scale, MEAN: out.mean}
    wanted = [bit.value for bit, x in vectors.items() if x is not None]
    of_energies = (out.slope_beta, out.energy, out.relative_entropy)
    with_energies = any(x is not None for x in of_energies)
    want = sum(wanted) + (ENERGY.value if with_energies else 0)
    programs, small_tiles = cut.programs(M, B), cut.small_tiles()
    options: dict[str, Any] = {"num_warps": cut.warps, **OPTIONS}
    blocks: dict[str, Any] = {"BLOCK_M": cut.outer, "BLOCK_N": cut.inner, **options}
    double: dict[str, Any] = {"dtype": torch.float64, "device": a.y_ptr.device}
    partial = torch.empty((4 + D * len(wanted), cut.num_splits, B, M), **double)
    if shape.narrow:
        narrow_rows_kernel[programs](
            a, partial, M, N, cut.split_size, cut.num_splits, D=D, HAS=has, WANT=want,
            CHUNK=cut.chunk, UNROLL=cut.unroll, **blocks,
        )  # fmt: skip
    else:
        _launch_wide_rows(problem, a, shape, cut, want, partial, blocks)
    blocks["BLOCK_M"] = small_tiles.outer

    # Of dF/dbeta, <E> and KL the kernels write all or none.
    def spare(dtype: torch.dtype) -> Tensor:
        return torch.empty_like(out.free_energy, dtype=dtype) if with_energies else out.free_energy

    F_dtype = out.free_energy.dtype
    outputs = Outputs(
        out.free_energy,
        out.state,
        *(out.free_energy if x is None else x for x in (out.slope_y, out.slope_scale, out.mean)),
        *(
            spare(dtype) if x is None else x
            for x, dtype in zip(of_energies, (torch.float64, F_dtype, F_dtype), strict=True)
        ),
    )
    looping_programs = small_tiles.looping_programs(M, N, B)
    slots = max(looping_programs, -(-M // small_tiles.outer)) * small_tiles.outer
    whole: dict[str, Any] = {"dtype": torch.int64, "device": a.y_ptr.device}
    hot = Hot(
        torch.zeros(B, **whole),
        torch.empty((B, M), **whole),
        torch.empty((B, M), **double),
        torch.empty((3, B, slots), **double),
    )
    merging = cut.merging(B * M)
    merges = (-(-B * M // merging["BLOCK"]),)
    finish_kernel[merges](
        a,
        partial,
        hot,
        outputs,
        B,
        M,
        N,
        D,
        cut.num_splits,
        HAS=has,
        WANT=want,
        **merging,
        **options,
    )
    hot_kernel[(B * looping_programs,)](
        a, hot, out.state, M, N, D, looping_programs, slots, HAS=has, WANT=want,
        NARROW=shape.narrow, **blocks,
    )  # fmt: skip
    of_hot = small_tiles.merging_any_splits(M)
    tiles = -(-M // of_hot["BLOCK"])
    hot_finish_kernel[(B * tiles,)](
        a, hot, outputs, M, N, looping_programs, slots, tiles, WANT=want, **of_hot, **blocks
    )
    if out.index is not None:
        energy = out.free_energy.new_empty((cut.num_splits, B, M))
        place = torch.empty((cut.num_splits, B, M), dtype=torch.int64, device=energy.device)
        least_kernel[small_tiles.programs(M, B)](
            a, energy, place, M, N, D, cut.split_size, cut.num_splits, HAS=has,
            NARROW=shape.narrow, **blocks,
        )  # fmt: skip
        merge_least_kernel[merges](
            energy, place, out.index, outputs.energy_ptr, B * M, cut.num_splits,
            RAISE=out.energy is not None, **merging, **options,
        )  # fmt: skip


def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`."""
    B, N, D = problem.decoded.shape
    new = problem.y.new_zeros if grad.numel() == 0 else problem.y.new_empty
    out = Columns(
        decoded=new((B, N, D)) if want.decoded else None,
        log_weight=new((B, N)) if want.log_weight else None,
        latent_energy=new((B, N)) if want.latent_energy else None,
    )
    if grad.numel() == 0:
        return out
    problem, grad, state = _prepared(problem), grad.contiguous(), state.contiguous()
    with torch.cuda.device_of(problem.y):
        for grids in grid_slices(problem):
            part = Columns(*_each(out, grids))
            _launch_columns(of_grids(problem, grids), grad[grids], state[grids], part)
    return out


def _launch_wide_columns(
    problem: Problem, a: Arguments, shape: Shape, cut: Plan, grad: Tensor, state: Tensor,
    want: int, partial: Tensor, blocks: dict[str, Any],
) -> None:  # fmt: skip
    _, M, N, D, has, _ = shape
    vectors, (all_programs,) = cut.vectors(shape), cut.programs(N, shape.B)
    rounds = [(0, all_programs)]
    summed, tile = Slabs(a.y_ptr, a.y_ptr, 0, 0, 0), a.y_ptr
    if want & DECODED.value:
        summed = slabs(problem, vectors["BLOCK_D"], cut.inner, columns=True)
        rounds = cut.rounds(all_programs)
        tile = a.y_ptr.new_empty(rounds[0][1] * cut.outer * cut.inner)
    for first, programs in rounds:
        wide_columns_kernel[(programs,)](
            a, summed, tile, grad, state, partial, M, N, D, cut.split_size, cut.num_splits, first,
            all_programs, HAS=has, WANT=want, **vectors, **blocks,
        )  # fmt: skip


def _launch_columns(problem: Problem, grad: Tensor, state: Tensor, out: Columns) -> None:
    a, shape, cut = _planned(problem, columns=True)
    B, M, N, D, has, _ = shape
    programs = cut.programs(N, B)
    options: dict[str, Any] = {"num_warps": cut.warps, **OPTIONS}
    blocks: dict[str, Any] = {"BLOCK_M": cut.inner, "BLOCK_N": cut.outer, **options}
    merging = cut.merging(B * N)
    merges = (-(-B * N // merging["BLOCK"]),)
    want = (out.decoded is not None) * DECODED.value
    want += (out.latent_energy is not None) * ENERGIES.value
    # Sums of several splits stay in float64. A single split is rounded at once: half the memory.
    kind = grad.dtype if cut.num_splits == 1 else torch.float64
    sums = D * (out.decoded is not None) + (out.latent_energy is not None)
    if want:
        partial = torch.empty(
            (sums, cut.num_splits, B, N),
            dtype=kind if shape.narrow else torch.float64,
            device=grad.device,
        )
        if shape.narrow:
            count = -(-M // cut.inner)
            fields = D + 6 + D * (has & SCALE.value)
            packed = grad.new_empty((B, count, fields, cut.inner))
            strict = torch.empty((B, count), dtype=torch.int32, device=grad.device)
            pack_kernel[(B * count,)](
                a, grad, state, packed, strict, M, N, D=D, HAS=has, BLOCK_M=cut.inner, **options
            )
            narrow_columns_kernel[programs](
                a, packed, strict, partial, M, N, cut.split_size // cut.inner, cut.num_splits, D=D,
                HAS=has, WANT=want, CHUNK=cut.chunk, UNROLL=cut.unroll, **blocks,
            )  # fmt: skip
        else:
            _launch_wide_columns(problem, a, shape, cut, grad, state, want, partial, blocks)
        decoded = grad if out.decoded is None else out.decoded
        latent_energy = grad if out.latent_energy is None else out.latent_energy
        merge_kernel[merges](
            partial, decoded, latent_energy, B * N, D, cut.num_splits, WANT=want, **merging,
            **options,
        )  # fmt: skip
    if out.log_weight is not None:
        small_tiles = cut.small_tiles()
        partial = torch.empty((1, cut.num_splits, B, N), dtype=kind, device=grad.device)
        weights_kernel[small_tiles.programs(N, B)](
            a, grad, state, partial, M, N, D, cut.split_size, cut.num_splits, HAS=has,
            NARROW=shape.narrow, **{**blocks, "BLOCK_N": small_tiles.outer},
        )  # fmt: skip
        merge_kernel[merges](
            partial, out.log_weight, out.log_weight, B * N, 0, cut.num_splits, WANT=ENERGIES.value,
            **merging, **options,
        )  # fmt: skip
