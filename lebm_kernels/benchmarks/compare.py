"""Comparison of the free energy with other ways to compute it.

A :class:`~lebm_kernels.benchmarks.cases.Case` fixes the sizes and the inputs; a provider
(:mod:`lebm_kernels.benchmarks.providers`) computes it. :func:`compare` first checks each provider
against float64. Then it times all providers in interleaved rounds, so that drift of the machine's
speed affects all of them alike.

Other work can be timed in the same rounds. The share of the machine's limit is measured in this
way.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import lebm_kernels
from lebm_kernels.backends.hindrances import is_out_of_memory
from lebm_kernels.benchmarks.cases import TOLERANCE, Case
from lebm_kernels.benchmarks.memory import available_bytes, peak_bytes
from lebm_kernels.benchmarks.providers import (
    SLICE_NUMBERS,
    NotAvailableError,
    Step,
    needed_bytes,
    one_line,
    providers,
)
from lebm_kernels.extras import needs

if TYPE_CHECKING:
    from rich.table import Table

#: Within a round, a step is repeated until it has taken this many seconds.
_SHORTEST_SECONDS = 0.01

#: A provider that took longer than the patience is timed once more, because the machine may have
#: been busy; but not if it took this many times the patience.
_BEYOND_DOUBT = 5.0

#: A provider is skipped if it is expected to need more than this fraction of the free memory.
#: Other processes need memory too, and the estimate is a rough one.
_SHARE_OF_MEMORY = 0.5


@dataclass
class Timing:
    """The times, error and memory of one provider for one case.

    Attributes:
        name: the provider's name.
        seconds: the time of one step in each round; empty if the provider was not timed.
        error: largest error of F and the gradients against float64, relative to the largest value;
            None if the provider could not run.
        failure: the reason why the provider was not timed; empty if it was.
        peak_bytes: peak memory of a step beyond its inputs and outputs; None if not measured.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    failure: str = ""
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """The median time of a step in seconds; NaN if it was not timed."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def spread(self) -> float:
        """Interquartile range of the rounds / median; NaN with fewer than two rounds."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Comparison:
    """The timings of one case; the other providers are compared with the first.

    Attributes:
        case: the case.
        timings: of the providers, in their order.
        beside: of the other work in the same rounds.
        limit: pairs per second at the machine's limit; None if it is unknown.
        threads: number of PyTorch's threads; None if unknown.
    """

    case: Case
    timings: tuple[Timing, ...]
    beside: tuple[Timing, ...] = ()
    limit: float | None = None
    threads: int | None = None

    def share(self, timing: Timing) -> float | None:
        """This provider's speed / the machine's limit; None if either is unknown."""
        if self.limit is None or not timing.seconds:
            return None
        return self.pairs_per_second(timing) / self.limit

    def ratio(self, timing: Timing) -> float:
        """How many times longer this provider takes than the first."""
        return timing.median / self.timings[0].median

    def pairs_per_second(self, timing: Timing) -> float:
        """Pairs (query, latent) per second."""
        return self.case.M * self.case.N / timing.median


# The check and the timer -----------------------------------------------------------------------


class _Truth:
    """The case in float64 on the same rounded inputs, for the first queries only, to save time.

    The incoming gradient of the other queries is zero, so the gradients that sum over queries can
    be checked too.
    """

    def __init__(self, case: Case) -> None:
        self.rows = min(case.M, max(1, SLICE_NUMBERS // (case.N * case.D)))
        self.cotangent = case.cotangent()
        self.cotangent[self.rows :] = 0
        inputs: dict[str, Any] = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            if isinstance(value, Tensor)
            else value
            for name, value in case.inputs().items()
        }
        y = inputs.pop("y")
        value = lebm_kernels.free_energy(y[: self.rows], backend="reference", **inputs)
        self.free_energy = value.detach()
        self.gradients: tuple[Tensor, ...] = ()
        if case.backward:
            leaves = [y if name == "y" else inputs[name] for name in case.backward]
            cotangent = self.cotangent[: self.rows].double()
            self.gradients = torch.autograd.grad(value, leaves, cotangent)

    def error(self, step: Step) -> float:
        """The largest relative error of F and the gradients; NaN if any of them is NaN."""
        free_energy, *gradients = step(self.cotangent)
        found = (free_energy[: self.rows], *gradients)
        expected = (self.free_energy, *self.gradients)
        errors = [
            float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-300))
            for a, b in zip(found, expected, strict=True)
        ]
        return math.nan if any(math.isnan(e) for e in errors) else max(errors)


