"""Inference against closed forms: nearest points of circles and ellipses, SciPy's roots, sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from torch import Tensor

from lebm_kernels.models import Ellipse, Horn, LatentModel
from lebm_kernels.models.descent import METHODS
from lebm_kernels.models.grids import LatentGrid, interval_grid, periodic_grid
from lebm_kernels.models.inference import denoise, infer, infer_on_grid, sample

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ellipse(radii: tuple[float, float], num: int = 48) -> Ellipse:
    grid = periodic_grid(num, dtype=torch.float64)
    return Ellipse(grid, radii=torch.tensor(radii, dtype=torch.float64))


def _critical(y, radii) -> np.ndarray:
    """E at the four points, some of them real, where it is stationary on an ellipse.

    With w = exp(iz), dE/dz = 0 is a quartic in w. Angles of complex roots are points of the
    ellipse too, so that the least of the four is the least of E.
    """
    (p, q), (a, b) = y, radii
    bend = b * b - a * a
    w = np.roots([bend, 2 * (a * p - 1j * b * q), 0, -2 * (a * p + 1j * b * q), -bend])
    z = np.angle(w)
    return (p - a * np.cos(z)) ** 2 + (q - b * np.sin(z)) ** 2


def _least(y: Tensor, radii: Tensor) -> Tensor:
    """Squared distances of ``y[M, 2]`` from ellipses of radii ``[M, 2]``."""
    pairs = zip(y.tolist(), radii.expand_as(y).tolist(), strict=True)
    return torch.tensor([_critical(*pair).min() for pair in pairs], dtype=torch.float64)


def _slope(y: Tensor, radii: Tensor, z: Tensor) -> Tensor:
    """dE/dz by hand."""
    (p, q), (a, b), c, s = y.unbind(-1), radii.unbind(-1), z.cos(), z.sin()
    return 2 * (p - a * c) * a * s - 2 * (q - b * s) * b * c


@EVERY_METHOD
@pytest.mark.parametrize("start", [None, 0.5, -40.0])
def test_nearest_point_of_a_circle(method: str, start: float | None) -> None:
    y = 2 * torch.randn(9, 2, generator=_generator()).double()
    found = infer(_ellipse((1.5, 1.5)), y, start=start, method=method)
    assert found.converged.all()
    assert not found.local.any()
    distance = y.norm(dim=1)
    torch.testing.assert_close(found.energy, (distance - 1.5).square())
    torch.testing.assert_close(found.y, 1.5 * y / distance[:, None], rtol=0, atol=1e-6)
    turns = (found.z - torch.atan2(y[:, 1], y[:, 0])) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-6)


@EVERY_METHOD
def test_nearest_point_of_an_ellipse_is_scipys_root(method: str) -> None:
    # In the first quadrant the nearest point is the only root there.
    y = 0.1 + 3 * torch.rand(9, 2, generator=_generator()).double()
    radii = torch.tensor([2.0, 1.2], dtype=torch.float64)
    root = [
        brentq(lambda z, row=row: _slope(row, radii, y.new_tensor(z)).item(), 0.0, math.pi / 2)
        for row in y
    ]
    found = infer(_ellipse((2.0, 1.2)), y, method=method)
    assert found.converged.all()
    assert not found.local.any()
    # Between grid points, so that the grid alone would not do.
    turned = found.z.remainder(2 * math.pi)
    torch.testing.assert_close(turned, turned.new_tensor(root), rtol=0, atol=2e-6)
    torch.testing.assert_close(found.energy, _least(y, radii), rtol=1e-9, atol=1e-12)


@EVERY_METHOD
def test_a_start_in_the_wrong_basin_is_reported(method: str) -> None:
    # Below the top of a flat ellipse: the bottom is a minimum too, (0.5 + 0.2)^2 against 0.3^2.
    y = torch.tensor([[0.0, 0.2], [0.0, 0.2], [0.0, -0.2]], dtype=torch.float64)
    top = math.pi / 2
    start = torch.tensor([-top + 0.1, top + 0.1, -top + 0.1], dtype=torch.float64)
    found = infer(_ellipse((2.0, 0.5)), y, start=start, method=method)
    assert found.converged.all()
    assert found.local.tolist() == [True, False, False]
    wanted = torch.tensor([0.49, 0.09, 0.09], dtype=torch.float64)
    torch.testing.assert_close(found.energy, wanted, rtol=0, atol=1e-12)
    ends = torch.tensor([-top, top, -top], dtype=torch.float64)
    torch.testing.assert_close(found.z, ends, rtol=0, atol=1e-6)


def test_a_minimum_on_a_grid_point_is_not_taken_for_local_in_float32() -> None:
    # The grid holds the exact minimum, and a descent ends as near to it as its tolerance.
    model = Ellipse(periodic_grid(48), radii=torch.tensor([2.0, 1.5]))
    y = model.manifold().detach() * torch.rand(48, 1, generator=_generator()).add(0.5)
    nearest = infer_on_grid(model, y)
    for method in METHODS:
        found = infer(model, y, start=nearest.z + 0.05, method=method)
        assert not found.local.any()
        assert (found.energy <= nearest.energy + 1e-5).all()


@EVERY_METHOD
def test_each_observation_of_a_horn_has_its_own_ellipse(method: str) -> None:
    model = Horn(periodic_grid(dtype=torch.float64), generator=_generator(1)).double()
    x = torch.rand(9, generator=_generator(2)).double()
    y = torch.randn(9, 2, generator=_generator(3)).double()
    found = infer(model, y, x, method=method)
    radii = model.scale(x).detach()
    assert found.converged.all()
    torch.testing.assert_close(found.energy, _least(y, radii), rtol=1e-9, atol=1e-12)
    one = infer(model, y, x[0], method=method)
    torch.testing.assert_close(one.energy, _least(y, radii[0]), rtol=1e-9, atol=1e-12)
    assert not any(tensor.requires_grad for tensor in (*found, *one))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_steps_the_start_stays_and_is_told() -> None:
    y = torch.tensor([[0.3, 2.0]]).double()
    found = infer(_ellipse((2.0, 1.5)), y, start=0.0, max_steps=0)
    assert found.z.item() == 0.0
    assert found.y.tolist() == [[2.0, 0.0]]
    assert not found.converged


@EVERY_METHOD
def test_not_a_number_stays_in_its_row(method: str) -> None:
    y = torch.tensor([[3.0, 0.0], [math.nan, 0.0], [0.0, 3.0]]).double()
    found = infer(_ellipse((2.0, 1.0)), y, start=0.4, method=method)
    assert found.converged.tolist() == [True, False, True]
    torch.testing.assert_close(found.energy[::2], torch.tensor([1.0, 4.0]).double())
    assert found.energy[1].isnan()


def test_on_the_grid_not_a_number_has_not_converged() -> None:
    y = torch.randn(3, 2)
    y[1] = math.nan
    found = infer_on_grid(Ellipse(radii=torch.tensor([2.0, 1.5])), y)
    assert found.converged.tolist() == [True, False, True]
    assert found.energy.isnan().tolist() == [False, True, False]


def test_of_no_observations_nothing_is_inferred() -> None:
    found = infer(Ellipse(radii=torch.tensor([2.0, 1.5])), torch.randn(0, 2))
    assert [len(x) for x in found] == [0] * 5


def test_on_the_grid_the_search_is_exhaustive() -> None:
    model = Ellipse(interval_grid(-1.0, 2.0, 17), radii=torch.tensor([2.0, 1.5]))
    y = 2 * torch.randn(25, 2, generator=_generator())
    z = np.linspace(-1.0, 2.0, 17)
    points = np.stack([2 * np.cos(z), 1.5 * np.sin(z)], axis=-1)
    energy = ((y.double().numpy()[:, None] - points) ** 2).sum(-1)
    found = infer_on_grid(model, y)
    np.testing.assert_allclose(found.z, z[energy.argmin(1)], atol=1e-6)
    np.testing.assert_allclose(found.y, points[energy.argmin(1)], atol=1e-6)
    np.testing.assert_allclose(found.energy, energy.min(1), rtol=1e-5, atol=1e-6)
    assert found.converged.all()
    assert not found.local.any()


def _grids() -> st.SearchStrategy[LatentGrid]:
    num = st.integers(8, 200)
    circle = num.map(lambda n: periodic_grid(n, dtype=torch.float64))
    arc = num.map(lambda n: interval_grid(-2.0, 4.5, n, dtype=torch.float64))
    return st.one_of(circle, arc)


@given(
    grid=_grids(),
    radii=st.one_of(st.none(), st.tuples(st.floats(0.2, 4.0), st.floats(0.2, 4.0))),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_inference_whatever_the_model_the_grid_and_the_start(
    grid: LatentGrid, radii: tuple[float, float] | None, seed: int
) -> None:
    generator = _generator(seed)
    y = 3 * torch.randn(8, 2, generator=generator).double()
    start = 2 * math.pi * torch.rand(8, generator=generator).double()
    model: LatentModel
    if radii is None:  # a horn's, whatever its network predicts
        model, x = Horn(grid, generator=generator).double(), torch.rand(8, generator=generator)
        x = x.double()
    else:
        model, x = Ellipse(grid, radii=torch.tensor(radii, dtype=torch.float64)), None
    scale = model.scale(x).detach().expand(8, 2)
    # What the grid has by hand, and what there is at best.
    points = scale[:, None] * torch.stack([grid.z.cos(), grid.z.sin()], dim=-1)
    searched = (y[:, None] - points).square().sum(-1).amin(1)
    least = _least(y, scale)
    for first in (start, None):
        found = infer(model, y, x, start=first)
        assert found.converged.all()
        bound = 16 * 2**-26 * found.energy.clamp(min=1.0)
        assert (_slope(y, scale, found.z).abs() <= 1.01 * bound).all()
        torch.testing.assert_close(found.y, scale * torch.stack([found.z.cos(), found.z.sin()], -1))
        assert (found.energy >= least - 1e-9).all()
        assert (found.energy[found.local] > least[found.local]).all()
        # Whoever has less energy than the grid, or as much, is not accused; much more is.
        assert not found.local[found.energy <= searched].any()
        assert found.local[found.energy > searched + 1e-4].all()
        if first is None:
            assert (found.energy <= searched + 1e-9).all()


@EVERY_METHOD
def test_cold_denoising_ends_on_the_nearest_decoded_point(method: str) -> None:
    model = _ellipse((2.0, 1.5))
    y = 2 * torch.randn(9, 2, generator=_generator()).double()
    points = model.manifold().detach()
    found = denoise(model, y, method=method)
    assert found.converged.all()
    nearest = points[torch.cdist(y, points).argmin(1)]
    torch.testing.assert_close(found.y, nearest, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.free_energy, torch.zeros(9).double(), rtol=0, atol=1e-12)


def _free_energy(y: np.ndarray, points: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """F of one observation and its gradient, 2 (y - sum_n p g), by NumPy."""
    energy = ((y - points) ** 2).sum(-1)
    mass = np.exp(-beta * (energy - energy.min()))
    value = energy.min() - np.log(mass.mean()) / beta
    return value, 2 * (y - mass @ points / mass.sum())


@EVERY_METHOD
@pytest.mark.parametrize("conditional", [False, True])
def test_warm_denoising_ends_where_scipy_does(method: str, conditional: bool) -> None:
    y = 2 * torch.randn(6, 2, generator=_generator()).double()
    model: LatentModel = _ellipse((2.0, 1.5))
    x = None
    if conditional:
        model = Horn(periodic_grid(dtype=torch.float64), generator=_generator(1)).double()
        x = torch.rand(6, generator=_generator(2)).double()
    found = denoise(model, y, x, beta=3.0, method=method)
    assert found.converged.all()
    points = model.manifold(x).detach().expand(6, 48, 2).numpy()
    for i in range(6):
        value, slope = _free_energy(found.y[i].numpy(), points[i], 3.0)
        assert found.free_energy[i].item() == pytest.approx(value, rel=1e-9)
        assert np.abs(slope).max() <= 3e-7
        wanted = minimize(_free_energy, y[i].numpy(), (points[i], 3.0), jac=True, tol=1e-10)
        assert value == pytest.approx(wanted.fun, rel=1e-7)


def test_few_steps_of_denoising_take_out_a_part() -> None:
    model = _ellipse((2.0, 1.5))
    y = model.manifold().detach() + 0.2 * torch.randn(48, 2, generator=_generator()).double()
    little, much = denoise(model, y, beta=20.0, max_steps=2), denoise(model, y, beta=20.0)
    before = model.free_energy(y, beta=20.0)
    assert (little.free_energy <= before).all()
    assert (much.free_energy <= little.free_energy + 1e-12).all()
    assert not little.converged.all()


def test_draws_are_of_the_posterior() -> None:
    model = _ellipse((2.0, 1.5))
    y = torch.tensor([[1.0, 0.5], [-2.5, 0.1]]).double()
    num = 20_000
    drawn = sample(model, y, num_samples=num, beta=1.5, generator=_generator())
    assert drawn.z.shape == (2, num)
    torch.testing.assert_close(
        drawn.y, torch.stack([2.0 * drawn.z.cos(), 1.5 * drawn.z.sin()], dim=-1)
    )
    points = model.manifold().detach()
    mass = torch.softmax(-1.5 * (y[:, None] - points).square().sum(-1), dim=1)
    mean = mass @ points
    deviation = (mass @ points.square() - mean.square()).sqrt() / math.sqrt(num)
    assert ((drawn.y.mean(1) - mean).abs() < 5 * deviation).all()
    again = sample(model, y, num_samples=num, beta=1.5, generator=_generator())
    assert torch.equal(again.z, drawn.z)


def test_cold_draws_are_the_nearest_and_each_at_its_condition() -> None:
    model = Horn(periodic_grid(dtype=torch.float64), generator=_generator(1)).double()
    x = torch.rand(5, generator=_generator(2)).double()
    y = torch.randn(5, 2, generator=_generator(3)).double()
    drawn = sample(model, y, x, num_samples=3, beta=math.inf)
    points = model.manifold(x).detach()
    nearest = (y[:, None] - points).square().sum(-1).argmin(1)
    for i in range(5):
        torch.testing.assert_close(drawn.y[i], points[i, nearest[i]].expand(3, 2))
    assert sample(model, y, x, num_samples=0).y.shape == (5, 0, 2)


@pytest.mark.parametrize("call", [infer, infer_on_grid, denoise, sample])
def test_bad_input_is_named(call: Any) -> None:
    options = {"num_samples": 1} if call is sample else {}
    y = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"y must have shape \[M, D\], got \[2\]"):
        call(Ellipse(), y[0], **options)
    with pytest.raises(ValueError, match="x is missing: Horn"):
        call(Horn(), y, **options)
    with pytest.raises(ValueError, match=r"x must be absent as Ellipse .*got shape \[3\]"):
        call(Ellipse(), y, torch.zeros(3), **options)
    with pytest.raises(ValueError, match=r"x must broadcast to \[3\], got \[2\]"):
        call(Horn(), y, torch.zeros(2), **options)


def test_a_start_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"start must broadcast to \[3\], got \[2\]"):
        infer(Ellipse(), torch.zeros(3, 2), start=torch.zeros(2))
    with pytest.raises(ValueError, match="method must be one of"):
        infer(Ellipse(), torch.zeros(3, 2), method="newton")
