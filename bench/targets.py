"""Measure the package's speed and memory targets: ``python bench/targets.py --help``."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import lebm_kernels
from compare import tell
from lebm_kernels.backends import preferred
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import (
    Comparison,
    Timing,
    compare,
    format_pairs,
    format_seconds,
)
from lebm_kernels.benchmarks.limits import bound
from lebm_kernels.benchmarks.peak import measure
from lebm_kernels.benchmarks.providers import (
    NotAvailableError,
    Step,
    needed_bytes,
    stepper,
)
from lebm_kernels.diagnostics.environment import describe, summary

EAGER = ("eager, expansion (mm)", "eager, differences", "eager, cdist")
UNROLLED = "torch.compile, unrolled"
COMPILED = ("torch.compile, expansion (mm)", "torch.compile, differences")
PEERS = (*EAGER, UNROLLED, *COMPILED, "KeOps")

#: Unrolled formulas of more dimensions compile for minutes.
MOST_UNROLLED = 32

#: A peer that would need more memory than this is skipped.
MOST_BYTES = 8 << 30

#: A provider that takes longer than this twice is excluded from the rounds.
PATIENCE_SECONDS = 2.0

#: No round of a case starts later than this.
BUDGET_SECONDS = 15.0

#: A case with fewer pairs than this is so short that it gets MORE_ROUNDS times as many rounds.
FEW_PAIRS = 1 << 20
MORE_ROUNDS = 10

#: The beta of functions of given energies, and their steps in one round.
SOFT_BETA = 2.0
SOFT_STEPS = 10

#: A beta at which no latent of a curve can be pruned, see :func:`unpruned_step`.
WARM = 4.0


@dataclass(frozen=True)
class Target:
    """A case and its targets: at least one of the last five attributes is set.

    Attributes:
        case: the case.
        peers: the peers to compare with.
        ratio: at least this many times faster than the best peer.
        unpruned_ratio: at least this many times faster than our own backend without pruning, see
            :func:`unpruned_step`.
        share: at least this fraction of the machine's limit.
        seconds: at most this many seconds per step.
        mebibytes: at most this much memory beyond inputs and outputs.
    """

    case: Case
    peers: tuple[str, ...] = ()
    ratio: float | None = None
    unpruned_ratio: float | None = None
    share: float | None = None
    seconds: float | None = None
    mebibytes: float | None = None

    @property
    def title(self) -> str:
        """The case and, unless that is a time, the measured quantity."""
        case = self.case
        beta = "" if case.beta == Case.beta else f", beta {case.beta:g}"
        layout = "" if case.layout == "normal" else f", {case.layout}"
        loss = "" if case.loss == "sum" else f", {case.loss}()"
        alone = self.ratio is None and self.share is not None
        what = SHARE if alone else ", memory" if self.mebibytes else ""
        return f"{case.M} x {case.N}, D {case.D}{beta}{layout}: {case.direction}{loss}{what}"


@dataclass(frozen=True)
class SoftTarget:
    """A function of given energies, ``[size, size]``, and a function of PyTorch to compare it with.

    Attributes:
        name: of the function in ``lebm_kernels``.
        peer: of the function in ``torch``.
        backward: whether the gradient of the energies is taken too.
        size: number of rows, and of columns.
        ratio: at least this many times as fast.
    """

    name: str
    peer: str
    backward: bool
    size: int = 1000
    ratio: float = 0.85

    @property
    def title(self) -> str:
        """The function and the size."""
        direction = "forward + backward" if self.backward else "forward"
        return f"{self.name} {self.size} x {self.size}: {direction}"


SHARE = ", share of the limit"
BOTH = ("y", "decoded")


def _against_peers(
    case: Case, ratio: float, ratio_of_both: float, peers: tuple[str, ...] = PEERS
) -> tuple[Target, Target]:
    """The forward and both gradients of a case, from D = 5 also as shares of the limit."""
    if case.D > MOST_UNROLLED:
        peers = tuple(name for name in peers if name != UNROLLED)
    shares = (0.6, 0.5) if case.D >= 5 else (None, None)
    return (
        Target(case, peers, ratio=ratio, share=shares[0]),
        Target(replace(case, backward=BOTH), peers, ratio=ratio_of_both, share=shares[1]),
    )


NARROW = Case(4096, 16384, 2)
WIDE = Case(2048, 8192, 64)
FEW = Case(3, 4_000_000, 2)
TINY = Case(24, 48, 2)
COLD = Case(16384, 65536, 2, beta=1e4, layout="curve")
FEW_PEERS = (*EAGER, UNROLLED, "KeOps")

TARGETS: tuple[Target | SoftTarget, ...] = (
    *_against_peers(replace(NARROW, beta=2), 10, 15),
    Target(NARROW, share=0.8),
    Target(replace(NARROW, backward=("y", "scale", "beta")), FEW_PEERS, ratio=20),
    *_against_peers(replace(NARROW, beta=2, D=3), 8, 10),
    *_against_peers(replace(NARROW, beta=2, D=4), 8, 10),
    *_against_peers(Case(2048, 16384, 8), 10, 9),
    *_against_peers(replace(WIDE, D=16), 5, 4),
    *_against_peers(replace(WIDE, D=32), 5, 4),
    *_against_peers(WIDE, 5, 4),
    _against_peers(replace(WIDE, loss="mean"), 5, 4)[1],
    *_against_peers(Case(1024, 4096, 784), 2, 2),
    *_against_peers(TINY, 1.5, 1.5, EAGER),
    Target(replace(TINY, backward=("y", "scale")), EAGER, ratio=1.5),
    *(
        SoftTarget(name, peer, backward)
        for name, peer in (("softmin", "logsumexp"), ("softargmin", "softmax"))
        for backward in (False, True)
    ),
    Target(FEW, FEW_PEERS, ratio=5),
    Target(replace(FEW, backward=BOTH), FEW_PEERS, ratio=8),
    Target(COLD, ("chunked",), unpruned_ratio=10),
    Target(replace(COLD, backward=BOTH), ("chunked",), unpruned_ratio=10),
    Target(replace(COLD, M=1_000_000, N=1_000_000), seconds=2),
    Target(Case(20_000, 1_000_000, 2, backward=BOTH), mebibytes=200),
)


@dataclass
class Row:
    """The measurements for a target; None for values that failed or do not apply.

    Attributes:
        title: title of the target.
        target: the target, as shown in the table.
        figure: the measured value of the target: a ratio, a share, seconds or mebibytes.
        reached: whether the target is reached.
        seconds: the median time of a step.
        pairs_per_second: pairs per second, from the median.
        share: the speed / the machine's limit.
        peer: name of the best peer.
        peer_seconds: the median time of a step of the best peer.
        notes: providers that were not timed, with reasons, and other notes.
        timings: the seconds of each round, by provider.
    """

    title: str
    target: str
    figure: float | None = None
    reached: bool | None = None
    seconds: float | None = None
    pairs_per_second: float | None = None
    share: float | None = None
    peer: str | None = None
    peer_seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    timings: dict[str, list[float]] = field(default_factory=dict)

    def settle(self, figure: float | None, target: float, *, at_least: bool) -> None:
        """Record the measured figure, and whether it reaches the target."""
        if figure is not None and not math.isnan(figure):
            self.figure = figure
            self.reached = figure >= target if at_least else figure <= target


def _best(comparison: Comparison) -> Timing | None:
    """The peer with the shortest median."""
    timed = [timing for timing in comparison.timings[1:] if timing.seconds]
    return min(timed, key=lambda timing: timing.median, default=None)


def unpruned_step(case: Case, ours: str) -> Step:
    """A step of our backend for the same points that visits all pairs.

    At beta = :data:`WARM` the exponents on a curve differ too little for a latent to be pruned.
    beta is a tensor with one value per query, all equal, which rules out power series.
    """

    def compute(beta: float, **inputs: Any) -> Tensor:
        warm = torch.full((case.M,), WARM, dtype=case.dtype, device=case.device)
        return lebm_kernels.free_energy(beta=warm, backend=ours, **inputs)

    return stepper(case, compute)


def measure_time(target: Target, rounds: int, notify: Callable[[str], None]) -> list[Row]:
    """Time a target's case, its peers and the machine's limit in the same rounds.

    A target of a ratio and of a share has two rows, of the same rounds.
    """
    case, ours = target.case, preferred("cpu")
    row = Row(target.title, _aim(target))
    names = [ours]
    for name in target.peers:
        if (needed := needed_bytes(name, case)) > MOST_BYTES:
            row.notes.append(f"{name}: skipped, needs about {needed / 2**30:.1f} GiB")
        else:
            names.append(name)
    beside: dict[str, Callable[[], object]] = {}
    limiting_work = None
    try:
        # The limit means nothing for a case with few pairs, where overhead dominates.
        limiting_work = bound(case) if case.M * case.N >= FEW_PAIRS else None
    except NotAvailableError as error:
        row.notes.append(f"no limit: {error}")
    if limiting_work is not None:
        beside["limit"] = limiting_work
    if target.unpruned_ratio is not None:
        beside["unpruned"] = partial(unpruned_step(case, ours), case.cotangent())
    comparison = compare(
        case,
        names,
        rounds=rounds * (MORE_ROUNDS if case.M * case.N < FEW_PAIRS else 1),
        budget=BUDGET_SECONDS,
        patience=PATIENCE_SECONDS,
        beside=beside,
        notify=notify,
    )
    for timing in (*comparison.timings, *comparison.beside):
        row.timings[timing.name] = timing.seconds
        if timing.failure:
            row.notes.append(f"{timing.name}: {timing.failure}")
    limit_pairs = None if limiting_work is None else limiting_work.pairs
    row = _fill(row, target, comparison, limit_pairs)
    return [row, *_rows_of_share(target, row)]


def _rows_of_share(target: Target, row: Row) -> list[Row]:
    """The row of a share of the limit that was measured beside a ratio."""
    if target.ratio is None or target.share is None:
        return []
    alone = replace(target, ratio=None)
    share = replace(row, title=alone.title, target=_aim(alone), peer=None, peer_seconds=None)
    share = replace(share, figure=None, reached=None, notes=[], timings={})
    share.settle(row.share, target.share, at_least=True)
    return [share]


def soft_step(function: Callable[..., Tensor], size: int, backward: bool) -> Callable[[], object]:
    """A step of a function that reduces, or normalises, each row of random energies."""
    generator = torch.Generator().manual_seed(0)
    placed: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    energy = torch.randn(size, size, **placed).requires_grad_(backward)
    grad = torch.randn(size, size, **placed)

    def step() -> object:
        value = function(energy, dim=1)
        if not backward:
            return value
        return torch.autograd.grad(value, energy, grad if value.dim() == 2 else grad[0])

    return step


def measure_soft(target: SoftTarget, rounds: int, notify: Callable[[str], None]) -> list[Row]:
    """Time a function of given energies and its peer in the same rounds."""
    row = Row(target.title, f">= {target.ratio:g}x")
    functions: dict[str, Callable[..., Tensor]] = {
        target.name: partial(getattr(lebm_kernels, target.name), beta=SOFT_BETA),
        target.peer: getattr(torch, target.peer),
    }
    steps = {
        name: _repeated(soft_step(function, target.size, target.backward))
        for name, function in functions.items()
    }
    notify("rounds")
    ours, peer = measure(steps, rounds * MORE_ROUNDS)
    row.timings = {t.name: [x / SOFT_STEPS for x in t.seconds] for t in (ours, peer)}
    row.seconds, row.peer_seconds = (x.median / SOFT_STEPS for x in (ours, peer))
    row.pairs_per_second = target.size**2 / row.seconds
    row.peer = f"torch.{target.peer}"
    row.settle(row.peer_seconds / row.seconds, target.ratio, at_least=True)
    return [row]


def _repeated(step: Callable[[], object]) -> Callable[[], object]:
    def work() -> None:
        for _ in range(SOFT_STEPS):
            step()

    return work


def _fill(row: Row, target: Target, comparison: Comparison, limit_pairs: int | None) -> Row:
    """Fill the row with the figures of a comparison."""
    mine = comparison.timings[0]
    if not mine.seconds:
        return row
    row.seconds = mine.median
    row.pairs_per_second = comparison.pairs_per_second(mine)
    others = {timing.name: timing for timing in comparison.beside}
    limit_rate = None if limit_pairs is None else limit_pairs / others["limit"].median
    if limit_rate is not None:
        row.share = row.pairs_per_second / limit_rate
    best = _best(comparison)
    if target.unpruned_ratio is not None:
        if best is not None:
            row.notes.append(f"{best.name} takes {format_seconds(best.median)}")
        best = others["unpruned"]
        rate = comparison.pairs_per_second(best)
        of_limit = "" if limit_rate is None else f", {rate / limit_rate:.0%} of the limit"
        row.notes.append(f"unpruned visits {format_pairs(rate)}{of_limit}")
    if best is not None:
        row.peer, row.peer_seconds = best.name, best.median
    ratio = None if best is None else comparison.ratio(best)
    if target.ratio is not None:
        row.settle(ratio, target.ratio, at_least=True)
    elif target.unpruned_ratio is not None:
        row.settle(ratio, target.unpruned_ratio, at_least=True)
    elif target.share is not None:
        row.settle(row.share, target.share, at_least=True)
    elif target.seconds is not None:
        row.settle(row.seconds, target.seconds, at_least=False)
    return row


def _measure(target: Target | SoftTarget, rounds: int, notify: Callable[[str], None]) -> list[Row]:
    if isinstance(target, SoftTarget):
        return measure_soft(target, rounds, notify)
    if target.mebibytes is not None:
        return measure_memory(target, rounds, notify)
    return measure_time(target, rounds, notify)


MEMORY = """
import sys, time
from pathlib import Path
import torch
from lebm_kernels import free_energy

