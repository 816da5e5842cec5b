"""How much memory there is, and the peak of what a piece of work takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def available_bytes(device: str = "cpu") -> int | None:
    """What can still be taken on that device; None where the system does not tell.

    On a host the least of what the machine and the process's control group have left (Linux).
    """
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    left = []
    with suppress(OSError, ValueError, StopIteration):
        left.append(_kibibytes(Path("/proc/meminfo"), "MemAvailable:"))
    with suppress(OSError, ValueError):  # no such file, or the word "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        left.append(limit - int((group / "memory.current").read_text()))
    return min(left, default=None)


def peak_bytes(work: Callable[[], Iterable[Tensor]], device: str = "cpu") -> int | None:
    """The peak of the memory that ``work`` takes beyond its inputs and the tensors it returns.

    On a host it is the process's resident memory (Linux), known to some hundred KiB; None where
    the system does not tell. Whatever else the process does meanwhile counts as well.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = _bytes(work())
        torch.cuda.synchronize()
        return max(0, torch.cuda.max_memory_allocated(device) - before - kept)
    try:
        _return_freed_memory()
        _CLEAR.write_text("5")  # the peak begins anew
        before = _kibibytes(_STATUS, "VmHWM:")
    except (OSError, StopIteration):
        return None
    # The tensors are held until the peak is read: nothing else may take their place.
    outputs = tuple(work())
    return max(0, _kibibytes(_STATUS, "VmHWM:") - before - _bytes(outputs))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _kibibytes(path: Path, title: str) -> int:
    """The line's number of KiB, in bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(title))


def _return_freed_memory() -> None:
    """What was freed before and is still resident would hide what the work takes."""
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
