"""``lebm show``: show two failures of latent-variable models by training."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.shared import console


class Shown(str, Enum):
    """The failures that can be shown."""

    memorising = "memorising"
    collapsing = "collapsing"


def show(what: Annotated[Shown, typer.Argument(help="The failure to show.")]) -> None:
    """Show by training how latents memorise, or how an ellipse collapses if trained too warm."""
    with thread_count(1):
        table = _memorising_table() if what == Shown.memorising else _collapsing_table()
    console.print(table)


def _memorising_table() -> Table:
    from lebm_kernels.practicum.demonstrations import MEMORISING_DIM, memorising

    title = f"{MEMORISING_DIM}-dimensional latents: mean free energy"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("regulariser")
    for column in ("on held-out data", "off the data", "contrast", "relative"):
        table.add_column(column, justify="right")
    rows = memorising()
    for row in rows:
        relative = f"{row.contrast / rows[0].contrast:.1f} x"
        values = (row.on, row.off, row.contrast)
        table.add_row(row.regulariser, *(f"{value:.3f}" for value in values), relative)
    return table


def _collapsing_table() -> Table:
    from lebm_kernels.practicum.demonstrations import collapsing

    table = Table(title="ellipse trained warm", box=box.SIMPLE_HEAD)
    for column in ("beta * 2 <y_1^2>", "beta", "radii found", "predicted to collapse"):
        table.add_column(column, justify="right")
    for row in collapsing():
        collapse = ", ".join("yes" if zero else "no" for zero in row.predicted)
        radii = ", ".join(f"{radius:.4f}" for radius in row.radii)
        table.add_row(f"{row.ratio:g}", f"{row.beta:.4g}", radii, collapse)
    return table
