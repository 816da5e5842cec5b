"""The ordered table of backends, and the contract that each of them fulfils.

A backend is a module with three functions over one canonical :class:`Problem`:

``unavailable(device)``
    None where it can run on tensors of that device type, otherwise the reason as a sentence.
``rows(problem, want)``
    One pass over the pairs, queries outside: the free energy and whatever ``want`` asks beside it.
``columns(problem, grad, state, want)``
    One pass over the pairs, latents outside: the gradients of the latent-side arguments.

Adding a backend is its kernels, its module and one line in ``_TABLE``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

# In order of preference: ``backend=None`` takes the first that can run.
_TABLE = ("native", "triton", "chunked", "reference")
# Automatic choice never materialises queries x latents.
_AUTOMATIC = ("native", "triton", "chunked")


class Problem(NamedTuple):
    """The arguments in canonical form: three-dimensional, broadcast, float32 or float64.

    Broadcast dimensions have stride 0, so nothing here is larger than what the caller passed.

    Attributes:
        y: ``[B, M, D]``.
        decoded: ``[B, N, D]``.
        beta: ``[B, M]``.
        scale: ``[B, M, D]`` or None.
        log_weight: ``[B, N]`` or None; not normalised.
        latent_energy: ``[B, N]`` or None.
        tol: share of the sum that may be pruned; None for less than can be seen.
    """

    y: Tensor
    decoded: Tensor
    beta: Tensor
    scale: Tensor | None
    log_weight: Tensor | None
    latent_energy: Tensor | None
    tol: float | None


class RowWants(NamedTuple):
    """What a row pass computes beside the free energy; the rest stays None."""

    slope_y: bool = False
    slope_scale: bool = False
    slope_beta: bool = False
    mean: bool = False
    index: bool = False  # type: ignore[assignment]


class Rows(NamedTuple):
    """What a row pass returns.

    Attributes:
        free_energy: F, ``[B, M]``, the problem's dtype.
        state: ``[B, M, 3]``, float64: the reference energy m; the log-normaliser
            L = log sum_n w exp(-beta (E - m)) with normalised w; and F - m, which is -L/beta and
            its limit at beta = 0. Then p = w exp(-beta (E - m) - L), rebuilt where F, rounded,
            could not.
        slope_y: dF/dy, ``[B, M, D]``.
        slope_scale: dF/dscale, ``[B, M, D]``.
        slope_beta: dF/dbeta, ``[B, M]``; 0 at beta = inf, -Var_w(E)/2 at beta = 0.
        mean: sum_n p g, ``[B, M, D]``.
        index: argmin_n E, the first of equals, ``[B, M]``, int64.
    """

    free_energy: Tensor
    state: Tensor
    slope_y: Tensor | None = None
    slope_scale: Tensor | None = None
    slope_beta: Tensor | None = None
    mean: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]


class ColumnWants(NamedTuple):
    """Which latent-side gradients a column pass computes; the rest stays None."""

    decoded: bool = False
    log_weight: bool = False
    latent_energy: bool = False


class Columns(NamedTuple):
    """What a column pass returns, in the problem's dtype: ``[B, N, D]``, ``[B, N]``, ``[B, N]``."""

    decoded: Tensor | None = None
    log_weight: Tensor | None = None
    latent_energy: Tensor | None = None


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


def names() -> tuple[str, ...]:
    """The names that ``backend=`` takes."""
    return _TABLE


def module(name: str) -> ModuleType:
    """The backend's module, imported when first asked for."""
    return importlib.import_module(f"{__name__}.{name}")


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
    for name in _TABLE:
        why = {device: module(name).unavailable(device) for device in _device_types()}
        able = tuple(device for device, reason in why.items() if reason is None)
        reason = module(name).describe() if able else next(iter(why.values()))
        statuses.append(BackendStatus(name, able, reason or ""))
    return BackendTable(statuses)


def choose(backend: str | None, device: torch.device) -> str:
    """The backend to run on ``device``: the named one, or the first that can.

    Raises:
        ValueError: ``backend`` is no backend's name.
        RuntimeError: the named backend cannot run on ``device``; the message says why.
    """
    if backend is None:
        return next(name for name in _AUTOMATIC if module(name).unavailable(device.type) is None)
    if backend not in _TABLE:
        raise ValueError(f"backend must be None or one of {', '.join(_TABLE)}, got {backend!r}")
    reason = module(backend).unavailable(device.type)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run on {device.type}: {reason}")
    return backend
