"""Many latents of one energy and one weight, whose roundings all fall to one side.

Three others lie nearer. The exact F follows from two groups of latents, so that no size is too
large: with shares a and b, a + b = 1, and energies m < m + d,

    F = m - log(a + b exp(-beta d)) / beta,    at beta = 0  m + b d
"""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from support.backends import identify, kernel_parameters, selected

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise

NEARER = [5, 7, 501]
EXTENDED = mpmath.mp.clone()
EXTENDED.dps = 40
ON_CPU = pytest.mark.parametrize(
    "parameter",
    [p for p in kernel_parameters() if p[0] in ("native", "chunked")],
    ids=identify,
)


def grid(N: int, D: int, place: float, log_weight: float) -> dict[str, torch.Tensor]:
    decoded = torch.ones(N, D, dtype=torch.float64)
    decoded[NEARER] = place
    weights = torch.zeros(N, dtype=torch.float64)
    weights[NEARER] = log_weight
    return {"decoded": decoded, "log_weight": weights}


def groups(N: int, D: int, place: float, log_weight: float) -> tuple[Any, Any, Any]:
    """The share of the nearer ones, the least energy, and how far the others are above it."""
    near = 3 * EXTENDED.exp(log_weight)
    least = D * EXTENDED.mpf(place) ** 2
    return near / (near + N - 3), least, D - least


def assert_exact(found: torch.Tensor, N: int, a: Any, least: Any, excess: Any, beta: float) -> None:
    """The promise on F."""
    b = 1 - a
    value = b * excess if beta == 0 else -EXTENDED.log(a + b * EXTENDED.exp(-beta * excess)) / beta
    scale = promise.value_scale(float(least), float(b * excess), beta, N, -math.log(N))
    bound = promise.allowed(float(scale), torch.float64)
    for f in found.tolist():
        assert abs(float(least + value - EXTENDED.mpf(f))) <= bound


@ON_CPU
@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize(("place", "log_weight"), [(0.5, 5.0), (0.7, 1.0), (0.0, 5.5)])
@pytest.mark.parametrize(("N", "D"), [(1000, 2), (1000, 8), (300_000, 2)])
def test_equal_latents_round_no_more_than_promised(
    parameter: tuple[str, str | None], N: int, D: int, place: float, log_weight: float, beta: float
) -> None:
    y = torch.zeros(3, D, dtype=torch.float64)
    latents = grid(N, D, place, log_weight)
    with selected(*parameter) as backend:
        found = free_energy(y, beta=beta, backend=backend, **latents)
        mean = posterior(y[:1], beta=beta, backend=backend, **latents).mean
    a, least, excess = groups(N, D, place, log_weight)
    assert_exact(found, N, a, least, excess, beta)
    of_far = (1 - a) * EXTENDED.exp(-beta * excess)
    wanted = (a * EXTENDED.mpf(place) + of_far) / (a + of_far)
    bound = promise.allowed(float(wanted), torch.float64)
    for g in mean.flatten().tolist():
        assert abs(float(wanted - EXTENDED.mpf(g))) <= bound


@ON_CPU
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("N", "D"), [(500_000, 2), (200_000, 16)])
def test_many_equal_latents_at_every_temperature(
    parameter: tuple[str, str | None], N: int, D: int, weighted: bool
) -> None:
    """From where F is nearly the mean to where only the nearest count."""
    y, place = torch.zeros(1, D, dtype=torch.float64), 0.125
    latents = grid(N, D, place, 0.0)
    if not weighted:
        del latents["log_weight"]
    a, least, excess = groups(N, D, place, 0.0)
    for colder in (0.8, 2.0, 7.0, 12.0):
        beta = torch.tensor(colder / float(excess), dtype=torch.float64, requires_grad=True)
        with selected(*parameter) as backend:
            value = free_energy(y, beta=beta, backend=backend, **latents)
            (slope,) = torch.autograd.grad(value.sum(), beta)
        assert_exact(value, N, a, least, excess, beta.item())
        # dF/dbeta = (<E - m> + L / beta) / beta
        of_far = (1 - a) * EXTENDED.exp(-beta.item() * excess)
        mean, gap = of_far * excess / (a + of_far), EXTENDED.log(a + of_far) / beta.item()
        wanted, size = (mean + gap) / beta.item(), (mean - gap) / beta.item()
        bound = promise.allowed(float(size), torch.float64)
        assert abs(float(wanted - slope.item())) <= bound
