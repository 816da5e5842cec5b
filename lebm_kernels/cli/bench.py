"""``lebm bench``: check, time and measure our backends and their peers, and draw the results."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.markup import escape

from lebm_kernels.cli.errors import errors_by_option
from lebm_kernels.cli.shared import (
    LARGEST_SIZE,
    Precision,
    console,
    print_wide,
    progress_bar,
    save,
    writable,
    wrote,
)

if TYPE_CHECKING:
    from lebm_kernels.benchmarks.sweeps import Point

#: With more, the system may refuse to start them, and end the process.
_MOST_THREADS = 1024

#: The default budget in seconds and the default rounds of a case, by --quick.
_BUDGET = {True: 45.0, False: 780.0}
_ROUNDS = {True: 3, False: 7}


class Direction(str, Enum):
    """What a step of a benchmark computes, as spelled on the command line."""

    forward = "forward"
    backward = "backward"
    both = "both"


def bench(
    context: typer.Context,
    queries: Annotated[
        list[int] | None, typer.Option(max=LARGEST_SIZE, help="Number of queries M; repeatable.")
    ] = None,
    latents: Annotated[
        list[int] | None, typer.Option(max=LARGEST_SIZE, help="Number of latents N; repeatable.")
    ] = None,
    dims: Annotated[
        list[int] | None, typer.Option(max=LARGEST_SIZE, help="Number of dimensions D; repeatable.")
    ] = None,
    beta: Annotated[
        list[float] | None, typer.Option(help="Inverse temperature in [0, inf]; repeatable.")
    ] = None,
    dtype: Annotated[
        list[Precision] | None, typer.Option(help="Dtype of the inputs; repeatable.")
    ] = None,
    direction: Annotated[Direction, typer.Option(help="What to time.")] = Direction.both,
    gradients: Annotated[
        list[str] | None,
        typer.Option(help="Argument to differentiate; repeatable.", show_default="y decoded"),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Time only this one; repeatable. The others are compared with the first."
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            max=_MOST_THREADS,
            help="Number of PyTorch's threads; repeatable.",
            show_default="PyTorch's choice",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int | None, typer.Option(help="Rounds per case, at most.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds for the whole sweep.", show_default="45 quick, else 780"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use small sizes; takes under a minute.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for JSON, CSV and figures.")
    ] = Path("out/bench"),
) -> None:
    """Check our backends and their peers against float64, time them and measure their memory.

    Without options for the cases, sweep over latents, dimensions, temperatures and threads.
    """
    from lebm_kernels.benchmarks.compare import comparison_table
    from lebm_kernels.benchmarks.sweeps import (
        BOTH,
        chosen_sweep,
        default_sweep,
        measure,
        records,
        steps,
        write_csv,
        write_json,
    )
    from lebm_kernels.diagnostics.environment import describe, summary
    from lebm_kernels.figures.benchmarks import FIGURES

    start = time.perf_counter()
    folder = writable(context, output)
    rounds = _ROUNDS[quick] if rounds is None else rounds
    budget = _BUDGET[quick] if budget is None else budget
    if rounds < 1:
        raise typer.BadParameter(f"must be at least 1, got {rounds}", param_hint="'--rounds'")
    if not budget > 0:
        raise typer.BadParameter(f"must be above 0, got {budget:g}", param_hint="'--budget'")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        reason = f"must be cpu or cuda, got {device!r}"
        if device == "cuda":
            reason = "PyTorch sees no GPU"
        raise typer.BadParameter(reason, param_hint="'--device'")
    if gradients and direction == Direction.forward:
        reason = "--direction forward computes no gradients"
        raise typer.BadParameter(reason, param_hint="'--gradients'")
    differentiated = tuple(gradients or BOTH)
    directions: list[tuple[str, ...]] = [] if direction == Direction.backward else [()]
    if direction != Direction.forward:
        directions.append(differentiated)
    with errors_by_option():
        chosen = (queries, latents, dims, beta, dtype, gradients, threads)
        if any(chosen) or direction != Direction.both:
            points = chosen_sweep(
                queries=queries or [1024],
                latents=latents or [4096],
                dims=dims or [2],
                betas=beta or [1.0],
                dtypes=[precision.dtype for precision in dtype or [Precision.float32]],
                directions=directions,
                threads=threads or [torch.get_num_threads()],
                device=device,
                names=provider or (),
            )
        else:
            points = default_sweep(device, quick=quick, names=provider or ())
    rows, comparisons, not_started = [], [], []
    facts = describe()
    with progress_bar() as progress:
        task = progress.add_task("", total=steps(points, rounds))
        ends = {id(p): steps(points[: i + 1], rounds) for i, p in enumerate(points)}

        def notify(point: Point, text: str) -> None:
            title = f"{point.case}, {point.case.direction}: {text}"
            progress.update(task, advance=1, description=escape(title))

        def done(point: Point) -> None:
            progress.update(task, completed=ends[id(point)])

        for point, comparison in measure(
            points, rounds=rounds, budget=budget, notify=notify, done=done
        ):
            if comparison is None:
                not_started.append(point)
                continue
            comparisons.append(comparison)
            rows += records(point, comparison)
            # Written after each comparison, because a long run may be interrupted.
            write_json(folder / "bench.json", facts, rows)
            write_csv(folder / "bench.csv", rows)
    print_wide(comparison_table(comparisons))
    for point in not_started:
        title = escape(f"{point.case}, {point.case.direction}")
        console.print(f"not started, the budget was spent: {title}", highlight=False)
    for name in ("bench.json", "bench.csv"):
        wrote(folder / name)
    figures = {name: figure for name, draw in FIGURES.items() if (figure := draw(rows))}
    for name, figure in figures.items():
        save(figure, folder / f"bench-{name}", "png", "svg")
    if not figures:
        console.print("no figure: it needs several sizes, temperatures or numbers of threads")
    console.print(
        f"{summary(facts)}; lebm bench took {time.perf_counter() - start:.0f} s",
        highlight=False,
    )
