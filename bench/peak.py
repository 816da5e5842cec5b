"""Measure this machine's limits in pairs per second: ``python bench/peak.py``.

For small D the limit of F is the loop of exponentials of :mod:`lebm_kernels.benchmarks.peak`. For
large D it is the product ``y @ decoded.T``.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import format_pairs
from lebm_kernels.benchmarks.limits import Product
from lebm_kernels.benchmarks.peak import VARIANTS, ExponentialLoop, measure
from lebm_kernels.benchmarks.providers import NotAvailableError
from lebm_kernels.diagnostics.environment import describe


def main(arguments: list[str]) -> int:
    """Print both limits, on one thread and on all threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--m", type=int, default=2048, help="rows of the product")
    parser.add_argument("--n", type=int, default=8192, help="columns of the product")
    parser.add_argument("--d", type=int, default=64, help="depth of the product")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {options.rounds}")
    try:
        product = Product(Case(options.m, options.n, options.d))
    except ValueError as error:
        parser.error(str(error))
    threads = torch.get_num_threads()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for title in ("threads", "pairs", "spread", "best"):
        table.add_column(title, justify="right")
    console = Console()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        works: dict[str, ExponentialLoop | Product] = {}
        try:
            for variant in VARIANTS:
                works[f"exponential loop, {variant}"] = ExponentialLoop(variant, count)
        except NotAvailableError as error:
            console.print(f"no exponential loop: {error}", highlight=False)
        works[f"product, {options.m} x {options.d} x {options.n}"] = product
        for timing, work in zip(measure(works, options.rounds), works.values(), strict=True):
            table.add_row(
                timing.name,
                str(count),
                format_pairs(work.pairs / timing.median),
                "-" if math.isnan(timing.spread) else f"{timing.spread:.0%}",
                format_pairs(work.pairs / min(timing.seconds)),
            )
        table.add_section()
    console.print(table)
    console.print(describe()["processor"], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
