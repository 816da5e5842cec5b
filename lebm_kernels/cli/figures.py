"""``lebm figures``: draw the practicum's figures and the README's overview."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.errors import errors_by_option
from lebm_kernels.cli.shared import console, save, status, writable


class Drawn(str, Enum):
    """The practicum's figures, as spelled on the command line."""

    energies = "energies"
    restored = "restored"
    gradient = "gradient"
    surface = "surface"
    section = "section"
    likelihood = "likelihood"
    sections = "sections"
    pulls = "pulls"
    horn_data = "horn-data"
    horn = "horn"
    overview = "overview"


def figures(
    context: typer.Context,
    names: Annotated[
        list[Drawn] | None, typer.Argument(help="Figures to draw.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, first parameters and shuffling.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for the figures.")
    ] = Path("out/practicum"),
) -> None:
    """Train the practicum's models and draw its figures, as PNG and SVG."""
    from lebm_kernels.practicum import FIGURES, Practicum

    start = time.perf_counter()
    folder = writable(context, output)
    run = Practicum(seed)
    for name in names or Drawn:
        with errors_by_option(), thread_count(1), status(f"drawing {name.value}"):
            figure = FIGURES[name.value](run)
        save(figure, folder / name.value, "png", "svg")
    console.print(f"lebm figures took {time.perf_counter() - start:.0f} s", highlight=False)
