"""softmin, softmax, softargmin and softargmax of energies that one already has."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from support.accuracy import BETAS

from lebm_kernels import softargmax, softargmin, softmax, softmin

WARM = (1e-3, 0.1, 1.0, 30.0, 1e3)


@pytest.mark.parametrize("beta", WARM)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_against_scipy(beta: float, dim: int) -> None:
    energy = torch.randn(5, 6, 7).double()
    size = math.log(energy.shape[dim])
    low = -(logsumexp(-beta * energy.numpy(), axis=dim) - size) / beta
    high = (logsumexp(beta * energy.numpy(), axis=dim) - size) / beta
    np.testing.assert_allclose(softmin(energy, beta, dim).numpy(), low, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(softmax(energy, beta, dim).numpy(), high, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(softargmin(energy, beta, dim), torch.softmax(-beta * energy, dim))
    torch.testing.assert_close(softargmax(energy, beta, dim), torch.softmax(beta * energy, dim))


def test_limits() -> None:
    energy = torch.tensor([[1.0, 3.0, 1.0, 7.0]])
    assert softmin(energy, math.inf, 1).tolist() == [1.0]
    assert softmax(energy, math.inf, 1).tolist() == [7.0]
    assert softmin(energy, 0.0, 1).tolist() == [3.0]
    assert softmax(energy, 0, 1).tolist() == [3.0]
    assert softargmin(energy, math.inf, 1).tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert softargmax(energy, math.inf, 1).tolist() == [[0.0, 0.0, 0.0, 1.0]]
    assert softargmin(energy, 0.0, 1).tolist() == [[0.25] * 4]


@pytest.mark.parametrize("beta", BETAS)
def test_log_weights(beta: float) -> None:
    # Weights 1, 2 and 3 are the same as so many copies; -inf is the same as no latent.
    energy = torch.randn(4, 3).double()
    copies = torch.tensor([0, 1, 1, 2, 2, 2])
    log_weight = torch.tensor([1.0, 2.0, 3.0]).double().log() + 5
    for function in (softmin, softmax):
        torch.testing.assert_close(
            function(energy, beta, 1, log_weight), function(energy[:, copies], beta, 1)
        )
    whole = softargmin(energy, beta, 1, log_weight)
    parts = softargmin(energy[:, copies], beta, 1)
    torch.testing.assert_close(whole, torch.zeros_like(whole).index_add(1, copies, parts))
    torch.testing.assert_close(whole.sum(1), torch.ones(4).double())

    dropped = torch.tensor([0.0, -math.inf, 0.0]).double()
    torch.testing.assert_close(softmin(energy, beta, 1, dropped), softmin(energy[:, ::2], beta, 1))
    assert (softargmin(energy, beta, 1, dropped)[:, 1] == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("far", [5.0, -5.0, 1e3, 1e15])
def test_what_is_dropped_is_not_seen(beta: float, far: float) -> None:
    energy = torch.tensor([100.0, far, 100.2, far]).double().requires_grad_()
    log_weight = torch.tensor([0.3, -math.inf, -1.0, -math.inf]).double()
    for function in (softmin, softmax):
        found = function(energy, beta, 0, log_weight)
        wanted = function(energy[::2], beta, 0, log_weight[::2])
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
        slopes = [torch.autograd.grad(x, energy)[0] for x in (found, wanted)]
        torch.testing.assert_close(slopes[0], slopes[1])


def test_dropped_energies_have_known_values() -> None:
    def of(energy: list[float], log_weight: list[float]) -> float:
        wide = [torch.tensor(x, dtype=torch.float64) for x in (energy, log_weight)]
        return softmin(wide[0], 1.0, 0, wide[1]).item()

    assert of([100.0, 5.0], [0.0, -math.inf]) == 100
    wanted = 100 - logsumexp([0.0, -0.2], b=[0.5, 0.5])
    assert of([100.0, 100.2, 0.0], [0.0, 0.0, -math.inf]) == pytest.approx(wanted, rel=1e-14)


def test_numbers_too_large_for_the_dtype_are_infinite() -> None:
    energy = torch.tensor([[1.0, 3.0, 1.0, 7.0]])
    for beta in (1e39, 10**400):
        assert softmin(energy, beta, 1).tolist() == [1.0]
        assert softmax(energy, beta, 1).tolist() == [7.0]
        assert softargmin(energy, beta, 1).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_softmax_mirrors_softmin() -> None:
    energy, log_weight = torch.randn(4, 9).double(), torch.randn(9).double()
    for beta in BETAS:
        torch.testing.assert_close(
            softmax(energy, beta, 1, log_weight), -softmin(-energy, beta, 1, log_weight)
        )


def test_a_temperature_for_each_result() -> None:
    energy = torch.randn(6, 5).double()
    beta = torch.tensor([0.0, 1e-9, 0.1, 1.0, 1e5, math.inf]).double()
    found, p = softmin(energy, beta, 1), softargmin(energy, beta, 1)
    for i, b in enumerate(beta.tolist()):
        torch.testing.assert_close(found[i], softmin(energy[i], b, 0))
        torch.testing.assert_close(p[i], softargmin(energy[i], b, 0))
    assert softmin(energy, beta[:, None, None], 1).shape == (6, 1, 6)
    assert softargmin(energy, beta[:, None], 1).shape == (6, 6, 5)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("function", [softmin, softmax])
def test_gradcheck_to_second_order(function: Callable[..., torch.Tensor], beta: float) -> None:
    energy = torch.randn(3, 4).double().requires_grad_()
    log_weight = torch.randn(4).double().requires_grad_()
    temperature = torch.full((3,), beta).double().requires_grad_()
    if beta < 1e-3:
        # A difference quotient in beta would step below zero.
        temperature.requires_grad_(False)

    def of_all(e: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return function(e, b, 1, w)

    torch.autograd.gradcheck(of_all, (energy, temperature, log_weight))
    torch.autograd.gradgradcheck(of_all, (energy, temperature, log_weight))


def test_the_gradient_of_softmin_is_softargmin() -> None:
    energy = torch.randn(4, 9).double().requires_grad_()
    for beta in BETAS:
        (slope,) = torch.autograd.grad(softmin(energy, beta, 1).sum(), energy)
        torch.testing.assert_close(slope, softargmin(energy, beta, 1).detach())
