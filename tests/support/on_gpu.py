"""Backends for the tests on a machine with a GPU: they take CPU tensors and run the GPU's kernels.

conftest.py adds them to the table of backends, so that every operator test runs on them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lebm_kernels.backends import native, triton
from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants

_DEVICE = "cuda"


def _to_gpu(x: Tensor | None) -> Tensor | None:
    """A copy on the GPU. Broadcast dimensions stay broadcast."""
    if x is None:
        return None
    once = tuple(
        slice(0, 1) if stride == 0 and size else slice(None)
        for size, stride in zip(x.shape, x.stride(), strict=True)
    )
    return x.detach()[once].to(_DEVICE).expand(x.shape)


class OnGpu:
    """A backend module of :mod:`lebm_kernels.backends`, with copies to the GPU and back."""

    def __init__(self, backend: ModuleType) -> None:
        self._backend = backend

    def unavailable(self, device: str) -> str | None:
        """The reason why the backend cannot run on that device type, or None."""
        if device != "cpu":
            return "this backend of the tests takes CPU tensors"
        return self._backend.unavailable(_DEVICE)

    def describe(self) -> str:
        """One line for the table of backends."""
        return f"{self._backend.describe()}, on the GPU"

    def rows(self, problem: Problem, want: RowWants) -> Rows:
        """See :mod:`lebm_kernels.backends.contract`."""
        found = self._backend.rows(Problem(*map(_to_gpu, problem[:6]), problem.tol), want)
        return Rows(*(None if x is None else x.cpu() for x in found))

    def columns(self, problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
        """See :mod:`lebm_kernels.backends.contract`."""
        on_gpu = Problem(*map(_to_gpu, problem[:6]), problem.tol)
        found = self._backend.columns(on_gpu, _to_gpu(grad), _to_gpu(state), want)
        return Columns(*(None if x is None else x.cpu() for x in found))


STAND_INS = {
    f"gpu_{name}": OnGpu(backend)
    for name, backend in (("native", native), ("triton", triton))
    if torch.cuda.is_available() and backend.unavailable(_DEVICE) is None
}
