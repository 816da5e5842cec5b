"""Inference on models of any decoder, latents of several dimensions and regularised latents."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from lebm_kernels.models import DecoderModel, Ellipse, neural_horn
from lebm_kernels.models.descent import METHODS
from lebm_kernels.models.grids import interval_grid, periodic_grid, product_grid
from lebm_kernels.models.inference import infer, infer_on_grid, sample
from lebm_kernels.models.regularisers import L2, LearnedPrior

DOUBLE = torch.float64


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_linear_decoder_with_ridge_is_ridge_regression() -> None:
    axis = interval_grid(-4.0, 4.0, 17, dtype=DOUBLE)
    decoder = nn.Linear(2, 3, bias=False, dtype=DOUBLE)
    model = DecoderModel(decoder, grid=product_grid(axis, axis), regulariser=L2(0.3))
    y = torch.randn(6, 3, generator=_generator(0), dtype=DOUBLE)
    w = decoder.weight.detach()
    wanted = torch.linalg.solve(w.T @ w + 0.3 * torch.eye(2, dtype=DOUBLE), w.T @ y.T).T
    energy = (y - wanted @ w.T).square().sum(1) + 0.3 * wanted.square().sum(1)
    for method in METHODS:
        found = infer(model, y, start=3.0, method=method)
        assert found.converged.all()
        assert not found.local.any()
        assert found.z.shape == (6, 2)
        torch.testing.assert_close(found.z, wanted, rtol=0, atol=2e-6)
        torch.testing.assert_close(found.energy, energy, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.y, found.z @ w.T)
    assert (infer_on_grid(model, y).energy >= energy).all()


def test_a_learned_prior_costs_between_the_points_what_it_costs_on_them() -> None:
    prior = LearnedPrior(1, generator=_generator(0)).double()
    nn.init.normal_(prior.layers[-1].weight, generator=_generator(1))
    grid = periodic_grid(48, dtype=DOUBLE)
    model = Ellipse(grid, radii=torch.tensor([2.0, 1.5], dtype=DOUBLE), regulariser=prior)
    y = torch.randn(9, 2, generator=_generator(2), dtype=DOUBLE)
    best = infer_on_grid(model, y)
    torch.testing.assert_close(best.energy, model.free_energy(y).detach())
    found = infer(model, y)
    assert found.converged.all()
    assert (found.energy <= best.energy).all()
    assert (found.energy < best.energy - 1e-6).any()


def test_each_condition_has_its_own_decoded_grid() -> None:
    model = neural_horn(periodic_grid(48, dtype=DOUBLE), generator=_generator(0)).double()
    y = torch.randn(4, 2, generator=_generator(1), dtype=DOUBLE)
    x = torch.rand(4, generator=_generator(2), dtype=DOUBLE)
    best, found = infer_on_grid(model, y, x), infer(model, y, x)
    assert found.converged.all()
    assert (found.energy < best.energy - 1e-6).any()
    torch.testing.assert_close(best.energy, model.free_energy(y, x).detach())
    drawn = sample(model, y, x, num_samples=3, beta=torch.inf)
    for i in range(4):

        def energy(z: np.ndarray, i: int = i) -> float:
            with torch.no_grad():
                point = model.decode(torch.from_numpy(z), x[i])[0]
            return (y[i] - point).square().sum().item()

        # From where the descent ended there is nothing more to gain, and something was gained.
        wanted = minimize(energy, found.z[i : i + 1].numpy(), method="Nelder-Mead", tol=1e-9)
        assert abs(found.energy[i].item() - wanted.fun) < 1e-10
        assert found.energy[i] <= best.energy[i]
        torch.testing.assert_close(drawn.y[i], best.y[i].expand(3, 2))
