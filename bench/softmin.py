"""Compare softmin and softargmin with torch.logsumexp and torch.softmax.

Each pair takes turns, so that a change of the machine's speed affects both. The
ratio is our median time divided by PyTorch's: below 1, ours is faster. ``targets.py`` prints its
inverse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lebm_kernels import softargmin, softmin
from lebm_kernels.benchmarks.compare import format_seconds
from lebm_kernels.benchmarks.peak import measure
from lebm_kernels.diagnostics.environment import describe

SHAPES = ((4, 4), (100, 100), (1000, 1000), (1000, 4096))
#: A round repeats a call until it has processed so many energies, at most 200 times.
ENERGIES = 1_000_000


def forward(function: Callable[[Tensor], Tensor], energy: Tensor, repeats: int) -> None:
    for _ in range(repeats):
        function(energy)


def with_backward(
    function: Callable[[Tensor], Tensor], energy: Tensor, grad: Tensor, repeats: int
) -> None:
    for _ in range(repeats):
        torch.autograd.grad(function(energy), energy, grad)


def main(arguments: list[str]) -> int:
    """Print a row for each shape, function and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--dim", type=int, default=-1, help="the dimension of the latents")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {options.rounds}")
    beta, dim = options.beta, options.dim
    pairs: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "softmin / logsumexp": (
            lambda x: softmin(x, beta, dim),
            lambda x: torch.logsumexp(x, dim),
        ),
        "softargmin / softmax": (
            lambda x: softargmin(x, beta, dim),
            lambda x: torch.softmax(x, dim),
        ),
    }
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("energies", "threads", "functions"):
        table.add_column(title)
    for title in ("forward", "PyTorch", "ratio", "with backward", "PyTorch", "ratio"):
        table.add_column(title, justify="right")
    for threads in sorted(set(options.threads)):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            energy = torch.randn(shape)
            repeats = min(200, max(1, ENERGIES // energy.numel()))
            for title, functions in pairs.items():
                leaf = energy.clone().requires_grad_()
                grad = torch.randn_like(functions[1](energy))
                works = {
                    f"{name} {kind}": work
                    for name, f in zip(("ours", "PyTorch"), functions, strict=True)
                    for kind, work in (
                        ("forward", partial(forward, f, energy, repeats)),
                        ("backward", partial(with_backward, f, leaf, grad, repeats)),
                    )
                }
                times = {t.name: t.median / repeats for t in measure(works, options.rounds)}
                cells = []
                for kind in ("forward", "backward"):
                    ours, theirs = times[f"ours {kind}"], times[f"PyTorch {kind}"]
                    cells += [format_seconds(ours), format_seconds(theirs), f"{ours / theirs:.2f}"]
                table.add_row(" x ".join(map(str, shape)), str(threads), title, *cells)
        table.add_section()
    console = Console(width=120)
    console.print(table)
    console.print(describe()["processor"], highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
