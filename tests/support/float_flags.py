"""Whether a call computes with subnormal numbers, as the processor's sticky flags tell."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from lebm_kernels.benchmarks.peak import compiled, compiler
from lebm_kernels.benchmarks.providers import NotAvailableError

_SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def library() -> ctypes.CDLL:
    """``float_flags.cpp``; skips the test where there is no compiler, or no x86 processor."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"MXCSR is a register of x86, not of {platform.machine()}")
    try:
        compiler()
    except NotAvailableError as error:
        pytest.skip(str(error))
    loaded = compiled(_SOURCE)
    loaded.product.argtypes = [ctypes.c_float, ctypes.c_float]
    loaded.product.restype = ctypes.c_float
    return loaded


def subnormal(call: Callable[[], object]) -> str:
    """What of the call's arithmetic was subnormal: "", "operand", "result" or "operand, result".

    The call runs on the calling thread alone, since each thread has flags of its own.
    """
    flags = library()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert flags.clear_flags(), "subnormal numbers are flushed to zero on this thread"
        call()
        found = flags.subnormal_flags()
    finally:
        torch.set_num_threads(threads)
    return ("", "operand", "result", "operand, result")[found]
