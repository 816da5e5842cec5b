"""The available memory, and the peak memory of a piece of work."""

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
    """Bytes that are still available on the device; None if the system does not say.

    On a CPU it is the smaller of what the machine and the process's control group have left
    (Linux only).
    """
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    available = []
    with suppress(OSError, ValueError, StopIteration):
        available.append(_read_kibibytes(Path("/proc/meminfo"), "MemAvailable:"))
    with suppress(OSError, ValueError):  # no such file, or the word "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        available.append(limit - int((group / "memory.current").read_text()))
    return min(available, default=None)


def peak_bytes(work: Callable[[], Iterable[Tensor]], device: str = "cpu") -> int | None:
    """Peak bytes that ``work`` takes beyond its inputs and the tensors it returns.

    On a CPU this is the process's resident memory, accurate to some hundred KiB (Linux only); None
    if the system does not say. Other threads of the process count too.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = _bytes(work())
        torch.cuda.synchronize()
        return max(0, torch.cuda.max_memory_allocated(device) - before - outputs)
    try:
        _return_freed_memory()
        _CLEAR.write_text("5")  # resets the peak
        before = _read_kibibytes(_STATUS, "VmHWM:")
    except (OSError, StopIteration):
        return None
    # Keep the tensors until the peak is read, so that nothing else reuses their memory.
    tensors = tuple(work())
    return max(0, _read_kibibytes(_STATUS, "VmHWM:") - before - _bytes(tensors))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _read_kibibytes(path: Path, title: str) -> int:
    """The number in the line with this title, which is in KiB, as bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(title))


def _return_freed_memory() -> None:
    """Return freed memory to the system: work that reuses it would not raise the peak."""
    with suppress(OSError, AttributeError):  # C libraries other than GNU's have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
