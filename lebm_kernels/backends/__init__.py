"""The ordered table of backends, and the choice among them.

Adding a backend is its kernels, its module (see :mod:`lebm_kernels.backends.contract`) and one line
in ``_TABLE``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch

from lebm_kernels.backends import chunked, native, reference, triton
from lebm_kernels.backends.hindrances import announce_fallback

# In order of preference: ``backend=None`` takes the first that can run.
_TABLE: dict[str, ModuleType] = {
    "native": native,
    "triton": triton,
    "chunked": chunked,
    "reference": reference,
}


@dataclass(frozen=True)
class BackendStatus:
    """One row of the table of backends.

    Attributes:
        name: what ``backend=`` takes.
        devices: the device types it can run on here.
        reason: how it runs, or why it cannot.
    """

    name: str
    devices: tuple[str, ...]
    reason: str

    @property
    def available(self) -> bool:
        """Whether it can run on any device of this machine."""
        return bool(self.devices)


class BackendTable(tuple[BackendStatus, ...]):
    """The backends in order of preference; prints as a table."""

    def __str__(self) -> str:
        rows = [("backend", "runs on", "")]
        rows += [(s.name, ", ".join(s.devices) or "-", s.reason) for s in self]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = (f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)
        return "\n".join(lines)

    __repr__ = __str__


def module(name: str) -> ModuleType:
    """The backend of that name."""
    return _TABLE[name]


def _device_types() -> Iterator[str]:
    yield "cpu"
    if torch.cuda.is_available():
        yield "cuda"


def backends() -> BackendTable:
    """What can run on this machine and, for each backend that cannot, why.

    Example:
        >>> "chunked" in [status.name for status in backends() if status.available]
        True
    """
    statuses = []
    for name, backend in _TABLE.items():
        why = {device: backend.unavailable(device) for device in _device_types()}
        able = tuple(device for device, reason in why.items() if reason is None)
        reason = backend.describe() if able else next(iter(why.values()))
        statuses.append(BackendStatus(name, able, reason or ""))
    return BackendTable(statuses)


def preferred(device: str) -> str:
    """The backend that ``backend=None`` takes on that device type: the first that can run."""
    for name, backend in _TABLE.items():
        if backend.unavailable(device) is None:
            return name
    raise AssertionError("chunked runs on every device")


def _announce_if_slow(chosen: str, device: str) -> None:
    """Warn, once, where only a slow backend can run; the warning says why."""
    if chosen == "chunked":
        before = list(_TABLE)[: list(_TABLE).index(chosen)]
        reasons = [f"{name}: {_TABLE[name].unavailable(device)}" for name in before]
        announce_fallback(chosen, device, "; ".join(reasons))


def choose(backend: str | None, device: str) -> str:
    """The backend to run on that device type: the named one, or the first that can.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: no backend has that name.
        RuntimeError: the named backend cannot run there; the message says why.
    """
    if backend is None:
        chosen = preferred(device)
        _announce_if_slow(chosen, device)
        return chosen
    if not isinstance(backend, str):
        raise TypeError(
            f"backend must be None or one of {', '.join(_TABLE)}, got {type(backend).__name__}"
        )
    if backend not in _TABLE:
        raise ValueError(f"backend must be None or one of {', '.join(_TABLE)}, got {backend!r}")
    reason = _TABLE[backend].unavailable(device)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run on {device}: {reason}")
    return backend
