"""Grids of several dimensions and of other rules: what they integrate, and F under refinement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from scipy.stats import qmc

from lebm_kernels import free_energy
from lebm_kernels.models.decoders import circle
from lebm_kernels.models.grids import (
    LatentGrid,
    gauss_legendre_grid,
    interval_grid,
    periodic_grid,
    product_grid,
    sobol_grid,
)

DOUBLE = torch.float64


def _mean(grid: LatentGrid, f) -> float:
    """The average of f(points [N, K]) by the grid's weights."""
    return float((grid.log_measure.exp() * f(grid.points)).sum())


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 12),
    low=st.floats(-3, 2.9),
    length=st.floats(0.1, 3),
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=24),
)
def test_gauss_legendre_is_exact_below_degree_2_num(num, low, length, coefficients) -> None:
    coefficients = coefficients[: 2 * num]
    grid = gauss_legendre_grid(low, low + length, num, dtype=DOUBLE)
    polynomial = np.polynomial.Polynomial(coefficients, domain=[low, low + length])
    integral = polynomial.integ()
    expected = (integral(low + length) - integral(low)) / length
    found = _mean(grid, lambda z: torch.from_numpy(polynomial(z[:, 0].numpy())))
    assert found == pytest.approx(expected, abs=1e-12)


def test_gauss_legendre_is_not_exact_at_degree_2_num() -> None:
    grid = gauss_legendre_grid(-1.0, 1.0, 3, dtype=DOUBLE)
    assert _mean(grid, lambda z: z[:, 0] ** 5 + z[:, 0] ** 4) == pytest.approx(1 / 5, abs=1e-14)
    assert abs(_mean(grid, lambda z: z[:, 0] ** 6) - 1 / 7) > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 20),
    wave=st.integers(0, 19),
    phase=st.floats(0, 6),
)
def test_periodic_points_integrate_waves_below_their_number(num, wave, phase) -> None:
    grid = periodic_grid(num, dtype=DOUBLE)
    expected = math.cos(phase) if wave % num == 0 else 0.0
    found = _mean(grid, lambda z: torch.cos(wave * z[:, 0] + phase))
    assert found == pytest.approx(expected, abs=1e-13)


def test_product_runs_over_all_combinations_the_last_fastest() -> None:
    a, b, c = interval_grid(0, 1, 3), periodic_grid(4), gauss_legendre_grid(-1, 1, 2)
    grid = product_grid(a, product_grid(b, c))
    assert (len(grid), grid.dim) == (24, 3)
    for n in range(24):
        i, j, k = np.unravel_index(n, (3, 4, 2))
        assert grid.z[n].tolist() == [a.z[i].item(), b.z[j].item(), c.z[k].item()]
    expected = np.multiply.outer([0.25, 0.5, 0.25], np.full((4, 2), 0.125)).ravel()
    np.testing.assert_allclose(grid.log_measure.exp().numpy(), expected, rtol=1e-6)
    assert product_grid(b, b).log_weight is None
    assert product_grid(b).z.shape == (4, 1)


def test_free_energy_over_a_rectangle_is_the_integral() -> None:
    y, beta = (0.3, -0.4), 2.5

    def density(v: float, u: float) -> float:
        g = (u + 0.3 * math.sin(2 * v), v * u)
        return math.exp(-beta * ((y[0] - g[0]) ** 2 + (y[1] - g[1]) ** 2))

    integral, _ = dblquad(density, 0.0, 2.0, -1.0, 1.0, epsabs=1e-12)
    expected = -math.log(integral / 4.0) / beta
    query = torch.tensor([y], dtype=DOUBLE)

    def value(grid: LatentGrid) -> float:
        u, v = grid.z.unbind(1)
        decoded = torch.stack([u + 0.3 * torch.sin(2 * v), v * u], 1)
        return free_energy(query, decoded, beta, log_weight=grid.log_weight).item()

    gauss = [gauss_legendre_grid(low, high, 24, dtype=DOUBLE) for low, high in ((0, 2), (-1, 1))]
    assert value(product_grid(*gauss)) == pytest.approx(expected, rel=1e-11)
    trapezoid = [interval_grid(low, high, 401, dtype=DOUBLE) for low, high in ((0, 2), (-1, 1))]
    assert value(product_grid(*trapezoid)) == pytest.approx(expected, rel=1e-4)
    points = sobol_grid(2**14, 2, dtype=DOUBLE)
    z = points.z * torch.tensor([2.0, 2.0]) - torch.tensor([0.0, 1.0])
    assert value(LatentGrid(z)) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(48, 90),
    times=st.integers(2, 7),
    beta=st.floats(0.01, 6),
    y=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_free_energy_is_invariant_to_refinement(num, times, beta, y) -> None:
    query = torch.tensor([y], dtype=DOUBLE)
    coarse, fine = (
        free_energy(query, circle(periodic_grid(n, dtype=DOUBLE).z), beta)
        for n in (num, num * times)
    )
    # The trapezoid rule's error is that of the waves from num on: I_48(34) < 1e-8 of I_0(34).
    torch.testing.assert_close(coarse, fine, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 3])
def test_sobol_points_are_scipys(dim: int) -> None:
    found = sobol_grid(64, dim, low=-2.0, high=4.0, dtype=DOUBLE).z.numpy()
    expected = qmc.scale(qmc.Sobol(dim, scramble=False, bits=30).random(64), [-2.0] * dim, 4.0)
    # The order of the Gray code may differ, the points of a power of two may not.
    found, expected = (np.array(sorted(map(tuple, points))) for points in (found, expected))
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_scrambled_sobol_points_follow_the_seed_and_stay_inside() -> None:
    before = torch.get_rng_state()
    a, b, c = (sobol_grid(100, 5, low=1.0, high=2.0, seed=s).z for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert 1.0 <= a.min() < a.max() <= 2.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: gauss_legendre_grid(0.0, 1.0, 0), "num"),
        (lambda: gauss_legendre_grid(1.0, 0.0, 2), "low"),
        (lambda: sobol_grid(0, 2), "num"),
        (lambda: sobol_grid(4, 0), "dim"),
        (lambda: sobol_grid(4, 21202), "dim"),
        (lambda: sobol_grid(4, 2, low=1.0), "low"),
        (lambda: product_grid(), "grids"),
        (lambda: product_grid(periodic_grid(3), periodic_grid(3, dtype=DOUBLE)), "dtype"),
    ],
)
def test_bad_values_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make()
