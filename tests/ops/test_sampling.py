"""Draws from the posterior: their frequencies, and what must never be drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from support.oracle import exact

from lebm_kernels import sample_latent


def draw(
    y: torch.Tensor, decoded: torch.Tensor, beta: float, num_samples: int, **options: object
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return sample_latent(
        y,
        decoded,
        beta,
        num_samples=num_samples,
        generator=generator,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_frequencies_are_the_posterior(beta: float, weighted: bool) -> None:
    y, decoded = torch.randn(4, 2), torch.randn(20, 2)
    options = {}
    if weighted:
        options = {"log_weight": torch.randn(20), "latent_energy": torch.rand(20)}
    num_samples = 20_000
    index = draw(y, decoded, beta, num_samples, **options)
    assert index.shape == (4, num_samples)
    p = exact(y, decoded, beta, **options).posterior.astype(np.float64)
    for row, expected in zip(index.numpy(), p * num_samples, strict=True):
        counts = np.bincount(row, minlength=20)
        few = expected < 5  # too rare for a chi-square each: together
        observed = np.append(counts[~few], counts[few].sum())
        wanted = np.append(expected[~few], expected[few].sum())
        if wanted[-1] == 0:
            observed, wanted = observed[:-1], wanted[:-1]
        assert chisquare(observed, wanted).pvalue > 1e-4


def test_a_grid_of_many_tiles() -> None:
    # Two clusters at the ends of a large grid, one three times as heavy as the other.
    decoded = torch.full((40_000, 1), 30.0)
    decoded[:10], decoded[-30:] = -1.0, 1.0
    index = draw(torch.zeros(2, 1), decoded, 5.0, 4000)
    assert ((index < 10) | (index >= 40_000 - 30)).all()
    share = (index < 10).double().mean(-1)
    assert ((share - 0.25).abs() < 0.04).all()  # 5.8 standard deviations
    assert index.unique().numel() == 40


def test_a_seed_makes_the_same_draws() -> None:
    y, decoded = torch.randn(5, 2), torch.randn(50, 2)
    one, other = (draw(y, decoded, 1.0, 100) for _ in range(2))
    assert torch.equal(one, other)
    generator = torch.Generator().manual_seed(8)
    third = sample_latent(y, decoded, 1.0, num_samples=100, generator=generator)
    assert not torch.equal(one, third)
    torch.manual_seed(3)
    fourth = sample_latent(y, decoded, 1.0, num_samples=100)
    torch.manual_seed(3)
    fifth = sample_latent(y, decoded, 1.0, num_samples=100)
    assert torch.equal(fourth, fifth)


def test_cold_draws_are_minima() -> None:
    decoded = torch.tensor([[1.0], [3.0], [-1.0], [2.0]])
    index = draw(torch.zeros(1, 1), decoded, math.inf, 200)
    assert index.unique().tolist() == [0, 2]


@pytest.mark.parametrize("D", [2, 3, 7, 64])
@pytest.mark.parametrize("beta", [1e8, math.inf])
def test_cold_draws_are_of_least_energy(beta: float, D: int) -> None:
    # The backends need not round an energy alike; what is drawn must be a minimum all the same.
    y, decoded = torch.randn(200, D), torch.randn(1000, D)
    index = draw(y, decoded, beta, 20)
    energy = (y.double()[:, None] - decoded.double()).square().sum(-1)
    least = energy.amin(-1, keepdim=True)
    assert (energy.gather(-1, index) <= least + 1e-5 * (1 + least)).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, math.inf])
def test_a_query_without_a_posterior_is_refused(beta: float) -> None:
    y, decoded = torch.randn(5, 2), torch.randn(50, 2)
    y[3, 1] = math.nan
    with pytest.raises((RuntimeError, ValueError)):
        draw(y, decoded, beta, 7)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e4, math.inf])
def test_dropped_latents_are_never_drawn(beta: float) -> None:
    y, decoded = torch.randn(5, 2), torch.randn(50, 2)
    log_weight = torch.zeros(50)
    log_weight[[0, 1, 20, 49]] = -math.inf
    decoded[[0, 49]] = y[:2]
    index = draw(y, decoded, beta, 500, log_weight=log_weight)
    assert (log_weight[index] == 0).all()


def test_no_draws_and_no_queries() -> None:
    y, decoded = torch.randn(5, 2), torch.randn(50, 2)
    none = draw(y, decoded, 1.0, 0)
    assert none.shape == (5, 0)
    assert none.dtype == torch.int64
    assert draw(y[:0], decoded, 1.0, 3).shape == (0, 3)


def test_leading_dimensions() -> None:
    y, decoded = torch.randn(3, 1, 5, 2), torch.randn(2, 50, 2)
    index = draw(y, decoded, 1.0, 4)
    assert index.shape == (3, 2, 5, 4)
    assert index.min() >= 0
    assert index.max() < 50
