"""A backend for the tests: the CUDA kernels of csrc/cuda, run on the CPU by the emulator.

It takes CPU tensors as described in :mod:`lebm_kernels.backends.contract`. conftest.py adds it to
the table of backends, so that every operator test runs on the source of the kernels.
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

from lebm_kernels.backends.contract import (
    STATE_SIZE,
    Columns,
    ColumnWants,
    Problem,
    Rows,
    RowWants,
)

HARNESS = simt.HERE / "harness" / "operators.cpp"

MULTIPROCESSORS = 3
"""Multiprocessors that the launches assume: few, so that few thread blocks already fill the GPU."""

_WHY_NOT = None if simt.compiler() else "there is no g++"  # before torch.compile traces anything

_lock = Lock()  # the emulator runs one launch at a time


_build_folder: Path | None = None


def share(folder: Path) -> None:
    """Build the library in that folder, for all processes of one run of the tests."""
    global _build_folder
    _build_folder = folder


@cache
def library(mode: simt.Mode = "plain") -> simt.Library:
    """The kernels, built once per run of the tests."""
    folder = _build_folder
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="lebm-emulated-cuda-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Instrumented kernels take long to compile: those of D = 2 stand for all D <= 4.
    flags = "-g1" if mode == "plain" else "-DSIMT_DIMENSIONS=2"
    with (folder / f"emulated-cuda-{mode}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        path = folder / f"emulated-cuda-{mode}.so"
        if not path.exists():
            builder = simt.Builder(folder / f"emulated-cuda-{mode}", flags=(flags,))
            macros = ("SIMT_FLOAT", "SIMT_DOUBLE")
            builder.build(HARNESS, mode=mode, macros=macros).path.rename(path)
    return simt.Library(path, mode)


def unavailable(device: str) -> str | None:
    """The reason why the backend cannot run on that device type, or None."""
    if device != "cpu":
        return "the emulator takes CPU tensors"
    return _WHY_NOT


def describe() -> str:
    """One line for the table of backends."""
    return "CUDA kernels in the emulator"


def _input(x: Tensor | None) -> Any:
    """The memory that a tensor spans, as a flat read-only array."""
    if x is None:
        return None
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    memory = x.detach().as_strided((span if x.numel() else 0,), (1,), x.storage_offset()).numpy()
    memory.flags.writeable = False
    return memory


def _sizes_and_strides(problem: Problem) -> Any:
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
    """Call ``rows`` or ``columns`` of the harness, which writes into the arrays of ``rest``."""
    function = f"{name}_{'f64' if problem.y.dtype == torch.float64 else 'f32'}"
    arguments = [_sizes_and_strides(problem), *map(_input, problem[:6]), multiprocessors]
    size = np.zeros(1, np.int64)
    library("plain").run(function, *arguments, None, size, *rest)
    # NaN shows if a kernel reads workspace that none has written.
    workspace = np.full(max(int(size[0]), 1), np.nan)
    getattr(library(mode), how)(function, *arguments, workspace, size, *rest, **options)


def row_outputs(problem: Problem, want: RowWants) -> list[Any]:
    """Arrays for F, the state and the other wanted outputs."""
    like, scalar = problem.y.numpy().dtype, problem.beta.shape
    vector = problem.y.shape
    shapes = (vector, vector, scalar, vector, scalar, scalar, scalar)
    dtypes = (like, like, np.float64, like, like, like, np.int64)
    outputs: list[Any] = [np.zeros(scalar, like), np.zeros((*scalar, STATE_SIZE))]
    for wanted, shape, dtype in zip(want, shapes, dtypes, strict=True):
        outputs.append(np.zeros(shape, dtype) if wanted else None)
    return outputs


def column_outputs(problem: Problem, want: ColumnWants) -> list[Any]:
    """Arrays for the wanted gradients."""
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
