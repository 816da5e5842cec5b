"""Learning curves: what a run records of each epoch, and the files that it is written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Epoch(NamedTuple):
    """What is recorded of an epoch.

    Attributes:
        number: of the epoch, from 1.
        loss: the mean loss over it, while it ran.
        validation: the loss of the validation data after it; NaN where there are none.
        beta: the inverse temperature of its last step.
        learning_rate: of its last step.
    """

    number: int
    loss: float
    validation: float
    beta: float
    learning_rate: float


class CsvCurves:
    """A CSV file of one line an epoch, with all digits; every line is there once it is done.

    Args:
        path: the file; its folder is made. What it held before is replaced.
        records: the epochs that were done before, of a resumed run.
    """

    def __init__(self, path: str | os.PathLike[str], records: Sequence[Epoch] = ()) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(Epoch._fields), *map(_line, records)]
        self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, record: Epoch) -> None:
        """Append an epoch."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record) + "\n")

    def close(self) -> None:
        """Nothing is left open."""


class TensorBoardCurves:
    """Scalars for TensorBoard, where it is installed.

    Args:
        folder: where the event files go.
        records: the epochs that were done before; what the folder holds of later ones is purged.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], records: Sequence[Epoch] = ()) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"tensorboard must be None, as TensorBoard is not installed ({error})"
            ) from error
        writer: Any = SummaryWriter
        self._writer = writer(os.fspath(folder), purge_step=len(records) + 1)

    def add(self, record: Epoch) -> None:
        """Add an epoch's scalars; a NaN is left out."""
        for name, value in zip(Epoch._fields[1:], record[1:], strict=True):
            if value == value:
                self._writer.add_scalar(name, value, record.number)

    def close(self) -> None:
        """Write what is still held."""
        self._writer.close()


def _line(record: Epoch) -> str:
    return ",".join(map(repr, record))
