"""``lebm demo``: train and draw both models, time the operation; ``make run`` runs it."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.status import Status

from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.shared import console, save, status, writable, wrote
from lebm_kernels.cli.train import Recipe, manifold, section, train_recipe, training_table

if TYPE_CHECKING:
    from lebm_kernels.benchmarks.compare import Comparison

#: The models that the demonstration trains.
_DEMO = (Recipe.ellipse, Recipe.horn)


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Use tiny sizes, to see it run.")] = False,
) -> None:
    """Train both models cold and warm, draw them, time the operation and check its gradients."""
    from lebm_kernels.figures.maps import cold_and_warm_figure
    from lebm_kernels.practicum import WARM_BETA

    start = time.perf_counter()
    folder = writable(context, output)
    changes: dict[str, Any] = {"epochs": 2} if quick else {}
    runs = []
    for recipe in _DEMO:
        cold, warm = (
            train_recipe(recipe.value, folder, beta=beta, **changes)
            for beta in (math.inf, WARM_BETA)
        )
        runs += [cold, warm]
        for run in (cold, warm):
            for path in run.files:
                wrote(path)
            save(manifold(run), folder / f"{run.title}-manifold")
        maps = cold_and_warm_figure(
            cold.trained, warm.trained, beta=WARM_BETA, x=section(cold), data=cold.data
        )
        save(maps, folder / f"{recipe.value}-cold-and-warm")
    console.print(training_table(runs))

    from lebm_kernels.benchmarks.compare import comparison_table

    console.print(comparison_table(_timings(quick)))
    passed = _print_gradient_verdict()
    console.print(f"lebm demo took {time.perf_counter() - start:.0f} s", highlight=False)
    if not passed:
        raise typer.Exit(1)


def _timings(quick: bool) -> list[Comparison]:
    """Time the operation on a large grid, forward and forward + backward, with its peers."""
    from lebm_kernels.backends import preferred
    from lebm_kernels.benchmarks.cases import Case
    from lebm_kernels.benchmarks.compare import compare

    ours = preferred("cpu")
    peers = ["eager, expansion (mm)", "eager, cdist"]
    if not quick:  # compiling takes longer than the rest of a quick run
        peers.append("torch.compile, unrolled")
    M, N = (64, 256) if quick else (4096, 16384)
    comparisons = []
    with status("timing") as line:
        # The reference is slow: all queries would take it minutes.
        for names, queries in (([ours, *peers], M), ([ours, "reference"], M // 32)):
            for backward in ((), ("y", "decoded")):
                case = Case(queries, N, 2, backward=backward)
                comparisons.append(
                    compare(
                        case,
                        names,
                        rounds=5,
                        budget=8.0,
                        notify=partial(_tell, line, case.direction),
                    )
                )
    return comparisons


def _tell(line: Status, what: str, text: str) -> None:
    line.update(f"{what}: {text}")


def _print_gradient_verdict() -> bool:
    """Run gradcheck; print one line, and one for each failure. Return whether all passed."""
    from lebm_kernels.diagnostics.gradient_checks import check_gradients

    with status("gradcheck in float64"), thread_count(1):
        checks = check_gradients()
    failed = [check for check in checks if not check.ok]
    backends = ", ".join(dict.fromkeys(check.backend for check in checks))
    arguments = ", ".join(dict.fromkeys(check.argument for check in checks))
    verdict = f"FAILED {len(failed)} of {len(checks)}" if failed else "passed"
    console.print(f"gradcheck {verdict}: {backends}; {arguments}", highlight=False)
    for check in failed:
        console.print(f"  {check.backend}, {check.argument}: {escape(check.message)}")
    return not failed
