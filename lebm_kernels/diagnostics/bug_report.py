"""Facts for a bug report: versions, machine, how the library was built, environment variables."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

import lebm_kernels
from lebm_kernels.backends import native
from lebm_kernels.benchmarks.peak import compiler
from lebm_kernels.benchmarks.providers import NotAvailableError
from lebm_kernels.diagnostics.environment import describe, version

#: Further packages whose versions may matter: those that models, figures and command line use, and
#: the peers of the benchmarks.
_PACKAGES = (
    "numpy",
    "scipy",
    "matplotlib",
    "typer",
    "rich",
    "tqdm",
    "scikit-learn",
    "pykeops",
    "geomloss",
    "jax",
    "flash-sinkhorn",
)

#: Environment variables that affect the build, the choice of code, or the number of threads.
VARIABLES = (
    "LEBM_KERNELS_ISA",
    "LEBM_KERNELS_LIBRARY",
    "LEBM_KERNELS_NATIVE",
    "LEBM_KERNELS_CUDA",
    "TRITON_INTERPRET",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "MAX_JOBS",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "ATEN_CPU_CAPABILITY",
    "LD_PRELOAD",
    "PYTHONPATH",
)

#: Vector extensions that kernels use or might use, by their names in /proc/cpuinfo.
_FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd")


def report() -> dict[str, str]:
    """The facts by title, in display order; the table of backends is separate.

    Published timings use :func:`lebm_kernels.diagnostics.environment.describe`, which is shorter
    and contains no paths.
    """
    facts = describe()
    facts["processor"] = f"{facts['processor']}, {_usable_cores()} usable"
    facts["processor has"] = _processor_flags()
    facts["memory"] = _memory()
    facts["threads"] = f"{facts['threads']} (between operations: {torch.get_num_interop_threads()})"
    facts["PyTorch's build"] = _pytorch_build()
    facts["GPUs"] = _gpus()
    facts["driver"] = _driver()
    facts["packages"] = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    facts["package"] = str(Path(lebm_kernels.__file__).parent)
    facts["library"] = _library()
    facts |= {f"library's {title}": fact for title, fact in native.build_record().items()}
    facts["compilers here"] = _compilers()
    facts["environment"] = _environment()
    return facts


def _usable_cores() -> int:
    """Number of cores this process may use; a container or batch system may limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor_flags() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return "not known on this system"
    words: set[str] = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            words.update(value.split())
    return ", ".join(flag for flag in _FLAGS if flag in words) or (f"none of {', '.join(_FLAGS)}")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "not known on this system"
    return f"{size / 2**30:.1f} GiB"


def _pytorch_build() -> str:
    facts = [f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"]
    if torch.version.hip:
        facts.append(f"HIP {torch.version.hip}")
    facts.append(f"CPU capability {torch.backends.cpu.get_cpu_capability()}")
    facts.append(f"git {str(torch.version.git_version)[:12]}")
    return ", ".join(facts)


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none visible to PyTorch"
    cards = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return ", ".join(
        f"{card.name} (sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB, "
        f"{card.multi_processor_count} multiprocessors)"
        for card in cards
    )


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return _version_line(*command) or "none found (nvidia-smi is missing or fails)"


def _library() -> str:
    path = native.library()
    return f"{path}, {path.stat().st_size} bytes" if path.exists() else f"{path} is missing"


def _compilers() -> str:
    """The compilers that would build the extension now."""
    commands = [["nvcc"]]
    with suppress(NotAvailableError):
        commands.insert(0, compiler())
    lines = {
        " ".join([Path(program).name, *options]): _version_line(program, *options, "--version")
        for program, *options in commands
    }
    return ", ".join(f"{name}: {line}" for name, line in lines.items() if line) or "none found"


def _version_line(*command: str) -> str | None:
    """The first line of a program's output that contains a version; None if the program fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (line.strip() for line in done.stdout.splitlines())
    with_version = (line for line in lines if re.search(r"\d\.\d", line))
    return None if done.returncode else next(with_version, None)


def _environment() -> str:
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return ", ".join(f"{name}={value}" for name, value in found.items()) or (
        "none of the variables that matter is set"
    )
