"""Descent of a function of many rows, each row a problem of its own.

``function(point[m, ...], rows[m]) -> value[m]`` gives the values of some of the rows; each value
depends on its own row of ``point`` alone, and ``rows`` tells which they are. What a row ends at
does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import check_count, check_floating, check_not_negative
from lebm_kernels.extras import needs

Function = Callable[[Tensor, Tensor], Tensor]
Projection = Callable[[Tensor, Tensor], Tensor]

_ARMIJO = 1e-4
"""The share of the promised decrease that a step must bring."""

_GROWTH = 10.0
"""A step is at most so many times the one before: far leaps end in another basin."""


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        point: ``[M, ...]``, constants for autograd.
        value: the function there, ``[M]``.
        slope: the largest component of its gradient, ``[M]``; of the projected gradient where
            there is a projection.
        converged: whether the slope is within the tolerance, ``[M]``, boolean.
    """

    point: Tensor
    value: Tensor
    slope: Tensor
    converged: Tensor


def descend(
    function: Function,
    start: Tensor,
    *,
    method: str = "gradient",
    max_steps: int = 200,
    tol: float | None = None,
    project: Projection | None = None,
) -> Descent:
    """Descend from ``start`` to a minimum of its basin, row by row.

    Args:
        function: see the module; differentiable by ``point``. Gradients of anything else it
            depends on are left as they are.
        start: ``[M, ...]``, floating point.
        method: ``"gradient"``: gradient descent on all rows at once, with the step lengths of
            Barzilai and Borwein (in one dimension the secant method), shortened until the value
            falls. ``"cg"``: nonlinear conjugate gradients, SciPy's. ``"lbfgs"``: PyTorch's L-BFGS
            with a strong Wolfe search. The last two take one row after another.
        max_steps: evaluations (``"gradient"``) or iterations (the others) a row, at least 0.
        tol: a row has converged where no component of its gradient exceeds ``tol`` times
            max(1, abs(value)). 16 times the square root of the dtype's eps if absent: about what
            differences of values can tell.
        project: ``project(point[m, ...], rows[m])`` brings points to where they are allowed;
            ``"gradient"`` only.

    Raises:
        TypeError: ``start`` is not a floating-point tensor.
        ValueError: ``method``, ``max_steps`` or ``tol`` is out of range, ``start`` has no rows'
            dimension, or ``project`` is given to another method than ``"gradient"``.
    """
    check_floating("start", start)
    if start.dim() == 0:
        raise ValueError("start must have shape [M, ...], got []")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_count("max_steps", max_steps, 0)
    if tol is not None:
        check_not_negative("tol", tol)
    if project is not None and method != "gradient":
        raise ValueError(f"project must be absent with method {method!r}: only gradient takes it")
    point = start.detach().clone()
    rows = torch.arange(len(point), device=point.device)
    if project is not None:
        point = project(point, rows)
    value, gradient = _evaluate(function, point, rows)
    if tol is None:
        tol = 16.0 * math.sqrt(torch.finfo(point.dtype).eps)
    if method == "gradient":
        return _by_gradient(function, point, value, gradient, tol, max_steps, project)
    for row in rows.split(1):
        point[row] = _BY_ROW[method](function, point[row], row, tol, max_steps)
    value, gradient = _evaluate(function, point, rows)
    slope = _largest(gradient)
    return Descent(point, value, slope, slope <= _bound(tol, value))


def _bound(tol: float, value: Tensor) -> Tensor:
    """The slope below which a row has converged, ``[m]``."""
    return tol * value.abs().clamp(min=1.0)


def _evaluate(function: Function, point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The values ``[m]`` and their gradient by the point ``[m, ...]``; no others are touched."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = function(leaf, rows)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _largest(gradient: Tensor) -> Tensor:
    """The largest component of each row, ``[m]``; NaN where there is a NaN."""
    return gradient.flatten(1).abs().amax(1) if gradient.dim() > 1 else gradient.abs()


def _along(factor: Tensor, point: Tensor) -> Tensor:
    """A factor ``[m]`` a row, to multiply a point ``[m, ...]`` with."""
    return factor.reshape(-1, *(1 for _ in point.shape[1:]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1) if a.dim() > 1 else a * b


def _by_gradient(
    function: Function,
    point: Tensor,
    value: Tensor,
    gradient: Tensor,
    tol: float,
    max_steps: int,
    project: Projection | None,
) -> Descent:
    # PyTorch's own gradient descent has one rate for all rows, and none suits every curvature.
    info = torch.finfo(point.dtype)
    slope = _largest(gradient)
    step = 0.01 * _largest(point).clamp(min=1.0) / slope.clamp(min=info.tiny)
    rows = (value.isfinite() & slope.isfinite()).nonzero().squeeze(1)
    for turn in range(max_steps + 1):
        length, down = step[rows], gradient[rows]
        there = point[rows] - _along(length, down) * down
        if project is not None:
            there = project(there, rows)
        move = there - point[rows]
        slope[rows] = _largest(down) if project is None else _largest(move) / length
        # A step too short to move its point ends the row too.
        going = (slope[rows] > _bound(tol, value[rows])) & (_largest(move) > 0)
        rows, length, down = rows[going], length[going], down[going]
        there, move = there[going], move[going]
        if len(rows) == 0 or turn == max_steps:
            break
        found, up = _evaluate(function, there, rows)
        was = value[rows]
        lower = found <= was - _ARMIJO * _dot(move, move) / length
        # Where rounding hides which value is the lower, the gradient is trusted.
        level = (found - was).abs() <= 64.0 * info.eps * was.abs()
        accepted = lower | level
        # The shorter of Barzilai and Borwein's steps: a value that must fall suits it better.
        turned = up - down
        bend = _dot(move, turned)
        secant = torch.where(bend > 0, bend / _dot(turned, turned), math.inf)
        step[rows] = torch.where(accepted, secant.minimum(_GROWTH * length), 0.25 * length)
        better = rows[accepted]
        point[better], value[better] = there[accepted], found[accepted]
        gradient[better] = up[accepted]
    return Descent(point, value, slope, slope <= _bound(tol, value))


def _by_cg(function: Function, start: Tensor, row: Tensor, tol: float, max_steps: int) -> Tensor:
    with needs("models"):
        from scipy.optimize import minimize

    def evaluate(flat: object) -> tuple[float, object]:
        value, gradient = _evaluate(function, torch.as_tensor(flat).to(start).view_as(start), row)
        return value.item(), gradient.double().flatten().cpu().numpy()

    found = minimize(
        evaluate,
        start.double().flatten().cpu().numpy(),
        jac=True,
        method="CG",
        options={"gtol": tol, "maxiter": max_steps},
    )
    return torch.as_tensor(found.x).to(start).view_as(start)


def _by_lbfgs(function: Function, start: Tensor, row: Tensor, tol: float, max_steps: int) -> Tensor:
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=max_steps,
        tolerance_grad=tol,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> float:
        value, point.grad = _evaluate(function, point, row)
        return value.item()

    optimizer.step(evaluate)
    return point.detach()


_BY_ROW: dict[str, Callable[[Function, Tensor, Tensor, float, int], Tensor]] = {
    "cg": _by_cg,
    "lbfgs": _by_lbfgs,
}

METHODS = ("gradient", *_BY_ROW)
"""What ``method`` takes."""
