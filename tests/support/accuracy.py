"""Assertions that F and its gradients keep the promise on accuracy (diagnostics/promise.py)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lebm_kernels
from lebm_kernels import reference
from lebm_kernels.diagnostics import promise
from support.oracle import Array, exact, remembered, to_array

BETAS = (0.0, 1e-12, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e12, float("inf"))
"""From hot to cold."""


def assert_accurate(
    got: Tensor, y: Tensor, decoded: Tensor, beta: Any = 1.0, **options: Any
) -> None:
    """F = ``got`` of these arguments keeps the promise."""
    truth = exact(y, decoded, beta, **options)
    _assert_within(got, truth.free_energy, promise.allowed(truth.magnitude, got.dtype), "F")


def assert_gradients_accurate(
    got: dict[str, Tensor],
    arguments: dict[str, Tensor],
    grad: Tensor,
    of: Iterable[str] | None = None,
    beneath: dict[str, float] | None = None,
) -> None:
    """The gradients of sum(grad F), by name, keep the promise: those ``of`` arguments, or all.

    ``beneath`` has errors too small to count, by name, for problems whose posterior weights are
    below the range of the dtype.
    """
    names = tuple(arguments if of is None else of)
    truth = exact(**arguments, grad=grad, of=names)
    by_reference = _by_reference(arguments, grad)
    assert got.keys() == set(names)
    for name, found in got.items():
        assert found.dtype == arguments[name].dtype
        bound = promise.gradient_bound(
            truth.gradients[name],
            to_array(by_reference[name]),
            truth.gradient_magnitudes[name],
            truth.gradient_noises[name],
            found.dtype,
            truth.gradient_remnants[name] + (beneath or {}).get(name, 0.0),
        )
        _assert_within(found, truth.gradients[name], bound, f"gradient of {name}")


def check(backend: str, arguments: dict[str, Any]) -> Tensor:
    """F and its gradients by every argument keep the promise; returns F."""
    function = partial(lebm_kernels.free_energy, backend=backend)
    value = function(**arguments)
    assert_accurate(value, **arguments)
    grad = torch.randn_like(value)
    assert_gradients_accurate(gradients(function, arguments, grad), arguments, grad)
    return value


def gradients(function: Any, arguments: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The gradients of sum(grad F) by every argument, F = ``function(**arguments)``."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    found = torch.autograd.grad(function(**leaves), list(leaves.values()), grad)
    return dict(zip(leaves, found, strict=True))


def reference_free_energy(**arguments: Tensor) -> Tensor:
    """The formulas with autograd, computed in the dtype that F has."""
    wide = torch.float64 if arguments["y"].dtype == torch.float64 else torch.float32
    return reference.free_energy(**{name: x.to(wide) for name, x in arguments.items()})


@remembered
def _by_reference(arguments: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    return gradients(reference_free_energy, arguments, grad)


def _assert_within(got: Tensor, wanted: Array, bound: Array, what: str) -> None:
    assert got.shape == wanted.shape, f"{what} has shape {list(got.shape)}, not {wanted.shape}"
    found = to_array(got)
    error = np.abs(found - wanted)
    bad = ~(error <= bound)
    if bad.any():
        with np.errstate(all="ignore"):
            ratio = np.where(bad, np.nan_to_num(error / bound, nan=np.inf), 0)
        worst = np.unravel_index(ratio.argmax(), ratio.shape)
        raise AssertionError(
            f"{what} is wrong in {bad.sum()} of {bad.size} places; worst at "
            f"{[int(i) for i in worst]}: {float(found[worst])!r} for {float(wanted[worst])!r}, "
            f"{float(ratio[worst]):.3g} times what is allowed"
        )
