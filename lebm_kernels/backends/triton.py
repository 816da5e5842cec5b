"""The kernels in Triton: just-in-time for NVIDIA GPUs, or Triton's interpreter in the tests."""

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

# Once, at import: torch.compile traces the choice of a backend, and cannot trace this.
_FAILURE = None if importlib.util.find_spec("triton") else "Triton is not installed"
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
    # torch.compile cannot trace the count; what runs judges the device that it runs on.
    if torch.compiler.is_compiling():
        return None
    why = [_too_old(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    return None if None in why else why[0]


def _too_old(device: torch.device) -> str | None:
    """Why it cannot run on that very GPU, or None."""
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return f"{properties.name} is older than the sm_80 that Triton compiles for"
    return None


def _require(device: torch.device) -> None:
    """Of several GPUs, one may be too old."""
    reason = _too_old(device) if device.type == "cuda" else None
    if reason is not None:
        raise RuntimeError(f"backend 'triton' cannot run on {device}: {reason}")


def describe() -> str:
    """One line for the table of backends."""
    return "Triton, interpreted" if _INTERPRETED else "Triton, compiled when first used"


@contextmanager
def _running() -> Iterator[None]:
    """The interpreter keeps its place in a global, and NumPy warns of what kernels expect."""
    if not _INTERPRETED:
        yield
        return
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`; RuntimeError where the GPU is too old."""
    _require(problem.y.device)
    from lebm_kernels.triton_kernels import launch

    with _running():
        return launch.rows(problem, want)


def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`; RuntimeError where the GPU is too old."""
    _require(problem.y.device)
    from lebm_kernels.triton_kernels import launch

    with _running():
        return launch.columns(problem, grad, state, want)