def _time(step: Step, cotangent: Tensor, repeats: int) -> float:
    """Seconds per step, averaged over ``repeats`` consecutive steps."""
    synchronise = torch.cuda.synchronize if cotangent.is_cuda else (lambda: None)
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        step(cotangent)
    synchronise()
    return (time.perf_counter() - start) / repeats


def _other_step(work: Callable[[], object], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The step of other work, which ignores the incoming gradient."""
    work()
    return ()


def _too_large(name: str, case: Case) -> str:
    """Why this provider is skipped; empty if its estimated memory is available."""
    needed, free = needed_bytes(name, case), available_bytes(case.device)
    if free is None or needed <= _SHARE_OF_MEMORY * free:
        return ""
    return f"out of memory: skipped, needs about {needed / 2**30:.3g} of {free / 2**30:.3g} GiB"


def compare(
    case: Case,
    names: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    budget: float = math.inf,
    patience: float = math.inf,
    memory: bool = False,
    beside: Mapping[str, Callable[[], object]] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Check the providers against float64, then time them in interleaved rounds.

    Each round times each provider once; each round starts with the next provider in turn. A
    provider that cannot run, that would not fit in memory, or whose error exceeds
    :data:`TOLERANCE`, is reported and not timed.

    Args:
        case: the case to compute.
        names: names from :func:`providers`; the others are compared with the first. None takes all
            providers.
        rounds: number of rounds, at least 1.
        budget: seconds after which no new round starts. The first round always completes. Repeated
            timings of slow providers count towards it.
        patience: seconds. A provider whose check or first step takes longer is timed once more, if
            the budget allows. If that takes longer too, the provider is excluded from the rounds,
            and the shortest of its times is reported.
        memory: whether to measure each provider's peak memory, in one more step.
        beside: other work to time in the same rounds, by name; it is not checked.
        notify: called with a line about what happens next.

    Raises:
        ValueError: ``names`` is empty or has an unknown name, or ``rounds`` is below 1.
    """
    known = providers(case.device)
    names = list(known) if names is None else list(names)
    for name in names:
        if name not in known:
            raise ValueError(f"names must be among {list(known)}, got {name!r}")
    if not names:
        raise ValueError("names must hold at least one provider, got none")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    truth = _Truth(case)
    cotangent = case.cotangent()
    timings = tuple(Timing(name) for name in names)
    running: list[tuple[Timing, Step, int]] = []
    remaining = budget

    def join(timing: Timing, step: Step, once: float) -> None:
        running.append((timing, step, max(1, math.ceil(_SHORTEST_SECONDS / once))))

    for timing in timings:
        notify(f"checking {timing.name}")
        timing.failure = _too_large(timing.name, case)
        if timing.failure:
            continue
        try:
            step = known[timing.name](case)
            start = time.perf_counter()
            timing.error = truth.error(step)
            # If the check exceeds the patience, it counts as the first timing.
            once = time.perf_counter() - start
            if once <= patience:
                once = _time(step, cotangent, 1)
            if patience < once <= min(remaining, _BEYOND_DOUBT * patience):
                again = _time(step, cotangent, 1)
                remaining = max(remaining - again, 0.0)
                once = min(once, again)
            if memory and once <= patience:
                timing.peak_bytes = peak_bytes(partial(step, cotangent), case.device)
        except NotAvailableError as error:
            timing.failure = f"not available: {error}"
        except Exception as error:  # the failure of one provider must not stop the others
            kind = "out of memory" if is_out_of_memory(error) else "failed"
            timing.failure = f"{kind}: {one_line(error)}"
        else:
            if not timing.error <= TOLERANCE[case.dtype]:
                timing.failure = f"wrong: relative error {timing.error:.1e}"
            elif once > patience:
                timing.seconds.append(once)
            else:
                join(timing, step, once)
    others = tuple(Timing(name) for name in beside or {})
    for timing, work in zip(others, (beside or {}).values(), strict=True):
        notify(f"warming up {timing.name}")
        other_step = partial(_other_step, work)
        join(timing, other_step, _time(other_step, cotangent, 1))

    deadline = time.perf_counter() + remaining
    for i in range(rounds):
        if i > 0 and time.perf_counter() > deadline:
            break
        notify(f"round {i + 1} of {rounds}")
        first = i % max(1, len(running))
        for timing, step, repeats in running[first:] + running[:first]:
            timing.seconds.append(_time(step, cotangent, repeats))
    return Comparison(case, timings, others)


# The table -------------------------------------------------------------------------------------


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: ``12.3 ms``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 0.9995 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def format_pairs(rate: float) -> str:
    """Three digits and a prefix: ``1.23 G/s``."""
    for prefix, factor in (("G", 1e-9), ("M", 1e-6), ("k", 1e-3)):
        if rate * factor >= 0.9995 or prefix == "k":
            return f"{rate * factor:.3g} {prefix}/s"
    raise AssertionError("unreachable")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A table of the comparisons; below it the providers that were not timed, with reasons.

    Needs the extra ``cli``.
    """
    with needs("cli"):
        from rich import box
        from rich.markup import escape
        from rich.table import Table

    first = comparisons[0].case
    table = Table(title=str(first), box=box.SIMPLE_HEAD, caption_justify="left")
    table.add_column("", min_width=max(len(t.name) for t in comparisons[0].timings) + 2)
    extra = [column for column in _EXTRA if any(column.shown(c) for c in comparisons)]
    for title in ("median", "spread", "pairs", "ratio", "error", *(c.title for c in extra)):
        table.add_column(title, justify="right", no_wrap=True)
    several = len({comparison.threads for comparison in comparisons}) > 1
    failures: dict[str, None] = {}
    for comparison in comparisons:
        table.add_section()
        case = comparison.case
        own = [part for part in str(case).split(", ") if part not in str(first).split(", ")]
        if several:
            own.append(f"threads={comparison.threads}")
        title = ", ".join([case.direction, *own])
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for timing in comparison.timings:
            if timing.failure:
                failures[f"{timing.name}: {timing.failure}"] = None
            else:
                cells = [*_cells(comparison, timing), *(c.cell(comparison, timing) for c in extra)]
                table.add_row(f"  {escape(timing.name)}", *cells)
    table.caption = escape("\n".join(failures))
    return table


class _Extra(NamedTuple):
    """A column that is shown only if it was measured."""

    title: str
    shown: Callable[[Comparison], bool]
    cell: Callable[[Comparison, Timing], str]


def _has_peak(comparison: Comparison) -> bool:
    return any(timing.peak_bytes is not None for timing in comparison.timings)


def _peak_cell(comparison: Comparison, timing: Timing) -> str:
    return "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.3g} MiB"


def _share_cell(comparison: Comparison, timing: Timing) -> str:
    share = comparison.share(timing)
    return "-" if share is None else f"{share:.0%}"


_EXTRA = (
    _Extra("memory", _has_peak, _peak_cell),
    _Extra("of limit", lambda comparison: comparison.limit is not None, _share_cell),
)


def _cells(comparison: Comparison, timing: Timing) -> list[str]:
    ratio = comparison.ratio(timing)
    return [
        format_seconds(timing.median),
        "-" if math.isnan(timing.spread) else f"{timing.spread:.0%}",
        format_pairs(comparison.pairs_per_second(timing)),
        "-" if math.isnan(ratio) else f"{ratio:.2f}x",
        f"{timing.error:.0e}",
    ]
