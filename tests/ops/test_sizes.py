"""Sums over ten million latents, more pairs than 32 bits count, and more queries and latents than
16 bits do.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.accuracy import assert_accurate
from support.subset import check

from lebm_kernels import free_energy
from lebm_kernels.diagnostics import promise

MANY = 10_000_000
ALLOWED = promise.allowed(1.0, torch.float32)

Array = npt.NDArray[np.float64]


@pytest.mark.parametrize("streamed", [True, False])
def test_ten_million_equal_energies(backend: str, streamed: bool) -> None:
    # F is their energy, and every latent has its share of the posterior.
    y, decoded = torch.tensor([[0.7]], requires_grad=True), torch.full((MANY, 1), -0.4)
    decoded.requires_grad_()
    pull = 2 * float((y - decoded[:1]).detach())
    more = {} if streamed else {"latent_energy": torch.full((MANY,), 0.25)}
    value = free_energy(y, decoded, 3.0, backend=backend, **more)
    slope, of_decoded = torch.autograd.grad(value.sum(), (y, decoded))
    wanted = pull**2 / 4 + (0 if streamed else 0.25)
    assert abs(float(value.detach()) - wanted) <= ALLOWED * wanted
    assert abs(slope.item() - pull) <= ALLOWED * pull
    torch.testing.assert_close(of_decoded, -slope.expand_as(decoded) / MANY, rtol=ALLOWED, atol=0)


@cache
def latents() -> torch.Tensor:
    return torch.randn(MANY, 1, generator=torch.Generator().manual_seed(0))


@cache
def sums(y: float, beta: float) -> tuple[float, Array]:
    """The least energy; and over the latents the sums of p, p E, p |dE/dy|, p dE/dy, p |dE/dy| E
    and E, p not normalised.
    """
    decoded = latents()[:, 0].double().numpy()
    least = float(((y - decoded) ** 2).min())
    total = np.zeros(6)
    for part in np.array_split(decoded, 20):
        difference = y - part
        energy = difference**2
        p, pull = np.exp(-beta * (energy - least)), 2 * difference
        pulls = p * np.abs(pull)
        terms = (p, p * energy, pulls, p * pull, pulls * energy, energy)
        total += [term.sum() for term in terms]
    return least, total


@pytest.mark.parametrize("beta", [0.5, 1e4])
def test_ten_million_random_latents(backend: str, beta: float) -> None:
    y = torch.tensor([[0.3], [-2.0]], requires_grad=True)
    decoded = latents().detach().requires_grad_()
    value = free_energy(y, decoded, beta, backend=backend)
    grad = torch.tensor([1.0, -0.5])
    slope, of_decoded = torch.autograd.grad(value, (y, decoded), grad)
    moved = 0.0
    for i, query in enumerate(y[:, 0].tolist()):
        least, (mass, energy, pulls, pull, shaken, mean) = sums(query, beta)
        wanted = least - math.log(mass / MANY) / beta
        size = promise.value_scale(least, mean / MANY - least, beta, MANY, -math.log(MANY))
        assert abs(float(value[i].detach()) - wanted) <= ALLOWED * size
        # The noise and magnitude of diagnostics/oracle.py; no reference is computed.
        noise = beta * (shaken + pulls * energy / mass) / mass
        right = np.asarray(grad[i].item() * pull / mass)
        weight = abs(grad[i].item())
        bound = promise.gradient_bound(
            right, right, weight * pulls / mass, weight * noise, torch.float32
        )
        assert abs(slope[i].item() - right) <= bound
        moved += bound
    # What moves all latents moves the queries the other way.
    assert abs(of_decoded.double().sum().item() + slope.double().sum().item()) <= 2 * moved


def more_than_32_bits_count() -> dict[str, torch.Tensor]:
    """Queries near a curve, with that curve's latents."""
    angle = torch.rand(70_001) * (2 * math.pi)
    decoded = torch.stack((angle.cos(), 0.5 * angle.sin()), -1)
    y = decoded[:-1] + 0.01 * torch.randn(70_000, 2)
    assert len(y) * len(decoded) > 2**32
    return {"y": y, "decoded": decoded}


@pytest.mark.parametrize("beta", [1e4, math.inf])
def test_more_pairs_than_32_bits_count(pruning_backend: str, beta: float) -> None:
    check(pruning_backend, {**more_than_32_bits_count(), "beta": torch.tensor(beta)}, 1)


def test_more_pairs_in_series_than_32_bits_count(pruning_backend: str) -> None:
    # Without the gradients of the latents, for which there are no series.
    arguments = more_than_32_bits_count()
    some = torch.tensor([0, 65_536, 69_999])
    few = {**arguments, "y": arguments["y"][some]}
    assert_accurate(
        free_energy(**arguments, beta=1.0, backend=pruning_backend)[some], beta=1.0, **few
    )
