"""Contrastive samples: their distributions, and the lowest points outside balls by closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kstest
from torch import Tensor

from lebm_kernels import functional
from lebm_kernels.models import CircleModel, Ellipse, Horn
from lebm_kernels.models.grids import periodic_grid
from lebm_kernels.training.negatives import (
    GaussianNoise,
    MostOffending,
    Negatives,
    UniformBox,
    outside_balls,
)

BOX = UniformBox(-4.0, 4.0)


class Circles(CircleModel):
    """A circle of radius x for each observation."""

    conditional = True

    def scale(self, x: Tensor | None = None) -> Tensor:
        assert x is not None
        return torch.stack([x, x], dim=-1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ellipse(*radii: float, num: int = 48) -> Ellipse:
    grid = periodic_grid(num, dtype=torch.float64)
    return Ellipse(grid, radii=torch.tensor(radii, dtype=torch.float64))


def _at(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_box_is_filled_evenly(dtype: torch.dtype) -> None:
    y = torch.zeros(2000, 2, dtype=dtype)
    found = UniformBox((-3.0, 1.0), (3.0, 1.5), _generator())(Ellipse(), y)
    assert found.dtype == dtype
    assert found.shape == y.shape
    for column, low, width in ((0, -3.0, 6.0), (1, 1.0, 0.5)):
        values = found[:, column].double().numpy()
        assert values.min() >= low
        assert values.max() <= low + width
        assert kstest(values, "uniform", (low, width)).pvalue > 1e-3
    cube = UniformBox(0.0, 2.0, _generator())(Ellipse(), torch.zeros(500, 3))
    assert kstest(cube.flatten().numpy(), "uniform", (0.0, 2.0)).pvalue > 1e-3
    assert abs(np.corrcoef(found.double().numpy().T)[0, 1]) < 0.1


def test_noise_is_normal_about_the_data() -> None:
    y = 100 * torch.randn(2000, 2, generator=_generator(1)).double()
    found = GaussianNoise(0.3, _generator())(Ellipse(), y.requires_grad_())
    assert not found.requires_grad
    noise = (found - y).detach().numpy()
    assert kstest(noise.ravel(), "norm", (0.0, 0.3)).pvalue > 1e-3
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.1


def _samplers(generator: torch.Generator | None) -> list[Negatives]:
    box = UniformBox(-2.0, 2.0, generator)
    return [box, GaussianNoise(0.5, generator), MostOffending(0.5, box, 2, max_steps=5)]


@pytest.mark.parametrize("which", range(3))
def test_draws_come_from_the_generator_alone(which: int) -> None:
    model, y = _ellipse(2.0, 1.5), torch.randn(9, 2, generator=_generator()).double()
    before = torch.get_rng_state()
    sampler = _samplers(_generator(3))[which]
    first, second = sampler(model, y), sampler(model, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, _samplers(_generator(3))[which](model, y))
    assert not torch.equal(first, second)
    assert not torch.equal(first, _samplers(_generator(4))[which](model, y))
    # Without one of their own they draw from the global generator.
    torch.manual_seed(3)
    assert torch.equal(first, _samplers(None)[which](model, y))


def test_most_offending_about_one_observation_is_the_side_towards_the_minimum() -> None:
    # All energy is |y|^2. Outside the ball of 1.5 about (1, 0) the least of it is at (-0.5, 0).
    model, y = _ellipse(0.0, 0.0), _at((1.0, 0.0))
    found = MostOffending(1.5, UniformBox(-4.0, 4.0, _generator()), max_steps=200)(model, y)
    torch.testing.assert_close(found, _at((-0.5, 0.0)), rtol=0, atol=1e-5)
    # Within reach of the minimum itself, that is it; about it, any point of the sphere.
    found = MostOffending(0.9, UniformBox(-4.0, 4.0, _generator()), max_steps=200)(model, y)
    torch.testing.assert_close(found, _at((0.0, 0.0)), rtol=0, atol=1e-6)
    found = MostOffending(0.7, UniformBox(-4.0, 4.0, _generator()))(model, _at((0.0, 0.0)))
    assert found.norm().item() == pytest.approx(0.7, rel=1e-9)


def test_most_offending_of_a_conditional_model_has_one_ball() -> None:
    # On a circle of radius x, at (x, 0): half a radius leaves the circle free, three radii cover
    # it all, and then the least is at (-2x, 0).
    model = Circles(periodic_grid(360, dtype=torch.float64))
    x = torch.tensor([0.5, 0.5, 1.0]).double()
    y = torch.stack([x, torch.zeros_like(x)], dim=1)
    start = UniformBox(-4.0, 4.0, _generator())
    found = MostOffending(0.4, start, max_steps=200)(model, y, x)
    assert ((found - y).norm(dim=1) >= 0.4).all()
    # The grid has a point within half a degree of any; where the ball ends, F ends there.
    assert ((found.norm(dim=1) - x).abs() <= x * math.pi / 360).all()
    # The others' balls would cover the circle too.
    found = MostOffending(0.75, start, num_starts=4, max_steps=200)(
        model, _at((0.5, 0.0), (-0.5, 0.0)), x[:2]
    )
    assert ((found.norm(dim=1) - 0.5).abs() <= 0.5 * math.pi / 360).all()
    one = torch.full((3,), 0.5).double()
    found = MostOffending(1.5, start, num_starts=4, max_steps=200)(model, y[:1].expand(3, 2), one)
    torch.testing.assert_close(found, _at((-1.0, 0.0)).expand(3, 2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_point_in_a_ball_goes_to_the_nearest_place_outside(dtype: torch.dtype) -> None:
    centres = torch.tensor([[100.0, 0.0], [-3.0, 50.0], [7.0, 7.0]], dtype=dtype)
    offset = torch.randn(200, 2, generator=_generator()).to(dtype)
    centre = centres[torch.arange(200) % 3]
    point = centre + offset
    moved = outside_balls(centres, 1.25)(point, torch.arange(200))
    offset = point - centre  # as it was rounded
    length = offset.norm(dim=1, keepdim=True)
    inside = length < 1.25
    wanted = torch.where(inside, centre + 1.25 * offset / length, point)
    assert 0 < inside.sum() < 200
    torch.testing.assert_close(moved, wanted, rtol=0, atol=5e3 * torch.finfo(dtype).eps)
    assert ((moved.double() - centre.double()).norm(dim=1) >= 1.25).all()


def test_a_point_where_balls_overlap_is_pushed_on() -> None:
    # Out of the ball about (1, 0) into the one about 0, and from there out at a known place.
    centres, point = _at((0.0, 0.0), (1.0, 0.0)), _at((0.6, 0.1))
    first = _at((1.0, 0.0)) + _at((-0.4, 0.1)) / math.hypot(0.4, 0.1)
    moved = outside_balls(centres, 1.0)(point, torch.tensor([0]))
    torch.testing.assert_close(moved, first / first.norm())
    # In the middle of a lattice pushes do not end: beyond all of it, in the point's direction.
    lattice = torch.cartesian_prod(torch.arange(-5.0, 6.0), torch.arange(-5.0, 6.0)).double()
    moved = outside_balls(lattice, 1.0)(_at((0.3, 0.2), (9.0, 0.0)), torch.tensor([0, 1]))
    assert moved[0].norm().item() == pytest.approx(math.hypot(5, 5) + 1)
    assert moved[1].tolist() == [9.0, 0.0]


def test_most_offending_is_as_low_as_scipy_finds() -> None:
    model, beta, radius = _ellipse(2.0, 1.5), 2.0, 0.8
    y = _at((2.0, 0.0), (0.0, 1.5), (-1.4, -1.1))
    points = model.manifold().detach().numpy()

    def value(p: np.ndarray) -> float:
        energy = ((p - points) ** 2).sum(-1)
        return -np.log(np.exp(-beta * energy).mean()) / beta

    def room(p: np.ndarray) -> np.ndarray:
        return ((p - y.numpy()) ** 2).sum(-1) - radius**2

    starts = np.random.default_rng(0).uniform(-3, 3, (20, 2))
    constraint = {"type": "ineq", "fun": room}
    ends = [minimize(value, start, method="SLSQP", constraints=constraint) for start in starts]
    best = min(end.fun for end in ends if end.success and room(end.x).min() > -1e-8)
    start = UniformBox(-3.0, 3.0, _generator())
    found = MostOffending(radius, start, num_starts=10, max_steps=200)(model, y, beta=beta)
    assert room(found.numpy()[:, None]).min() >= 0
    for point in found.numpy():
        assert value(point) == pytest.approx(best, abs=1e-5)


def test_more_starts_are_never_worse_and_steps_descend() -> None:
    model, y = _ellipse(2.0, 0.5), torch.randn(9, 2, generator=_generator()).double()
    values = []
    for num, steps in ((1, 0), (1, 4), (1, 20), (4, 20)):
        start = UniformBox(-4.0, 4.0, _generator(5))
        sampler = MostOffending(0.6, start, num_starts=num, max_steps=steps)
        values.append(model.free_energy(sampler(model, y, beta=4.0), beta=4.0).detach())
    drawn, few, many, best = values
    assert (few <= drawn).all()
    assert (few < drawn).any()
    assert (many <= few + 1e-12).all()
    assert (best <= many + 1e-12).all()
    assert (best < many - 1e-6).any()


@given(
    radii=st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)),
    num=st.integers(1, 60),
    count=st.integers(1, 30),
    radius=st.floats(0.01, 3.0),
    beta=st.sampled_from([0.5, 10.0, math.inf]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_most_offending_keeps_its_distance(
    radii: tuple[float, float], num: int, count: int, radius: float, beta: float, seed: int
) -> None:
    model, generator = _ellipse(*radii, num=num), _generator(seed)
    y = torch.randn(count, 2, generator=generator).double()
    sampler = MostOffending(radius, GaussianNoise(0.2, generator), num_starts=2, max_steps=8)
    found = sampler(model, y, beta=beta)
    distance = (found[:, None] - y).norm(dim=-1)
    assert (distance >= radius).all()


def test_most_offending_of_an_observation_on_itself_and_in_float32() -> None:
    # Drawn exactly on the data: there is no direction out, and one is taken.
    y = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1000.0, 1.0]])
    found = MostOffending(0.25, lambda model, y, x=None, **_: y)(Ellipse(), y)
    assert found.isfinite().all()
    assert (torch.cdist(found.double(), y.double()) >= 0.25).all()


def test_most_offending_leaves_the_models_gradients_alone() -> None:
    model = _ellipse(2.0, 1.5)
    found = MostOffending(0.5, BOX)(model, torch.zeros(3, 2).double(), beta=1.0)
    assert not found.requires_grad
    assert model.decoder.radii.grad is None


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (UniformBox, (math.nan, 1.0), "low must be finite, got nan"),
        (UniformBox, (0.0, (1.0, math.inf)), "high must be finite"),
        (UniformBox, ("a", 1), "low must be finite, got 'a'"),
        (UniformBox, (0.0, (1.0, "a")), "high must be finite, got"),
        (UniformBox, (0.0, [[1.0], 2.0]), "high must be finite, got"),
        (GaussianNoise, ("a",), "std must be positive and finite, got 'a'"),
        (MostOffending, (None, BOX), "radius must be positive and finite, got None"),
        (GaussianNoise, (0.0,), r"std must be positive and finite, got 0\.0"),
        (MostOffending, (-1.0, BOX), r"radius must be positive and finite, got -1\.0"),
        (MostOffending, (1.0, BOX, 0), "num_starts must be an integer of at least 1, got 0"),
        (MostOffending, (1.0, BOX, 1, -1), "max_steps must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(kind: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


def test_a_box_that_does_not_fit_the_data() -> None:
    y = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"low must be one number or 2, got \[3\] of them"):
        UniformBox((0.0, 0.0, 0.0), 1.0)(Ellipse(), y)
    with pytest.raises(ValueError, match="low must be below high"):
        UniformBox((0.0, 1.0), 1.0)(Ellipse(), y)


@pytest.mark.parametrize("conditional", [False, True])
def test_most_offending_of_what_is_not_there(conditional: bool) -> None:
    model = Circles(periodic_grid(90, dtype=torch.float64)) if conditional else _ellipse(2.0, 1.5)
    x = torch.tensor([2.0, 1.0, 2.0]).double() if conditional else None
    y = _at((2.0, 0.0), (0.0, 1.5), (-1.4, -1.1))
    sampler = MostOffending(0.8, UniformBox(-3.0, 3.0, _generator()), num_starts=2)
    found = sampler(model, y[:0], None if x is None else x[:0])
    assert found.shape == (0, 2)
    # An observation that is none has no ball; the others' stay as they were.
    y[1, 0] = math.nan
    found = sampler(model, y, x)
    assert found.isfinite().all()
    rest = [0, 2]
    apart = (found[rest] - y[rest]).norm(dim=-1) if conditional else torch.cdist(found, y[rest])
    assert (apart >= 0.8).all()
    (far,) = sampler(model, torch.full((1, 2), math.nan).double(), None if x is None else x[:1])
    # Nothing keeps it away: it ends on the curve.
    on = model.manifold(x[:1] if x is not None else None).reshape(-1, 2)
    assert (far - on).norm(dim=-1).min() < 1e-3


@pytest.mark.parametrize("conditional", [False, True])
def test_every_search_uses_the_named_backend(monkeypatch, conditional: bool) -> None:
    seen = set()
    choose = functional.choose

    def spy(backend: str | None, device: str) -> str:
        seen.add(backend)
        return choose(backend, device)

    monkeypatch.setattr(functional, "choose", spy)
    y = torch.randn(5, 2)
    model, x = (Horn(), torch.rand(5)) if conditional else (Ellipse(), None)
    start = GaussianNoise(0.05)  # inside the balls, so that points are moved outside
    MostOffending(0.5, start, max_steps=3)(model, y, x, beta=2.0, backend="chunked")
    assert seen == {"chunked"}
