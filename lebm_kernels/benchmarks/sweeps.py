"""What ``lebm bench`` measures, and the records that it leaves: one a provider of a case.

A sweep is a list of :class:`Point`, measured one after the other. Each is a comparison
(:mod:`lebm_kernels.benchmarks.compare`) on a number of threads. :func:`records` flattens them to
the rows of the JSON, the CSV and the figures.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.benchmarks.compare import Comparison, compare
from lebm_kernels.benchmarks.limits import Product, bound, exponentials_per_second
from lebm_kernels.benchmarks.peak import ExponentialLoop
from lebm_kernels.benchmarks.providers import NotAvailableError, default_backend, providers
from lebm_kernels.benchmarks.threads import thread_count

#: A provider that takes longer than this many seconds, once it has been checked, is in no rounds.
_PATIENCE = 2.0

#: What the default sweep differentiates.
BOTH = ("y", "decoded")

_EAGER = ("eager, expansion (mm)", "eager, differences", "eager, cdist")
_LIBRARIES = ("KeOps", "GeomLoss", "JAX", "attention's log-sum-exp", "KernelDensity")


@dataclass(frozen=True)
class Point:
    """One comparison to make.

    Attributes:
        case: what to compute.
        threads: of PyTorch.
        names: of the providers, the one to compare with first.
    """

    case: Case
    threads: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What one provider did with one case; None stands for what was not or could not be measured.

    Attributes:
        provider: its name.
        M: queries.
        N: latents.
        D: numbers in a query.
        beta: inverse temperature.
        dtype: of every input, without ``torch.``.
        layout: of the points, see :class:`~lebm_kernels.benchmarks.cases.Case`.
        backward: the arguments whose gradients were taken, joined by ``+``; none: forward alone.
        device: where it ran.
        threads: of PyTorch.
        median: seconds of a step.
        spread: width of the middle half of the rounds / median.
        pairs_per_second: pairs (query, latent) in the median time.
        ratio: how many times longer it takes than the case's first provider.
        share: of the machine's limit.
        error: largest relative error against float64.
        peak_bytes: of memory, beyond inputs and outputs.
        failure: why it was not timed; empty where it was.
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
    """Along latents, dimensions, temperatures and threads, each case once.

    The largest cases come last: where the budget ends before the sweep, little is left out.

    Args:
        device: ``cpu`` or ``cuda``.
        quick: few and small cases, none of which a peer compiles code for.
        names: of the providers; none: our own and the peers that serve in each part.

    Raises:
        ValueError: an unknown provider.
    """
    ours = default_backend(device)
    all_threads = torch.get_num_threads()
    larger = 1 if device == "cpu" else 16
    M, N = (256, 1024) if quick else (1024 * larger, 4096 * larger)
    base = Case(M, N, 2, device=device)
    quick_peers = (*_EAGER, "GeomLoss", "attention's log-sum-exp", "KernelDensity")
    backends = [name for name in ("native", "triton", "chunked") if name != ours]
    peers = quick_peers if quick else (*_EAGER, "torch.compile, unrolled", *_LIBRARIES)
    if not quick and device != "cpu":
        peers = (*peers, "FlashSinkhorn")
    everyone = (ours, *backends, *peers)
    # Compiling the unrolled formula takes a minute where D is large.
    matrices = (*_EAGER, *(() if quick else ("torch.compile, expansion (mm)", *_LIBRARIES)))
    few = (ours, "chunked", _EAGER[0], *(() if quick else ("torch.compile, unrolled", "KeOps")))
    curve = replace(base, layout="curve")
    sizes = (256, 1024, 4096) if quick else tuple(larger * 4**k for k in range(4, 10))
    dims = (2, 16, 64) if quick else (1, 2, 4, 8, 16, 64)
    betas = (1.0, 1e2, 1e4) if quick else (1e-2, 1.0, 1e2, 1e3, 1e4, 1e6)
    points = []
    for backward in ((), BOTH):
        points += [
            Point(replace(base, N=n, backward=backward), all_threads, everyone) for n in sizes
        ]
        for D in dims:
            who = everyone if D <= 8 else (ours, *backends, *matrices)
            points.append(Point(replace(base, D=D, backward=backward), all_threads, who))
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
    """Every combination of what is given.

    Raises:
        ValueError: :class:`~lebm_kernels.benchmarks.cases.Case` refuses the sizes, the provider is
            unknown, or there is less than one thread.
    """
    who = tuple(names) or tuple(name for name in providers(device) if name != "reference")
    return [
        checked(Point(Case(M, N, D, beta, dtype, backward, device), count, who))
        for count, dtype, backward, M, D, beta, N in product(
            threads, dtypes, directions, queries, dims, betas, latents
        )
    ]


def checked(point: Point) -> Point:
    """The point, if its threads and providers are ones.

    Raises:
        ValueError: they are not.
    """
    if point.threads < 1:
        raise ValueError(f"threads must be at least 1, got {point.threads}")
    known = providers(point.case.device)
    for name in point.names:
        if name not in known:
            raise ValueError(f"provider must be among {list(known)}, got {name!r}")
    return point


# Measuring -----------------------------------------------------------------------------------


def steps(points: Sequence[Point], rounds: int) -> int:
    """How often :func:`measure` tells that something happens, at most."""
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
        points: what to compare.
        rounds: of each, at most.
        budget: seconds for all of them. Each may fill its rounds with an equal part of what is
            left; once nothing is left, the others are not begun, and come with None.
        notify: told, in a line, what happens next.
        done: told which one is over.
    """
    deadline = time.perf_counter() + budget
    for number, point in enumerate(points):
        left = deadline - time.perf_counter()
        if number > 0 and left <= 0:
            yield point, None
            continue
        case = point.case
        with thread_count(point.threads):
            least = _bound(case)
            comparison = compare(
                case,
                point.names,
                rounds=rounds,
                budget=max(left, 0) / (len(points) - number) / 2,
                patience=min(_PATIENCE, max(left, 0.1) / (len(points) - number) / 2),
                memory=True,
                beside={} if least is None else {"limit": least},
                notify=lambda text, point=point: notify(point, text),  # type: ignore[misc]
            )
        if least is not None:
            limit: float | None = least.pairs / comparison.beside[0].median
        else:
            limit = exponentials_per_second(case.device)
        done(point)
        yield point, replace(comparison, limit=limit, threads=point.threads)


def _bound(case: Case) -> ExponentialLoop | Product | None:
    """What bounds the case; None as well where there is no compiler for it."""
    try:
        return bound(case)
    except NotAvailableError:
        return None


# Records -------------------------------------------------------------------------------------


def records(point: Point, comparison: Comparison) -> list[Record]:
    """One a provider, in their order."""
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
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else value


def write_json(path: Path, facts: Mapping[str, str], rows: Sequence[Record]) -> None:
    """The facts of the machine and the records; a beta of infinity is the word ``inf``."""
    listed = []
    for row in rows:
        entry = asdict(row)
        if math.isinf(row.beta):
            entry["beta"] = "inf"
        listed.append(entry)
    text = json.dumps({"facts": dict(facts), "records": listed}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Record]) -> None:
    """One line a record; what is None is empty, the rounds stand in one cell between spaces."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = [field.name for field in fields(Record)]
        writer.writerow(names)
        for row in rows:
            cells = asdict(row)
            cells["rounds"] = " ".join(map(repr, row.rounds))
            writer.writerow([cells[name] for name in names])
