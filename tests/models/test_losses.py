"""Losses against their formulas in float64: at their kinks, far from them, and on models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from lebm_kernels.models import Ellipse, Horn, LatentModel
from lebm_kernels.models.grids import periodic_grid
from lebm_kernels.training import TrainConfig, train
from lebm_kernels.training.datasets import ellipse_data
from lebm_kernels.training.losses import HingeLoss, LogLoss, Loss, energy_loss, hinge, log_ratio
from lebm_kernels.training.negatives import GaussianNoise

EVERY_BETA = pytest.mark.parametrize("beta", [0.5, math.inf])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
FINITE = st.floats(-1e6, 1e6, width=32)


def _formula(model: LatentModel, y, beta: float, x=None):
    """F [..., M] with every pair held, in float64."""
    energy = (y.unsqueeze(-2) - model.manifold(x)).square().sum(-1)
    if beta == math.inf:
        return energy.amin(-1)
    return -energy.mul(-beta).exp().mean(-1).log() / beta


def _gradients(loss, *wrt):
    return torch.autograd.grad(loss, wrt)


@EVERY_BETA
def test_energy_loss_is_the_mean_of_the_formula(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Ellipse(generator=generator).double()
    y = torch.randn(7, 2, generator=generator).double()
    expected = _formula(model, y, beta).mean()
    loss = energy_loss(model, y, beta=beta)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(_gradients(loss, *parameters), _gradients(expected, *parameters))


@DTYPES
def test_hinge_at_its_kink_and_beside_it(dtype: torch.dtype) -> None:
    # 0.75 above, exactly the margin above, one rounding less, below: only the last two count.
    f = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=dtype, requires_grad=True)
    one_less = torch.nextafter(torch.tensor(1.5, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    f_hat = torch.tensor([1.75, 1.5, one_less.item(), 0.25], dtype=dtype, requires_grad=True)
    loss = hinge(f, f_hat, 0.5)
    assert loss.item() == ((1.5 - one_less.item()) + 1.25) / 4
    grad_f, grad_f_hat = _gradients(loss, f, f_hat)
    assert grad_f.tolist() == [0.0, 0.0, 0.25, 0.25]
    assert grad_f_hat.tolist() == [0.0, 0.0, -0.25, -0.25]


@given(f=FINITE, f_hat=FINITE, margin=st.floats(0.0, 1e3, width=32))
@settings(deadline=None, derandomize=True, database=None)
def test_hinge_is_zero_exactly_where_the_difference_reaches_the_margin(
    f: float, f_hat: float, margin: float
) -> None:
    low = torch.tensor([f], requires_grad=True)
    loss = hinge(low, torch.tensor([f_hat]), margin)
    # The difference of two float32 is exact in float64 and rounded once in float32.
    reached = np.float32(np.float64(f_hat) - np.float64(f)) >= np.float32(margin)
    assert (loss.item() == 0.0) == reached
    assert _gradients(loss, low)[0].item() == (0.0 if reached else 1.0)


def test_hinge_where_adding_the_margin_first_would_round_it_away() -> None:
    f = torch.tensor([2.0**24])  # the next float32 is 2 away
    assert hinge(f, f + 2.0, 1.0) == 0.0
    assert hinge(f, f, 1.0) == 1.0
    assert hinge(f, f, 0.25) == 0.25


@DTYPES
def test_log_loss_and_its_gradients_at_any_difference(dtype: torch.dtype) -> None:
    difference = torch.tensor(
        [-1e4, -800.0, -90.0, -25.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 19.0, 21.0, 25.0, 90.0, 1e4]
    ).to(dtype)
    exact = difference.double().numpy()
    for each, wanted in zip(difference, np.logaddexp(0.0, exact), strict=True):
        f, f_hat = each.clone().requires_grad_(), torch.zeros((), dtype=dtype, requires_grad=True)
        loss = log_ratio(f, f_hat)
        eps = torch.finfo(dtype).eps
        tiny = torch.finfo(dtype).smallest_normal
        assert abs(loss.item() - wanted) <= 4 * eps * wanted + tiny
        slopes = _gradients(loss, f, f_hat)
        slope = expit(each.double().item())
        for got, sign in zip(slopes, (1.0, -1.0), strict=True):
            assert abs(got.item() - sign * slope) <= 4 * eps * slope + tiny
    # At 1e4 the loss is the difference, and where the sample is that far above, nothing.
    assert log_ratio(difference[-1], torch.zeros((), dtype=dtype)).item() == 1e4
    assert log_ratio(difference[0], torch.zeros((), dtype=dtype)).item() == 0.0


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_batch_with_a_far_member_stays_finite(offset: float) -> None:
    f = torch.tensor([0.0, offset, 0.5], requires_grad=True)
    f_hat = torch.tensor([0.25, 0.0, 0.0], requires_grad=True)
    for loss in (hinge(f, f_hat, 1.0), log_ratio(f, f_hat)):
        assert loss.isfinite()
        assert all(grad.isfinite().all() for grad in _gradients(loss, f, f_hat))


def _fixed(y_hat: torch.Tensor):
    return lambda model, y, x=None, *, beta, backend: y_hat


@EVERY_BETA
@pytest.mark.parametrize("kind", ["hinge", "log"])
def test_contrastive_losses_are_those_of_the_formula(kind: str, beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Ellipse(generator=generator).double()
    y = torch.randn(7, 2, generator=generator).double()
    y_hat = 2 * torch.randn(7, 2, generator=generator).double().requires_grad_()
    difference = _formula(model, y, beta) - _formula(model, y_hat, beta)
    loss: Loss
    if kind == "hinge":
        loss, terms = HingeLoss(_fixed(y_hat), margin=0.8), (0.8 + difference).clamp(min=0.0)
        assert 0 < (terms > 0).sum() < 7
    else:
        loss, terms = LogLoss(_fixed(y_hat)), difference.exp().log1p()
    value, expected = loss(model, y, beta=beta), terms.mean()
    assert value.shape == ()
    torch.testing.assert_close(value, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        _gradients(value, *parameters), torch.autograd.grad(expected, parameters)
    )
    # Samples are constants of a loss.
    value = loss(model, y, beta=beta)
    assert torch.autograd.grad(value, y_hat, allow_unused=True) == (None,)


def test_several_samples_an_observation_at_its_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Horn(generator=generator).double()
    x = torch.rand(5, generator=generator).double()
    y = torch.randn(5, 2, generator=generator).double()
    y_hat = torch.randn(3, 5, 2, generator=generator).double()
    f, f_hat = _formula(model, y, 2.0, x), _formula(model, y_hat, 2.0, x)
    assert f_hat.shape == (3, 5)
    expected = (0.3 + f - f_hat).clamp(min=0.0).sum() / 15
    torch.testing.assert_close(HingeLoss(_fixed(y_hat), 0.3)(model, y, x, beta=2.0), expected)


def test_margin_is_checked() -> None:
    words = "^margin must be at least 0 and finite, got"
    with pytest.raises(ValueError, match=f"{words} 'a'$"):
        HingeLoss(_fixed(torch.zeros(1, 2)), margin="a")  # type: ignore[arg-type]
    for margin in (math.inf, -0.5):
        with pytest.raises(ValueError, match=f"{words} {margin}$"):
            HingeLoss(GaussianNoise(1.0), margin=margin)


@pytest.mark.parametrize("kind", [HingeLoss, LogLoss])
def test_training_goes_on_bit_for_bit_with_the_global_generator(
    kind: type[HingeLoss] | type[LogLoss], tmp_path: Path
) -> None:
    data = ellipse_data(9, generator=torch.Generator().manual_seed(0))
    loss, radii = kind(GaussianNoise(0.5)), torch.tensor([1.0, 0.5])
    options = {"batch_size": 4, "schedule": "constant", "learning_rate": 0.05, "beta": 2.0}

    def run(epochs: int, model: Ellipse, resume: bool) -> Ellipse:
        config = TrainConfig(epochs=epochs, **options)
        path = tmp_path / "run.pt"
        train(model, data, config, loss=loss, checkpoint=path, resume=resume, progress=False)
        return model

    torch.manual_seed(7)
    straight = run(6, Ellipse(periodic_grid(17), radii=radii), False)
    torch.manual_seed(7)
    run(3, Ellipse(periodic_grid(17), radii=radii), False)
    torch.manual_seed(8)
    resumed = run(6, Ellipse(periodic_grid(17), radii=radii), True)
    assert torch.equal(straight.decoder.radii, resumed.decoder.radii)
    assert not torch.equal(straight.decoder.radii, radii)
