"""The CUDA kernels under the emulator's checks: races, bounds, missing barriers, missing includes.

The operator tests check their results, through the backend ``emulated_cuda``.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
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

# Hot, warm and cold queries, next to each other in every thread block.
BETAS = (0.0, 1e-7, 0.3, 2.0, 1e4, math.inf)


def problem(M: int, N: int, D: int, dtype: torch.dtype, every: bool) -> Problem:
    """One grid, with every argument or without the optional ones."""
    torch.manual_seed(0)
    y, decoded = torch.randn(1, M, D, dtype=dtype), torch.randn(1, N, D, dtype=dtype)
    beta = torch.tensor(BETAS, dtype=dtype).repeat(M // len(BETAS) + 1)[None, :M]
    if not every:
        return Problem(y, decoded, beta, None, None, None, None)
    scale = torch.rand(1, 1, D, dtype=dtype).expand(1, M, D) + 0.5
    log_weight, latent_energy = torch.randn(2, 1, N, dtype=dtype)
    log_weight[0, ::7] = -math.inf
    return Problem(y, decoded, beta, scale, log_weight, latent_energy, None)


# Sizes of three tiles and a ragged tail: tiles of latents in the row pass, of queries in the column
# pass. The last number is the count of multiprocessors; from 1 on it can cause splits.
CASES: dict[str, tuple[tuple[int, int, int, torch.dtype, bool], int]] = {
    "plain": ((131, 4611, 2, torch.float32, False), 0),
    "every": ((9, 1543, 2, torch.float32, True), 0),
    "one query": ((1, 4611, 2, torch.float32, False), 1),
    "few latents": ((1607, 5, 2, torch.float32, False), 1),
    "many queries": ((533, 131, 2, torch.float32, True), 0),
    "double": ((5, 2309, 2, torch.float64, True), 1),
    "wide": ((37, 300, 18, torch.float32, True), 0),
    "wide double": ((37, 149, 18, torch.float64, False), 0),
    "wide, 16 bytes": ((37, 149, 20, torch.float32, False), 0),
    "wide, split": ((35, 1543, 5, torch.float32, False), 2),
    "wide, split queries": ((261, 9, 8, torch.float64, True), 1),
}


def calls(name: str) -> list[Callable[..., None]]:
    """The row pass of a case, for all outputs and for few, and its column pass."""
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


# The checker finds unordered accesses under any schedule; these two reverse the thread blocks.
BLOCK_ORDERS = [simt.Schedule(), simt.Schedule(order="descending", poison=simt.POISONS[1])]


@pytest.mark.parametrize("name", CASES)
def test_accesses_are_in_order_and_within_bounds(name: str) -> None:
    for call in calls(name):
        call(mode="checked", how="check", schedules=BLOCK_ORDERS)


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
    """Every barrier of the kernels that can be skipped, by file and line."""
    found = []
    for path in sorted(simt.CUDA.glob("*.cuh")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\b__sync(threads|warp)\(", line):
                found.append((path.name, number))
    return found


# The cases that run the barriers of a file.
CASES_OF_FILE = {
    "narrow_rows": ("plain", "every"),
    "narrow_later_rows": ("every", "plain", "double"),
    "narrow_columns": ("many queries", "few latents"),
    "merge_rows": ("one query",),
    "partial": ("every",),
    "normalise": ("every", "double"),
    "wide_rows": ("wide",),
    "wide_tile": ("wide",),
    "wide_moments": ("wide",),
    "wide_columns": ("wide",),
}


@pytest.mark.parametrize(("file", "line"), barriers())
def test_no_barrier_can_be_skipped(file: str, line: int) -> None:
    # The column passes come last.
    order = reversed if "columns" in file else iter
    checks = (call for name in CASES_OF_FILE[Path(file).stem] for call in order(calls(name)))
    assert any(fault_of(call, (file, line)) in FAULTS for call in checks)


# The kinds of fault that a missing barrier may cause.
FAULTS = ("race", "uninitialised", "order", "poison")


def fault_of(call: Callable[..., None], skipped: tuple[str, int]) -> str | None:
    """The kind of fault that is found if a barrier is skipped, or None."""
    try:
        call(mode="checked", how="check", skipped=skipped)
    except simt.Fault as fault:
        return fault.kind
    return None


def test_the_state_is_enough_for_the_columns() -> None:
    # The posterior weights that the column pass recomputes sum to 1 for each query, as in the rows.
    p = problem(31, 401, 3, torch.float32, True)
    rows = emulated_cuda.rows(p, RowWants())
    finite = torch.ones_like(p.beta)
    columns = emulated_cuda.columns(p, finite, rows.state, ColumnWants(latent_energy=True))
    assert isinstance(columns.latent_energy, Tensor)
    torch.testing.assert_close(columns.latent_energy.double().sum(), torch.tensor(31.0).double())


HEADERS = sorted(simt.CUDA.rglob("*.cuh"))
PROJECT_HEADERS = [simt.CUDA.parent / "problem.h", *HEADERS]

# A type, constant or function that is defined at the outermost level, after comments and attributes
# are removed.
DEFINITION = re.compile(
    r"^(?:(?:struct|class|enum class|enum|using) (?:alignas\(\w+\) )?(?P<type>\w+)"
    r"|[a-z_][^;{}()=#]*?\b(?P<name>\w+)(?:\(| =))",
    re.MULTILINE,
)


def code_of(header: Path) -> str:
    """A header without comments, and without attributes that look like a function."""
    return re.sub(r"//.*|__launch_bounds__\(\w+\)\s*", "", header.read_text(encoding="utf-8"))


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_a_header_compiles_alone(header: Path) -> None:
    command = [str(simt.compiler()), *simt.FLAGS, "-fsyntax-only", f"-I{simt.HERE}"]
    command += ["-include", str(header), "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_headers_include_what_they_use() -> None:
    # A template compiles without the names that depend on its parameters: those are compared here.
    code = {header: code_of(header) for header in PROJECT_HEADERS}
    homes: dict[str, set[str]] = {}
    for header, text in code.items():
        for found in DEFINITION.finditer(text):
            homes.setdefault(found["type"] or found["name"], set()).add(header.name)
    home = {name: next(iter(files)) for name, files in homes.items() if len(files) == 1}
    assert home["load"] == "load.cuh"
    assert home["narrow_rows_kernel"] == "narrow_rows.cuh"
    for header, text in code.items():
        included = {Path(path).name for path in re.findall(r'#include "(.*)"', text)}
        used = {home[word]: word for word in re.findall(r"\w+", text) if word in home}
        missing = {file: used[file] for file in used.keys() - included - {header.name}}
        assert not missing, f"{header.name} does not include {missing}"
