"""What several commands use: the console, the output folder, pictures, tables, dtypes."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

console: Console = Console()

#: Columns of a table that goes to a file or a pipe.
_PIPE_WIDTH = 140


class Precision(str, Enum):
    """A dtype, as the command line spells it."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch's name for it."""
        found: torch.dtype = getattr(torch, self.value)
        return found


def writable(path: Path) -> Path:
    """Make the output folder before the work whose results it is to hold."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = f"cannot write to the folder {path}: {error.strerror}"
        raise typer.BadParameter(reason, param_hint="'--output'") from error
    return path


def print_wide(table: Table, width: int = _PIPE_WIDTH) -> None:
    """In a file or a pipe a table is as wide as it needs to be, up to a width."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=width).print(table)


def progress_bar() -> Progress:
    """A bar with what happens and the time left."""
    return Progress(
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )


def save(figure: Figure, path: Path, *formats: str) -> None:
    """Write a figure to ``path.png``, or to one file a format, and say so."""
    from matplotlib import rc_context

    for suffix in formats or ("png",):
        # Without a date and with a salt of ours, an SVG is a function of what it shows.
        with rc_context({"svg.hashsalt": "lebm"}):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(f"{path}.{suffix}", metadata=metadata)
        wrote(Path(f"{path}.{suffix}"))


def wrote(path: Path) -> None:
    """Say that a file was written."""
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
