"""Measure this machine's limits: ``python bench/peak.py``.

The limit of F follows from the loops of :mod:`lebm_kernels.benchmarks.peak`: of exponentials, in
pairs per second, and of FMAs, by lane. The product ``y @ decoded.T``, in pairs per second, is what
a matrix library reaches of the second.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import format_pairs
from lebm_kernels.benchmarks.limits import Product
from lebm_kernels.benchmarks.peak import VARIANTS, ExponentialLoop, MultiplyAddLoop, measure
from lebm_kernels.benchmarks.providers import NotAvailableError
from lebm_kernels.diagnostics.environment import describe


def main(arguments: list[str]) -> int:
    """Print all limits, on one thread and on all threads."""
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
    for title in ("threads", "rate", "spread", "best"):
        table.add_column(title, justify="right")
    console = Console()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        works: dict[str, Callable[[], object]] = {}
        amounts: list[int] = []
        try:
            for variant in VARIANTS:
                loop = ExponentialLoop(variant, count)
                works[f"exponential loop, {variant}: pairs"] = loop
                amounts.append(loop.pairs)
            products = MultiplyAddLoop(count)
            works["multiply-add loop: FMAs by lane"] = products
            amounts.append(products.products)
        except NotAvailableError as error:
            console.print(f"no loops: {error}", highlight=False)
        works[f"product, {options.m} x {options.d} x {options.n}: pairs"] = product
        amounts.append(product.pairs)
        for timing, amount in zip(measure(works, options.rounds), amounts, strict=True):
            table.add_row(
                timing.name,
                str(count),
                format_pairs(amount / timing.median),
                "-" if math.isnan(timing.spread) else f"{timing.spread:.0%}",
                format_pairs(amount / min(timing.seconds)),
            )
        table.add_section()
    console.print(table)
    console.print(describe()["processor"], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
