"""Builds CUDA kernels for the CPU and runs them on numpy arrays; README.md lists what it finds.

A harness is a C++ file that includes kernels and exports functions that launch them, with
``SIMT_EXPORT`` of host.h. The exported functions get arrays as pointers, integers as ``int64_t``
and floating point numbers as ``double``.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mode = Literal["plain", "checked", "asan"]
"""How device code is compiled: unchanged, with every access checked, or with AddressSanitizer."""

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
SOURCES = tuple(sorted(HERE.glob("*.cpp")))

# -fno-strict-aliasing: kernels access shared memory through pointers of many types.
# -ffp-contract=off: a product and a sum are fused only where the kernel says so.
# -gdwarf-4: addr2line confuses files in DWARF 5.
FLAGS = (
    *("-std=c++17", "-O1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
)
POISONS = (0x3F, 0xBE)
"""Bytes that make a positive and a negative number in every type, in floating point of size at most
1. Such numbers change sums, exponentials and minima."""

_GUARD = 4096  # bytes on either side of an array
_ALIGNMENT = 256  # that of cudaMalloc
_ORDERS = {"ascending": 0, "descending": 1, "random": 2}


@cache
def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which("g++")


@cache
def can_use_asan() -> bool:
    """Whether the compiler comes with AddressSanitizer."""
    return compiler() is not None and Path(_asan()).is_file()


class Fault(Exception):
    """A fault in a kernel; ``kind`` is its short name, such as "race"."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Schedule:
    """The order in which threads and thread blocks run, and the initial bytes of shared memory."""

    order: Literal["ascending", "descending", "random"] = "ascending"
    seed: int = 0
    poison: int = POISONS[0]
    shared_limit: int = 227 * 1024
    """Bytes of shared memory that a thread block may have; the default is that of sm_90."""
    skipped: tuple[str, int] = ("", 0)
    """File and line of a __syncthreads, __syncwarp or __threadfence that does nothing. A test must
    then fail: otherwise the barrier is superfluous, or untested."""


SCHEDULES = (
    Schedule(),
    Schedule(poison=POISONS[1]),
    Schedule(order="descending"),
    Schedule(order="random", seed=1),
    Schedule(order="random", seed=2, poison=POISONS[1]),
)
"""A kernel must give the same bits under all of these."""


