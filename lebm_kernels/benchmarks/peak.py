"""The loop of exponentials that bounds F on a CPU where D is small: ``peak.cpp``, compiled here.

It is work that runs beside what it bounds, in the same rounds.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from lebm_kernels.benchmarks.compare import Timing
from lebm_kernels.benchmarks.providers import NotAvailableError

SOURCE = Path(__file__).with_name("peak.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]

#: Latents of the loop: with three floats each they fill 12 KiB, less than any L1.
LATENTS = 1024

#: Pairs that a thread visits in one step of the loop: some milliseconds.
THREAD_PAIRS = 1 << 25


class Variant(NamedTuple):
    """How many queries and vectors of latents the loop takes in lockstep."""

    queries: int
    vectors: int

    def __str__(self) -> str:
        return f"{self.queries} x {self.vectors}"


VARIANTS = tuple(Variant(q, v) for q in (1, 2, 4) for v in (1, 2, 4))


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or the first one found.

    Raises:
        NotAvailableError: there is none.
    """
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]):
            return command
        raise NotAvailableError(f"the C++ compiler named by CXX, {command[0]!r}, was not found")
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise NotAvailableError("no C++ compiler (c++, g++ or clang++) was found; CXX can name one")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """``peak.cpp``, compiled for this processor.

    Raises:
        NotAvailableError: no compiler, or one that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peak.so")
        command = [*compiler(), *FLAGS, str(SOURCE), "-o", str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            reason = (run.stderr.strip() or "no word of why").splitlines()[0]
            raise NotAvailableError(f"{SOURCE.name} does not compile: {reason}")
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:  # the folder may forbid to run what it holds
            raise NotAvailableError(f"{SOURCE.name} cannot be loaded: {error}") from error
    pointer = ctypes.c_void_p
    integers = [ctypes.c_int, ctypes.c_int]
    counts = [ctypes.c_int64, ctypes.c_int64]
    loaded.exponential_loop.argtypes = [*integers, pointer, pointer, *counts, pointer]
    loaded.exponential_loop.restype = None
    return loaded


class ExponentialLoop:
    """Calling it runs one variant of the loop on every thread, for ``pairs`` pairs in all.

    Args:
        variant: of the loop.
        threads: that run it at once, each on data of its own.
        thread_pairs: that each of them visits, about.

    Attributes:
        pairs: that one call visits, on all threads.
        queries: [threads, Q, 2], the numbers a.
        latents: [N, 3], the numbers g and c.
        sums: for each thread, [Q, lanes], after a call.

    Raises:
        NotAvailableError: there is no compiler, or it fails.
    """

    def __init__(self, variant: Variant, threads: int, thread_pairs: int = THREAD_PAIRS) -> None:
        self.variant, self.threads = variant, threads
        self._library = library()
        lanes = self._library.lanes()
        self._repeats = max(1, thread_pairs // (LATENTS * variant.queries))
        self.pairs = threads * self._repeats * LATENTS * variant.queries
        generator = torch.Generator().manual_seed(0)
        self.queries = torch.randn(threads, variant.queries, 2, generator=generator)
        # -|y - g|^2 / 2 = y g - |g|^2 / 2 - |y|^2 / 2, whose last part is the same for all g.
        latents = torch.randn(LATENTS, 2, generator=generator)
        self.latents = torch.cat((latents, -latents.square().sum(1, keepdim=True) / 2), 1)
        packed = self.latents.reshape(-1, lanes, 3).mT.contiguous()
        self._latents = [packed.clone() for _ in range(threads)]
        # Each allocated for itself: on a cache line that no other thread writes to.
        self.sums = [torch.zeros(variant.queries, lanes) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """Run the loop on every thread; its sums are in ``sums`` afterwards."""
        list(self._pool.map(self._run, range(self.threads)))

    def _run(self, thread: int) -> None:
        self.sums[thread].zero_()
        # ctypes lets go of the interpreter's lock while this runs.
        self._library.exponential_loop(
            *self.variant,
            self.queries[thread].data_ptr(),
            self._latents[thread].data_ptr(),
            self._latents[thread].shape[0],
            self._repeats,
            self.sums[thread].data_ptr(),
        )


def measure(works: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Time the works in interleaved rounds, after one to warm up."""
    timings = [Timing(name) for name in works]
    for turn in range(-1, rounds):
        for timing, work in zip(timings, works.values(), strict=True):
            start = time.perf_counter()
            work()
            if turn >= 0:
                timing.seconds.append(time.perf_counter() - start)
    return timings


@cache
def fastest_loop(threads: int, rounds: int = 5) -> ExponentialLoop:
    """The variant of the loop whose shortest time is the shortest: others can only delay it.

    Raises:
        NotAvailableError: there is no compiler, or it fails.
    """
    loops = {str(variant): ExponentialLoop(variant, threads) for variant in VARIANTS}
    rates = {t.name: loops[t.name].pairs / min(t.seconds) for t in measure(loops, rounds)}
    return loops[max(rates, key=lambda name: rates[name])]
