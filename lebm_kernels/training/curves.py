"""Learning curves: the record of each epoch, and the files that records are written to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lebm_kernels.files import append_text, write_text


class Epoch(NamedTuple):
    """The record of one epoch.

    Attributes:
        number: the epoch's number, from 1.
        loss: the mean loss of the epoch's steps.
        validation: the loss of the validation data after the epoch; NaN without validation data.
        beta: the inverse temperature of the last step.
        learning_rate: the learning rate of the last step.
    """

    number: int
    loss: float
    validation: float
    beta: float
    learning_rate: float


class CsvCurves:
    """A CSV file with one line per epoch and all digits; each line is written at once.

    If an epoch cannot be written, the file keeps the lines before it.

    Args:
        path: the file, which is replaced; its folder is made.
        records: the earlier epochs of a resumed run.
    """

    def __init__(self, path: str | os.PathLike[str], records: Sequence[Epoch] = ()) -> None:
        self._path = Path(path)
        lines = [",".join(Epoch._fields), *map(_line, records)]
        write_text(self._path, "\n".join(lines) + "\n")

    def add(self, record: Epoch) -> None:
        """Append an epoch."""
        append_text(self._path, _line(record) + "\n")

    def close(self) -> None:
        """Do nothing: the file is not kept open."""


class TensorBoardCurves:
    """Scalars for TensorBoard, which must be installed.

    Args:
        folder: the folder of the event files.
        records: the earlier epochs of a resumed run; later epochs in the folder are purged.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], records: Sequence[Epoch] = ()) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"tensorboard must be None, got a folder: TensorBoard is not installed ({error})"
            ) from error
        writer: Any = SummaryWriter
        self._writer = writer(os.fspath(folder), purge_step=len(records) + 1)

    def add(self, record: Epoch) -> None:
        """Add an epoch's scalars, except NaN."""
        for name, value in zip(Epoch._fields[1:], record[1:], strict=True):
            if not math.isnan(value):
                self._writer.add_scalar(name, value, record.number)

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()


def _line(record: Epoch) -> str:
    return ",".join(map(repr, record))
