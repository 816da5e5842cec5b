"""The C++ extension: SIMD kernels on CPU, chosen when they first run; kernels in CUDA C++."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.backends.contract import Columns, ColumnWants, Problem, Rows, RowWants
from lebm_kernels.backends.hindrances import all_too_old, explained, require_gpu
from lebm_kernels.torch_internals import has_cuda_kernel, schema_of

_PACKAGE = Path(__file__).parent.parent
# Another build to load in place of the package's own, such as one with sanitizers.
_NAMED = os.environ.get("LEBM_KERNELS_LIBRARY")
_LIBRARY = Path(_NAMED or _PACKAGE / "_native.abi3.so")
_BUILD_REPORT = _PACKAGE / "_native_build.txt"
_CUDA_REPORT = _PACKAGE / "_cuda_build.txt"
_RECORD = _PACKAGE / "_native_compilers.txt"
_HOW = "; `pip install .` builds it where PyTorch >= 2.10 and a C++17 compiler are"
_HOW_CUDA = "; `pip install .` builds it where nvcc and a CUDA build of PyTorch are"


class _Failure(NamedTuple):
    """Why the library cannot be loaded or used."""

    reason: str
    wrong_setting: bool = False
    """Whether a wrong value of an environment variable of this package is the reason."""


def _load() -> _Failure | None:
    """Load the library; return the failure if it cannot be loaded or used."""
    if not _LIBRARY.exists():
        if _NAMED:
            return _Failure(f"LEBM_KERNELS_LIBRARY names no file: {_NAMED}", wrong_setting=True)
        if _BUILD_REPORT.exists():
            return _Failure(f"{_BUILD_REPORT.read_text().partition(chr(10))[0]}{_HOW}")
        return _Failure(f"the extension was not built{_HOW}")
    path = str(_LIBRARY.resolve())
    # An earlier import in this process may have loaded it. To register twice would end the process.
    if schema_of("lebm_kernels_native::rows") is None:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            words = str(error).partition(chr(10))[0]
            if _NAMED:
                reason = f"LEBM_KERNELS_LIBRARY names a file that does not load: {words}"
                return _Failure(reason, wrong_setting=True)
            return _Failure(f"the extension does not load: {words}")
    elif path not in torch.ops.loaded_libraries:
        return _Failure("another build of the extension is loaded in this process; start a new one")
    try:
        torch.ops.lebm_kernels_native.instruction_sets()
    except RuntimeError as error:  # LEBM_KERNELS_ISA is wrong
        return _Failure(str(error).partition(chr(10))[0], wrong_setting=True)
    return None


def _without_cuda() -> str | None:
    """Why the extension has no CUDA kernels, or None."""
    if has_cuda_kernel("lebm_kernels_native::rows"):
        return None
    if _CUDA_REPORT.exists():
        return f"{_CUDA_REPORT.read_text().partition(chr(10))[0]}{_HOW_CUDA}"
    return f"built without CUDA{_HOW_CUDA}"


# Evaluated once, at import: torch.compile traces the choice of a backend, but cannot trace these.
_FAILURE = _load()
_CUDA_FAILURE = None if _FAILURE else _without_cuda()


# The extension's two passes; None if it is missing. The leading B of a Problem may be absent: then
# beta, scale, log_weight and latent_energy may broadcast. Outputs that were not asked for are
# meaningless.
call_rows: Any = None if _FAILURE else torch.ops.lebm_kernels_native.rows.default
call_columns: Any = None if _FAILURE else torch.ops.lebm_kernels_native.columns.default
# Soft minima of given energies, on the CPU: see csrc/bindings.cpp.
call_softmin: Any = None if _FAILURE else torch.ops.lebm_kernels_native.softmin.default
call_softargmin: Any = None if _FAILURE else torch.ops.lebm_kernels_native.softargmin.default
call_softargmin_slopes: Any = (
    None if _FAILURE else torch.ops.lebm_kernels_native.softargmin_slopes.default
)


def unavailable(device: str) -> str | None:
    """Why it cannot run on tensors of that device type, or None."""
    if _FAILURE is not None:
        return _FAILURE.reason
    if device == "cpu":
        return None
    if device != "cuda":
        return f"the extension has no kernels for {device}"
    if _CUDA_FAILURE is not None:
        return _CUDA_FAILURE
    return all_too_old() if torch.cuda.is_available() else "no CUDA device is visible"


def wrong_setting() -> str | None:
    """The reason if an environment variable of this package prevents it from running."""
    return _FAILURE.reason if _FAILURE is not None and _FAILURE.wrong_setting else None


def describe() -> str:
    """One line for the table of backends."""
    why_not = unavailable("cuda")
    on_cuda = f"not on CUDA: {why_not}" if why_not else "CUDA C++"
    threads = torch.get_num_threads()
    on_threads = "1 thread" if threads == 1 else f"{threads} threads"
    return f"C++ with {instruction_set()} on {on_threads}; {on_cuda}"


def instruction_sets() -> list[str]:
    """The instruction sets that this processor can run, best first; empty if not built."""
    if _FAILURE is not None:
        return []
    return torch.ops.lebm_kernels_native.instruction_sets().split(",")[1:]


def library() -> Path:
    """Where the extension is, or would be."""
    return _LIBRARY


def build_record() -> dict[str, str]:
    """The compiler, flags and PyTorch that built the extension; empty if the package built none."""
    if _FAILURE is not None or _NAMED or not _RECORD.exists():
        return {}
    lines = (line.partition(": ") for line in _RECORD.read_text(encoding="utf-8").splitlines())
    return {title: fact for title, _, fact in lines}


def _require() -> None:
    if _FAILURE is not None:
        raise RuntimeError(f"backend 'native' cannot run: {_FAILURE.reason}")


def instruction_set() -> str:
    """The instruction set in use: the best, or the one LEBM_KERNELS_ISA names.

    Raises:
        RuntimeError: the extension is missing or cannot run.
    """
    _require()
    return torch.ops.lebm_kernels_native.instruction_sets().partition(",")[0]


def force_instruction_set(name: str | None) -> None:
    """Use the named instruction set from now on; None returns to the default.

    Raises:
        RuntimeError: the processor cannot run it, or the extension is missing.
    """
    _require()
    torch.ops.lebm_kernels_native.force_instruction_set(name or "")


@explained("native")
def rows(problem: Problem, want: RowWants) -> Rows:
    """See :mod:`lebm_kernels.backends.contract`; RuntimeError where the GPU is too old."""
    require_gpu("native", problem.y.device)
    outputs = call_rows(*problem, *want)
    free_energy, state, *optional = outputs
    return Rows(
        free_energy, state, *(x if w else None for x, w in zip(optional, want, strict=True))
    )


@explained("native")
def columns(problem: Problem, grad: Tensor, state: Tensor, want: ColumnWants) -> Columns:
    """See :mod:`lebm_kernels.backends.contract`."""
    outputs = call_columns(grad, state, *problem, *want)
    return Columns(*(x if w else None for x, w in zip(outputs, want, strict=True)))
