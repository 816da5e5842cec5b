"""Print the time of one case for every provider: ``python bench/compare.py --help``."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch
from rich.console import Console
from rich.status import Status

from lebm_kernels.benchmarks.cases import ARGUMENTS, Case
from lebm_kernels.benchmarks.compare import compare, comparison_table
from lebm_kernels.benchmarks.providers import providers
from lebm_kernels.diagnostics.environment import describe, summary

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, default=4096, help="queries")
    parser.add_argument("--n", type=int, default=16384, help="latents")
    parser.add_argument("--d", type=int, default=2, help="dimensions")
    parser.add_argument("--beta", type=float, default=1.0, help="inverse temperature, or inf")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--backward",
        nargs="*",
        choices=ARGUMENTS,
        default=["y"],
        help="arguments to differentiate; without any, only the forward is timed",
    )
    parser.add_argument(
        "--providers", nargs="+", metavar="NAME", help="time only these; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the providers' names and exit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="PyTorch's threads; default: PyTorch's choice")
    return parser.parse_args(arguments)


def tell(status: Status, title: str, text: str) -> None:
    """Show the current work in the status line."""
    status.update(f"{title}: {text}")


def main(arguments: list[str]) -> int:
    """Compare the providers, and print the table."""
    options = parse(arguments)
    console = Console()
    if options.list:
        console.print("\n".join(providers(options.device)), highlight=False)
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    directions = [()] if not options.backward else [(), tuple(options.backward)]
    comparisons = []
    try:
        with console.status("preparing") as status:
            for backward in directions:
                case = Case(
                    options.m,
                    options.n,
                    options.d,
                    options.beta,
                    DTYPES[options.dtype],
                    backward,
                    options.device,
                )
                comparisons.append(
                    compare(
                        case,
                        options.providers,
                        rounds=options.rounds,
                        notify=partial(tell, status, case.direction),
                    )
                )
    except ValueError as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
    console.print(comparison_table(comparisons))
    console.print(summary(describe()), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
