"""The posterior's mean, energy, relative entropy and index against extended precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.accuracy import BETAS, assert_accurate
from support.oracle import exact, to_array

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise


@pytest.mark.parametrize("D", [1, 2, 7])
@pytest.mark.parametrize("least", [True, False], ids=["least", "all"])
def test_expectations(any_backend: str, dtype: torch.dtype, D: int, least: bool) -> None:
    y, decoded = torch.randn(17, D, dtype=dtype), torch.randn(123, D, dtype=dtype)
    options: dict[str, Any] = {}
    if not least:
        options = {
            "scale": torch.rand(17, D, dtype=dtype) + 0.5,
            "log_weight": torch.randn(123, dtype=dtype),
            "latent_energy": torch.rand(123, dtype=dtype),
        }
    for b in BETAS:
        beta = torch.full((17,), b, dtype=dtype)
        truth = exact(y, decoded, beta, **options)
        found = posterior(y, decoded, beta, backend=any_backend, **options)
        assert_accurate(found.free_energy, y, decoded, beta, **options)
        # A relative error of eps in E is one of beta eps E in p.
        growth = 1 + min(b, 1e300) * truth.energy if b < math.inf else 1.0
        blur = promise.allowed(growth, dtype)
        reach = np.abs(to_array(decoded)).max()
        for name, size in (
            ("mean", reach),
            ("energy", truth.energy.max()),
            ("relative_entropy", 1 + truth.relative_entropy),
        ):
            error = np.abs(to_array(getattr(found, name)) - getattr(truth, name))
            excess = (error.reshape(17, -1).max(-1) / (blur * size)).max()
            assert excess <= 1, f"{name} at beta = {b}: {float(excess):.3g} times what is allowed"
        assert (found.index.numpy() == truth.index).all()


def test_relative_entropy_of_a_hot_posterior_does_not_cancel(
    backend: str, dtype: torch.dtype
) -> None:
    # KL = beta^2 Var_w(E) / 2 + O(beta^3): 1e-13 of terms of order one
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(123, 2, dtype=dtype)
    truth = exact(y, decoded, 1e-6)
    found = posterior(y, decoded, 1e-6, backend=backend).relative_entropy
    np.testing.assert_allclose(found.double().numpy(), truth.relative_entropy, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [3.0, 10.0, 30.0])
def test_weights_of_a_wide_range(backend: str, dtype: torch.dtype, beta: float, seed: int) -> None:
    torch.manual_seed(seed)
    y, decoded = torch.randn(200, 2, dtype=dtype), torch.randn(129, 2, dtype=dtype)
    options: dict[str, Any] = {
        "scale": torch.randn(2, dtype=dtype),
        "log_weight": 30 * torch.randn(129, dtype=dtype),
    }
    truth = exact(y, decoded, beta, **options)
    found = posterior(y, decoded, beta, backend=backend, **options)
    temperature = torch.full((200,), beta, dtype=dtype, requires_grad=True)
    value = free_energy(y, decoded, temperature, backend=backend, **options)
    (slope,) = torch.autograd.grad(value.sum(), temperature)
    close = 1e-4 if dtype == torch.float32 else 1e-12
    size = 1 + truth.relative_entropy
    for name, got, wanted, bound in (
        ("KL", found.relative_entropy, truth.relative_entropy, size),
        ("slope", slope, -truth.relative_entropy / beta**2, size / beta**2),
        ("energy", found.energy, truth.energy, 1 + truth.energy),
    ):
        excess = (np.abs(to_array(got) - wanted) / bound).max() / close
        assert excess <= 1, f"{name}: {float(excess):.3g} times what is allowed"


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("infinite", [False, True], ids=["far", "forbidden"])
@pytest.mark.parametrize("D", [2, 6])
def test_a_latent_out_of_reach(
    any_backend: str, dtype: torch.dtype, D: int, infinite: bool, beta: float
) -> None:
    # It has none of the posterior, but its share 1/101 of the weights.
    y, decoded = torch.randn(17, D, dtype=dtype), torch.randn(101, D, dtype=dtype)
    latent_energy = torch.zeros(101, dtype=dtype)
    if infinite:
        latent_energy[2] = math.inf
    else:
        decoded[2] = 1e10
    rest = torch.arange(101) != 2
    truth = exact(y, decoded[rest], beta)
    entropy = truth.relative_entropy + math.log(101 / 100)
    value = truth.free_energy + math.log(101 / 100) / beta
    wanted = {
        "free_energy": value,
        "mean": truth.mean,
        "energy": truth.energy,
        "relative_entropy": entropy,
    }
    options: dict[str, Any] = {"latent_energy": latent_energy, "backend": any_backend}
    found = posterior(y, decoded, beta, **options)
    temperature = torch.full((17,), beta, dtype=dtype, requires_grad=True)
    free_energy(y, decoded, temperature, **options).sum().backward()
    close: dict[str, Any] = {"rtol": 1e-9}
    if dtype == torch.float32:
        close = {"rtol": 2e-4, "atol": 2e-5}
    for name, x in wanted.items():
        np.testing.assert_allclose(getattr(found, name).double(), x.astype(float), **close)
    assert temperature.grad is not None
    slope = (-entropy / beta**2).astype(float)
    np.testing.assert_allclose(temperature.grad.double(), slope, **{**close, "atol": 0})
    assert torch.equal(found.index, torch.from_numpy(rest.nonzero()[:, 0].numpy()[truth.index]))


def test_relative_entropy_is_never_negative(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(123, 2, dtype=dtype)
    beta = torch.tensor(BETAS, dtype=dtype)[:, None]
    assert (posterior(y, decoded, beta, backend=backend).relative_entropy >= 0).all()


def test_cold_is_the_restored_observation(any_backend: str) -> None:
    y, decoded = torch.randn(17, 3), torch.randn(123, 3)
    found = posterior(y, decoded, math.inf, backend=any_backend)
    energy = (y[:, None] - decoded).square().sum(-1)
    assert torch.equal(found.index, energy.argmin(-1))
    torch.testing.assert_close(found.mean, decoded[found.index])
    torch.testing.assert_close(found.energy, energy.amin(-1))
    entropy = torch.full_like(found.energy, math.log(123))
    torch.testing.assert_close(found.relative_entropy, entropy)


def test_equal_minima_share_and_the_first_is_named(any_backend: str) -> None:
    y = torch.zeros(1, 1)
    decoded = torch.tensor([[2.0], [1.0], [-1.0], [3.0], [1.0]])
    found = posterior(y, decoded, math.inf, backend=any_backend)
    torch.testing.assert_close(found.mean, torch.full((1, 1), 1 / 3))
    torch.testing.assert_close(found.relative_entropy, torch.tensor([math.log(5 / 3)]))
    assert found.index.item() == 1
    weighted = posterior(
        y,
        decoded,
        math.inf,
        log_weight=torch.tensor([9.0, 3.0, 1.0, 9.0, 4.0]).log(),
        backend=any_backend,
    )
    torch.testing.assert_close(weighted.mean, torch.full((1, 1), 6 / 8))


def test_hot_is_the_weighted_mean(any_backend: str) -> None:
    y, decoded, weight = torch.randn(17, 3), torch.randn(123, 3), torch.rand(123)
    found = posterior(y, decoded, 0.0, log_weight=weight.log(), backend=any_backend)
    mean = (weight[:, None] * decoded).sum(0) / weight.sum()
    torch.testing.assert_close(found.mean, mean.expand(17, 3))
    torch.testing.assert_close(found.relative_entropy, torch.zeros(17))


def test_the_first_of_equals_across_a_large_grid(backend: str) -> None:
    y, decoded = torch.zeros(3, 2), torch.ones(20_000, 2)
    for first in (0, 1, 777, 16_383, 16_384, 19_998):
        g = decoded.clone()
        g[first] = g[19_999] = 0.5
        assert (posterior(y, g, 1.0, backend=backend).index == first).all()
