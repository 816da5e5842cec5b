"""Shared by the commands: the console, the output folder, files, tables and dtypes."""

from __future__ import annotations

import io
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table

from lebm_kernels.files import claimed, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

console: Console = Console()

#: Above all sizes that a machine can hold, and within PyTorch's integers.
LARGEST_SIZE = 2**31 - 1

#: PyTorch's generators take seeds up to this.
LARGEST_SEED = 2**63 - 1

#: Width in characters of a table that is printed to a file or a pipe.
_PIPE_WIDTH = 140


class Precision(str, Enum):
    """A dtype, as spelled on the command line."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch's dtype."""
        found: torch.dtype = getattr(torch, self.value)
        return found


def writable(context: typer.Context, path: Path) -> Path:
    """Make the output folder, and claim it until the command ends, before the work starts.

    Raises:
        typer.BadParameter: the folder cannot be made or written to, or another command writes
            there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        context.with_resource(claimed(path / "lebm"))
    except OSError as error:
        reason = f"cannot write to the folder {path}: {error.strerror}"
        raise typer.BadParameter(reason, param_hint="'--output'") from error
    return path


def print_wide(table: Table, width: int = _PIPE_WIDTH) -> None:
    """Print a table: as wide as the terminal, or up to ``width`` in a file or a pipe."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=width).print(table)


def status(text: str) -> Status:
    """A line with a spinner of ASCII characters, shown on a terminal during the block."""
    return console.status(text, spinner="line")


def progress_bar() -> Progress:
    """A progress bar with a description and the remaining time."""
    return Progress(
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )


def save(figure: Figure, path: Path, *formats: str) -> None:
    """Write a figure to ``path.png``, or to one file for each format, and print the names."""
    from matplotlib import rc_context

    for suffix in formats or ("png",):
        content = io.BytesIO()
        # With no date and a fixed salt, equal figures give equal SVG files.
        with rc_context({"svg.hashsalt": "lebm"}):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(content, format=suffix, metadata=metadata)
        file = Path(f"{path}.{suffix}")
        write_bytes(file, content.getbuffer())
        wrote(file)


def wrote(path: Path) -> None:
    """Print that a file was written."""
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
