"""The Triton kernels need no more instructions than before, and the counting is right."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import machine_code
from machine_code import Instruction, Kernel, dimension_loop, hot_loop, vector_loop

SCRIPT = Path(machine_code.__file__)

# Bounds on issued instructions per pair, a little above the actual counts; D = 2, float32.
BOUNDS = {
    "forward": (7.5, 7.5, 7.5),
    "forward, slope_y": (9.5, 9.5, 9.5),
    "columns": (9.0, 9.0, 9.0),
}
FLOAT64 = "forward, float64"
# D > 4, per dimension and pair: of the loop over dimensions, and of that which sums vectors.
WIDE_BOUNDS = {
    "forward, D = 64": (2.35, 0.0),
    "forward, D = 64, slope_y": (2.35, 2.5),
    "columns, D = 64": (2.35, 2.5),
}
CASES = [
    (name, architecture, bound)
    for name, bounds in BOUNDS.items()
    for architecture, bound in zip(machine_code.ARCHITECTURES, bounds, strict=True)
]


@cache
def counted() -> dict[tuple[str, int], Kernel]:
    """The kernels for D <= 4 on every architecture."""
    return compiled((*BOUNDS, FLOAT64), machine_code.ARCHITECTURES)


@cache
def counted_wide() -> dict[tuple[str, int], Kernel]:
    """The kernels for D > 4 on one architecture."""
    return compiled(tuple(WIDE_BOUNDS), (90,))


def compiled(
    names: tuple[str, ...], architectures: tuple[int, ...]
) -> dict[tuple[str, int], Kernel]:
    """The kernels, compiled in a subprocess, where Triton's interpreter is off."""
    only = [x for name in names for x in ("--only", name)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", *only, "--arch", *map(str, architectures)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    kernels = machine_code.from_json(run.stdout)
    return {(kernel.name, kernel.architecture): kernel for kernel in kernels}


@pytest.mark.parametrize(("name", "architecture", "bound"), CASES)
def test_instructions_per_pair(name: str, architecture: int, bound: float) -> None:
    kernel = counted()[name, architecture]
    assert kernel.spills == 0
    assert kernel.exponentials >= 32  # the loop over pairs, unrolled
    assert kernel.instructions <= bound
    # Fewer than the formula needs would mean that the wrong loop was counted.
    assert kernel.instructions > 5


@pytest.mark.parametrize("name", WIDE_BOUNDS)
def test_instructions_per_dimension_and_pair(name: str) -> None:
    kernel = counted_wide()[name, 90]
    most, most_of_vectors = WIDE_BOUNDS[name]
    assert kernel.spills <= 10
    # A difference and a product are two.
    assert 2 < kernel.per_dimension <= most
    assert kernel.vectors <= most_of_vectors
    assert most_of_vectors == 0 or kernel.vectors > 2


@pytest.mark.parametrize("architecture", machine_code.ARCHITECTURES)
def test_float64_compiles_with_few_spills(architecture: int) -> None:
    assert counted()[FLOAT64, architecture].spills <= 4


def lines(text: str) -> list[str | Instruction]:
    """Parses words ``label:``, ``operation`` or ``operation>label``; SQUARE is a square."""
    found: list[str | Instruction] = []
    for line in text.split():
        operation, _, target = line.partition(">")
        instruction = Instruction(operation, target or None, int(operation == "SQUARE"))
        found.append(line[:-1] if line.endswith(":") else instruction)
    return found


def test_the_hot_loop_is_the_innermost_with_most_exponentials() -> None:
    text = (
        "a: MUFU.EX2 b: FADD MUFU.EX2 MUFU.EX2 BRA>b MUFU.EX2 BRA>a c: MUFU.EX2 BRA>c end: BRA>end"
    )
    assert hot_loop(lines(text)) == ["FADD", "MUFU.EX2", "MUFU.EX2", "BRA"]


def test_the_shortest_of_equal_loops_counts() -> None:
    text = "a: MUFU.EX2 FADD FADD BRA>a b: MUFU.EX2 FADD BRA>b"
    assert hot_loop(lines(text)) == ["MUFU.EX2", "FADD", "BRA"]


def test_instructions_that_a_forward_branch_skips_do_not_count() -> None:
    text = "a: MUFU.EX2 BRA>b STL STL b: FADD BRA>a"
    assert hot_loop(lines(text)) == ["MUFU.EX2", "BRA", "FADD", "BRA"]


def test_the_loop_over_dimensions_is_the_innermost_with_most_squares() -> None:
    text = "a: MUFU.EX2 b: LDS FADD SQUARE FADD SQUARE BRA>b SQUARE BRA>a c: FFMA FFMA FFMA BRA>c"
    assert dimension_loop(lines(text)) == (["LDS", "FADD", "SQUARE", "FADD", "SQUARE", "BRA"], 2)
    assert dimension_loop(lines("a: FFMA BRA>a")) == ([], 0)


@pytest.mark.parametrize(
    ("text", "squares"),
    [
        ("FFMA R0, R2, R2, R0", 1),
        ("FFMA.FTZ R9, R2.reuse, R2, R0", 1),
        ("FFMA2 R4, R8.F32x2.HI_LO, R8.F32x2.HI_LO, R4.F32x2.HI_LO", 2),
        ("DFMA R4, R8, R8, R4", 1),
        ("FFMA R0, R2, R21, R0", 0),
        ("FFMA R0, R2, R3, R2", 0),
        ("FMUL R0, R2, R2", 0),
    ],
)
def test_a_square_is_known_by_its_factors(text: str, squares: int) -> None:
    assert machine_code.squares_of(text) == squares


def test_vectors_are_summed_in_the_last_loop_of_many_products() -> None:
    energies, vectors = "a: " + 64 * "FFMA " + "BRA>a ", "b: FADD " + 32 * "FFMA " + "BRA>b "
    assert vector_loop(lines(energies + "c: FFMA BRA>c")) == []
    found = vector_loop(lines(energies + vectors + "c: FFMA BRA>c"))
    assert found == ["FADD", *32 * ["FFMA"], "BRA"]


def test_without_a_loop_there_are_no_instructions() -> None:
    assert hot_loop(lines("MUFU.EX2 BRA>a FADD a: EXIT")) == []


@pytest.mark.parametrize(
    ("architecture", "instructions", "fma", "fraction"),
    [(90, 7.0, 6.0, 1.0), (90, 16.0, 9.0, 0.5), (80, 7.0, 6.0, 4 / 6), (100, 10.0, 8.0, 0.8)],
)
def test_the_predicted_fraction(
    architecture: int, instructions: float, fma: float, fraction: float
) -> None:
    kernel = Kernel("k", architecture, 128, 0, 0, 128, 64, instructions, fma)
    assert kernel.mufu_fraction == pytest.approx(fraction)
    assert kernel.warps == 16
