"""Builds CUDA kernels for the CPU and runs them on numpy arrays; README.md tells what is found.

A harness is a C++ file that includes kernels and exports functions that launch them, by
``SIMT_EXPORT`` of host.h. Arrays arrive there as pointers, integers as ``int64_t``, floating point
numbers as ``double``.
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
"""How device code is compiled: as it is; with every access checked; with AddressSanitizer."""

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
SOURCES = tuple(sorted(HERE.glob("*.cpp")))

# Shared memory is reached through pointers of many types. Products and sums are not fused, so that
# what a kernel does not say is not done. Of DWARF 5, addr2line may take one file for another.
FLAGS = (
    *("-std=c++17", "-O1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
)
POISONS = (0x3F, 0xBE)
"""Bytes that make a positive and a negative number in every type, in floating point one of at most
1: such numbers leave their mark in sums, in exponentials and in minima."""

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
    """What went wrong in a kernel; ``kind`` says in a word or two what it is and who found it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Schedule:
    """In which order ready threads and blocks run, and what shared memory holds at first."""

    order: Literal["ascending", "descending", "random"] = "ascending"
    seed: int = 0
    poison: int = POISONS[0]
    shared_limit: int = 227 * 1024
    """Bytes of shared memory that a block may have; by default on sm_90."""
    left_out: tuple[str, int] = ("", 0)
    """File and line where a __syncthreads, __syncwarp or __threadfence does nothing: results must
    not survive that, or it is superfluous or untested."""


SCHEDULES = (
    Schedule(),
    Schedule(poison=POISONS[1]),
    Schedule(order="descending"),
    Schedule(order="random", seed=1),
    Schedule(order="random", seed=2, poison=POISONS[1]),
)
"""Under which a kernel must give the same bits."""


@dataclass(frozen=True)
class Library:
    """A harness that has been built."""

    path: Path
    mode: Mode = "plain"
    _handle: list[ctypes.CDLL] = field(default_factory=list, compare=False)

    def run(self, function: str, *arguments: Any, schedule: Schedule | None = None) -> None:
        """Call an exported function; it writes into the arrays that are writeable.

        Raises:
            Fault: if the kernel did what it must not.
        """
        schedule = schedule or Schedule()
        if self.mode == "asan":
            self._run_apart(function, arguments, schedule)
        else:
            self.run_here(function, arguments, schedule, guard=_GUARD)

    def check(
        self,
        function: str,
        *arguments: Any,
        left_out: tuple[str, int] = ("", 0),
        schedules: Sequence[Schedule] | None = None,
    ) -> None:
        """Call it under all of these, or ``SCHEDULES``; all must write the same bits.

        Raises:
            Fault: also of kind "order" or "poison", where results depend on the one or the other.
        """
        copies: list[list[Any]] = []
        schedules = schedules or SCHEDULES
        for schedule in schedules:
            copies.append([x.copy() if _is_output(x) else x for x in arguments])
            schedule = replace(schedule, left_out=left_out)
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
        """Call it in this process, with ``guard`` bytes around each array."""
        if not self._handle:
            self._handle.append(ctypes.CDLL(str(self.path)))
        (handle,) = self._handle
        handle.simt_fault.restype = ctypes.c_char_p
        left_out_file = schedule.left_out[0].encode()  # kept until the call is over
        handle.simt_configure(
            _ORDERS[schedule.order],
            ctypes.c_uint64(schedule.seed),
            schedule.poison,
            ctypes.c_size_t(schedule.shared_limit),
            self.mode == "checked",
            left_out_file,
            schedule.left_out[1],
        )
        arrays = {
            number: _GuardedArray(number, argument, guard, schedule.poison)
            for number, argument in enumerate(arguments)
            if isinstance(argument, np.ndarray)
        }
        try:
            for number, array in arrays.items():
                size = ctypes.c_size_t(array.size)
                handle.simt_know_array(number, ctypes.c_void_p(array.address), size)
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

    def _run_apart(self, function: str, arguments: Sequence[Any], schedule: Schedule) -> None:
        """Call it in a process of its own, which AddressSanitizer ends at the first fault."""
        environment = os.environ | {
            # The second one for exceptions, which the first one wants to know of when it starts.
            "LD_PRELOAD": f"{_asan()} {_library('libstdc++.so.6')}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": str(HERE.parent),
        }
        job = pickle.dumps((self.path, function, arguments, schedule))
        command = [sys.executable, "-m", "simt"]
        done = subprocess.run(command, input=job, env=environment, capture_output=True)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace")
            report = re.search(r"ERROR: AddressSanitizer: (\S+).*", said, re.DOTALL)
            if not report:
                raise RuntimeError(said)
            raise Fault(f"asan {report[1]}", report[0])
        fault, results = pickle.loads(done.stdout)
        if fault:
            raise Fault(*fault)
        for argument, result in zip(arguments, results, strict=True):
            if _is_output(argument):
                argument[...] = result

    def _with_lines(self, text: str) -> str:
        """The text with offsets into the library, ``{+0x...}``, turned to lines of the kernel."""

        def look_up(match: re.Match[str]) -> str:
            said = _said("addr2line", "-i", "-e", str(self.path), match[1])
            # Inlined functions come innermost first; those of the emulator are not the kernel's.
            lines = [line.partition(" (")[0] for line in said.splitlines()]
            of_kernel = [line for line in lines if Path(line).parent != HERE]
            return Path((of_kernel or lines)[0]).name

        return re.sub(r"\{\+(0x[0-9a-f]+)\}", look_up, text)


class _GuardedArray:
    """A copy of an array, with bytes around it that must not change."""

    def __init__(self, number: int, array: Array, guard: int, poison: int) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"argument {number} is not contiguous")
        self.number = number
        self.array = array
        self.size = array.nbytes
        if guard == 0:
            # AddressSanitizer has guards of its own.
            self.address = array.ctypes.data
            self.memory = self.inside = array.reshape(-1).view(np.uint8)
            self.around: tuple[slice, ...] = ()
            return
        # Not the poison, which may be what is written.
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
                text = f"byte {byte} of argument {self.number} was written, which has {self.size}"
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


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _library(name: str) -> str:
    return _said(str(compiler()), f"-print-file-name={name}")


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
    """Builds harnesses below a folder, in which it keeps the emulator's object files."""

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
        parts: Sequence[str] = ("",),
    ) -> Library:
        """Build a harness whose kernels lie in the folders ``include``.

        It is compiled once with each macro of ``parts``, side by side. ``edits`` plants faults: by
        a kernel file's name, a text that it has once and what to put in its place.
        """
        self._count += 1
        folder = self._folder / f"{harness.stem}-{self._count}"
        folder.mkdir(parents=True)
        folders = list(_edited(include, folder, edits or {}))
        library = folder / f"{harness.stem}.so"
        command = [self._compiler, *self._flags, f"-I{HERE}"]
        command += [f"-I{path}" for path in (*folders, CUDA)]
        # Every access calls a function then, and optimising the rest takes longer than it saves.
        instrument = {
            "plain": [],
            "checked": ["-O0", "-fsanitize=thread,alignment"],
            "asan": ["-O0", "-fsanitize=address"],
        }
        command += instrument[mode]
        compiled = [folder / f"{harness.stem}{part}.o" for part in parts]
        commands = [
            [*command, *([f"-D{part}"] if part else []), "-c", str(harness), "-o", str(object_)]
            for part, object_ in zip(parts, compiled, strict=True)
        ]
        _execute_all(commands)
        # Not linked with the sanitizers whose functions checker.cpp has in their place.
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
    """The folders of kernels, or copies with the edits made."""
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
