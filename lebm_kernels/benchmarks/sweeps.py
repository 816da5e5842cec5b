"""The sweeps of ``lebm bench``, and their records: one for each provider and case.

A sweep is a list of :class:`Point`, measured one after the other. A point is a comparison
(:mod:`lebm_kernels.benchmarks.compare`) on a number of threads. :func:`records` turns the results
into rows for the JSON, the CSV and the figures.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import torch

from lebm_kernels.backends import preferred
from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import Comparison, compare
from lebm_kernels.benchmarks.limits import Bound, bound, exponentials_per_second
from lebm_kernels.benchmarks.providers import NotAvailableError, providers
from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.files import write_text

#: A provider whose step takes longer than this many seconds is excluded from the rounds.
_PATIENCE = 2.0

#: The arguments that the default sweep differentiates.
BOTH = ("y", "decoded")

_EAGER = ("eager, expansion (mm)", "eager, differences", "eager, cdist")
_LIBRARIES = ("KeOps", "GeomLoss", "JAX", "attention's log-sum-exp", "KernelDensity")


@dataclass(frozen=True)
class Point:
    """One comparison to make.

    Attributes:
        case: the case to compute.
        threads: number of PyTorch's threads.
        names: names of the providers; the others are compared with the first.
    """

    case: Case
    threads: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """The results of one provider for one case; None for values that were not measured.

    Attributes:
        provider: name of the provider.
        M: number of queries.
        N: number of latents.
        D: number of dimensions.
        beta: inverse temperature.
        dtype: of every input, without ``torch.``.
        layout: of the points, see :class:`~lebm_kernels.benchmarks.cases.Case`.
        backward: the arguments whose gradients were taken, joined by ``+``; empty for a forward.
        device: of the inputs.
        threads: number of PyTorch's threads.
        median: median seconds of a step.
        spread: interquartile range of the rounds / median.
        pairs_per_second: pairs (query, latent) per second, from the median.
        ratio: the median / that of the case's first provider.
        share: the speed / the machine's limit.
        error: largest relative error against float64.
        peak_bytes: peak memory beyond inputs and outputs.
        failure: the reason why the provider was not timed; empty if it was.
        rounds: the seconds of a step in each round.
    """

    provider: str
    M: int
    N: int
    D: int
    beta: float
    dtype: str
    layout: str
    backward: str
    device: str
    threads: int
    median: float | None
    spread: float | None
    pairs_per_second: float | None
    ratio: float | None
    share: float | None
    error: float | None
    peak_bytes: int | None
    failure: str
    rounds: tuple[float, ...]


# Which cases ---------------------------------------------------------------------------------


def default_sweep(device: str, *, quick: bool, names: Sequence[str] = ()) -> list[Point]:
    """The points of the default sweep, along latents, dimensions, temperatures and threads.

    Each case comes once, the cases with the most latents last. If the budget ends early, only few
    cases are missing.

    Args:
        device: ``cpu`` or ``cuda``.
        quick: whether to take few and small cases, without peers that compile code.
        names: names of the providers; if empty, our backends and the suitable peers of each part.

    Raises:
        ValueError: ``names`` has an unknown provider.
    """
    ours = preferred(device)
    all_threads = torch.get_num_threads()
    factor = 1 if device == "cpu" else 16
    M, N = (256, 1024) if quick else (1024 * factor, 4096 * factor)
    base = Case(M, N, 2, device=device)
    quick_peers = (*_EAGER, "GeomLoss", "attention's log-sum-exp", "KernelDensity")
    backends = [name for name in ("native", "triton", "chunked") if name != ours]
    peers = quick_peers if quick else (*_EAGER, "torch.compile, unrolled", *_LIBRARIES)
    if not quick and device != "cpu":
        peers = (*peers, "FlashSinkhorn")
    everyone = (ours, *backends, *peers)
    # For large D without the unrolled formula, which takes a minute to compile.
    large_D_peers = (*_EAGER, *(() if quick else ("torch.compile, expansion (mm)", *_LIBRARIES)))
    few = (ours, "chunked", _EAGER[0], *(() if quick else ("torch.compile, unrolled", "KeOps")))
    curve = replace(base, layout="curve")
    sizes = (256, 1024, 4096) if quick else tuple(factor * 4**k for k in range(4, 10))
    dims = (2, 16, 64) if quick else (1, 2, 4, 8, 16, 64)
    betas = (1.0, 1e2, 1e4) if quick else (1e-2, 1.0, 1e2, 1e3, 1e4, 1e6)
    points = []
    for backward in ((), BOTH):
        points += [
            Point(replace(base, N=n, backward=backward), all_threads, everyone) for n in sizes
        ]
        for D in dims:
            chosen = everyone if D <= 8 else (ours, *backends, *large_D_peers)
            points.append(Point(replace(base, D=D, backward=backward), all_threads, chosen))
    points += [Point(replace(curve, beta=beta), all_threads, few) for beta in betas]
    if device == "cpu":
        for threads in sorted({1, all_threads, *(2**k for k in range(all_threads.bit_length()))}):
            if threads <= all_threads:
                points.append(Point(base, threads, everyone if threads == all_threads else few))
    if names:
        points = [replace(point, names=tuple(names)) for point in points]
    unique = {(point.case, point.threads): point for point in reversed(points)}
    return sorted(map(checked, reversed(unique.values())), key=lambda point: point.case.N)


def chosen_sweep(
    *,
    queries: Sequence[int],
    latents: Sequence[int],
    dims: Sequence[int],
    betas: Sequence[float],
    dtypes: Sequence[torch.dtype],
    directions: Sequence[tuple[str, ...]],
    threads: Sequence[int],
    device: str,
    names: Sequence[str] = (),
) -> list[Point]:
    """The points of a sweep over all combinations of the given values.

    Raises:
        ValueError: a value is out of range for :class:`~lebm_kernels.benchmarks.cases.Case`, a
            provider is unknown, or a number of threads is below 1.
    """
    chosen = tuple(names) or tuple(name for name in providers(device) if name != "reference")
    return [
        checked(Point(Case(M, N, D, beta, dtype, backward, device), count, chosen))
        for count, dtype, backward, M, D, beta, N in product(
            threads, dtypes, directions, queries, dims, betas, latents
        )
    ]


def checked(point: Point) -> Point:
    """Return the point after checking its threads and providers.

    Raises:
        ValueError: the number of threads is below 1, or a provider is unknown.
    """
    if point.threads < 1:
        raise ValueError(f"threads must be at least 1, got {point.threads}")
    known = providers(point.case.device)
    for name in point.names:
        if name not in known:
            raise ValueError(f"provider must be one of {list(known)}, got {name!r}")
    return point


# Measuring -----------------------------------------------------------------------------------


def steps(points: Sequence[Point], rounds: int) -> int:
    """The largest number of calls of ``notify`` by :func:`measure`."""
    return sum(len(point.names) + rounds for point in points)


def measure(
    points: Sequence[Point],
    *,
    rounds: int = 5,
    budget: float = math.inf,
    notify: Callable[[Point, str], None] = lambda point, text: None,
    done: Callable[[Point], None] = lambda point: None,
) -> Iterator[tuple[Point, Comparison | None]]:
    """Make the comparisons, one after the other.

    Args:
        points: the comparisons.
        rounds: number of rounds per comparison, at most.
        budget: seconds for all comparisons. Each gets an equal part of the remaining time for its
            rounds. After the budget is spent, no comparison starts.
        notify: called with a point and a line about what happens next.
        done: called with each finished point.

    Yields:
        Each point with its comparison; with None if the budget was spent before it.
    """
    deadline = time.perf_counter() + budget
    for number, point in enumerate(points):
        left = deadline - time.perf_counter()
        if number > 0 and left <= 0:
            yield point, None
            continue
        case = point.case
        with thread_count(point.threads):
            limiting_work = _limiting_work(case)
            comparison = compare(
                case,
                point.names,
                rounds=rounds,
                budget=max(left, 0) / (len(points) - number) / 2,
                patience=min(_PATIENCE, max(left, 0.1) / (len(points) - number) / 2),
                memory=True,
                beside={} if limiting_work is None else {"limit": limiting_work},
                notify=lambda text, point=point: notify(point, text),  # type: ignore[misc]
            )
        if limiting_work is not None:
            limit: float | None = limiting_work.pairs / comparison.beside[0].median
        else:
            limit = exponentials_per_second(case.device)
        done(point)
        yield point, replace(comparison, limit=limit, threads=point.threads)


def _limiting_work(case: Case) -> Bound | None:
    """The work that limits the case; None also if it needs a compiler and there is none."""
    try:
        return bound(case)
    except NotAvailableError:
        return None


# Records -------------------------------------------------------------------------------------


def records(point: Point, comparison: Comparison) -> list[Record]:
    """The records of a comparison, one for each provider, in their order."""
    case = comparison.case
    return [
        Record(
            provider=timing.name,
            M=case.M,
            N=case.N,
            D=case.D,
            beta=case.beta,
            dtype=str(case.dtype).removeprefix("torch."),
            layout=case.layout,
            backward="+".join(case.backward),
            device=case.device,
            threads=point.threads,
            median=_number(timing.median),
            spread=_number(timing.spread),
            pairs_per_second=_number(comparison.pairs_per_second(timing)),
            ratio=_number(comparison.ratio(timing)),
            share=comparison.share(timing),
            error=_number(timing.error),
            peak_bytes=timing.peak_bytes,
            failure=timing.failure,
            rounds=tuple(timing.seconds),
        )
        for timing in comparison.timings
    ]


def _number(value: float | None) -> float | None:
    """The value, or None if it is not finite, as JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else value


def write_json(path: Path, facts: Mapping[str, str], rows: Sequence[Record]) -> None:
    """Write the facts of the machine and the records; beta = infinity becomes ``"inf"``."""
    listed = []
    for row in rows:
        entry = asdict(row)
        if math.isinf(row.beta):
            entry["beta"] = "inf"
        listed.append(entry)
    text = json.dumps({"facts": dict(facts), "records": listed}, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(path: Path, rows: Sequence[Record]) -> None:
    """Write one line per record. None becomes an empty cell; spaces separate the rounds."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    names = [field.name for field in fields(Record)]
    writer.writerow(names)
    for row in rows:
        cells = asdict(row)
        cells["rounds"] = " ".join(map(repr, row.rounds))
        writer.writerow([cells[name] for name in names])
    write_text(path, lines.getvalue())