M, N, D = map(int, sys.argv[1:4])
backward = sys.argv[4:]

def inputs(M, N):
    sizes = {"y": M, "decoded": N}
    return {name: torch.randn(n, D, requires_grad=name in backward) for name, n in sizes.items()}

def step(arguments):
    value = free_energy(**arguments)
    wanted = [arguments[name] for name in backward]
    return value.detach(), *(torch.autograd.grad(value.sum(), wanted) if wanted else ())

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

step(inputs(200, 200))
arguments = inputs(M, N)
# Reset the peak, because the import of PyTorch takes more memory for a while.
Path("/proc/self/clear_refs").write_text("5")
before = peak()
start = time.perf_counter()
outputs = step(arguments)
seconds = time.perf_counter() - start
print((peak() - before) / 1024 - sum(x.nbytes for x in outputs) / 2**20, seconds)
"""


def measure_memory(target: Target, rounds: int, notify: Callable[[str], None]) -> list[Row]:
    """Measure a step's peak memory beyond its inputs and outputs, in separate processes (Linux).

    The highest peak of all processes counts.
    """
    row, case = Row(target.title, _aim(target)), target.case
    command = [sys.executable, "-c", MEMORY, str(case.M), str(case.N), str(case.D), *case.backward]
    peaks, seconds = [], []
    start = time.perf_counter()
    for i in range(rounds):
        if i > 0 and time.perf_counter() - start > BUDGET_SECONDS:
            break
        notify(f"process {i + 1}")
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            reason = (run.stderr.strip() or "no error message").splitlines()[-1]
            row.notes.append(f"failed: {reason}")
            return [row]
        peak, taken = map(float, run.stdout.split())
        peaks.append(peak)
        seconds.append(taken)
    row.seconds = statistics.median(seconds)
    row.pairs_per_second = case.M * case.N / row.seconds
    assert target.mebibytes is not None
    row.settle(max(peaks), target.mebibytes, at_least=False)
    row.notes.append(f"added memory: {max(peaks):.0f} MiB")
    return [row]


def _aim(target: Target) -> str:
    """The target in short, for the table; of a ratio and a share, the ratio."""
    if target.share is not None and target.ratio is None:
        return f">= {target.share:.0%} of limit"
    if target.seconds is not None:
        return f"<= {target.seconds:g} s"
    if target.mebibytes is not None:
        return f"<= {target.mebibytes:g} MiB"
    return f">= {target.ratio or target.unpruned_ratio:g}x"


def target_table(rows: Sequence[Row]) -> Table:
    """A table of the rows, with the notes below."""
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("case")
    for title in (
        "ours",
        "Gpair/s",
        "share",
        "best peer",
        "its time",
        "ratio",
        "target",
        "reached",
    ):
        table.add_column(title, justify="left" if title == "best peer" else "right")
    for row in rows:
        peer = row.peer_seconds
        ratio = peer / row.seconds if peer is not None and row.seconds else None
        verdict = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "?"}[row.reached]
        table.add_row(
            escape(row.title),
            _cell(row.seconds, format_seconds),
            _cell(row.pairs_per_second, lambda rate: f"{rate / 1e9:.3g}"),
            _cell(row.share, lambda share: f"{share:.0%}"),
            escape(row.peer or "-"),
            _cell(peer, format_seconds),
            _cell(ratio, lambda value: f"{value:.3g}x"),
            row.target,
            verdict,
        )
    notes = [f"{row.title}: {note}" for row in rows for note in row.notes]
    table.caption = escape("\n".join(notes))
    return table


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def limits(rows: Sequence[Row]) -> dict[str, float]:
    """The machine's limit in pairs per second, by title, for the rows that have a share."""
    return {
        row.title: row.pairs_per_second / row.share
        for row in rows
        if row.share is not None and row.pairs_per_second is not None
    }