@dataclass(frozen=True)
class Library:
    """A harness that has been built."""

    path: Path
    mode: Mode = "plain"
    _handle: list[ctypes.CDLL] = field(default_factory=list, compare=False)

    def run(self, function: str, *arguments: Any, schedule: Schedule | None = None) -> None:
        """Call an exported function, which writes into the writeable arrays.

        Raises:
            Fault: if the emulator or a sanitizer finds a fault in the kernel.
        """
        schedule = schedule or Schedule()
        if self.mode == "asan":
            self._run_in_subprocess(function, arguments, schedule)
        else:
            self.run_here(function, arguments, schedule, guard=_GUARD)

    def check(
        self,
        function: str,
        *arguments: Any,
        skipped: tuple[str, int] = ("", 0),
        schedules: Sequence[Schedule] | None = None,
    ) -> None:
        """Call a function under several schedules (``SCHEDULES``); all must write the same bits.

        Raises:
            Fault: as for ``run``; of kind "order" or "poison" if the results depend on these.
        """
        copies: list[list[Any]] = []
        schedules = schedules or SCHEDULES
        for schedule in schedules:
            copies.append([x.copy() if _is_output(x) else x for x in arguments])
            schedule = replace(schedule, skipped=skipped)
            self.run(function, *copies[-1], schedule=schedule)
            for number, (first, now) in enumerate(zip(copies[0], copies[-1], strict=True)):
                if _is_output(first) and first.tobytes() != now.tobytes():
                    same_order = schedule.order == schedules[0].order
                    kind = "poison" if same_order else "order"
                    raise Fault(kind, f"argument {number} of {function} differs under {schedule}")
        for given, found in zip(arguments, copies[0], strict=True):
            if _is_output(given):
                given[...] = found

    def run_here(
        self, function: str, arguments: Sequence[Any], schedule: Schedule, guard: int
    ) -> None:
        """Call a function in this process, with ``guard`` bytes around each array."""
        if not self._handle:
            self._handle.append(ctypes.CDLL(str(self.path)))
        (handle,) = self._handle
        handle.simt_fault.restype = ctypes.c_char_p
        skipped_file = schedule.skipped[0].encode()  # must live until the call returns
        handle.simt_configure(
            _ORDERS[schedule.order],
            ctypes.c_uint64(schedule.seed),
            schedule.poison,
            ctypes.c_size_t(schedule.shared_limit),
            self.mode == "checked",
            skipped_file,
            schedule.skipped[1],
        )
        arrays = {
            number: _GuardedArray(number, argument, guard, schedule.poison)
            for number, argument in enumerate(arguments)
            if isinstance(argument, np.ndarray)
        }
        try:
            for number, array in arrays.items():
                size = ctypes.c_size_t(array.size)
                handle.simt_add_array(number, ctypes.c_void_p(array.address), size)
            passed = [
                ctypes.c_void_p(arrays[number].address) if number in arrays else _scalar(argument)
                for number, argument in enumerate(arguments)
            ]
            if getattr(handle, function)(*passed) != 0:
                kind, _, text = handle.simt_fault().decode().partition(": ")
                raise Fault(kind, self._with_lines(text))
        finally:
            handle.simt_forget_arrays()
        for array in arrays.values():
            array.check()
        for array in arrays.values():
            array.give_back()

    def _run_in_subprocess(
        self, function: str, arguments: Sequence[Any], schedule: Schedule
    ) -> None:
        """Call a function in a subprocess, which AddressSanitizer ends at the first fault."""
        environment = os.environ | {
            # AddressSanitizer intercepts exceptions, and needs libstdc++ loaded when it starts.
            "LD_PRELOAD": f"{_asan()} {_library('libstdc++.so.6')}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(HERE.parent),
        }
        job = pickle.dumps((self.path, function, arguments, schedule))
        command = [sys.executable, "-m", "simt"]
        done = subprocess.run(command, input=job, env=environment, capture_output=True)
        if done.returncode != 0:
            message = done.stderr.decode(errors="replace")
            report = re.search(r"ERROR: AddressSanitizer: (\S+).*", message, re.DOTALL)
            if not report:
                raise RuntimeError(message)
            raise Fault(f"asan {report[1]}", report[0])
        fault, results = pickle.loads(done.stdout)
        if fault:
            raise Fault(*fault)
        for argument, result in zip(arguments, results, strict=True):
            if _is_output(argument):
                argument[...] = result

    def _with_lines(self, text: str) -> str:
        """The text, with lines of the kernel for offsets into the library, ``{+0x...}``."""

        def look_up(match: re.Match[str]) -> str:
            output = _output_of("addr2line", "-i", "-e", str(self.path), match[1])
            # addr2line prints inlined functions innermost first, those of the emulator among them.
            lines = [line.partition(" (")[0] for line in output.splitlines()]
            of_kernel = [line for line in lines if Path(line).parent != HERE]
            return Path((of_kernel or lines)[0]).name

        return re.sub(r"\{\+(0x[0-9a-f]+)\}", look_up, text)


class _GuardedArray:
    """A copy of an array, between guard bytes that must not change."""

    def __init__(self, number: int, array: Array, guard: int, poison: int) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"argument {number} is not contiguous")
        self.number = number
        self.array = array
        self.size = array.nbytes
        if guard == 0:
            # AddressSanitizer adds its own guards.
            self.address = array.ctypes.data
            self.memory = self.inside = array.reshape(-1).view(np.uint8)
            self.around: tuple[slice, ...] = ()
            return
        # Not the poison: a kernel that copies poison there would go unnoticed.
        self.filling = poison ^ 0x55
        self.memory = np.full(self.size + 2 * guard + _ALIGNMENT, self.filling, np.uint8)
        begin = guard + -(self.memory.ctypes.data + guard) % _ALIGNMENT
        end = begin + self.size
        self.address = self.memory.ctypes.data + begin
        self.inside = self.memory[begin:end]
        self.inside[:] = array.reshape(-1).view(np.uint8)
        self.around = (slice(0, begin), slice(end, None))
        self.begin = begin

    def check(self) -> None:
        for part in self.around:
            for at in np.flatnonzero(self.memory[part] != self.filling)[:1]:
                byte = int(at) + (part.start or 0) - self.begin
                text = f"byte {byte} of argument {self.number}, which has {self.size}, was written"
                raise Fault("global bounds", text)
        if not self.array.flags.writeable and self.inside.tobytes() != self.array.tobytes():
            raise Fault("read-only", f"argument {self.number} was written")

    def give_back(self) -> None:
        if self.around and _is_output(self.array):
            self.array[...] = self.inside.view(self.array.dtype).reshape(self.array.shape)


