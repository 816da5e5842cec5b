"""F against what is known in closed form, or computed by scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

from lebm_kernels import free_energy, posterior

FINITE = (1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4)


def f64(x: object) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, *FINITE, 1e12, math.inf])
def test_one_latent_is_its_energy(any_backend: str, beta: float) -> None:
    y, decoded = f64([[3.0, 4.0], [1.0, -1.0]]), f64([[1.0, 2.0]])
    got = free_energy(
        y,
        decoded,
        beta,
        scale=f64([2.0, 0.5]),
        log_weight=f64([-7.0]),
        latent_energy=f64([0.25]),
        backend=any_backend,
    )
    torch.testing.assert_close(got, f64([1 + 9 + 0.25, 1 + 4 + 0.25]))


@pytest.mark.parametrize("beta", [0.0, *FINITE, 1e12, math.inf])
def test_one_latent_and_a_dropped_one(any_backend: str, beta: float) -> None:
    log_weight = f64([0.0, -math.inf])
    y, decoded = f64([[10.0]]), f64([[0.0], [1.0]])
    got = free_energy(y, decoded, beta, log_weight=log_weight, backend=any_backend)
    torch.testing.assert_close(got, f64([100.0]), rtol=1e-15, atol=0)


@pytest.mark.parametrize("beta", FINITE)
@pytest.mark.parametrize("weight", [0.5, 0.9])
def test_two_latents(any_backend: str, beta: float, weight: float) -> None:
    # E = 0 and 4: F = -1/beta log(weight + (1 - weight) exp(-4 beta))
    y, decoded = f64([[1.0]]), f64([[1.0], [-1.0]])
    log_weight = f64([weight, 1 - weight]).log()
    got = free_energy(y, decoded, beta, log_weight=log_weight, backend=any_backend)
    wanted = -math.log1p((1 - weight) * math.expm1(-4 * beta)) / beta
    torch.testing.assert_close(got, f64([wanted]), rtol=1e-13, atol=0)


def test_hot_is_the_weighted_mean_and_cold_the_minimum(any_backend: str) -> None:
    y, decoded = torch.randn(7, 3).double(), torch.randn(50, 3).double()
    weight = torch.rand(50).double()
    energy = (y[:, None] - decoded).square().sum(-1)
    log_weight = weight.log()
    hot = free_energy(y, decoded, 0.0, log_weight=log_weight, backend=any_backend)
    torch.testing.assert_close(hot, energy @ (weight / weight.sum()))
    cold = free_energy(y, decoded, math.inf, log_weight=log_weight, backend=any_backend)
    torch.testing.assert_close(cold, energy.amin(-1))


@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_scipy_logsumexp(any_backend: str, beta: float) -> None:
    y, decoded = torch.randn(17, 3).double(), torch.randn(255, 3).double()
    log_weight, latent_energy = torch.randn(255).double(), torch.rand(255).double()
    energy = (y[:, None] - decoded).square().sum(-1) + latent_energy
    wanted = logsumexp((log_weight - beta * energy).numpy(), axis=1)
    wanted = -(wanted - logsumexp(log_weight.numpy())) / beta
    got = free_energy(
        y, decoded, beta, log_weight=log_weight, latent_energy=latent_energy, backend=any_backend
    )
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12)


def _mixture(covariance_type: str, precisions: np.ndarray, D: int, K: int) -> GaussianMixture:
    generator = np.random.default_rng(0)
    mixture = GaussianMixture(K, covariance_type=covariance_type)
    mixture.weights_ = generator.dirichlet(np.ones(K))
    mixture.means_ = generator.normal(size=(K, D))
    mixture.precisions_cholesky_ = np.sqrt(precisions)
    return mixture


def test_likelihood_of_a_spherical_gaussian_mixture(any_backend: str) -> None:
    # log p(y) = -beta F - D/2 log(2 pi sigma^2) with beta = 1/(2 sigma^2) and w = mixture weights
    D, K, sigma = 3, 20, 0.4
    mixture = _mixture("spherical", np.full(K, sigma**-2), D, K)
    y = np.random.default_rng(1).normal(size=(50, D))
    beta = 1 / (2 * sigma**2)
    arguments = (torch.from_numpy(y), torch.from_numpy(mixture.means_), beta)
    log_weight = torch.from_numpy(mixture.weights_).log()
    energy = free_energy(*arguments, log_weight=log_weight, backend=any_backend)
    likelihood = -beta * energy - D / 2 * math.log(2 * math.pi * sigma**2)
    np.testing.assert_allclose(likelihood.numpy(), mixture.score_samples(y), rtol=1e-12)

    found = posterior(*arguments, log_weight=log_weight, backend=any_backend)
    mean = mixture.predict_proba(y) @ mixture.means_
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-10, atol=1e-12)


def test_likelihood_of_a_tied_gaussian_mixture(any_backend: str) -> None:
    # A diagonal covariance shared by all components is the unit one after y and g are divided by
    # sigma: the scale 1/sigma does that to g.
    D, K = 4, 15
    sigma = np.array([0.3, 1.0, 2.0, 0.7])
    mixture = _mixture("tied", np.diag(sigma**-2), D, K)
    y = np.random.default_rng(1).normal(size=(50, D))
    energy = free_energy(
        torch.from_numpy(y / sigma),
        torch.from_numpy(mixture.means_),
        0.5,
        scale=torch.from_numpy(1 / sigma),
        log_weight=torch.from_numpy(mixture.weights_).log(),
        backend=any_backend,
    )
    likelihood = -energy / 2 - D / 2 * math.log(2 * math.pi) - np.log(sigma).sum()
    np.testing.assert_allclose(likelihood.numpy(), mixture.score_samples(y), rtol=1e-12)


def test_known_values_of_the_untrained_ellipse(any_backend: str) -> None:
    z = torch.arange(48) * (math.pi / 24)
    circle = torch.stack((z.cos(), z.sin()), -1)
    radii = torch.tensor([-1.45266, 0.35856])
    beta = torch.tensor([0.1, 10**-0.5, 1.0, 10**0.5, 10.0, math.inf])[:, None]
    got = free_energy(torch.zeros(1, 2), circle, beta, scale=radii, backend=any_backend)
    wanted = torch.tensor([1.095, 1.042, 0.888, 0.584, 0.334, 0.129])[:, None]
    torch.testing.assert_close(got, wanted, rtol=0, atol=6e-4)


def test_a_fine_grid_is_an_integral(any_backend: str) -> None:
    # A circle of radius rho around the origin, seen from y: E = |y|^2 + rho^2 - 2 |y| rho cos z,
    # and the mean of exp(2 beta |y| rho cos z) over z is the Bessel function I0.
    z = torch.arange(200).double() * (2 * math.pi / 200)
    rho, beta = 1.5, 0.7
    decoded = rho * torch.stack((z.cos(), z.sin()), -1)
    y = f64([[0.0, 0.0], [0.3, 0.4], [3.0, -4.0]])
    size = y.norm(dim=-1)
    wanted = size**2 + rho**2 - torch.special.i0(2 * beta * size * rho).log() / beta
    got = free_energy(y, decoded, beta, backend=any_backend)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