def facts() -> dict[str, str]:
    """The facts about the machine and the peers that a published table must state."""
    keops = metadata.version("pykeops") if util.find_spec("pykeops") else "not installed"
    return {**describe(), "KeOps": keops}


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write all figures as JSON."""
    record = {"facts": facts(), "limits": limits(rows), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", metavar="SUBSTRING", default="", help="only rows whose title contains it"
    )
    parser.add_argument("--list", action="store_true", help="print the rows' titles and exit")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per case, at most")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures to this file"
    )
    parser.add_argument("--threads", type=int, help="PyTorch's threads; default: PyTorch's choice")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {options.rounds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"argument --threads: must be at least 1, got {options.threads}")
    if not any(options.only in target.title for target in TARGETS):
        parser.error(f"argument --only: no title contains {options.only!r}; see --list")
    return options


def main(arguments: list[str]) -> int:
    """Measure, print the table and write the file."""
    options = parse(arguments)
    # In a file or a pipe the table may be wider than a terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [target for target in TARGETS if options.only in target.title]
    if options.list:
        console.print("\n".join(target.title for target in chosen), highlight=False)
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with console.status("preparing") as status:
        for target in chosen:
            notify = partial(tell, status, target.title)
            rows += _measure(target, options.rounds, notify)
            if options.json is not None:  # after each row, as a long run may be interrupted
                write(options.json, rows)
    stated = facts()
    console.print(target_table(rows))
    for title, rate in limits(rows).items():
        console.print(f"limit, {title}: {rate / 1e9:.3g} Gpair/s", highlight=False)
    console.print(f"{summary(stated)}, KeOps {stated['KeOps']}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
