"""Times our GPU backends, their peers and the limit: ``python bench/gpu_benchmark.py``."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpu_peak import peak
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import Comparison, compare, format_pairs, format_seconds
from lebm_kernels.benchmarks.providers import NotAvailableError, providers
from lebm_kernels.diagnostics.environment import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOTH = ("y", "decoded")
NARROW = Case(16384, 65536, 2, device="cuda")
WIDE = Case(8192, 16384, 64, device="cuda")
CASES = (
    NARROW,
    replace(NARROW, backward=BOTH),
    replace(NARROW, backward=("y", "scale", "beta")),
    WIDE,
    replace(WIDE, backward=BOTH),
    Case(24, 48, 2, backward=("y", "scale"), device="cuda"),
    Case(3, 4_000_000, 2, backward=BOTH, device="cuda"),
    replace(NARROW, beta=1e4, layout="curve", backward=BOTH),
    Case(16384, 65536, 8, backward=BOTH, device="cuda"),
    Case(16384, 65536, 3, backward=BOTH, device="cuda"),
)

#: Peers that compile and load code. They may crash the process in which they run.
LOADERS = ("KeOps", "FlashSinkhorn")

#: Seconds that they may take to start.
PROBE_SECONDS = 50.0

#: A peer that would need more than this fraction of the card's memory is not run.
MEMORY_FRACTION = 0.4


@dataclass
class Record:
    """The results of a run; ``limit`` in pairs per second, ``dead`` the peers that crash."""

    facts: dict[str, str]
    limit: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)


def needed_bytes(name: str, case: Case) -> int:
    """About the peak memory of a provider that stores matrices of queries x latents."""
    matrices = 3 * case.D + 4 if "differences" in name else 6
    eager = name.startswith(("eager", "torch.compile", "reference"))
    return case.M * case.N * case.dtype.itemsize * matrices if eager else 0


def probe(name: str) -> int:
    """Try a provider in this process."""
    case = Case(16, 16, 2, device="cuda")
    with suppress(NotAvailableError):  # the benchmark reports it
        providers("cuda")[name](case)(case.cotangent())
    return 0


def dead_providers() -> dict[str, str]:
    """The peers that crash a subprocess, and how."""
    command = [sys.executable, str(Path(__file__).resolve()), "--probe"]
    tries = {
        name: subprocess.Popen(
            [*command, name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name in LOADERS
    }
    end = time.perf_counter() + PROBE_SECONDS
    found = {}
    for name, process in tries.items():
        try:
            status = process.wait(max(end - time.perf_counter(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            found[name] = f"takes more than {PROBE_SECONDS:.0f} s to start"
        else:
            if status < 0:
                found[name] = f"ends its process by {signal.Signals(-status).name}"
    return found


def chosen_providers(case: Case) -> list[str]:
    """The providers to time: ours first, without peers that would not fit into memory."""
    room = MEMORY_FRACTION * torch.cuda.get_device_properties(0).total_memory
    # XLA takes more than a minute to compile a case.
    too_slow = {"reference", "JAX"} | (set() if case.D >= 32 else {"torch.compile, expansion (mm)"})
    names = [name for name in providers("cuda") if name not in too_slow]
    return [name for name in names if needed_bytes(name, case) <= room]


def measure(record: Record, path: Path, seconds: float, console: Console) -> None:
    """Times the cases. Writes the file after each, since a run of minutes may be interrupted."""
    record.dead = dead_providers()
    deadline = time.perf_counter() + seconds
    for name, why in record.dead.items():
        console.print(f"{name} is skipped: it {why}", highlight=False)
    for case in CASES:
        if time.perf_counter() > deadline:
            console.print(f"no time left for {case}, {case.direction}", highlight=False)
            continue
        names = [name for name in chosen_providers(case) if name not in record.dead]
        comparison = compare(case, names, rounds=7, budget=5.0, patience=1.0)
        record.rows.append(as_row(comparison))
        torch.cuda.empty_cache()
        path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def as_row(comparison: Comparison) -> dict[str, Any]:
    """The figures of a case."""
    case = comparison.case
    return {
        "case": f"{case}, {case.direction}",
        "pairs": case.M * case.N,
        "providers": {
            timing.name: {
                "seconds": timing.median if timing.seconds else None,
                "spread": timing.spread if len(timing.seconds) > 1 else None,
                "error": timing.error,
                "failure": timing.failure,
            }
            for timing in comparison.timings
        },
    }


def table(record: Record) -> Table:
    """One line for each case and provider."""
    result = Table(box=box.SIMPLE_HEAD, title=record.facts["GPUs"])
    for title in ("case", "provider", "time", "pairs", "of limit", "error"):
        result.add_column(title, justify="left" if title in ("case", "provider") else "right")
    for row in record.rows:
        result.add_section()
        for name, found in row["providers"].items():
            if found["seconds"] is None:
                result.add_row(escape(row["case"]), escape(name), escape(found["failure"][:40]))
                continue
            rate = row["pairs"] / found["seconds"]
            share = f"{rate / record.limit:.0%}"
            cells = (format_seconds(found["seconds"]), format_pairs(rate), share)
            result.add_row(escape(row["case"]), escape(name), *cells, f"{found['error']:.0e}")
    return result


def picture(record: Record) -> Figure:
    """Pairs per second of every provider and the limit, one panel per case."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in record.rows for name in row["providers"]))
    columns = 3
    lines = -(-len(record.rows) // columns)
    figure = Figure(figsize=(15, 2.6 * lines), layout="constrained")
    for number, row in enumerate(record.rows):
        axes = figure.add_subplot(lines, columns, number + 1)
        timed = {name: row["providers"].get(name, {}).get("seconds") for name in names}
        rates = [row["pairs"] / timed[name] / 1e9 if timed[name] else 0.0 for name in names]
        axes.barh(names, rates, color=["#0072B2" if r else "none" for r in rates])
        axes.axvline(record.limit / 1e9, color="#D55E00")
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_title(row["case"], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("Gpair/s", fontsize=8)
    figure.suptitle(
        f"{record.facts['GPUs']}, PyTorch {record.facts['PyTorch']}; the line is the limit of the "
        "exponentials"
    )
    return figure


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--json", type=Path, help="file for the figures; a picture goes beside it")
    what.add_argument("--probe", metavar="PROVIDER", help="only try one provider")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no case after this")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the files."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("gpu_benchmark.py: error: PyTorch sees no CUDA GPU here", file=sys.stderr)
        return 2
    if options.probe:
        return probe(options.probe)
    # In a file or a pipe no line of the table is wrapped.
    console = Console(width=None if sys.stdout.isatty() else 160)
    record = Record(describe(), peak())
    console.print(f"limit: {format_pairs(record.limit)}", highlight=False)
    measure(record, options.json, options.seconds, console)
    console.print(table(record))
    if record.rows:
        picture(record).savefig(options.json.with_suffix(".png"), dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
