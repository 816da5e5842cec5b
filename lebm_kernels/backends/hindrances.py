"""What stops a backend from running, and error messages that say what to do about it."""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from lebm_kernels.backends.contract import Problem

_Inputs = ParamSpec("_Inputs")
_Result = TypeVar("_Result")

# The messages of PyTorch on the CPU (two versions), of CUDA and of the extension.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "allocating memory failed",
)
_NO_IMAGE = "no kernel image"


def too_old(device: torch.device) -> str | None:
    """Why a GPU has no kernels of this package, or None: they need compute capability 8.0."""
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return (
            f"{properties.name} (sm_{properties.major}{properties.minor}) is older than the sm_80 "
            "that the kernels need; backend='chunked' runs on it"
        )
    return None


def all_too_old() -> str | None:
    """Why none of the visible GPUs can run the kernels of this package, or None if one can."""
    # torch.compile cannot trace the count of devices. The pass itself checks the device it runs on.
    if torch.compiler.is_compiling():
        return None
    why = [too_old(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    return None if None in why else why[0]


def require_gpu(name: str, device: torch.device) -> None:
    """Check one GPU: of several, some may be too old.

    Raises:
        RuntimeError: this GPU is too old.
    """
    reason = too_old(device) if device.type == "cuda" else None
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run on {device}: {reason}")


def explained(
    name: str,
) -> Callable[[Callable[_Inputs, _Result]], Callable[_Inputs, _Result]]:
    """Decorate a backend's rows() or columns(): what they raise says what to do about it.

    Raises:
        torch.OutOfMemoryError: memory ran out; a RuntimeError, as what PyTorch raises then.
        RuntimeError: the extension has no kernels for this GPU.
    """

    def explaining(function: Callable[_Inputs, _Result]) -> Callable[_Inputs, _Result]:
        @wraps(function)
        def run(*args: _Inputs.args, **options: _Inputs.kwargs) -> _Result:
            try:
                return function(*args, **options)
            except (RuntimeError, MemoryError) as error:
                problem: Problem = args[0]  # type: ignore[assignment]
                if _NO_IMAGE in str(error):
                    raise RuntimeError(_no_image(name, problem.y.device)) from error
                raise_explained(error, lambda: too_large(name, problem.y, problem.decoded))

        return run

    return explaining


def raise_explained(error: Exception, explanation: Callable[[], str]) -> NoReturn:
    """Raise the error again; where memory ran out, with the explanation for its message.

    Raises:
        torch.OutOfMemoryError: memory ran out.
    """
    if is_out_of_memory(error):
        raise torch.OutOfMemoryError(explanation()) from error
    raise error


_announced: set[str] = set()
_announcing = threading.Lock()


def announce_fallback(name: str, device: str, reason: str) -> None:
    """Warn that a slow backend stands in for a fast one.

    The warning is given once for each process and device type, and not while a graph is compiled.
    """
    if torch.compiler.is_compiling() or device in _announced:
        return
    with _announcing:
        if device in _announced:
            return
        warnings.warn(
            f"free energies on {device} are computed by the slow backend {name!r}: {reason}. "
            f"To silence this warning, pass backend={name!r}.",
            UserWarning,
            stacklevel=_levels_to_caller(),
        )
        # Not before: a warning that is an error must be one each time.
        _announced.add(device)


def _levels_to_caller() -> int:
    """The stack level, seen from the calling function, of the first frame outside the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("lebm_kernels"):
        level, frame = level + 1, frame.f_back
    return level


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _NO_MEMORY)


def too_many_pairs(y: Tensor, decoded: Tensor, shape: torch.Size) -> str:
    """The message where ``reference`` runs out of memory for an F of that shape."""
    M, N, D = math.prod(shape), *decoded.shape[-2:]
    width = torch.finfo(y.dtype).bits // 8 if y.dtype == torch.float64 else 4
    return (
        f"backend 'reference' ran out of memory on {y.device}: it holds arrays of queries x "
        f"latents x dimensions, here {M} x {N} x {D}, {_amount(M * N * D * width)} each; every "
        "other backend does without (leave backend out, or pass backend='chunked'), or pass fewer "
        "queries at a time"
    )


def too_large(name: str, y: Tensor, decoded: Tensor) -> str:
    """The message where a backend runs out of memory for ``y[B, M, D]``, or ``y[M, D]``."""
    B, (M, D), N = math.prod(y.shape[:-2]), y.shape[-2:], decoded.shape[-2]
    one = y.element_size()
    return (
        f"backend {name!r} ran out of memory on {y.device}: it holds no queries x latents, but "
        f"rows of {D} numbers for {B} x {M} queries and {B} x {N} latents, "
        f"{_amount(B * M * D * one)} and {_amount(B * N * D * one)} each time; pass fewer queries "
        "(slices of y) or fewer batches at a time"
    )


def _no_image(name: str, device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    return (
        f"backend {name!r} cannot run on {device}: it was built without kernels for "
        f"{properties.name} (sm_{properties.major}{properties.minor}); build it again there with "
        "TORCH_CUDA_ARCH_LIST=native, or pass backend='triton' or 'chunked'"
    )


def _amount(size: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
