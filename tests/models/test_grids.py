"""Latent grids: points, weights, and what they make of a free energy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from lebm_kernels import free_energy
from lebm_kernels.models.grids import LatentGrid, interval_grid, periodic_grid


def test_default_is_the_circle_in_steps_of_pi_over_24_without_its_end() -> None:
    grid = periodic_grid(dtype=torch.float64)
    assert len(grid) == 48
    assert grid.log_weight is None
    np.testing.assert_allclose(grid.z.numpy(), [n * math.pi / 24 for n in range(48)], rtol=1e-15)


def test_float32_points_are_the_nearest_to_the_exact_ones() -> None:
    exact = np.arange(1000) * (3.0 / 1000)
    np.testing.assert_array_equal(
        periodic_grid(1000, period=3.0).z.numpy(), exact.astype(np.float32)
    )


def test_interval_weights_are_the_trapezoid_rule() -> None:
    grid = interval_grid(-1.0, 3.0, 9, dtype=torch.float64)
    assert grid.log_weight is not None
    np.testing.assert_allclose(grid.z.numpy(), np.linspace(-1.0, 3.0, 9), rtol=0, atol=1e-15)
    weight = grid.log_weight.exp().numpy()
    for f in (np.ones_like, np.exp, np.square):
        expected = np.trapezoid(f(grid.z.numpy()), grid.z.numpy()) / 4.0
        assert (weight * f(grid.z.numpy())).sum() / weight.sum() == pytest.approx(expected)


def test_free_energy_on_an_interval_converges_to_the_integral() -> None:
    y, beta = 0.3, 2.0
    integral, _ = quad(lambda z: math.exp(-beta * (y - z) ** 2), 0.0, 2.0)
    expected = -math.log(integral / 2.0) / beta
    grid = interval_grid(0.0, 2.0, 2001, dtype=torch.float64)
    query = torch.tensor([[y]], dtype=torch.float64)
    value = free_energy(query, grid.z.unsqueeze(1), beta, log_weight=grid.log_weight)
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: periodic_grid(0), "num"),
        (lambda: periodic_grid(2.5), "num"),  # type: ignore[arg-type]
        (lambda: periodic_grid(4, period=0.0), "period"),
        (lambda: interval_grid(0.0, 1.0, 1), "num"),
        (lambda: interval_grid(1.0, 1.0, 4), "low"),
        (lambda: interval_grid(0.0, math.inf, 4), "high"),
        (lambda: LatentGrid(torch.zeros(0)), "z"),
        (lambda: LatentGrid(torch.zeros(2, 2, 2)), "z"),
        (lambda: LatentGrid(torch.zeros(2, 0)), "z"),
        (lambda: LatentGrid(torch.zeros(3, 2), torch.zeros(3, 2)), "log_weight"),
        (lambda: LatentGrid(torch.zeros(3), torch.zeros(2)), "log_weight"),
    ],
)
def test_bad_values_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make()


def test_bad_types_are_named() -> None:
    with pytest.raises(TypeError, match="z must"):
        LatentGrid(torch.arange(3))
    with pytest.raises(TypeError, match="log_weight must"):
        LatentGrid(torch.zeros(3), torch.arange(3))
