"""Descent, by each method, against closed forms; and that rows are problems of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lebm_kernels.models.descent import METHODS, descend

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def _quadratics(num: int, dim: int):
    """Rows 1/2 (p - c)' A (p - c) + e with A of eigenvalues 1 to 30: function, minima, values."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(num, dim, dim, generator=generator).double()).Q
    matrix = basis @ torch.diag(torch.logspace(0, 1.5, dim)).double() @ basis.mT
    centre = torch.randn(num, dim, generator=generator).double()
    least = torch.rand(num, generator=generator).double()

    def function(point: Tensor, rows: Tensor) -> Tensor:
        offset = (point - centre[rows]).unsqueeze(-1)
        return (offset.mT @ matrix[rows] @ offset).flatten() / 2 + least[rows]

    return function, centre, least


@EVERY_METHOD
@pytest.mark.parametrize("dim", [1, 3])
def test_quadratics_end_at_their_centres(method: str, dim: int) -> None:
    function, centre, least = _quadratics(7, dim)
    start = torch.full((7, dim), 3.0, dtype=torch.float64)
    found = descend(function, start, method=method)
    assert found.converged.all()
    # The slope bounds the distance, as no eigenvalue is below 1.
    torch.testing.assert_close(found.point, centre, rtol=0, atol=math.sqrt(dim) * 16 * 1.5e-8)
    torch.testing.assert_close(found.value, least, rtol=0, atol=1e-12)
    assert (start == 3.0).all()


@EVERY_METHOD
def test_rosenbrocks_valley(method: str) -> None:
    def function(point: Tensor, rows: Tensor) -> Tensor:
        a, b = point.unbind(-1)
        return (1 - a).square() + 100 * (b - a.square()).square()

    start = torch.tensor([[-1.2, 1.0], [2.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    found = descend(function, start, method=method, max_steps=1000)
    assert found.converged.all()
    torch.testing.assert_close(found.point, torch.ones_like(start), rtol=0, atol=1e-6)


@EVERY_METHOD
def test_a_row_ends_where_it_ends_alone(method: str) -> None:
    # Minima of cos at pi and 3 pi, of different steepness, some rows flat at their start.
    steepness = torch.tensor([0.1, 1.0, 50.0, 1.0, 7.0], dtype=torch.float64)
    start = torch.tensor([0.1, 2.0, 3.0, 7.0, 0.0], dtype=torch.float64)

    def function(point: Tensor, rows: Tensor) -> Tensor:
        return steepness[rows] * (1 + point.cos())

    together = descend(function, start, method=method)
    assert together.converged.all()
    assert together.point[-1] == 0.0  # a maximum is stationary too
    for i in range(5):
        rows = torch.tensor([i])
        alone = descend(lambda p, _, rows=rows: function(p, rows), start[rows], method=method)
        assert torch.equal(alone.point, together.point[rows])


@EVERY_METHOD
def test_not_a_number_stays_in_its_row(method: str) -> None:
    function, centre, _ = _quadratics(3, 2)
    start = torch.zeros(3, 2, dtype=torch.float64)
    start[1, 0] = math.nan
    found = descend(function, start, method=method)
    assert found.converged.tolist() == [True, False, True]
    assert found.value[1].isnan()
    torch.testing.assert_close(found.point[::2], centre[::2], rtol=0, atol=1e-6)


@EVERY_METHOD
def test_steps_are_bounded_and_the_tolerance_is_kept(method: str) -> None:
    function, centre, _ = _quadratics(4, 3)
    start = torch.full((4, 3), 3.0, dtype=torch.float64)
    none = descend(function, start, method=method, max_steps=0)
    assert torch.equal(none.point, start)
    assert not none.converged.any()
    assert not descend(function, start, method=method, max_steps=1).converged.any()
    loose = descend(function, start, method=method, tol=0.5)
    assert loose.converged.all()
    assert (loose.slope <= 0.5 * loose.value.clamp(min=1.0)).all()
    # And no further than that: some row has a slope that the default would not take.
    assert loose.slope.max() > 1e-6
    assert (centre - loose.point).abs().max() > 1e-6


@EVERY_METHOD
def test_other_gradients_are_left_alone(method: str) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    weight.grad = torch.tensor(5.0)
    start = torch.ones(2, requires_grad=True)
    with torch.no_grad():  # the descent needs no leave of its surroundings
        found = descend(lambda point, rows: weight * point.square(), start, method=method)
    assert weight.grad == 5.0
    assert start.grad is None
    assert not any(x.requires_grad for x in found)


def test_secant_steps_are_few() -> None:
    y = torch.linspace(0.2, 3.0, 50, dtype=torch.float64)

    def function(z: Tensor, rows: Tensor) -> Tensor:
        return (y[rows] - 2 * z.cos()).square() + (0.3 - 1.5 * z.sin()).square()

    start = torch.full_like(y, 0.7)
    assert descend(function, start, max_steps=30, tol=1e-9).converged.all()


def test_projected_descent_ends_at_the_nearest_allowed_point() -> None:
    # Least |p - c|^2 with p >= 0: the positive part of c, component by component.
    centre = torch.tensor([[1.0, -2.0], [-1.0, -1.0], [3.0, 0.5]], dtype=torch.float64)
    found = descend(
        lambda point, rows: (point - centre[rows]).square() @ torch.tensor([1.0, 9.0]).double(),
        torch.full((3, 2), -4.0, dtype=torch.float64),
        project=lambda point, rows: point.clamp(min=0.0),
    )
    assert found.converged.all()
    torch.testing.assert_close(found.point, centre.clamp(min=0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": torch.zeros(2, dtype=torch.int64)}, TypeError, r"start must .* torch\.int64"),
        ({"start": 1.0}, TypeError, "start must be a floating-point tensor, got float"),
        ({"start": torch.zeros(())}, ValueError, r"start must have shape \[M, ...\], got \[\]"),
        ({"method": "newton"}, ValueError, "method must be one of gradient, cg, lbfgs, got 'new"),
        ({"max_steps": -1}, ValueError, "max_steps must be an integer of at least 0, got -1"),
        ({"max_steps": 1.5}, ValueError, "max_steps must be an integer"),
        ({"tol": math.nan}, ValueError, "tol must be at least 0 and finite, got nan"),
        (
            {"method": "cg", "project": lambda point, rows: point},
            ValueError,
            "project must be absent with method 'cg'",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        descend(lambda point, rows: point.square(), **{"start": torch.zeros(2), **arguments})
