"""Counts the instructions of the GPU kernels in their machine code; needs no GPU.

    python bench/machine_code.py                    Triton's kernels, for sm_80, sm_90 and sm_100
    python bench/machine_code.py --arch 90          for one architecture
    python bench/machine_code.py kernels.cubin      the kernels of a file that nvcc has made

(For such a file ``--arch`` and ``--threads`` say how it was compiled and is launched.)

The hot loop is the innermost loop (a branch to a lower label, with no other such branch inside)
with the most MUFU.EX2; of equals, the shortest. A pair costs one exponential, so that all counts
are divided by the number of MUFU.EX2. Per clock, a multiprocessor computes 16 exponentials, issues
128 instructions, and executes 128 (64 on sm_80) in the FMA pipes. The predicted fraction of the
rate that MUFU alone would allow is min(1, 8 / instructions, 8 or 4 / FMA-pipe instructions).

At D > 4 the loop over dimensions has no exponential. It is the innermost loop with the most squares
of a difference, of which a dimension of a pair has one ("per D"). For Triton the loop that sums
vectors is counted too, per dimension and pair.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lebm_kernels.backends.triton.arguments import Plan

ARCHITECTURES = (80, 90, 100)

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]+);")
_LABEL = re.compile(r"^(?P<label>\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\b[^`]*`\((?P<label>\.L_\w+)\)")
_SQUARE = re.compile(r"[FD]FMA(?P<two>2?)\S* \w+, (?P<x>R\d+\S*?)(\.reuse)?, (?P=x)(\.reuse)?, ")
_SECTION = re.compile(r"^\.text\.(?P<name>\S+):")
# A loop with so many FFMA sums over dimensions or pairs.
_MANY = 32
# The operations of the FMA pipes, with integer products.
_FMA = ("FFMA", "FMUL", "FADD", "IMAD", "FFMA2", "FMUL2", "FADD2")


class Instruction(NamedTuple):
    """One line of machine code: its operation with modifiers, and the label that it jumps to.

    ``squares`` is the number of products of a number with itself.
    """

    operation: str
    target: str | None
    squares: int = 0


@dataclass(frozen=True)
class Kernel:
    """The counts of one kernel; ``instructions`` and ``fma`` are per pair of the hot loop.

    ``per_dimension`` is per dimension and pair of the loop over dimensions, 0 without one;
    ``vectors`` is the same for the loop that sums vectors, where that is known.
    """

    name: str
    architecture: int
    registers: int
    shared: int
    spills: int
    threads: int
    exponentials: int
    instructions: float
    fma: float
    per_dimension: float = 0.0
    vectors: float = 0.0

    @property
    def warps(self) -> int:
        """The resident warps of a multiprocessor, at most 64."""
        block = -(-self.threads // 32)
        registers = -(-self.registers // 8) * 8 * 32 * block
        memory = (164 if self.architecture == 80 else 228) * 1024
        blocks = min(65536 // registers, 64 // block, 32, memory // (self.shared + 1024))
        return blocks * block

    @property
    def mufu_fraction(self) -> float:
        """The predicted fraction of the rate that MUFU alone would allow."""
        rate = 4 if self.architecture == 80 else 8
        return min(1.0, 8 / max(self.instructions, 1e-9), rate / max(self.fma, 1e-9))


def _tool(name: str) -> str:
    """The path of a disassembler, which comes with Triton."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def disassemble(cubin: Path) -> dict[str, list[str | Instruction]]:
    """The labels and instructions of every kernel in the file."""
    kernels: dict[str, list[str | Instruction]] = {}
    lines: list[str | Instruction] = []
    for line in _run(_tool("nvdisasm"), "-c", str(cubin)).splitlines():
        if section := _SECTION.match(line):
            lines = kernels.setdefault(section["name"], [])
        elif label := _LABEL.match(line):
            lines.append(label["label"])
        elif instruction := _INSTRUCTION.match(line):
            text = instruction["text"].strip()
            operation = re.sub(r"^@!?U?P[0-9T]\s+", "", text).split()[0]
            branch = _BRANCH.search(text)
            target = branch["label"] if branch else None
            lines.append(Instruction(operation, target, squares_of(text)))
    return kernels


def squares_of(text: str) -> int:
    """How many numbers an instruction multiplies by themselves."""
    square = _SQUARE.match(text)
    return 0 if square is None else 2 if square["two"] else 1


def _innermost_loops(lines: list[str | Instruction]) -> Iterator[list[Instruction]]:
    """Each loop that has no other loop inside, in order."""
    place = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    loops = []
    for i, line in enumerate(lines):
        if isinstance(line, Instruction) and line.target is not None:
            start = place.get(line.target, i)
            if start < i:
                loops.append((start, i))
    for start, end in loops:
        if any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops):
            continue
        yield list(_always(lines[start : end + 1]))


def _operations(loop: list[Instruction]) -> list[str]:
    return [x.operation for x in loop]


