"""The backend in Triton: just-in-time for NVIDIA GPUs, or in Triton's interpreter for tests.

    arguments.py       the problem in the kernels' form; the plan of tiles and splits
    launch.py          rows() and columns(): which kernels run, on what workspace
    programs.py        where a program is, and sums over splits
    pairs.py           arithmetic on a pair, shared by the kernels
    packed.py          the places of a tile's pairs among threads, and of the data in memory
    moments.py         D > 4: sums of vectors over a tile of pairs
    shifts.py          D <= 4: the shift of each query
    narrow_rows.py     row pass, D <= 4: partial sums over a split of the latents
    wide_rows.py       row pass, D > 4, tile by tile
    finish.py          merges the splits; F, its state and slopes; lists hot queries
    hot.py             recomputes hot queries
    index.py           the latent of least energy
    narrow_columns.py  column pass, D <= 4: gradients of decoded and latent_energy
    wide_columns.py    the same for D > 4, tile by tile
    weights.py         the gradient of log_weight

The kernels are imported when the backend first runs: importing Triton itself is slow. No submodule
may be called rows or columns: its import would replace the function of that name here.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants
from lebm_kernels.backends.hindrances import all_too_old, explained, require_gpu

# Once, at import: torch.compile traces the choice of a backend, and cannot trace this.
_FAILURE = (
    None
    if importlib.util.find_spec("triton")
    else "Triton is not installed; `pip install triton` brings it"
)
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")

_LOCK = threading.Lock()


def unavailable(device: str) -> str | None:
    """Why it cannot run on tensors of that device type, or None."""
    if _FAILURE is not None:
        return _FAILURE
    if device == "cpu":
        return (
            None if _INTERPRETED else "on a CPU it only runs interpreted, under TRITON_INTERPRET=1"
        )
    if device != "cuda":
        return f"it has no kernels for {device}"
    if not torch.cuda.is_available():
        return "no GPU is visible"
    return all_too_old()


def describe() -> str:
    """One line for the table of backends."""
    return "Triton, interpreted" if _INTERPRETED else "Triton, compiled when first used"


@contextmanager
def _running() -> Iterator[None]:
    """One call at a time in the interpreter, whose state is global, without NumPy's warnings."""
    if not _INTERPRETED:
        yield
        return
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@explained("triton")
def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`; RuntimeError where the GPU is too old."""
    require_gpu("triton", problem.y.device)
    from lebm_kernels.backends.triton import launch

    with _running():
        return launch.rows(problem, want)


@explained("triton")
def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`; RuntimeError where the GPU is too old."""
    require_gpu("triton", problem.y.device)
    from lebm_kernels.backends.triton import launch

    with _running():
        return launch.columns(problem, grad, state, want)