def _is_output(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and argument.flags.writeable


def _scalar(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, (float, np.floating)):
        return ctypes.c_double(float(argument))
    return ctypes.c_int64(int(argument))


def _output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _library(name: str) -> str:
    return _output_of(str(compiler()), f"-print-file-name={name}")


def _asan() -> str:
    return _library("libasan.so")


def _execute(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _execute_all(commands: Sequence[Sequence[str]]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_execute, commands))


class Builder:
    """Builds harnesses and the emulator in a folder."""

    def __init__(self, folder: Path, *, flags: Sequence[str] = ()) -> None:
        found = compiler()
        if found is None:
            raise RuntimeError("there is no g++")
        self._compiler = found
        self._folder = folder
        self._flags = [*FLAGS, *flags]
        self._count = 0

    def build(
        self,
        harness: Path,
        include: Sequence[Path] = (),
        *,
        mode: Mode = "plain",
        edits: Mapping[str, tuple[str, str]] | None = None,
        macros: Sequence[str] = ("",),
    ) -> Library:
        """Build a harness whose kernels are in the folders ``include``.

        The harness is compiled once for each of ``macros``, in parallel, and the results are linked
        together. ``edits`` plants faults: by the name of a kernel file, a text that occurs in it
        exactly once, and the text that replaces it.
        """
        self._count += 1
        folder = self._folder / f"{harness.stem}-{self._count}"
        folder.mkdir(parents=True)
        folders = list(_edited(include, folder, edits or {}))
        library = folder / f"{harness.stem}.so"
        command = [self._compiler, *self._flags, f"-I{HERE}"]
        command += [f"-I{path}" for path in (*folders, CUDA)]
        # Instrumented code calls a function for every access; optimising the rest does not pay.
        instrument = {
            "plain": [],
            "checked": ["-O0", "-fsanitize=thread,alignment"],
            "asan": ["-O0", "-fsanitize=address"],
        }
        command += instrument[mode]
        compiled = [folder / f"{harness.stem}{macro}.o" for macro in macros]
        commands = [
            [*command, *([f"-D{macro}"] if macro else []), "-c", str(harness), "-o", str(object_)]
            for macro, object_ in zip(macros, compiled, strict=True)
        ]
        _execute_all(commands)
        # checker.cpp defines the functions of ThreadSanitizer, which is therefore not linked.
        link = ["-shared", *(instrument[mode] if mode == "asan" else [])]
        objects = self._emulator(mode == "asan")
        files = map(str, (*compiled, *objects))
        _execute([self._compiler, *link, *files, "-o", str(library)])
        return Library(library, mode)

    def _emulator(self, with_asan: bool) -> list[Path]:
        folder = self._folder / ("emulator-asan" if with_asan else "emulator")
        objects = [folder / f"{source.stem}.o" for source in SOURCES]
        if not folder.exists():
            folder.mkdir(parents=True)
            sanitizer = ["-fsanitize=address"] if with_asan else []
            start = [self._compiler, *self._flags, *sanitizer, "-g0", "-c"]
            commands = [
                [*start, str(source), "-o", str(compiled)]
                for source, compiled in zip(SOURCES, objects, strict=True)
            ]
            _execute_all(commands)
        return objects


def _edited(
    include: Sequence[Path], folder: Path, edits: Mapping[str, tuple[str, str]]
) -> Iterator[Path]:
    """The folders of kernels, or edited copies of them."""
    if not edits:
        yield from include
        return
    missing = set(edits)
    for number, source in enumerate(include):
        copy = folder / f"include-{number}"
        copy.mkdir()
        for path in sorted(source.glob("*.*h")):
            text = path.read_text(encoding="utf-8")
            if path.name in edits:
                missing.discard(path.name)
                before, after = edits[path.name]
                if text.count(before) != 1:
                    raise ValueError(f"{path.name} has {before!r} {text.count(before)} times")
                text = text.replace(before, after)
            (copy / path.name).write_text(text, encoding="utf-8")
        yield copy
    if missing:
        raise ValueError(f"there is no {', '.join(sorted(missing))} to edit")
