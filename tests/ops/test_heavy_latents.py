"""One latent that has nearly all of the weight: F cannot be told from its energy.

What is left is far below a rounding of F. With weights w, energies E of which the heavy latent has
c, and beta small, exactly

    dF/dbeta = (<E>_p - F) / beta,    at beta = 0  -Var_w(E) / 2
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from support.accuracy import assert_gradients_accurate, gradients
from support.backends import identify, kernel_parameters, selected
from support.oracle import remembered
from torch import Tensor

from lebm_kernels import free_energy, posterior

EXTENDED = mpmath.mp.clone()
EXTENDED.dps = 120
ON_CPU = pytest.mark.parametrize(
    "parameter",
    [p for p in kernel_parameters() if p[0] in ("native", "chunked", "triton")],
    ids=identify,
)


@partial(remembered, most=20)
def exact_slope(y: Tensor, decoded: Tensor, log_weight: Tensor, beta: float) -> Any:
    """dF/dbeta of one query."""
    number = EXTENDED.mpf
    energy = [
        sum((number(a) - number(b)) ** 2 for a, b in zip(y.tolist(), g, strict=True))
        for g in decoded.tolist()
    ]
    w = [EXTENDED.exp(number(x)) for x in log_weight.tolist()]
    total = sum(w)
    w = [x / total for x in w]
    if beta == 0:
        mean = sum(x * e for x, e in zip(w, energy, strict=True))
        return -sum(x * (e - mean) ** 2 for x, e in zip(w, energy, strict=True)) / 2
    p = [x * EXTENDED.exp(-number(beta) * e) for x, e in zip(w, energy, strict=True)]
    F = -EXTENDED.log(sum(p)) / number(beta)
    return (sum(x * e for x, e in zip(p, energy, strict=True)) / sum(p) - F) / number(beta)


@ON_CPU
@pytest.mark.parametrize("D", [2, 5, 64])
@pytest.mark.parametrize("rarity", [12.0, 40.0, 80.0])
def test_the_slope_is_that_of_the_others(
    parameter: tuple[str, str | None], dtype: torch.dtype, D: int, rarity: float
) -> None:
    y, decoded = torch.randn(5, D, dtype=dtype), torch.randn(40, D, dtype=dtype)
    log_weight = -rarity - torch.rand(40, dtype=dtype)
    log_weight[17] = 0.3
    size = torch.finfo(dtype).eps * (64 + rarity)
    for beta in (0.0, 1e-9, 1e-4, 1e-2):
        b = torch.full((5,), beta, dtype=dtype, requires_grad=True)
        arguments = {"decoded": decoded, "log_weight": log_weight}
        with selected(*parameter) as backend:
            value = free_energy(y, beta=b, backend=backend, **arguments)
            (slope,) = torch.autograd.grad(value.sum(), b)
            entropy = posterior(y, beta=b, backend=backend, **arguments).relative_entropy
        for m in range(5):
            wanted = exact_slope(y[m], decoded, log_weight, b[m].item())
            assert slope[m].item() == pytest.approx(float(wanted), rel=size)
            kl = -float(wanted) * b[m].item() ** 2
            assert entropy[m].item() == pytest.approx(kl, rel=size, abs=1e-37)


@ON_CPU
@pytest.mark.parametrize("D", [2, 8])
@pytest.mark.parametrize(("distance", "range_"), [(100.0, 1.0), (1000.0, 1.0), (1000.0, 4.0)])
def test_far_away_energies_differ_by_few_roundings(
    parameter: tuple[str, str | None], dtype: torch.dtype, D: int, distance: float, range_: float
) -> None:
    """The heaviest, by little, has another energy than F, though within many roundings of it."""
    y, decoded = torch.zeros(1, D, dtype=dtype), torch.zeros(30, D, dtype=dtype)
    y[0, 0] = distance
    decoded[:, 0] = torch.linspace(0, range_ / (2 * distance), 30, dtype=dtype)
    for heavy in (0, 15, 29):
        log_weight = torch.zeros(30, dtype=dtype)
        log_weight[heavy] = 0.01
        arguments = {"y": y, "decoded": decoded, "beta": y.new_ones(()), "log_weight": log_weight}
        grad = torch.ones(1, dtype=dtype)
        with selected(*parameter) as backend:
            found = gradients(partial(free_energy, backend=backend), arguments, grad)
        assert_gradients_accurate({"beta": found["beta"]}, arguments, grad, of=("beta",))


@pytest.mark.parametrize("D", [2, 8])
@pytest.mark.parametrize(
    "parameter",
    [p for p in kernel_parameters() if p[0] in ("native", "chunked")],
    ids=identify,
)
def test_log_weights_that_differ_by_more_than_the_dtype_holds(
    parameter: tuple[str, str | None], dtype: torch.dtype, D: int
) -> None:
    """The lightest still has the minimum, and the heaviest all of the rest."""
    most = torch.finfo(dtype).max * 0.9
    decoded = torch.arange(3.0, dtype=dtype)[:, None] * torch.ones(D, dtype=dtype)
    log_weight = torch.tensor([-most, 0.0, most], dtype=dtype)
    y = torch.full((1, D), 0.25, dtype=dtype)
    for beta, place in ((math.inf, 0), (4.0, 2), (0.0, 2)):
        leaf = decoded.clone().requires_grad_()
        with selected(*parameter) as backend:
            value = free_energy(y, leaf, beta, log_weight=log_weight, backend=backend)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        difference = 0.25 - float(place)
        torch.testing.assert_close(value, torch.tensor([D * difference**2], dtype=dtype))
        wanted = torch.zeros_like(decoded)
        wanted[place] = -2 * difference
        torch.testing.assert_close(gradient, wanted)