def hot_loop(lines: list[str | Instruction]) -> list[str]:
    """The operations of the innermost loop with the most exponentials."""
    loops = map(_operations, _innermost_loops(lines))
    return max(loops, key=lambda x: (_exponentials(x), -len(x)), default=[])


def dimension_loop(lines: list[str | Instruction]) -> tuple[list[str], int]:
    """The operations of the innermost loop with the most squares, and the number of squares."""

    def squares(loop: list[Instruction]) -> int:
        return sum(x.squares for x in loop)

    best = max(_innermost_loops(lines), key=squares, default=[])
    return (_operations(best), squares(best)) if squares(best) else ([], 0)


def vector_loop(lines: list[str | Instruction]) -> list[str]:
    """The operations of the last innermost loop with many FFMA, or none if it is the first."""
    loops = [x for x in map(_operations, _innermost_loops(lines)) if _products(x) >= _MANY]
    return loops[-1] if len(loops) > 1 else []


def _always(lines: list[str | Instruction]) -> Iterator[Instruction]:
    """A loop's instructions without those that a forward branch skips."""
    place = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    skipped_to = 0
    for i, line in enumerate(lines):
        if isinstance(line, str) or i < skipped_to:
            continue
        yield line
        if line.target is not None:
            skipped_to = max(skipped_to, place.get(line.target, 0))


def _exponentials(operations: list[str]) -> int:
    return sum(operation.startswith("MUFU.EX2") for operation in operations)


def _products(operations: list[str]) -> int:
    return sum(operation.startswith(("FFMA", "DFMA")) for operation in operations)


def _resources(cubin: Path) -> dict[str, dict[str, int]]:
    """The registers, shared and local memory of every kernel."""
    found, name = {}, ""
    for line in _run(_tool("cuobjdump"), "-res-usage", str(cubin)).splitlines():
        if "Function" in line:
            name = line.split()[1].rstrip(":")
        elif "REG:" in line:
            found[name] = {key: int(x) for key, x in re.findall(r"(\w+):(\d+)", line)}
    return found


def inspect(cubin: Path, architecture: int, threads: int = 128) -> list[Kernel]:
    """The counts of every kernel in the file."""
    resources = _resources(cubin)
    kernels = []
    for name, lines in disassemble(cubin).items():
        loop = hot_loop(lines)
        number = max(_exponentials(loop), 1)
        body, squares = dimension_loop(lines)
        operations = [x.operation for x in lines if isinstance(x, Instruction)]
        kernels.append(
            Kernel(
                name=name,
                architecture=architecture,
                registers=resources[name]["REG"],
                shared=resources[name].get("SHARED", 0),
                spills=sum(x.startswith(("LDL", "STL")) for x in operations),
                threads=threads,
                exponentials=_exponentials(loop),
                instructions=len(loop) / number,
                fma=sum(x.split(".")[0] in _FMA for x in loop) / number,
                per_dimension=len(body) / max(squares, 1),
            )
        )
    return kernels


class Variant(NamedTuple):
    """One of Triton's kernels, for one set of arguments and outputs."""

    name: str
    columns: bool
    D: int
    has: int = 0
    want: int = 0
    dtype: str = "fp32"


VARIANTS = (
    Variant("forward", False, 2),
    Variant("forward, slope_y", False, 2, want=2),
    Variant("forward, slope_y, slope_beta", False, 2, want=3),
    Variant("forward, scale, slopes", False, 2, has=1, want=6),
    Variant("forward, weights", False, 2, has=2),
    Variant("columns", True, 2, want=1),
    Variant("columns, scale", True, 2, has=1, want=1),
    Variant("columns, weights", True, 2, has=2, want=1),
    Variant("forward, D = 1", False, 1),
    Variant("forward, D = 3", False, 3),
    Variant("forward, D = 4, slope_y", False, 4, want=2),
    Variant("columns, D = 4", True, 4, want=1),
    # float64 has no MUFU: these show that the kernel compiles, and its registers.
    Variant("forward, float64", False, 2, has=1, want=2, dtype="fp64"),
    Variant("everything, D = 4", False, 4, has=7, want=15),
    Variant("columns, everything, D = 4", True, 4, has=7, want=3),
)
WIDE_VARIANTS = (
    *(Variant(f"forward, D = {D}", False, D) for D in (16, 64, 256)),
    *(Variant(f"forward, D = {D}, slope_y", False, D, want=2) for D in (16, 64, 256)),
    *(Variant(f"forward, D = {D}, scale, slopes", False, D, 1, 6) for D in (16, 64, 256)),
    *(Variant(f"columns, D = {D}", True, D, want=1) for D in (16, 64, 256)),
    Variant("forward, D = 64, slope_y, float64", False, 64, want=2, dtype="fp64"),
)


