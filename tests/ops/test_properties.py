"""What holds of any free energy, whatever its numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from lebm_kernels import free_energy, posterior


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(17, 3).double(), torch.randn(255, 3).double(), torch.randn(255).double()


def test_never_rises_with_beta_and_stays_between_minimum_and_mean(any_backend: str) -> None:
    y, decoded, log_weight = _inputs()
    energy = (y[:, None] - decoded).square().sum(-1)
    beta = torch.cat((torch.zeros(1), torch.logspace(-12, 12, 97), torch.tensor([math.inf])))
    value = torch.stack(
        [
            free_energy(y, decoded, float(b), log_weight=log_weight, backend=any_backend)
            for b in beta
        ]
    )
    slack = 1e-14 * value[0]
    assert (value.diff(dim=0) <= slack).all()
    assert (value >= energy.amin(-1) - slack).all()
    assert (value <= energy @ log_weight.softmax(-1) + slack).all()


def test_the_slope_in_beta_is_never_positive(any_backend: str) -> None:
    y, decoded, log_weight = _inputs()
    for b in (0.0, 1e-12, 1e-3, 1.0, 1e4, math.inf):
        beta = torch.full((17,), b, dtype=torch.float64, requires_grad=True)
        value = free_energy(y, decoded, beta, log_weight=log_weight, backend=any_backend)
        (slope,) = torch.autograd.grad(value.sum(), beta)
        assert (slope <= 0).all()
        assert b == math.inf or (slope < 0).all()


def test_translation(backend: str) -> None:
    y, decoded, log_weight = _inputs()
    shift = torch.randn(3).double()
    for beta in (0.0, 0.5, 100.0, math.inf):
        options: dict[str, Any] = {"log_weight": log_weight, "backend": backend}
        there = free_energy(y + shift, decoded + shift, beta, **options)
        torch.testing.assert_close(there, free_energy(y, decoded, beta, **options))


def test_the_order_of_latents_and_queries(backend: str) -> None:
    y, decoded, log_weight = _inputs()
    latents, queries = torch.randperm(255), torch.randperm(17)
    for beta in (0.0, 0.5, 100.0, math.inf):
        one = posterior(y, decoded, beta, log_weight=log_weight, backend=backend)
        other = posterior(
            y[queries], decoded[latents], beta, log_weight=log_weight[latents], backend=backend
        )
        for a, b in zip(one[:4], other[:4], strict=True):
            torch.testing.assert_close(a[queries], b)
        assert (one.index[queries] == latents[other.index]).all()


def test_a_latent_in_two_halves_is_the_same_latent(backend: str) -> None:
    y, decoded, log_weight = _inputs()
    halves = torch.cat((log_weight, log_weight)) - math.log(2)
    for beta in (0.0, 0.5, 100.0, math.inf):
        whole = free_energy(y, decoded, beta, log_weight=log_weight, backend=backend)
        twice = free_energy(y, decoded.repeat(2, 1), beta, log_weight=halves, backend=backend)
        torch.testing.assert_close(whole, twice)
        even = free_energy(y, decoded, beta, backend=backend)
        torch.testing.assert_close(
            even, free_energy(y, decoded.repeat(2, 1), beta, backend=backend)
        )


def test_an_energy_shifted_is_a_free_energy_shifted(backend: str) -> None:
    y, decoded, latent_energy = _inputs()
    for beta in (0.0, 0.5, 100.0, math.inf):
        options: dict[str, Any] = {"beta": beta, "backend": backend}
        low = free_energy(y, decoded, latent_energy=latent_energy, **options)
        high = free_energy(y, decoded, latent_energy=latent_energy + 5, **options)
        torch.testing.assert_close(high, low + 5)


def test_scaling_every_length(backend: str) -> None:
    # F(c y, c g, beta / c^2) = c^2 F(y, g, beta)
    y, decoded, _ = _inputs()
    value = free_energy(y, decoded, 2.0, backend=backend)
    torch.testing.assert_close(
        free_energy(8 * y, 8 * decoded, 2.0 / 64, backend=backend), 64 * value
    )
