"""The C++ extension under the sanitizers: ``python tests/sanitizers``, as ``make sanitize`` does.

1. The driver beside this file, once with ThreadSanitizer and once with AddressSanitizer,
   UndefinedBehaviorSanitizer and the search for leaks. They must find nothing in the sources, and
   every fault of ``FAULTS`` that is planted in a copy of ``csrc/``.
2. With ``--operators``: the whole extension, built with the second set and loaded into Python, runs
   the tests of the operators; leaks are not looked for, as Python keeps what it likes.

ThreadSanitizer is not used in the second: PyTorch's pool is OpenMP's, whose barriers it does not
recognise, so it would report every access after one as a race.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CXX = os.environ.get("CXX", "g++")

# AddressSanitizer finds null and stray pointers that are dereferenced. If
# UndefinedBehaviorSanitizer checked every pointer too, g++ would take twice as long.
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": [
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,object-size,pointer-overflow,return,vptr",
        "-fno-sanitize-recover=all",
        "--param=asan-instrumentation-with-call-threshold=0",
    ],
}
# Nothing is inlined: inlining makes compiling half as long again.
COMMON = ["-O0", "-g1", "-fno-omit-frame-pointer", "-DLEBM_INLINE=inline", "-DLEBM_INLINE_LAMBDA="]
DRIVER = ["-std=c++17", "-ffp-contract=off", "-DLEBM_BASELINE_ALONE", "-Wall", "-Wextra"]

OPERATOR_TESTS = (
    "accuracy",
    "closed_forms",
    "few_queries",
    "gradients",
    "many_queries",
    "nan",
    "pytorch_contract",
    "posterior",
    "shapes",
)


class Fault(NamedTuple):
    """A fault to plant in a file of csrc/, and the words that the sanitizer must report."""

    sanitizer: str
    file: str
    text: str
    instead: str
    report: str


FAULTS = (
    Fault("thread", "cpu/grid/order.cpp", "t.halves[2 * i] =", "t.halves[0] =", "data race"),
    # All splits of the latents write, on several threads, to the sums of the first.
    Fault(
        "thread",
        "cpu/rows/driver.h",
        "+ stride * size_t(t * num_splits + split);",
        "+ stride * size_t(t * num_splits) + 0 * split;",
        "data race",
    ),
    Fault(
        "address",
        "cpu/grid/order.cpp",
        "int64_t i = 1; i < piece.count; ++i",
        "int64_t i = 1; i < piece.count + 4; ++i",  # past the padding to a cache line
        "heap-buffer-overflow",
    ),
    # The last of a grid's arrays begin past the end of its memory.
    Fault(
        "address",
        "cpu/grid/layout.h",
        "blocks * (4 * D + 3)",
        "blocks - size",
        "heap-buffer-overflow",
    ),
    Fault(
        "address",
        "cpu/scratch.cpp",
        "::operator delete(memory_, std::align_val_t(64));",
        "(void)memory_;",
        "detected memory leaks",
    ),
    Fault(
        "address",
        "cpu/grid/order.cpp",
        "blocks / 2 * block;",
        "blocks / 2 * block + ((block << 62) & 0);",
        "shift",
    ),
)


def compiled(sanitizer: str, source: Path, csrc: Path, output: Path) -> Path:
    """The object file of a source of the driver, with the headers of that copy of csrc/."""
    flags = [*DRIVER, *COMMON, *SANITIZERS[sanitizer], f"-I{csrc}"]
    subprocess.run([CXX, *flags, "-c", str(source), "-o", str(output)], check=True)
    return output


def driven(sanitizer: str, objects: list[Path], program: Path) -> subprocess.CompletedProcess[str]:
    """Links the driver and runs it until a sanitizer reports something."""
    link = [CXX, *SANITIZERS[sanitizer], *map(str, objects), "-o", str(program)]
    subprocess.run([*link, "-pthread"], check=True)
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [str(program)], capture_output=True, text=True, errors="replace", env=environment
    )


def check_driver(sanitizer: str, folder: Path) -> list[str]:
    """Errors: what a sanitizer reports of the sources, and the planted faults that it missed."""
    folder = folder / sanitizer
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{sanitizer}: {what} ({time.monotonic() - began:.0f} s)", flush=True)

    names = ("cpu/grid/order.cpp", "cpu/dispatch.cpp", "cpu/scratch.cpp")
    csrc, driver = ROOT / "csrc", HERE / "driver.cpp"
    sources = {"driver": driver} | {name: csrc / name for name in names}
    objects = {
        name: compiled(sanitizer, source, csrc, folder / f"{source.stem}.o")
        for name, source in sources.items()
    }
    wrong = []
    done = driven(sanitizer, list(objects.values()), folder / "right")
    if done.returncode != 0 or done.stderr:
        wrong.append(f"{sanitizer}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    say(f"the sources are {'wrong' if wrong else 'right'}")
    for number, fault in enumerate(f for f in FAULTS if f.sanitizer == sanitizer):
        copy = folder / f"csrc-{number}"
        shutil.copytree(ROOT / "csrc", copy)
        text = (copy / fault.file).read_text()
        if text.count(fault.text) != 1:
            raise SystemExit(f"{fault.file} has {fault.text!r} {text.count(fault.text)} times")
        (copy / fault.file).write_text(text.replace(fault.text, fault.instead))
        # Headers are compiled into the driver.
        name = fault.file if fault.file in objects else "driver"
        source = copy / fault.file if fault.file in objects else driver
        wrong_object = compiled(sanitizer, source, copy, folder / f"wrong-{number}.o")
        parts = objects | {name: wrong_object}
        done = driven(sanitizer, list(parts.values()), folder / f"wrong-{number}")
        found = done.returncode != 0 and fault.report in done.stderr
        say(f"{fault.instead!r} is {'found' if found else 'MISSED'}")
        if not found:
            wrong.append(f"{sanitizer}: {fault.instead!r} in {fault.file} is not found")
    return wrong


def library_of(name: str) -> str:
    """The path of one of the compiler's own libraries."""
    command = [CXX, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def check_operators(folder: Path, flags: list[str]) -> list[str]:
    """The operators' tests on the whole extension, built with sanitizers."""
    sanitizers = SANITIZERS["address"]
    build = os.environ | {
        "CXXFLAGS": " ".join([*COMMON, *sanitizers, *flags]),
        "LDFLAGS": " ".join(sanitizers),
        "LEBM_KERNELS_NATIVE": "1",
        "LEBM_KERNELS_CUDA": "0",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    command += ["--build-temp", str(folder / "objects")]
    subprocess.run(command, cwd=ROOT, env=build, check=True)
    # libstdc++ as well: the sanitizer looks up the function that throws when the process starts.
    preloaded = " ".join(map(library_of, ("libasan.so", "libubsan.so", "libstdc++.so.6")))
    environment = os.environ | {
        "LEBM_KERNELS_LIBRARY": str(folder / "lebm_kernels" / "_native.abi3.so"),
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    command += ["-n", "auto", "-k", "native"]
    command += (str(next((ROOT / "tests").rglob(f"test_{name}.py"))) for name in OPERATOR_TESTS)
    done = subprocess.run(command, cwd=ROOT, env=environment)
    return [f"operators: exit status {done.returncode}"] if done.returncode else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operators", action="store_true", help="the whole extension as well")
    parser.add_argument("--flags", default="", help="further flags for it: -DLEBM_BASELINE_ALONE")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitizers")
    chosen = parser.parse_args()
    with ThreadPoolExecutor(len(SANITIZERS)) as pool:
        found = pool.map(lambda name: check_driver(name, chosen.folder), SANITIZERS)
        wrong = [line for lines in found for line in lines]
    if chosen.operators:
        wrong += check_operators(chosen.folder / "extension", chosen.flags.split())
    raise SystemExit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