def compile_variant(variant: Variant, architecture: int) -> Kernel:
    """Compile one of Triton's kernels and count its instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lebm_kernels.backends.triton import launch
    from lebm_kernels.backends.triton.arguments import Arguments, Device, Shape, Slabs, plan
    from lebm_kernels.backends.triton.narrow_columns import narrow_columns_kernel
    from lebm_kernels.backends.triton.narrow_rows import narrow_rows_kernel
    from lebm_kernels.backends.triton.wide_columns import wide_columns_kernel
    from lebm_kernels.backends.triton.wide_rows import wide_rows_kernel

    large = 1 << 20
    shape = Shape(1, large, large, variant.D, variant.has, variant.dtype == "fp64")
    cut = plan(shape, Device(False, 132), columns=variant.columns)
    outer, inner = ("BLOCK_N", "BLOCK_M") if variant.columns else ("BLOCK_M", "BLOCK_N")
    constants = {
        "HAS": variant.has,
        "WANT": variant.want,
        outer: cut.outer,
        inner: cut.inner,
    }
    if shape.narrow:
        kernel = narrow_columns_kernel if variant.columns else narrow_rows_kernel
        constants.update(D=variant.D, CHUNK=cut.chunk, UNROLL=cut.unroll)
    else:
        kernel = wide_columns_kernel if variant.columns else wide_rows_kernel
        constants.update(cut.vectors(shape))
    pointer = f"*{variant.dtype}"
    types: dict[str, Any] = {
        "a": Arguments._make([pointer] * 6 + ["i32"] * 8),
        "slabs": Slabs._make([pointer] * 2 + ["i32"] * 3),
        **dict.fromkeys(("packed_ptr", "tile_ptr", "grad_ptr"), pointer),
        "strict_ptr": "*i32",
        **dict.fromkeys(("partial_ptr", "state_ptr"), "*fp64"),
    }
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {x: "constexpr" if x in constants else types.get(x, "i32") for x in names},
        constexprs={(names.index(x),): value for x, value in constants.items()},
        attrs=_aligned(names, types, constants),
    )
    options = {"num_warps": cut.warps, **launch.OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (counted,) = inspect(cubin, architecture, 32 * cut.warps)
        found = {**vars(counted), "name": variant.name, "shared": compiled.metadata.shared}
        if not shape.narrow:
            found["vectors"] = _vectors(cubin, cut, constants["BLOCK_D"])
    return Kernel(**found)


def _aligned(names: list[str], types: dict[str, Any], constants: dict[str, Any]) -> dict[Any, Any]:
    """What Triton notes of PyTorch's tensors: their pointers are multiples of 16 bytes."""
    found: dict[Any, Any] = {}
    for i, name in enumerate(names):
        of_name = types.get(name, "i32")
        each = enumerate(of_name) if isinstance(of_name, tuple) else [(None, of_name)]
        for j, kind in each:
            if name not in constants and kind.startswith("*"):
                found[(i,) if j is None else (i, j)] = [["tt.divisibility", 16]]
    return found


def _vectors(cubin: Path, cut: Plan, dimensions: int) -> float:
    """The instructions that sum vectors at D > 4, per dimension and pair."""
    from lebm_kernels.backends.triton.moments import CHUNK
    from lebm_kernels.backends.triton.packed import THREADS

    (lines,) = disassemble(cubin).values()
    return len(vector_loop(lines)) / (CHUNK.value * cut.outer * dimensions // THREADS)


def from_json(text: str) -> list[Kernel]:
    """The kernels that ``--json`` has printed."""
    return [Kernel(**x) for x in json.loads(text)]


TITLES = (
    f"{'kernel':34} {'sm':>4} {'issued':>7} {'FMA':>5} {'per D':>6} {'vectors':>7} {'regs':>5} "
    f"{'shared':>7} {'spills':>7} {'warps':>6} {'of MUFU':>8}"
)


def row(k: Kernel) -> str:
    """A kernel's line of the table."""
    fraction = f"{k.mufu_fraction:.0%}" if k.exponentials else ""
    return (
        f"{k.name:34} {k.architecture:4} {k.instructions:7.2f} {k.fma:5.2f} {k.per_dimension:6.3f} "
        f"{k.vectors:7.2f} {k.registers:5} {k.shared:7} {k.spills:7} {k.warps:6} {fraction:>8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cubin", nargs="*", type=Path, help="files made by nvcc")
    parser.add_argument("--arch", type=int, nargs="*", default=list(ARCHITECTURES))
    parser.add_argument(
        "--threads", type=int, default=128, help="per thread block, for such a file"
    )
    parser.add_argument("--only", action="append", help="one of Triton's kernels, by its name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    if given.cubin:
        kernels = (k for x in given.cubin for k in inspect(x, given.arch[0], given.threads))
    else:
        variants = [x for x in VARIANTS + WIDE_VARIANTS if not given.only or x.name in given.only]
        kernels = (compile_variant(x, arch) for x in variants for arch in given.arch)
    if given.json:
        print(json.dumps([vars(x) for x in kernels]))
        return
    print(TITLES)
    for kernel in kernels:
        print(row(kernel), flush=True)


if __name__ == "__main__":
    main()
