"""The CUDA kernels under the emulator's checks: races, bounds, and a barrier that is missing.

That their results are right, the operator tests find out: there they are the backend ``cuda``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simt
import torch
from support import emulated_cuda
from torch import Tensor

from lebm_kernels.backends.contract import ColumnWants, Problem, RowWants

pytestmark = pytest.mark.skipif(simt.compiler() is None, reason="there is no g++")

# Hot, warm and cold, beside each other in every block.
BETAS = (0.0, 1e-7, 0.3, 2.0, 1e4, math.inf)


def problem(M: int, N: int, D: int, dtype: torch.dtype, every: bool) -> Problem:
    """One grid; every argument, or the plain ones alone."""
    torch.manual_seed(0)
    y, decoded = torch.randn(1, M, D, dtype=dtype), torch.randn(1, N, D, dtype=dtype)
    beta = torch.tensor(BETAS, dtype=dtype).repeat(M // len(BETAS) + 1)[None, :M]
    if not every:
        return Problem(y, decoded, beta, None, None, None, None)
    scale = torch.rand(1, 1, D, dtype=dtype).expand(1, M, D) + 0.5
    log_weight, latent_energy = torch.randn(2, 1, N, dtype=dtype)
    log_weight[0, ::7] = -math.inf
    return Problem(y, decoded, beta, scale, log_weight, latent_energy, None)


# Three tiles and a ragged tail of what is staged, in rows (latents) and in columns (queries); with
# more multiprocessors the latents, or the queries, are split.
CASES: dict[str, tuple[tuple[int, int, int, torch.dtype, bool], int]] = {
    "plain": ((131, 4611, 2, torch.float32, False), 0),
    "every": ((9, 1543, 2, torch.float32, True), 0),
    "one query": ((1, 4611, 2, torch.float32, False), 1),
    "few latents": ((1607, 5, 2, torch.float32, False), 1),
    "many queries": ((533, 131, 2, torch.float32, True), 0),
    "double": ((5, 2309, 2, torch.float64, True), 1),
    "wide": ((67, 149, 18, torch.float32, True), 0),
    "wide double": ((67, 149, 18, torch.float64, False), 0),
    "wide, split": ((131, 531, 5, torch.float32, False), 2),
}


def calls(name: str) -> list[Callable[..., None]]:
    """The row pass of a case for much and for little, and its column pass; each may be checked."""
    sizes, multiprocessors = CASES[name]
    p = problem(*sizes)
    wants = [RowWants(True, True, True, True, True), RowWants(True)]
    _, state, *_ = row_outputs = emulated_cuda.row_outputs(p, wants[0])
    emulated_cuda.run("rows", p, row_outputs, multiprocessors=multiprocessors)
    given = [np.random.default_rng(0).normal(size=state.shape[:2]).astype(p.y.numpy().dtype), state]
    for x in given:
        x.flags.writeable = False
    column_wants = [ColumnWants(True)]
    if p.log_weight is not None:
        column_wants.append(ColumnWants(True, True, True))

    def of_rows(want: RowWants) -> Callable[..., None]:
        outputs = emulated_cuda.row_outputs(p, want)
        return lambda **how: emulated_cuda.run(
            "rows", p, outputs, multiprocessors=multiprocessors, **how
        )

    def of_columns(want: ColumnWants) -> Callable[..., None]:
        outputs = [*given, *emulated_cuda.column_outputs(p, want)]
        return lambda **how: emulated_cuda.run(
            "columns", p, outputs, multiprocessors=multiprocessors, **how
        )

    return [*map(of_rows, wants), *map(of_columns, column_wants)]


# Accesses that no barrier orders are found in any schedule; blocks come in these two orders.
OF_BLOCKS = [simt.Schedule(), simt.Schedule(order="descending", poison=simt.POISONS[1])]


@pytest.mark.parametrize("name", CASES)
def test_accesses_are_in_order_and_within_bounds(name: str) -> None:
    for call in calls(name):
        call(mode="checked", how="check", schedules=OF_BLOCKS)


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_gives_the_same_bits(name: str) -> None:
    for call in calls(name):
        call(how="check")


@pytest.mark.parametrize("name", CASES)
def test_address_sanitizer(name: str) -> None:
    if not simt.can_use_asan():
        pytest.skip("the compiler has no AddressSanitizer")
    for call in calls(name):
        call(mode="asan")


def barriers() -> list[tuple[str, int]]:
    """Every barrier of the kernels that can be left out, by file and line."""
    found = []
    for path in sorted(simt.CUDA.glob("*.cuh")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\b__sync(threads|warp)\(", line):
                found.append((path.name, number))
    return found


# Which cases meet the barriers of a file.
MEETS = {
    "narrow_rows": ("plain", "every"),
    "narrow_second": ("every", "plain", "double"),
    "narrow_columns": ("many queries", "few latents"),
    "merge_rows": ("one query",),
    "partial": ("every",),
    "normalise": ("every", "double"),
    "wide_rows": ("wide",),
    "wide_tile": ("wide",),
    "wide_columns": ("wide",),
}


@pytest.mark.parametrize(("file", "line"), barriers())
def test_every_barrier_is_missed(file: str, line: int) -> None:
    # The column passes come last.
    order = reversed if "columns" in file else iter
    checks = (call for name in MEETS[Path(file).stem] for call in order(calls(name)))
    assert any(fault_of(call, (file, line)) in FAULTS for call in checks)


# What a missing barrier may show as.
FAULTS = ("race", "uninitialised", "order", "poison")


def fault_of(call: Callable[..., None], left_out: tuple[str, int]) -> str | None:
    """The kind of fault that is found where a barrier is left out, or None."""
    try:
        call(mode="checked", how="check", left_out=left_out)
    except simt.Fault as fault:
        return fault.kind
    return None


def test_the_state_is_enough_for_the_columns() -> None:
    # The shares that the columns rebuild are those that the rows summed: one for each query.
    p = problem(31, 401, 3, torch.float32, True)
    rows = emulated_cuda.rows(p, RowWants())
    finite = torch.ones_like(p.beta)
    columns = emulated_cuda.columns(p, finite, rows.state, ColumnWants(latent_energy=True))
    assert isinstance(columns.latent_energy, Tensor)
    torch.testing.assert_close(columns.latent_energy.double().sum(), torch.tensor(31.0).double())
