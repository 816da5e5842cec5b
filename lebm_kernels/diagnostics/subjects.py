"""What can be checked here: every backend on each of its devices and instruction sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import lebm_kernels
from lebm_kernels.backends import native


@dataclass(frozen=True)
class Subject:
    """A backend on a device, with an instruction set if the backend has several.

    Attributes:
        backend: its name.
        instruction_set: of ``native`` on CPUs; None for the one in use.
        device: where its tensors live.
    """

    backend: str
    instruction_set: str | None = None
    device: str = "cpu"

    def __str__(self) -> str:
        """``native-avx2``, ``chunked``, ``triton-cuda``."""
        device = None if self.device == "cpu" else self.device
        return "-".join(filter(None, (self.backend, self.instruction_set, device)))


def subjects(backends: Sequence[str] | None = None) -> list[Subject]:
    """Every backend that can run here, on each of its devices and instruction sets.

    Args:
        backends: only these, by name. One that cannot run is included, and fails its checks.
    """
    found = []
    known = {row.name: row for row in lebm_kernels.backends()}
    names = [n for n, row in known.items() if row.available] if backends is None else backends
    for name in names:
        devices = known[name].devices if name in known and known[name].available else ("cpu",)
        for device in devices:
            sets: list[str | None] = [None]
            if name == "native" and device == "cpu" and "cpu" in known[name].devices:
                sets = [*native.instruction_sets()]
            found += [Subject(name, instruction_set, device) for instruction_set in sets]
    return found


@contextmanager
def selected(subject: Subject) -> Iterator[Callable[..., Tensor]]:
    """The free energy by that backend, while its instruction set is in use."""
    function = partial(lebm_kernels.free_energy, backend=subject.backend)
    if subject.instruction_set is None:
        yield function
        return
    native.force_instruction_set(subject.instruction_set)
    try:
        yield function
    finally:
        native.force_instruction_set(None)
