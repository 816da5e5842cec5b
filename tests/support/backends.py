"""The backends under test: which can run, how one is selected, what a test's name calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lebm_kernels
from lebm_kernels.backends import _TABLE, BackendStatus, native
from support import emulated_cuda, on_gpu

KERNELS = tuple(
    row.name for row in lebm_kernels.backends() if "cpu" in row.devices and row.name != "reference"
)
"""What must run in every test: the tests' tensors are on the CPU."""

# The kernels of GPUs, as the CPU runs them; and on a GPU, where there is one. In the table of
# backends while selected.
STAND_INS: dict[str, Any] = {
    name: module
    for name, module in {"emulated_cuda": emulated_cuda, **on_gpu.STAND_INS}.items()
    if module.unavailable("cpu") is None
}
KERNELS += tuple(STAND_INS)


def status(name: str) -> BackendStatus:
    """The row of the table of backends."""
    return next(row for row in lebm_kernels.backends() if row.name == name)


def kernel_parameters() -> list[tuple[str, str | None]]:
    """The backends to test, the native one with each instruction set."""
    parameters: list[tuple[str, str | None]] = []
    for name in KERNELS:
        sets = native.instruction_sets() if name == "native" else [None]
        parameters += [(name, instruction_set) for instruction_set in sets]
    return parameters


EACH_ONCE = list({name: (name, best) for name, best in reversed(kernel_parameters())}.values())
"""Each backend with its best instruction set, for what instruction sets have no part in."""

BACKENDS = [*kernel_parameters(), ("reference", None)]
"""As a test is given them, whatever it calls the parameter."""


@contextmanager
def selected(name: str, instruction_set: str | None) -> Iterator[str]:
    """The backend's name, while that instruction set is in use."""
    if name in STAND_INS:
        _TABLE[name] = STAND_INS[name]
        try:
            yield name
        finally:
            del _TABLE[name]
        return
    if instruction_set is None:
        yield name
        return
    native.force_instruction_set(instruction_set)
    try:
        yield name
    finally:
        native.force_instruction_set(None)


def identify(parameter: tuple[str, str | None]) -> str:
    """Such a parameter in a test's name."""
    return "-".join(filter(None, parameter))
