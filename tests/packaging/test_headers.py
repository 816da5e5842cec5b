"""Every header of the CPU kernels includes what it uses, so the order of includes does not matter.

Each header is compiled alone, for each instruction set. The compiler looks up some names in a
template only when the template is instantiated, so a second test looks for the definition of every
name among the includes.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"
CPU = CSRC / "cpu"
HEADERS = [*sorted(CPU.rglob("*.h")), CSRC / "problem.h"]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = ("", "LEBM_AVX2", "LEBM_AVX512") if IS_X86 else ("",)
# The vectors of one instruction set compile for that set alone.
LANES = {"": "baseline.h", "LEBM_AVX2": "avx2.h", "LEBM_AVX512": "avx512.h"}

NAMED = os.environ.get("CXX")
COMPILER = (
    shlex.split(NAMED)
    if NAMED
    else [name for name in map(shutil.which, ("c++", "g++", "clang++")) if name][:1]
)
FLAGS = shlex.split("-std=c++17 -fsyntax-only -Wall -Wextra -Werror -x c++ -")


def compiled_alone(header: Path, instruction_set: str) -> str:
    """The compiler's errors for a file that includes this header and nothing else."""
    lines = [f"#define {instruction_set}"] if instruction_set else []
    lines.append(f'#include "{header.relative_to(CSRC).as_posix()}"')
    done = subprocess.run(
        [*COMPILER, f"-I{CSRC}", *FLAGS],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return ""
    return f"{header.relative_to(CSRC)} for {instruction_set or 'baseline'}:\n{done.stderr}"


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler was found")
def test_headers_compile_alone() -> None:
    cases = [
        (header, instruction_set)
        for instruction_set in INSTRUCTION_SETS
        for header in HEADERS
        if header.name not in LANES.values() or header.name == LANES[instruction_set]
    ]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reports = [
            report for report in pool.map(lambda case: compiled_alone(*case), cases) if report
        ]
    assert not reports, "\n".join(reports)


# A definition outside of functions and structs begins in the first column.
DEFINITION = re.compile(
    r"^(?:(?:static|inline|constexpr|LEBM_INLINE) .*?\b(\w+)(?:<[^()]*>)?(?:\(|\[\w*\] =| = |;)"
    r"|(?:struct|class|enum) (\w+)"
    r"|using (\w+) =)",
    re.MULTILINE,
)


def code_of(header: Path) -> str:
    """The header's text without comments and strings."""
    return re.sub(r'//[^\n]*|"[^"\n]*"', "", header.read_text(encoding="utf-8"))


def declares(code: str, name: str) -> bool:
    """Whether the code has a function, member or variable of this name itself."""
    return bool(re.search(rf"\b(?!return|else)\w+[&*]* {name}(?: =|\()", code))


def included(header: Path, seen: set[Path]) -> set[Path]:
    """The header and all that it includes, directly or not."""
    if header not in seen:
        seen.add(header)
        for name in re.findall(
            r'^#include "(.*)"', header.read_text(encoding="utf-8"), re.MULTILINE
        ):
            included((header.parent / name).resolve(), seen)
    return seen


def test_headers_include_what_they_name() -> None:
    home: dict[str, set[Path]] = {}
    for header in HEADERS:
        for match in DEFINITION.finditer(code_of(header)):
            home.setdefault(next(filter(None, match.groups())), set()).add(header)
    assert len(home) > 100, "the pattern for definitions has stopped matching"
    missing = [
        f"{header.relative_to(CSRC)} uses {name}, which {place.name} defines"
        for header in HEADERS
        for code, reached in [(code_of(header), included(header, set()))]
        # A name after a dot is a member's.
        for name in sorted(set(re.findall(r"(?<![\w.>:])(\w+)(?=[(<])", code)) & set(home))
        for place in sorted(home[name])
        if not home[name] & reached and not declares(code, name)
    ]
    assert not missing, "\n".join(missing)
