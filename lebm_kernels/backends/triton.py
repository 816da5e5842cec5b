"""The Triton backend's place in the table: its kernels are not written yet."""

from __future__ import annotations

from lebm_kernels.backends import Columns, ColumnWants, Problem, Rows, RowWants
from torch import Tensor


def unavailable(device: str) -> str | None:
    """Why it cannot run on tensors of that device type."""
    return "its kernels are not part of this version"
