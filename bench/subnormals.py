"""Measure what subnormal numbers cost the CPU kernels: ``python bench/subnormals.py --help``.

The slow-down of a pass is its time / its time while the processor flushes subnormal numbers to
zero. It is near 1 where the pass computes with none. Elsewhere it depends on the processor: an
operation on a subnormal number takes some 150 cycles on Intel's, and few on AMD's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lebm_kernels import free_energy
from lebm_kernels.benchmarks.compare import format_seconds
from lebm_kernels.diagnostics.environment import describe, summary


class Case(NamedTuple):
    """M queries and N latents in D dimensions, with an incoming gradient of size G."""

    D: int
    M: int
    N: int
    beta: float
    kind: str = "normal"
    G: float = 1.0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{dtype}, D {self.D}, {self.M} x {self.N}, beta {self.beta:g}, "
            f"{self.kind}, G {self.G:.0e}"
        )

    def inputs(self) -> dict[str, Any]:
        """The arguments of ``free_energy``: normal y and decoded, and what ``kind`` adds."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        inputs = {"y": normal(self.M, self.D), "decoded": normal(self.N, self.D)}
        if self.kind == "far":
            inputs["y"] += 30 * torch.nn.functional.normalize(normal(self.M, self.D))
        elif self.kind == "weights":
            inputs["log_weight"] = 20 * normal(self.N)
        elif self.kind == "energies":
            inputs["latent_energy"] = 5 * normal(self.N).abs()
        elif self.kind == "scale":
            inputs["scale"] = 1 + normal(self.M, self.D) / 10
        return {name: x.to(self.dtype) for name, x in inputs.items()}


MEAN = 1 / 1024
DOUBLE = torch.float64

#: Where exponents spread widely, weights and energies do, or the incoming gradient is small.
CASES = (
    Case(2, 1024, 8192, 100),
    Case(2, 1024, 8192, 1e4),
    Case(2, 1024, 8192, 1e4, "far"),
    Case(2, 40, 65536, 1000),
    Case(2, 1024, 8192, 2, "energies"),
    Case(2, 1024, 8192, 2, "weights"),
    Case(3, 1024, 8192, 100),
    Case(3, 1024, 8192, 100, G=MEAN),
    Case(4, 1024, 8192, 100, "far"),
    Case(4, 1024, 8192, 1e4, G=MEAN),
    Case(5, 1024, 4096, 2, G=MEAN),
    Case(8, 1024, 4096, 100),
    Case(8, 1024, 4096, 100, G=MEAN),
    Case(8, 1024, 4096, 2, "energies"),
    Case(16, 1024, 4096, 2, G=MEAN),
    Case(32, 1024, 4096, 2),
    Case(32, 1024, 4096, 2, G=MEAN),
    Case(64, 1024, 4096, 0.05),
    Case(64, 1024, 4096, 0.05, G=MEAN),
    Case(64, 1024, 4096, 2),
    Case(64, 1024, 4096, 2, G=MEAN),
    Case(64, 1024, 4096, 2, G=1e-8),
    Case(64, 1024, 4096, 2, "far", 1e-8),
    Case(64, 1024, 4096, 2, "weights", MEAN),
    Case(64, 512, 2048, 2, "scale", MEAN),
    Case(256, 256, 1024, 2, G=MEAN),
    Case(784, 128, 768, 2, G=MEAN),
    Case(8, 512, 2048, 1e4, dtype=DOUBLE),
    Case(64, 512, 2048, 100, dtype=DOUBLE),
    Case(64, 512, 2048, 10, "far", MEAN, DOUBLE),
    Case(2, 1024, 8192, 1e4, dtype=DOUBLE),
)


PASSES = ("forward", "with dF/dy", "columns")


def passes(case: Case) -> dict[str, Callable[[], object]]:
    """The row pass alone, the row pass with dF/dy, and the column pass, by PASSES."""
    inputs = case.inputs()
    grad = torch.full((case.M,), case.G, dtype=case.dtype)
    of = partial(free_energy, beta=case.beta, backend="native")
    y = {**inputs, "y": inputs["y"].clone().requires_grad_()}
    decoded = {**inputs, "decoded": inputs["decoded"].clone().requires_grad_()}
    value = of(**decoded)

    def rows() -> object:
        return torch.autograd.grad(of(**y), y["y"], grad)

    def columns() -> object:
        return torch.autograd.grad(value, decoded["decoded"], grad, retain_graph=True)

    return dict(zip(PASSES, (partial(of, **inputs), rows, columns), strict=True))


@contextmanager
def flushing(flush: bool) -> Iterator[None]:
    """Flush subnormal numbers to zero in this thread, or not."""
    if not torch.set_flush_denormal(flush):
        raise SystemExit("subnormals.py: error: this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def slow_down(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The time of the work / its time while subnormal numbers are flushed, and that time.

    The times are the thread's own, without those of other programs.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for i in range(-1, rounds):
        for flush in (True, False) if i % 2 else (False, True):
            with flushing(flush):
                start = time.thread_time()
                work()
                taken = time.thread_time() - start
            if i >= 0:  # the first is to warm up
                seconds[flush].append(taken)
    flushed = statistics.median(seconds[True])
    return statistics.median(seconds[False]) / flushed, flushed


def main(arguments: Sequence[str]) -> int:
    """Print the table and the largest slow-down of each pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases that contain it")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {options.rounds}")
    chosen = [case for case in CASES if options.only in str(case)]
    if not chosen:
        parser.error(f"argument --only: no case contains {options.only!r}")
    torch.set_num_threads(1)  # the processor's setting is that of one thread
    console = Console(width=None if sys.stdout.isatty() else 120)
    title = "slow-down, and the time with subnormal numbers flushed"
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("case")
    for name in PASSES:
        table.add_column(name, justify="right")
    worst: dict[str, tuple[float, Case]] = {}
    for case in chosen:
        cells = []
        for name, work in passes(case).items():
            ratio, flushed = slow_down(work, options.rounds)
            cells.append(f"{ratio:.2f}  {format_seconds(flushed)}")
            worst[name] = max(worst.get(name, (0.0, case)), (ratio, case), key=lambda x: x[0])
        table.add_row(str(case), *cells)
    console.print(table)
    for name, (ratio, case) in worst.items():
        console.print(f"worst {name}: {ratio:.2f}, {case}", highlight=False)
    console.print(summary(describe()), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
