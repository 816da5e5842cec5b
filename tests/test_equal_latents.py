"""Many latents of one energy and one weight, whose roundings all fall to one side.

Three others lie nearer. The exact F follows from two groups of latents, so that no size is too
large: with shares a and b, a + b = 1, and energies m < m + d,

    F = m - log(a + b exp(-beta d)) / beta,    at beta = 0  m + b d
"""

from __future__ import annotations

import math

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from conftest import identify, kernel_parameters, selected

from lebm_kernels import free_energy, posterior

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
    exact = EXTENDED
    least = D * exact.mpf(place) ** 2
    near = 3 * exact.exp(log_weight)
    a, b = near / (near + N - 3), (N - 3) / (near + N - 3)
    excess = D - least
    of_far = b * exact.exp(-beta * excess)
    value = least + (-exact.log(a + of_far) / beta if beta else b * excess)
    per_beta = (1 + math.log(N)) / beta if beta else math.inf
    scale = float(least) + min(float(b * excess), per_beta)
    eps = torch.finfo(torch.float64).eps
    for f in found.tolist():
        assert abs(float(value - exact.mpf(f))) <= 16 * eps * scale
    wanted = (a * exact.mpf(place) + of_far) / (a + of_far)
    for g in mean.flatten().tolist():
        assert abs(float(wanted - exact.mpf(g))) <= 16 * eps * float(wanted)
