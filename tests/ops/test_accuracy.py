"""F keeps the accuracy promise at every temperature, dimension, distance and weight."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.accuracy import BETAS, assert_accurate
from torch import Tensor

from lebm_kernels import free_energy, posterior, reference
from lebm_kernels.diagnostics import promise

# One row of F for each beta.
ALL_BETAS = torch.tensor(BETAS, dtype=torch.float64)[:, None]


def check_value(
    y: Tensor, decoded: Tensor, beta: float | Tensor, backend: str, **options: Any
) -> None:
    if isinstance(beta, Tensor):
        beta = beta.to(y.dtype)
    got = free_energy(y, decoded, beta, backend=backend, **options)
    assert_accurate(got, y, decoded, beta, **options)


@pytest.mark.parametrize("D", [1, 2, 3, 4, 7, 16, 64])
def test_every_dimension_at_every_temperature(backend: str, dtype: torch.dtype, D: int) -> None:
    y, decoded = torch.randn(17, D, dtype=dtype), torch.randn(255, D, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend)


@pytest.mark.parametrize("beta", BETAS)
def test_every_temperature_as_a_number(backend: str, dtype: torch.dtype, beta: float) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    check_value(y, decoded, beta, backend)


def test_a_temperature_for_each_query(backend: str, dtype: torch.dtype) -> None:
    beta = torch.tensor(BETAS).repeat(5)
    y, decoded = torch.randn(len(beta), 3, dtype=dtype), torch.randn(123, 3, dtype=dtype)
    check_value(y, decoded, beta, backend)


@pytest.mark.parametrize("D", [1, 2, 3, 16])
def test_all_arguments_together(backend: str, dtype: torch.dtype, D: int) -> None:
    y, decoded = torch.randn(17, D, dtype=dtype), torch.randn(255, D, dtype=dtype)
    options = {
        "log_weight": torch.randn(255, dtype=dtype),
        "latent_energy": torch.rand(255, dtype=dtype),
    }
    check_value(y, decoded, ALL_BETAS, backend, scale=torch.rand(D, dtype=dtype) + 0.5, **options)
    check_value(y, decoded, ALL_BETAS, backend, scale=torch.randn(17, D, dtype=dtype), **options)


@pytest.mark.parametrize("distance", [30.0, 3000.0])
@pytest.mark.parametrize("D", [2, 5])
def test_far_queries(backend: str, dtype: torch.dtype, distance: float, D: int) -> None:
    y = torch.nn.functional.normalize(torch.randn(17, D, dtype=dtype), dim=-1) * distance
    decoded = torch.randn(255, D, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend)
    check_value(y, decoded, ALL_BETAS, backend, scale=torch.rand(17, D, dtype=dtype))


@pytest.mark.parametrize("D", [2, 5])
def test_data_far_from_the_origin(backend: str, dtype: torch.dtype, D: int) -> None:
    y, decoded = 100 + torch.randn(17, D, dtype=dtype), 100 + torch.randn(255, D, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend)
    check_value(y, decoded, ALL_BETAS, backend, scale=1 + 0.01 * torch.rand(D, dtype=dtype))


def test_a_curve_with_queries_near_and_far(backend: str, dtype: torch.dtype) -> None:
    z = torch.arange(507, dtype=dtype) * (2 * math.pi / 507)
    decoded = torch.stack((2 * z.cos(), 1.5 * z.sin()), -1)
    y = torch.cat((decoded[::50] + 1e-4, decoded[::50] * 1.05, decoded[::50] * 20))
    check_value(y, decoded, ALL_BETAS, backend)


def test_tiny_and_huge_units(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    check_value(1e-9 * y, 1e-9 * decoded, ALL_BETAS, backend)
    check_value(1e9 * y, 1e9 * decoded, ALL_BETAS, backend)


def test_a_query_on_a_latent(backend: str, dtype: torch.dtype) -> None:
    decoded = torch.randn(255, 3, dtype=dtype)
    y = decoded[::15].clone()
    check_value(y, decoded, ALL_BETAS, backend)
    assert (free_energy(y, decoded, math.inf, backend=backend) == 0).all()


def test_all_latents_equal(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(1, 2, dtype=dtype)
    check_value(y, decoded.expand(507, 2), ALL_BETAS, backend)


def test_two_clusters_far_apart(backend: str, dtype: torch.dtype) -> None:
    decoded = torch.randn(507, 2, dtype=dtype) * 1e-3
    decoded[100:] += 50
    y = torch.cat((decoded[:5], decoded[-5:], decoded[-5:] - 25))
    check_value(y, decoded, ALL_BETAS, backend)


@pytest.mark.parametrize("width", [1.0, 30.0, 300.0])
def test_log_weights_of_every_range(backend: str, dtype: torch.dtype, width: float) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend, log_weight=width * torch.randn(255, dtype=dtype))


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_a_constant_in_the_log_weights_goes(
    backend: str, dtype: torch.dtype, offset: float
) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend, log_weight=offset + torch.randn(255, dtype=dtype))


def test_weight_beats_energy(backend: str, dtype: torch.dtype) -> None:
    # The latent of least energy carries e^-200 of the weight: at beta = 150 the other decides.
    y = torch.zeros(1, 1, dtype=dtype)
    decoded = torch.tensor([[0.0], [1.0]], dtype=dtype)
    log_weight = torch.tensor([-200.0, 0.0], dtype=dtype)
    beta = torch.tensor([0.0, 1.0, 150.0, 199.0, 200.0, 201.0, 300.0, math.inf])[:, None]
    for order in ([0, 1], [1, 0]):
        check_value(y, decoded[order], beta, backend, log_weight=log_weight[order])
    got = free_energy(y, decoded, 150.0, log_weight=log_weight, backend=backend)
    torch.testing.assert_close(got, torch.ones_like(got))


def test_weight_beats_energy_in_another_block(backend: str, dtype: torch.dtype) -> None:
    # As above, with the two latents at either end of a large grid of latents that do not matter.
    y, decoded = torch.zeros(3, 2, dtype=dtype), torch.full((5000, 2), 3.0, dtype=dtype)
    log_weight = torch.full((5000,), -400.0, dtype=dtype)
    for light, heavy in ((0, -1), (-1, 0), (2500, 17)):
        g, weight = decoded.clone(), log_weight.clone()
        g[light], weight[light] = 0.0, -200.0
        g[heavy], weight[heavy] = math.sqrt(0.5), 0.0
        check_value(y, g, ALL_BETAS, backend, log_weight=weight)
        check_value(y, g, 150.0, backend, log_weight=weight)
        check_value(y, g, 250.0, backend, log_weight=weight)


@pytest.mark.parametrize(
    "dropped", [slice(0, 1), slice(0, 200), slice(60, 80), slice(250, 255), slice(1, 255, 2)]
)
def test_minus_infinity_drops_a_latent(backend: str, dtype: torch.dtype, dropped: slice) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    decoded[dropped] *= 0.1  # what is dropped is near: it would be seen
    log_weight = torch.randn(255, dtype=dtype)
    log_weight[dropped] = -math.inf
    check_value(y, decoded, ALL_BETAS, backend, log_weight=log_weight)
    kept = log_weight > -math.inf
    whole = posterior(y, decoded, 0.7, log_weight=log_weight, backend=backend)
    part = posterior(y, decoded[kept], 0.7, log_weight=log_weight[kept], backend=backend)
    for found, wanted in zip(whole[:4], part[:4], strict=True):
        torch.testing.assert_close(found, wanted)
    assert kept[whole.index].all()
    assert (decoded[whole.index] == decoded[kept][part.index]).all()


def test_what_a_dropped_latent_decodes_to_is_not_read(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(7, 2, dtype=dtype), torch.randn(40, 2, dtype=dtype)
    log_weight = torch.zeros(40, dtype=dtype)
    log_weight[13] = -math.inf
    decoded[13] = 1e30
    check_value(y, decoded, ALL_BETAS, backend, log_weight=log_weight)


@pytest.mark.parametrize("D", [2, 5])
def test_a_few_latents_that_no_sample_meets(backend: str, dtype: torch.dtype, D: int) -> None:
    # All others are dropped: what is looked at first has no energy to refer to.
    y, decoded = torch.randn(7, D, dtype=dtype), torch.randn(1000, D, dtype=dtype)
    kept = torch.tensor([5, 7, 501])
    log_weight = torch.full((1000,), -math.inf, dtype=dtype)
    log_weight[kept] = torch.tensor([0.0, 0.3, -1.0], dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend, log_weight=log_weight)
    found = posterior(y, decoded, 1.0, log_weight=log_weight, backend=backend)
    nearest = reference.energies(y, decoded)[:, kept].argmin(-1)
    assert (found.index == kept[nearest]).all()


@pytest.mark.parametrize("D", [2, 5])
def test_no_energy_is_above_the_sample(backend: str, dtype: torch.dtype, D: int) -> None:
    # The reference is the largest energy there is, and every other one far below it.
    y, decoded = torch.zeros(3, D, dtype=dtype), torch.ones(1000, D, dtype=dtype)
    decoded[[5, 7, 501]] = 0.5
    check_value(y, decoded, ALL_BETAS, backend)


@pytest.mark.parametrize("offset", [0.0, 10.0, -10.0])
def test_latent_energies(backend: str, dtype: torch.dtype, offset: float) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    latent_energy = offset + torch.randn(255, dtype=dtype)
    check_value(y, decoded, ALL_BETAS, backend, latent_energy=latent_energy)


def test_an_infinite_latent_energy_forbids_a_latent(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(17, 2, dtype=dtype), torch.randn(255, 2, dtype=dtype)
    latent_energy = torch.rand(255, dtype=dtype)
    latent_energy[7] = math.inf
    got = free_energy(y, decoded, 2.0, latent_energy=latent_energy, backend=backend)
    # It keeps its share of the domain's measure, 1/255, but none of the posterior.
    rest = torch.arange(255) != 7
    wanted = (
        free_energy(
            y.double(),
            decoded[rest].double(),
            2.0,
            latent_energy=latent_energy[rest].double(),
            backend="reference",
        )
        - math.log(254 / 255) / 2
    )
    torch.testing.assert_close(got.double(), wanted, rtol=promise.allowed(1.0, dtype), atol=1e-6)


def test_a_million_latents(backend: str) -> None:
    y, decoded = torch.randn(1, 2), torch.randn(1_000_000, 2)
    check_value(y, decoded, torch.tensor([0.0, 1e-3, 1.0])[:, None], backend)
    check_value(y, decoded, 1e4, backend, log_weight=torch.randn(1_000_000))


@pytest.mark.parametrize("tol", [0.0, 1e-6, 1e-3, 0.5])
def test_tol_bounds_what_is_pruned(backend: str, tol: float) -> None:
    # The pruned share of the sum can only raise F, and by -log(1 - tol)/beta at most.
    y, decoded = torch.randn(17, 2), torch.randn(5000, 2).sort(0).values
    for beta in (0.1, 10.0, 1000.0):
        full = free_energy(y, decoded, beta, backend=backend)
        pruned = free_energy(y, decoded, beta, tol=tol, backend=backend)
        # Both are rounded.
        slack = 2 * promise.allowed(full.abs() + 1 / beta, torch.float32)
        assert (pruned >= full - slack).all()
        assert (pruned <= full - math.log1p(-tol) / beta + slack).all()
