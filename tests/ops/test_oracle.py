"""The oracle itself, against mpmath at 60 digits (a dependency of PyTorch's own) and itself."""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from support.oracle import exact

# Bounds here are on the oracle itself, in its own roundings; the promise allows far more.
EPS = float(np.finfo(np.longdouble).eps)


@pytest.mark.parametrize("beta", [1e-12, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4])
def test_oracle_is_exact(beta: float) -> None:
    torch.manual_seed(0)
    y, decoded = torch.randn(1, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    log_weight = torch.tensor([0.3, -2.0, -torch.inf, 1.0, 0.0], dtype=torch.float64)
    grad = torch.ones(1, dtype=torch.float64)
    got = exact(y, decoded, beta, log_weight=log_weight, grad=grad)

    with mp.workdps(60):
        kept = [0, 1, 3, 4]
        energy = [
            sum((mp.mpf(float(a)) - mp.mpf(float(b))) ** 2 for a, b in zip(y[0], g, strict=True))
            for g in decoded[kept]
        ]
        weight = [mp.exp(mp.mpf(float(x))) for x in log_weight[kept]]
        weight = [x / mp.fsum(weight) for x in weight]
        b = mp.mpf(beta)
        mass = [w * mp.exp(-b * e) for w, e in zip(weight, energy, strict=True)]
        total = mp.fsum(mass)
        value = -mp.log(total) / b
        p = [m / total for m in mass]
        mean_energy = mp.fsum(q * e for q, e in zip(p, energy, strict=True))
        by_beta = (mean_energy - value) / b
        by_weight = [-(q - w) / b for q, w in zip(p, weight, strict=True)]

        def relative_error(found: Any, truth: mp.mpf) -> float:
            high = float(found)
            number = mp.mpf(high) + mp.mpf(float(found - np.longdouble(high)))
            return float(abs(number - truth) / abs(truth))

        assert relative_error(got.free_energy[0], value) < 16 * EPS
        # E is rounded before <E> - F is taken, and that grows with beta E in p.
        growth = 1 + beta * max(float(e) for e in energy)
        assert relative_error(got.gradients["beta"][()], by_beta) < 64 * EPS * growth
        for n, truth in zip(kept, by_weight, strict=True):
            error = abs(float(got.gradients["log_weight"][n]) - float(truth))
            assert error < 1e-15 * max(abs(float(x)) for x in by_weight)
        assert got.gradients["log_weight"][2] == 0


def narrow(size: float = 1.0) -> dict[str, torch.Tensor]:
    """A problem in float32, with every argument."""
    torch.manual_seed(0)
    arguments = {
        "y": torch.randn(9, 3) * size,
        "decoded": torch.randn(70, 3) * size,
        "scale": torch.rand(3) + 0.5,
        "log_weight": torch.randn(70),
        "latent_energy": torch.randn(70) * size,
        "grad": torch.randn(9),
    }
    arguments["decoded"][0] = arguments["y"][0] / arguments["scale"]
    return arguments


@pytest.mark.parametrize("beta", [0.0, 1e-12, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e12, math.inf])
def test_float64_is_enough_for_what_is_narrower(beta: float) -> None:
    arguments = narrow()
    got = exact(**arguments, beta=beta)
    assert got.free_energy.dtype == np.float64
    truth = exact(**{name: x.double() for name, x in arguments.items()}, beta=beta)
    assert truth.free_energy.dtype == np.longdouble
    # Far less than half a rounding of float32, the smallest error that a bound allows.
    slight, nothing = 2.0**-40, 1e-300
    assert (np.abs(got.free_energy - truth.free_energy) <= slight * truth.magnitude).all()
    np.testing.assert_array_equal(got.index, truth.index)
    for name, wanted in truth.gradients.items():
        bound = truth.gradient_magnitudes[name] + truth.gradient_noises[name]
        assert (np.abs(got.gradients[name] - wanted) <= slight * bound + nothing).all(), name
        for measure in ("gradient_magnitudes", "gradient_noises"):
            narrowed, wide = (getattr(x, measure)[name] for x in (got, truth))
            assert (np.abs(narrowed - wide) <= 1e-3 * wide + nothing).all(), (measure, name)


def test_numbers_that_float64_may_not_hold_are_taken_wider() -> None:
    assert exact(**narrow(1e25), beta=1.0).free_energy.dtype == np.longdouble
    for beta in (1e41, 1e-320):
        assert exact(**narrow(), beta=beta).free_energy.dtype == np.longdouble
