"""A backend for the tests: the CUDA kernels of csrc/cuda, run on the CPU by the emulator.

It takes the tensors of the CPU as :mod:`lebm_kernels.backends.contract` has them, and is added to
the table of backends by conftest.py, so that every operator test runs on the kernels' own source.
"""

from __future__ import annotations

import atexit
import fcntl
import shutil
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import simt
import torch
from torch import Tensor

from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants

HARNESS = simt.HERE / "harness" / "operators.cpp"

MULTIPROCESSORS = 3
"""Of the GPU that the launches take themselves to be on: few, so that few blocks are many."""

_WHY_NOT = None if simt.compiler() else "there is no g++"  # known before anything is traced

_lock = Lock()  # the emulator runs one launch at a time


_shared: Path | None = None


def share(folder: Path) -> None:
    """Keep what is built there, for the processes of one run of the tests."""
    global _shared
    _shared = folder


@cache
def library(mode: simt.Mode = "plain") -> simt.Library:
    """The kernels, built once a run."""
    folder = _shared
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="lebm-emulated-cuda-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # With every access instrumented, kernels take long to compile: those of D = 2 stand for D <= 4.
    flags = "-g1" if mode == "plain" else "-DSIMT_DIMENSIONS=2"
    with (folder / f"emulated-cuda-{mode}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        path = folder / f"emulated-cuda-{mode}.so"
        if not path.exists():
            builder = simt.Builder(folder / f"emulated-cuda-{mode}", flags=(flags,))
            parts = ("SIMT_FLOAT", "SIMT_DOUBLE")
            builder.build(HARNESS, mode=mode, parts=parts).path.rename(path)
    return simt.Library(path, mode)


def unavailable(device: str) -> str | None:
    """Why it cannot run on tensors of that device type, or None."""
    if device != "cpu":
        return "the emulator's tensors are on the CPU"
    return _WHY_NOT


def describe() -> str:
    """One line for the table of backends."""
    return "CUDA kernels in the emulator"


def _input(x: Tensor | None) -> Any:
    """The memory that a tensor spans, whatever its strides."""
    if x is None:
        return None
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    memory = x.detach().as_strided((span if x.numel() else 0,), (1,), x.storage_offset()).numpy()
    memory.flags.writeable = False
    return memory


def _numbers(problem: Problem) -> Any:
    numbers = [*problem.y.shape[:2], problem.decoded.shape[1], problem.y.shape[2]]
    for x in problem[:6]:
        stride = [0, 0, 0]
        for i in range(0 if x is None else x.dim()):
            stride[i] = x.stride(i) if x.shape[i] > 1 else 0
        numbers += stride
    array = np.array(numbers, np.int64)
    array.flags.writeable = False
    return array


def run(
    name: str,
    problem: Problem,
    rest: list[Any],
    *,
    multiprocessors: int = MULTIPROCESSORS,
    mode: simt.Mode = "plain",
    how: str = "run",
    **options: Any,
) -> None:
    """Call ``rows`` or ``columns`` of the harness; it writes into the arrays among ``rest``."""
    function = f"{name}_{'f64' if problem.y.dtype == torch.float64 else 'f32'}"
    arguments = [_numbers(problem), *map(_input, problem[:6]), multiprocessors]
    size = np.zeros(1, np.int64)
    library("plain").run(function, *arguments, None, size, *rest)
    # What the kernels read before they have written it must show.
    workspace = np.full(max(int(size[0]), 1), np.nan)
    getattr(library(mode), how)(function, *arguments, workspace, size, *rest, **options)


def row_outputs(problem: Problem, want: RowWants) -> list[Any]:
    """Arrays for F, the state and what is wanted beside them."""
    like, scalar = problem.y.numpy().dtype, problem.beta.shape
    vector = problem.y.shape
    shapes = (vector, vector, scalar, vector, scalar)
    dtypes = (like, like, like, like, np.int64)
    outputs: list[Any] = [np.zeros(scalar, like), np.zeros((*scalar, 3))]
    for wanted, shape, dtype in zip(want, shapes, dtypes, strict=True):
        outputs.append(np.zeros(shape, dtype) if wanted else None)
    return outputs


def column_outputs(problem: Problem, want: ColumnWants) -> list[Any]:
    """Arrays for the gradients that are wanted."""
    shapes = (problem.decoded.shape, problem.decoded.shape[:2], problem.decoded.shape[:2])
    dtype = problem.y.numpy().dtype
    return [np.zeros(s, dtype) if w else None for s, w in zip(shapes, want, strict=True)]


def _tensor(x: Any) -> Any:
    return None if x is None else torch.from_numpy(x)


def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`."""
    outputs = row_outputs(problem, want)
    if outputs[0].size:
        with _lock:
            run("rows", problem, outputs)
    return Rows(*map(_tensor, outputs))


def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`."""
    outputs = column_outputs(problem, want)
    if problem.beta.numel() and any(x is not None and x.size for x in outputs):
        given = [x.detach().contiguous().numpy() for x in (grad, state)]
        for x in given:
            x.flags.writeable = False
        with _lock:
            run("columns", problem, [*given, *outputs])
    return Columns(*map(_tensor, outputs))
