"""Backends for the tests where there is a GPU: its kernels, for tensors of the CPU.

conftest.py adds them to the table of backends, so that every operator test runs on them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lebm_kernels.backends import native, triton
from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants

_DEVICE = "cuda"


def _there(x: Tensor | None) -> Tensor | None:
    """On the GPU, with broadcast dimensions still broadcast."""
    if x is None:
        return None
    once = tuple(
        slice(0, 1) if stride == 0 and size else slice(None)
        for size, stride in zip(x.shape, x.stride(), strict=True)
    )
    return x.detach()[once].to(_DEVICE).expand(x.shape)


class OnGpu:
    """What a module of :mod:`lebm_kernels.backends` has, with the way to the GPU and back."""

    def __init__(self, backend: ModuleType) -> None:
        self._backend = backend

    def unavailable(self, device: str) -> str | None:
        """Why it cannot run on tensors of that device type, or None."""
        if device != "cpu":
            return "the tests' own way to the GPU is for tensors of the CPU"
        return self._backend.unavailable(_DEVICE)

    def describe(self) -> str:
        """One line for the table of backends."""
        return f"{self._backend.describe()}, on the GPU"

    def rows(self, problem: Problem, want: RowWants) -> Rows:
        """See :mod:`lebm_kernels.backends.contract`."""
        found = self._backend.rows(Problem(*map(_there, problem[:6]), problem.tol), want)
        return Rows(*(None if x is None else x.cpu() for x in found))

    def columns(self, problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
        """See :mod:`lebm_kernels.backends.contract`."""
        there = Problem(*map(_there, problem[:6]), problem.tol)
        found = self._backend.columns(there, _there(grad), _there(state), want)
        return Columns(*(None if x is None else x.cpu() for x in found))


STAND_INS = {
    f"gpu_{name}": OnGpu(backend)
    for name, backend in (("native", native), ("triton", triton))
    if torch.cuda.is_available() and backend.unavailable(_DEVICE) is None
}
