"""``lebm gradcheck``: check F and its gradients on this machine; a table and an exit status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

import lebm_kernels
from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.shared import (
    LARGEST_SEED,
    Precision,
    console,
    print_wide,
    progress_bar,
    save,
    status,
    writable,
)

if TYPE_CHECKING:
    from lebm_kernels.diagnostics.gradient_checks import GradientCheck
    from lebm_kernels.diagnostics.subjects import Subject

_EACH = "each of an argument, backend, instruction set and dtype"
"""What counts as one check, regardless of its number of cases."""


def gradcheck(
    context: typer.Context,
    backend: Annotated[
        list[str] | None, typer.Option(help="Check only this one; repeatable.", show_default="all")
    ] = None,
    cases: Annotated[
        int, typer.Option(help="Random cases, in addition to the standard and the nasty ones.")
    ] = 4,
    seed: Annotated[int, typer.Option(max=LARGEST_SEED, help="Seed of the cases.")] = 0,
    picture: Annotated[
        bool, typer.Option("--picture", help="Draw the error of F from beta = 0 to infinity.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--out", help="Folder for the picture.", show_default="out"),
    ] = None,
) -> None:
    """Check F and its gradients on every backend, instruction set and dtype; exit 1 on a failure.

    float64 is compared with finite differences, to second order. The other dtypes are compared with
    float64, within the README's promise.
    """
    from lebm_kernels.diagnostics.gradient_cases import nasty_cases, random_cases, standard_cases
    from lebm_kernels.diagnostics.gradient_checks import check_subject
    from lebm_kernels.diagnostics.subjects import subjects

    known = [row.name for row in lebm_kernels.backends()]
    for name in backend or ():
        if name not in known:
            reason = f"must be one of {', '.join(known)}, got {name!r}"
            raise typer.BadParameter(reason, param_hint="'--backend'")
        row = lebm_kernels.backends()[known.index(name)]
        if "cpu" not in row.devices:
            reason = f"backend {name!r} cannot run on cpu: {row.reason}"
            raise typer.BadParameter(reason, param_hint="'--backend'")
    for option, value in (("--cases", cases), ("--seed", seed)):
        if value < 0:
            raise typer.BadParameter(f"must be at least 0, got {value}", param_hint=f"'{option}'")
    # --output implies --picture.
    folder = writable(context, output or Path("out")) if picture or output else None
    problems = [*standard_cases(seed), *random_cases(seed, cases), *nasty_cases(seed)]
    tasks = [(subject, precision) for subject in subjects(backend) for precision in Precision]
    checks = []
    with progress_bar() as progress, thread_count(1):
        for subject, precision in progress.track(tasks, description="checking"):
            checks.append(check_subject(subject, problems, precision.dtype, twice=True))
    print_wide(_gradient_table(checks), width=100)
    failed = [check for group in checks for check in group if not check.ok]
    for check in failed:
        what = f"{check.subject}, {check.dtype}, {check.argument}: {check.message}"
        console.print(f"  {escape(what)}", highlight=False)
    if folder is not None:
        _draw_accuracy(folder, [group[0].subject for group in checks], seed)
    count = sum(len(group) for group in checks)
    verdict = f"FAILED {len(failed)} of {count}" if failed else f"passed all {count}"
    console.print(f"{verdict} checks, {_EACH}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _gradient_table(checks: Sequence[Sequence[GradientCheck]]) -> Table:
    """One line per backend and dtype: the argument with the largest error, and the case."""
    title = "F and its gradients: float64 against differences, others against float64"
    caption = "cases: of all checks of the line; error: the largest, relative to what is allowed"
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("backend", "dtype"):
        table.add_column(column, no_wrap=True)
    table.add_column("checks", justify="right", no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("of", no_wrap=True)
    table.add_column("in")
    table.add_column("verdict", no_wrap=True)
    for group in checks:
        worst = max(group, key=lambda check: check.error)
        failures = sum(not check.ok for check in group)
        table.add_row(
            str(worst.subject),
            str(worst.dtype).removeprefix("torch."),
            str(len(group)),
            str(sum(check.cases for check in group)),
            f"{worst.error:.1%}",
            worst.argument,
            escape(worst.place),
            f"[red]FAILED {failures}[/red]" if failures else "[green]ok[/green]",
        )
    return table


def _draw_accuracy(folder: Path, checked: Sequence[Subject], seed: int) -> None:
    from lebm_kernels.diagnostics.accuracy import BETAS, accuracy
    from lebm_kernels.figures.benchmarks import accuracy_figure

    with thread_count(1), status("accuracy"):
        errors = {str(subject): accuracy(subject, seed) for subject in dict.fromkeys(checked)}
        errors["eager, expansion (mm)"] = accuracy(None, seed)
    figure = accuracy_figure(BETAS, errors)
    save(figure, folder / "accuracy", "png", "svg")
