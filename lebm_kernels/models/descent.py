"""Minimisation by descent of many independent problems, one per row.

``function(point[m, ...], rows[m]) -> value[m]`` evaluates some of the rows: ``rows`` holds their
indices. Each value depends only on its own row of ``point``, so the result of a row does not depend
on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lebm_kernels.checks import (
    check_callable,
    check_count,
    check_floating,
    check_not_negative,
    shown,
)
from lebm_kernels.extras import needs

Function = Callable[[Tensor, Tensor], Tensor]
Projection = Callable[[Tensor, Tensor], Tensor]

_ARMIJO = 1e-4
"""Armijo's rule: a step must bring this fraction of the decrease that the gradient predicts."""

_GROWTH = 10.0
"""A step is at most this many times the previous one, as a long one may end in another basin."""


class Descent(NamedTuple):
    """The ends of the descents, detached from autograd.

    Attributes:
        point: the end of each row, ``[M, ...]``.
        value: the function at ``point``, ``[M]``.
        slope: the largest absolute component of the gradient at ``point``, ``[M]``; of the
            projected gradient if there is a projection.
        converged: whether ``slope`` is within the tolerance, ``[M]``, boolean.
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
    """Descend from ``start`` to the minimum of its basin, for each row.

    Args:
        function: see the module; differentiable in ``point``. Other tensors that it depends on
            accumulate no gradients.
        start: first points, ``[M, ...]``, floating point.
        method: ``"gradient"`` is gradient descent on all rows at once, with the step lengths of
            Barzilai and Borwein (1988; in one dimension the secant method), shortened until the
            value falls. ``"cg"`` is SciPy's nonlinear conjugate gradients. ``"lbfgs"`` is PyTorch's
            L-BFGS with a strong Wolfe line search. The last two process one row after another.
        max_steps: evaluations (``"gradient"``) or iterations (the others) per row, at least 0.
        tol: a row has converged if no component of its gradient exceeds ``tol`` times
            max(1, abs(value)). The default is 16 times the square root of the dtype's eps: below
            that, rounding hides the differences of values.
        project: ``project(point[m, ...], rows[m])`` returns the nearest allowed points;
            ``"gradient"`` only.

    Raises:
        TypeError: ``start`` is not a floating-point tensor.
        ValueError: ``method``, ``max_steps`` or ``tol`` is out of range, ``start`` has no
            dimension, or ``project`` is given with another method than ``"gradient"``.
    """
    check_floating("start", start)
    if start.dim() == 0:
        raise ValueError("start must have shape [M, ...], got []")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {shown(method)}")
    check_callable("function", function, "a function of points and rows")
    check_count("max_steps", max_steps, 0)
    if tol is not None:
        check_not_negative("tol", tol)
        tol = float(tol)
    if project is not None:
        check_callable("project", project, "None or a function of points and rows")
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
    """The values ``[m]`` and their gradients in the points, ``[m, ...]``."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = function(leaf, rows)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def _largest(gradient: Tensor) -> Tensor:
    """The largest absolute component of each row, ``[m]``; NaN if the row has a NaN."""
    return gradient.flatten(1).abs().amax(1) if gradient.dim() > 1 else gradient.abs()


def _per_row(factor: Tensor, point: Tensor) -> Tensor:
    """Factors ``[m]`` in the shape that multiplies points ``[m, ...]``."""
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
    # PyTorch's own gradient descent has one rate for all rows; no rate suits every curvature.
    info = torch.finfo(point.dtype)
    slope = _largest(gradient)
    step = 0.01 * _largest(point).clamp(min=1.0) / slope.clamp(min=info.tiny)
    rows = (value.isfinite() & slope.isfinite()).nonzero().squeeze(1)
    for evaluations in range(max_steps + 1):
        length, old_gradient = step[rows], gradient[rows]
        candidate = point[rows] - _per_row(length, old_gradient) * old_gradient
        if project is not None:
            candidate = project(candidate, rows)
        move = candidate - point[rows]
        slope[rows] = _largest(old_gradient) if project is None else _largest(move) / length
        # A row also ends if its step is too short to move the point.
        active = (slope[rows] > _bound(tol, value[rows])) & (_largest(move) > 0)
        rows, length, old_gradient = rows[active], length[active], old_gradient[active]
        candidate, move = candidate[active], move[active]
        if len(rows) == 0 or evaluations == max_steps:
            break
        new_value, new_gradient = _evaluate(function, candidate, rows)
        old_value = value[rows]
        lower = new_value <= old_value - _ARMIJO * _dot(move, move) / length
        # If rounding hides which value is lower, the step is accepted: the gradient is trusted.
        equal = (new_value - old_value).abs() <= 64.0 * info.eps * old_value.abs()
        accepted = lower | equal
        # The shorter of Barzilai and Borwein's two steps, because each step must lower the value.
        change = new_gradient - old_gradient
        curvature = _dot(move, change)
        secant = torch.where(curvature > 0, curvature / _dot(change, change), math.inf)
        step[rows] = torch.where(accepted, secant.minimum(_GROWTH * length), 0.25 * length)
        better = rows[accepted]
        point[better], value[better] = candidate[accepted], new_value[accepted]
        gradient[better] = new_gradient[accepted]
    return Descent(point, value, slope, slope <= _bound(tol, value))


def _by_cg(function: Function, start: Tensor, row: Tensor, tol: float, max_steps: int) -> Tensor:
    with needs("models"):
        from scipy.optimize import minimize

    def evaluate(flat: Any) -> tuple[float, object]:
        value, gradient = _evaluate(function, torch.from_numpy(flat).to(start).view_as(start), row)
        return value.item(), gradient.double().flatten().cpu().numpy()

    found = minimize(
        evaluate,
        start.double().flatten().cpu().numpy(),
        jac=True,
        method="CG",
        options={"gtol": tol, "maxiter": max_steps},
    )
    return torch.from_numpy(found.x).to(start).view_as(start)


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
"""The values of ``method``."""
