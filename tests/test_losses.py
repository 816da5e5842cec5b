"""The energy loss is the mean free energy, and so are its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from lebm_kernels.losses import energy_loss
from lebm_kernels.models import Ellipse


@pytest.mark.parametrize("beta", [0.5, math.inf])
def test_energy_loss_is_the_mean_of_the_formula(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Ellipse(generator=generator).double()
    y = torch.randn(7, 2, generator=generator).double()
    energy = (y[:, None] - model.manifold()).square().sum(-1)
    if beta == math.inf:
        expected = energy.amin(1).mean()
    else:
        expected = (-energy.mul(-beta).exp().mean(1).log() / beta).mean()
    loss = energy_loss(model, y, beta=beta)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    )
