"""Models: the practicum's known values, and free energies against the formula in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from lebm_kernels import free_energy
from lebm_kernels.models import DecoderModel, Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.models.grids import LatentGrid, interval_grid, periodic_grid


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _formula(y, radii, z, beta: float, log_weight=None):
    """F by numpy and scipy, from the radii [M, 2] or [2]."""
    circle = np.stack([np.cos(z), np.sin(z)], axis=-1)
    energy = ((y[:, None] - np.atleast_2d(radii)[:, None] * circle) ** 2).sum(-1)
    if beta == math.inf:
        return energy.min(1)
    log_weight = np.zeros(len(z)) if log_weight is None else log_weight
    return (logsumexp(log_weight) - logsumexp(log_weight - beta * energy, axis=1)) / beta


@pytest.mark.parametrize(
    ("beta", "known"),
    [
        (0.1, 1.095),
        (10**-0.5, 1.042),
        (1.0, 0.888),
        (10**0.5, 0.584),
        (10.0, 0.334),
        (math.inf, 0.129),
    ],
)
def test_free_energy_at_the_origin_is_the_practicums(beta: float, known: float) -> None:
    model = Ellipse(radii=torch.tensor([-1.45266, 0.35856]))
    assert model.free_energy(torch.zeros(1, 2), beta=beta).item() == pytest.approx(known, abs=5e-4)


@pytest.mark.parametrize("beta", [0.3, 20.0, math.inf])
def test_horn_scales_each_query_by_its_own_radii(beta: float) -> None:
    model = Horn(generator=_generator(1)).double()
    x = torch.rand(9, generator=_generator(2)).double()
    y = torch.randn(9, 2, generator=_generator(3)).double() * 3
    radii = model.scale(x).detach().numpy()
    expected = _formula(y.numpy(), radii, periodic_grid(dtype=torch.float64).z.numpy(), beta)
    value = model.free_energy(y, x, beta=beta)
    # The buffers were rounded to float32 before the model became double.
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("make", [Ellipse, Horn, neural_horn])
def test_halves_are_observations_under_autocast(make: Callable[[], LatentModel]) -> None:
    model = make()
    y, x = torch.randn(9, 2).bfloat16(), torch.rand(9).bfloat16() if model.conditional else None
    wide = y.float(), x if x is None else x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.free_energy(y, x, beta=2.0), model.free_energy(*wide, beta=2.0))


def test_horn_under_autocast() -> None:
    model = Horn(generator=_generator(1))
    x = torch.rand(9, generator=_generator(2))
    y = torch.randn(9, 2, generator=_generator(3))
    expected = model.free_energy(y, x, beta=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scale = model.scale(x)
        value = model.free_energy(y, x, beta=2.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, free_energy(y, model.decoded, 2.0, scale=scale.float(), log_weight=model.log_weight)
    )
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0.05)
    value.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_one_condition_serves_many_queries() -> None:
    model = Horn(generator=_generator(1))
    y = torch.randn(6, 2, generator=_generator(3))
    one = model.free_energy(y, torch.tensor(0.4), beta=2.0)
    torch.testing.assert_close(one, model.free_energy(y, torch.full((6,), 0.4), beta=2.0))


def test_grid_weights_reach_the_free_energy() -> None:
    grid = interval_grid(0.0, math.pi, 33)
    assert grid.log_weight is not None
    model = Ellipse(grid, radii=torch.tensor([2.0, 1.5]))
    y = torch.randn(5, 2, generator=_generator(0))
    expected = _formula(y.numpy(), [2.0, 1.5], grid.z.numpy(), 0.7, grid.log_weight.numpy())
    value = model.free_energy(y, beta=0.7).detach().numpy()
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert np.abs(value - _formula(y.numpy(), [2.0, 1.5], grid.z.numpy(), 0.7)).max() > 1e-3


def test_gradient_of_the_radii_is_the_formulas() -> None:
    model = Ellipse(radii=torch.tensor([0.9, -1.7])).double()
    y = torch.randn(5, 2, generator=_generator(0)).double()
    model.free_energy(y, beta=3.0).sum().backward()
    radii = model.decoder.radii.detach().clone().requires_grad_()
    energy = (y[:, None] - radii * model.decoded).square().sum(-1)
    (-torch.logsumexp(-3.0 * energy, 1) / 3.0).sum().backward()
    torch.testing.assert_close(model.decoder.radii.grad, radii.grad)


def test_cold_posterior_restores_the_nearest_point() -> None:
    model = Ellipse(radii=torch.tensor([2.0, 1.5]))
    found = model.posterior(model.manifold().detach() * 1.01)
    assert torch.equal(found.index, torch.arange(48))


def test_manifold_shapes_and_values() -> None:
    horn = Horn(generator=_generator(0))
    x = torch.rand(2, 3)
    assert horn.manifold(x).shape == (2, 3, 48, 2)
    torch.testing.assert_close(horn.manifold(x)[1, 2], horn.scale(x[1, 2]) * horn.decoded)
    assert Ellipse().manifold().shape == (48, 2)


def test_refined_copy_keeps_the_parameters_and_shares_nothing() -> None:
    model = Ellipse(generator=_generator(0))
    fine = model.on_grid(periodic_grid(480))
    assert fine.manifold().shape == (480, 2)
    assert model.manifold().shape == (48, 2)
    torch.testing.assert_close(fine.manifold()[::10], model.manifold(), rtol=0, atol=1e-6)
    with torch.no_grad():
        fine.decoder.radii.zero_()
    assert model.decoder.radii.abs().min() > 0


def test_state_holds_parameters_alone() -> None:
    model = Ellipse(LatentGrid(torch.zeros(3), torch.zeros(3)))
    assert list(model.state_dict()) == ["decoder.radii"]


@pytest.mark.parametrize("call", ["free_energy", "posterior"])
def test_missing_and_unwanted_conditions_are_named(call: str) -> None:
    y = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="x is missing: Horn"):
        getattr(Horn(), call)(y)
    with pytest.raises(ValueError, match=r"x must be absent as Ellipse .*got shape \[3\]"):
        getattr(Ellipse(), call)(y, torch.zeros(3))


#: The model, y, x, and the error.
UNLIKE_THE_MODEL: list[tuple[LatentModel, Any, Any, Exception]] = [
    (
        Ellipse(),
        torch.zeros(3, 5),
        None,
        ValueError("y must be [..., M, 2] as Ellipse decodes to, got shape [3, 5]"),
    ),
    (
        Ellipse(),
        torch.zeros(3, 2).double(),
        None,
        TypeError("y must be torch.float32 as Ellipse decodes to, got torch.float64"),
    ),
    (
        Ellipse(),
        torch.zeros(3, 2).long(),
        None,
        TypeError("y must be torch.float32 as Ellipse decodes to, got torch.int64"),
    ),
    (Ellipse(), [0.0], None, TypeError("y must be a tensor [..., M, D], got list")),
    *(
        (
            model,
            torch.zeros(3, 2),
            0.5,
            TypeError(
                "x must be a tensor of one condition per observation, or one for all, got float"
            ),
        )
        for model in (Ellipse(), Horn(), neural_horn())
    ),
    *(
        (
            model,
            torch.zeros(3, 2),
            x,
            TypeError(f"x must be torch.float32 as the network of x is, got {x.dtype}"),
        )
        for model in (Horn(), neural_horn())
        for x in (torch.zeros(3).double(), torch.arange(3))
    ),
    (
        Horn(),
        torch.zeros(3, 2),
        torch.zeros(3, 1),
        ValueError(
            "x must have one condition per observation, [3] of them as y [3, 2] has, "
            "got shape [3, 1]; x.squeeze(-1) has that shape"
        ),
    ),
    (
        neural_horn(),
        torch.zeros(3, 5),
        torch.zeros(3),
        ValueError("y must be [..., M, 2] as DecoderModel decodes to, got shape [3, 5]"),
    ),
    (
        neural_horn().double(),
        torch.zeros(3, 2),
        torch.zeros(3).double(),
        TypeError("y must be torch.float64 as DecoderModel decodes to, got torch.float32"),
    ),
]


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("call", ["free_energy", "posterior", "sample_latent", "log_density"])
@pytest.mark.parametrize(("model", "y", "x", "error"), UNLIKE_THE_MODEL)
def test_what_is_unlike_the_model_is_named_as_it_was_given(
    call: str, model: LatentModel, y: Any, x: Any, error: Exception, autocast: bool
) -> None:
    options: dict[str, Any] = {"sample_latent": {"num_samples": 1}, "log_density": {"beta": 1.0}}
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
    with cast, pytest.raises(type(error)) as caught:
        getattr(model, call)(y, x, **options.get(call, {}))
    assert str(caught.value) == str(error)


def test_radii_that_are_none_are_named() -> None:
    for radii, got in (([1.0, 2.0], "list"), (torch.tensor([1, 2]), r"torch\.int64")):
        with pytest.raises(TypeError, match=rf"^radii must be a floating-point tensor .*{got}$"):
            Ellipse(radii=radii)  # type: ignore[arg-type]


def test_a_grid_that_is_none_is_named() -> None:
    for grid in (48, torch.zeros(3)):
        with pytest.raises(TypeError, match=r"^grid must be a LatentGrid, got (int|Tensor)$"):
            Ellipse(grid)  # type: ignore[arg-type]


def test_a_condition_may_be_a_class_where_the_predictor_takes_one() -> None:
    model = DecoderModel(_Stretched(), torch.nn.Embedding(5, 2))
    x = torch.tensor([0, 4, 4])
    found = model.free_energy(torch.zeros(3, 2), x, beta=1.0)
    for b in range(3):
        alone = free_energy(torch.zeros(1, 2), model.manifold(x[b]), 1.0)
        torch.testing.assert_close(found[b : b + 1], alone)


def test_temperatures_of_numpy() -> None:
    model, y = Ellipse(), torch.randn(3, 2)
    wanted = model.log_density(y, beta=2.0)
    for beta in (np.float32(2.0), np.float64(2.0), np.int64(2)):
        assert torch.equal(model.log_density(y, beta=beta), wanted)
        assert torch.equal(model.free_energy(y, beta=beta), model.free_energy(y, beta=2.0))
        assert Ellipse().learn_beta(beta).beta.item() == pytest.approx(2.0)
    for beta in (True, np.bool_(True)):
        with pytest.raises(ValueError, match=r"^beta must be positive and finite"):
            model.log_density(y, beta=beta)
        with pytest.raises(ValueError, match=r"^beta must be positive and finite"):
            Ellipse().learn_beta(beta)


def test_backend_reaches_the_free_energy() -> None:
    model: LatentModel = Ellipse()
    with pytest.raises(ValueError, match="nonesuch"):
        model.free_energy(torch.zeros(1, 2), backend="nonesuch")


class _Linear(torch.nn.Module):
    """A predictor that wants its conditions ``[M, 1]``; and a decoder of its codes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class _Stretched(torch.nn.Module):
    def forward(self, z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        return code.unsqueeze(-2) * torch.cat((z.cos(), z.sin()), -1)


@pytest.mark.parametrize("call", ["free_energy", "posterior", "sample_latent", "log_density"])
def test_conditions_do_not_multiply_the_observations(call: str) -> None:
    options: dict[str, Any] = {"sample_latent": {"num_samples": 1}, "log_density": {"beta": 1.0}}
    y = torch.randn(3, 2)
    for model in (Horn(), neural_horn()):
        for x in (torch.rand(3, 1), torch.rand(2), torch.rand(2, 3)):
            words = re.escape(f"[3] of them as y [3, 2] has, got shape {list(x.shape)}")
            with pytest.raises(ValueError, match=f"^x must have one .*{words}(;|$)"):
                getattr(model, call)(y, x, **options.get(call, {}))
    # A column of conditions is what this predictor wants: one code a row.
    model = DecoderModel(_Stretched(), _Linear())
    x = torch.rand(3, 1)
    found = model.free_energy(y, x, beta=1.0)
    for b in range(3):
        alone = free_energy(y[b : b + 1], model.manifold(x[b]), 1.0)
        torch.testing.assert_close(found[b : b + 1], alone)


@pytest.mark.parametrize("bad", [-1.0, math.nan, -math.inf])
def test_a_density_has_no_temperature_below_zero(bad: float) -> None:
    y = torch.randn(3, 2)
    beta = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(ValueError, match=r"^beta must be positive and finite for a density"):
        Ellipse().log_density(y, beta=beta)
    with pytest.raises(ValueError, match=r"^beta must be positive .*got 'a'"):
        Ellipse().log_density(y, beta="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^beta must be positive .*got 'a'"):
        Ellipse().learn_beta("a")  # type: ignore[arg-type]
