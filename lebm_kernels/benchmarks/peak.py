"""The loops that limit F on a CPU, of exponentials and of FMAs: ``peak.cpp``, compiled at run time.

They are timed in the same rounds as the case that they limit.
"""

from __future__ import annotations

import ctypes
import math
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.benchmarks.compare import Timing
from lebm_kernels.benchmarks.providers import NotAvailableError

SOURCE = Path(__file__).with_name("peak.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]

#: Latents of the loop. With three floats each they take 12 KiB, which fits in any L1 cache.
LATENTS = 1024

#: Pairs per thread and call of the loop, which take some milliseconds.
THREAD_PAIRS = 1 << 25

#: FMAs per thread and call of their loop, counted by lane; they take some milliseconds too.
THREAD_PRODUCTS = 1 << 28


class Variant(NamedTuple):
    """The numbers of queries and of vectors of latents that the loop processes at once."""

    queries: int
    vectors: int

    def __str__(self) -> str:
        return f"{self.queries} x {self.vectors}"


VARIANTS = tuple(Variant(q, v) for q in (1, 2, 4) for v in (1, 2, 4))


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or the first of c++, g++ and clang++ that exists.

    Raises:
        NotAvailableError: no compiler was found.
    """
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]):
            return command
        raise NotAvailableError(f"the C++ compiler named by CXX, {command[0]!r}, was not found")
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise NotAvailableError("no C++ compiler (c++, g++ or clang++) was found; CXX can name one")


def compiled(source: Path) -> ctypes.CDLL:
    """A C++ file, compiled for this processor and loaded.

    Raises:
        NotAvailableError: no compiler was found, or it fails, or the result cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, source.name).with_suffix(".so")
        command = [*compiler(), *FLAGS, str(source), "-o", str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            reason = (run.stderr.strip() or "no error message").splitlines()[0]
            raise NotAvailableError(f"{source.name} does not compile: {reason}")
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # the temporary folder may be mounted noexec
            raise NotAvailableError(f"{source.name} cannot be loaded: {error}") from error


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """``peak.cpp``, compiled for this processor and loaded.

    Raises:
        NotAvailableError: as :func:`compiled`.
    """
    loaded = compiled(SOURCE)
    pointer = ctypes.c_void_p
    integers = [ctypes.c_int, ctypes.c_int]
    counts = [ctypes.c_int64, ctypes.c_int64]
    loaded.exponential_loop.argtypes = [*integers, pointer, pointer, *counts, pointer]
    loaded.exponential_loop.restype = None
    loaded.multiply_add_loop.argtypes = [ctypes.c_float, ctypes.c_float, ctypes.c_int64, pointer]
    loaded.multiply_add_loop.restype = None
    return loaded


class ExponentialLoop:
    """One variant of the loop; calling it runs the loop on all threads.

    Args:
        variant: the variant.
        threads: number of threads, each with its own data.
        thread_pairs: approximate number of pairs per thread and call.

    Attributes:
        pairs: pairs per call, over all threads.
        queries: a of ``peak.cpp``, ``[threads, Q, 2]``, float32.
        latents: g and c of ``peak.cpp``, ``[N, 3]``, float32.
        sums: the result of the last call, ``[Q, lanes]`` for each thread.

    Raises:
        NotAvailableError: as :func:`library`.
    """

    def __init__(self, variant: Variant, threads: int, thread_pairs: int = THREAD_PAIRS) -> None:
        self.variant, self.threads = variant, threads
        self._library = library()
        lanes = self._library.lanes()
        self._repeats = max(1, thread_pairs // (LATENTS * variant.queries))
        self.pairs = threads * self._repeats * LATENTS * variant.queries
        generator = torch.Generator().manual_seed(0)
        placed: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        self.queries = torch.randn(threads, variant.queries, 2, generator=generator, **placed)
        # -|y - g|^2 / 2 = y g - |g|^2 / 2 - |y|^2 / 2, where the last term is the same for all g.
        latents = torch.randn(LATENTS, 2, generator=generator, **placed)
        self.latents = torch.cat((latents, -latents.square().sum(1, keepdim=True) / 2), 1)
        packed = self.latents.reshape(-1, lanes, 3).mT.contiguous()
        self._latents = [packed.clone() for _ in range(threads)]
        # Separate tensors, so that no two threads write to one cache line.
        self.sums = [torch.zeros(variant.queries, lanes, **placed) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """Run the loop on all threads, and write the results to ``sums``."""
        list(self._pool.map(self._run, range(self.threads)))

    def _run(self, thread: int) -> None:
        self.sums[thread].zero_()
        # ctypes releases the interpreter's lock during the call.
        self._library.exponential_loop(
            *self.variant,
            self.queries[thread].data_ptr(),
            self._latents[thread].data_ptr(),
            self._latents[thread].shape[0],
            self._repeats,
            self.sums[thread].data_ptr(),
        )


class MultiplyAddLoop:
    """Independent FMAs in registers; calling it runs them on all threads.

    Args:
        threads: number of threads.
        thread_products: approximate number of FMAs per thread and call, counted by lane.

    Attributes:
        products: FMAs per call, by lane, over all threads.
        sums: the chains after the last call, ``[chains, lanes]`` for each thread. Each starts at 0
            and becomes FACTOR x + ADDEND ``thread_products / (chains lanes)`` times.
    """

    FACTOR, ADDEND = 0.75, 1.0  # chains tend to 4, an ordinary number

    def __init__(self, threads: int, thread_products: int = THREAD_PRODUCTS) -> None:
        self._library = library()
        shape = (self._library.chains(), self._library.lanes())
        self._count = max(1, round(thread_products / math.prod(shape)))
        self.threads = threads
        self.products = threads * self._count * math.prod(shape)
        self.sums = [torch.zeros(shape, dtype=torch.float32, device="cpu") for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """Run the loop on all threads."""
        list(self._pool.map(self._run, self.sums))

    def _run(self, sums: Tensor) -> None:
        sums.zero_()
        self._library.multiply_add_loop(self.FACTOR, self.ADDEND, self._count, sums.data_ptr())


def measure(works: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Time the works in interleaved rounds, after one round to warm up."""
    timings = [Timing(name) for name in works]
    for i in range(-1, rounds):
        for timing, work in zip(timings, works.values(), strict=True):
            start = time.perf_counter()
            work()
            if i >= 0:
                timing.seconds.append(time.perf_counter() - start)
    return timings


@cache
def fastest_loop(threads: int, rounds: int = 5) -> ExponentialLoop:
    """The variant of the loop with the highest speed in its best round.

    The best round counts, because other programs on the machine can only slow a round down.

    Raises:
        NotAvailableError: as :func:`library`.
    """
    loops = {str(variant): ExponentialLoop(variant, threads) for variant in VARIANTS}
    rates = {t.name: loops[t.name].pairs / min(t.seconds) for t in measure(loops, rounds)}
    return loops[max(rates, key=lambda name: rates[name])]
