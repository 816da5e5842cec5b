"""Facts about the machine and the software, for bug reports and published timings."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import lebm_kernels


def version(distribution: str) -> str:
    """The version of an installed package, or ``not installed``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's model name; on most Linux systems :func:`platform.processor` is empty."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _accelerators() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def _instruction_sets() -> tuple[str, str]:
    """The instruction set in use by the native backend, and all those that could be used here."""
    status = next(row for row in lebm_kernels.backends() if row.name == "native")
    if "cpu" not in status.devices:
        return "none: the native backend cannot run", "-"
    from lebm_kernels.backends import native

    return native.instruction_set(), ", ".join(native.instruction_sets())


def summary(facts: Mapping[str, str]) -> str:
    """The facts of :func:`describe` that a table of timings needs, in one line."""
    return (
        f"{facts['processor']}, {facts['instruction set in use']}, {facts['threads']} threads, "
        f"PyTorch {facts['PyTorch']}"
    )


def describe() -> dict[str, str]:
    """The facts by title, in display order; the table of backends is separate."""
    in_use, available = _instruction_sets()
    return {
        "lebm_kernels": lebm_kernels.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "PyTorch": str(torch.__version__),
        "Triton": version("triton"),
        "system": platform.platform(),
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "instruction set in use": in_use,
        "instruction sets here": available,
        "threads": str(torch.get_num_threads()),
        "GPUs": _accelerators(),
    }
