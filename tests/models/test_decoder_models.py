"""Models of any decoder: free energies and densities against numpy, SciPy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from sklearn.mixture import GaussianMixture
from torch import nn

from lebm_kernels.models import DecoderModel, Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.models.decoders import HornPredictor, NeuralDecoder, RBFDecoder
from lebm_kernels.models.grids import (
    LatentGrid,
    gauss_legendre_grid,
    interval_grid,
    periodic_grid,
    product_grid,
    sobol_grid,
)
from lebm_kernels.models.regularisers import L1, L2, LearnedPrior
from lebm_kernels.practicum.demonstrations import memorising

DOUBLE = torch.float64


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=DOUBLE)


def _formula(y, decoded, beta, log_weight=None, cost=0.0):
    """F by numpy and scipy, from points [N, D] or [M, N, D]."""
    energy = ((y[:, None] - decoded) ** 2).sum(-1) + cost
    if beta == math.inf:
        return energy.min(1)
    log_weight = np.zeros(energy.shape[1]) if log_weight is None else log_weight
    if beta == 0:
        return (energy * np.exp(log_softmax(log_weight))).sum(1)
    return -logsumexp(log_softmax(log_weight) - beta * energy, axis=1) / beta


GRIDS = {
    "circle": lambda: periodic_grid(12, dtype=DOUBLE),
    "line": lambda: interval_grid(-1.0, 2.0, 9, dtype=DOUBLE),
    "gauss": lambda: gauss_legendre_grid(-1.0, 1.0, 7, dtype=DOUBLE),
    "plane": lambda: product_grid(
        periodic_grid(5, dtype=DOUBLE), gauss_legendre_grid(-1.0, 1.0, 4, dtype=DOUBLE)
    ),
    "cube": lambda: sobol_grid(16, 5, low=-1.0, seed=0, dtype=DOUBLE),
}


@settings(max_examples=40, deadline=None)
@given(
    grid=st.sampled_from(sorted(GRIDS)),
    regulariser=st.sampled_from([None, "L2", "L1", "prior"]),
    conditional=st.booleans(),
    D=st.integers(1, 5),
    M=st.integers(1, 7),
    beta=st.sampled_from([0.0, 1e-3, 0.7, 30.0, math.inf]),
    seed=st.integers(0, 99),
)
def test_free_energy_and_posterior_are_the_formulas_on_every_grid(
    grid, regulariser, conditional, D, M, beta, seed
) -> None:
    latents = GRIDS[grid]()
    K = latents.dim
    made = {"L2": L2(0.3), "L1": L1(0.2), "prior": LearnedPrior(K, 0.5, generator=_generator(1))}
    decoder = NeuralDecoder(K, D, code_dim=3 * conditional, hidden=(6,), generator=_generator(seed))
    predictor = HornPredictor(outputs=3, generator=_generator(seed)) if conditional else None
    model = DecoderModel(decoder, predictor, grid=latents, regulariser=made.get(regulariser))
    model.double()
    if regulariser == "prior":
        nn.init.normal_(model.regulariser.layers[-1].weight, generator=_generator(2))
    y = 2 * _randn(M, D, seed=seed)
    x = torch.rand(M, generator=_generator(seed), dtype=DOUBLE) if conditional else None

    with torch.no_grad():
        value = model.free_energy(y, x, beta=beta)
        found = model.posterior(y, x, beta=beta)
        manifold = model.manifold(x).numpy()
    weight = np.zeros(len(latents)) if latents.log_weight is None else latents.log_weight.numpy()
    z = latents.points.numpy()
    cost = {
        None: lambda: np.zeros(len(z)),
        "L2": lambda: 0.3 * (z**2).sum(1),
        "L1": lambda: 0.2 * np.abs(z).sum(1),
        "prior": lambda: -0.5 * _log_prior(model.regulariser, z, weight),
    }[regulariser]()
    expected = _formula(y.numpy(), manifold, beta, weight, cost)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.free_energy.numpy(), expected, rtol=1e-9, atol=1e-10)
    energy = ((y.numpy()[:, None] - manifold) ** 2).sum(-1) + cost
    np.testing.assert_array_equal(found.index.numpy(), energy.argmin(1))
    if 0 < beta < math.inf:
        p = np.exp(log_softmax(weight - beta * energy, axis=1))
        mean = (p[:, None] @ np.broadcast_to(manifold, (M, *manifold.shape[-2:]))).squeeze(1)
        np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-9, atol=1e-10)


def _log_prior(prior, z, weight):
    """The logarithm of the learned density, by numpy from the network's parameters."""
    w1, b1, w2 = (p.detach().numpy() for p in prior.parameters())
    logit = np.tanh(z @ w1.T + b1) @ w2[0]
    return logit - logsumexp(logit + log_softmax(weight))


@settings(max_examples=20, deadline=None)
@given(D=st.integers(1, 6), N=st.integers(1, 9), beta=st.floats(1e-2, 1e2), seed=st.integers(0, 9))
def test_log_density_is_scikit_learns_of_the_mixture(D, N, beta, seed) -> None:
    log_weight = _randn(N, seed=seed)
    grid = LatentGrid(_randn(N, 2, seed=seed + 1), log_weight)
    model = DecoderModel(NeuralDecoder(2, D, generator=_generator(seed)).double(), grid=grid)
    y = _randn(8, D, seed=seed + 2)
    mixture = GaussianMixture(N, covariance_type="spherical")
    mixture.weights_ = log_weight.softmax(0).numpy()
    mixture.means_ = model.manifold().detach().numpy()
    mixture.covariances_ = np.full(N, 0.5 / beta)
    mixture.precisions_cholesky_ = np.full(N, math.sqrt(2 * beta))
    for given_beta in (beta, torch.tensor(beta, dtype=DOUBLE)):
        found = model.log_density(y, beta=given_beta).detach().numpy()
        np.testing.assert_allclose(found, mixture.score_samples(y.numpy()), rtol=1e-9)


@pytest.mark.parametrize("regulariser", [L2(0.7), L1(0.4), LearnedPrior(1, 0.3)])
def test_a_regularised_density_integrates_to_one(regulariser) -> None:
    grid = interval_grid(-2.0, 2.0, 5, dtype=DOUBLE)
    decoder = NeuralDecoder(1, 2, domain=(-2.0, 2.0), generator=_generator(0))
    model = DecoderModel(decoder, grid=grid, regulariser=regulariser).double()
    if isinstance(regulariser, LearnedPrior):
        nn.init.normal_(regulariser.layers[-1].weight, generator=_generator(2))

    # Gaussian-smooth over the plane: a sum on a fine square grid is exact.
    side = torch.linspace(-8, 8, 161, dtype=DOUBLE)
    with torch.no_grad():
        total = model.log_density(torch.cartesian_prod(side, side), beta=4.0).exp().sum() * 0.01
    assert total.item() == pytest.approx(1.0, abs=1e-9)


def test_one_condition_is_shared_by_many_queries_and_others_broadcast() -> None:
    model = neural_horn(generator=_generator(0)).double()
    y = _randn(6, 2)
    each = model.free_energy(y, torch.full((6,), 0.4, dtype=DOUBLE), beta=2.0)
    for x in (torch.tensor(0.4, dtype=DOUBLE), torch.tensor([0.4], dtype=DOUBLE)):
        torch.testing.assert_close(model.free_energy(y, x, beta=2.0), each)
    betas = torch.rand(6, generator=_generator(1), dtype=DOUBLE)
    x = torch.rand(6, generator=_generator(2), dtype=DOUBLE)
    alone = [model.free_energy(y[i : i + 1], x[i], beta=betas[i].item()) for i in range(6)]
    torch.testing.assert_close(model.free_energy(y, x, beta=betas), torch.cat(alone))
    batched = model.free_energy(y.reshape(2, 3, 2), x.reshape(2, 3), beta=betas.reshape(2, 3))
    torch.testing.assert_close(batched.reshape(6), torch.cat(alone))


@pytest.mark.parametrize("kind", ["ellipse", "horn", "neural horn", "plane"])
def test_decoding_each_is_decoding_all_and_picking(kind: str) -> None:
    plane = product_grid(periodic_grid(4), periodic_grid(3))
    model: LatentModel = {
        "ellipse": lambda: Ellipse(generator=_generator(0)),
        "horn": lambda: Horn(generator=_generator(0)),
        "neural horn": lambda: neural_horn(generator=_generator(0)),
        "plane": lambda: DecoderModel(NeuralDecoder(2, 3, generator=_generator(0)), grid=plane),
    }[kind]()
    model.double()
    z = _randn(5) if model.grid.dim == 1 else _randn(5, 2)
    x = torch.rand(5, generator=_generator(1), dtype=DOUBLE) if model.conditional else None
    each = model.decode_each(z, x)
    for i in range(5):
        at = None if x is None else x[i]
        torch.testing.assert_close(each[i], model.decode(z, at)[i])
    with pytest.raises(ValueError, match=r"^x (is missing|must be absent)"):
        model.decode_each(z, None if model.conditional else torch.zeros(5))


@pytest.mark.parametrize("conditional", [False, True])
def test_draws_follow_the_posterior(conditional: bool) -> None:
    grid = interval_grid(0.0, 6.0, 5, dtype=DOUBLE)
    decoder = NeuralDecoder(code_dim=2 * conditional, hidden=(6,), generator=_generator(0))
    predictor = HornPredictor(outputs=2, generator=_generator(0)) if conditional else None
    model = DecoderModel(decoder, predictor, grid=grid, regulariser=L2(0.02)).double()
    y = _randn(3, 2)
    x = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE) if conditional else None
    num = 20000
    index = model.sample_latent(y, x, num_samples=num, beta=0.8, generator=_generator(0))
    assert index.shape == (3, num)
    energy = (y[:, None] - model.manifold(x)).square().sum(-1) + 0.02 * grid.z.square()
    share = (grid.log_weight - 0.8 * energy).softmax(-1)
    counts = torch.stack([row.bincount(minlength=5) for row in index])
    statistic = ((counts - num * share).square() / (num * share)).sum(1)
    assert (statistic < 23.5).all()  # chi-squared of 4 degrees: 1e-4 beyond


def test_gradients_reach_every_parameter() -> None:
    grid = product_grid(periodic_grid(4, dtype=DOUBLE), periodic_grid(3, dtype=DOUBLE))
    decoder = NeuralDecoder(2, 2, code_dim=3, hidden=(5, 4), generator=_generator(0))
    predictor = HornPredictor(outputs=3, generator=_generator(0))
    prior = LearnedPrior(2, generator=_generator(0))
    model = DecoderModel(decoder, predictor, grid=grid, regulariser=prior).double()
    model.learn_beta(2.0)
    y, x = _randn(4, 2), torch.rand(4, dtype=DOUBLE)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = -model.log_density(y, x, beta=model.beta).mean()
    found = torch.autograd.grad(loss, parameters)

    def again() -> torch.Tensor:
        energy = (y[:, None] - model.manifold(x)).square().sum(-1) + model.latent_energy
        value = -torch.logsumexp(-model.beta * energy - math.log(12), 1) / model.beta
        normaliser = torch.logsumexp(-model.beta * model.latent_energy - math.log(12), 0)
        return (model.beta * value - (model.beta / math.pi).log() + normaliser).mean()

    for name, mine, expected in zip(
        names, found, torch.autograd.grad(again(), parameters), strict=True
    ):
        torch.testing.assert_close(mine, expected, msg=name)


def test_the_neural_decoder_is_the_network_it_says() -> None:
    decoder = NeuralDecoder(2, 3, code_dim=4, hidden=(5, 6), domain=(-1.0, 3.0)).double()
    z, code = _randn(7, 2), _randn(2, 4, seed=1)
    first = decoder.of_latent
    w2, b2, w3, b3 = decoder.layers.parameters()
    for m in range(2):
        inner = z / 2 - 0.5
        hidden = inner @ first.weight.T + first.bias + decoder.of_code.weight @ code[m]
        expected = (hidden.tanh() @ w2.T + b2).tanh() @ w3.T + b3
        torch.testing.assert_close(decoder(z, code)[m], expected)
    with pytest.raises(ValueError, match="code is missing"):
        decoder(z)
    with pytest.raises(ValueError, match="code must be absent"):
        NeuralDecoder(2)(z, code)


def test_rbf_features_are_gaussian_bumps_and_a_constant() -> None:
    centres = _randn(3, 2)
    decoder = RBFDecoder(centres, 0.7, 4)
    z = _randn(5, 2, seed=1)
    square = ((z.numpy()[:, None] - centres.numpy()) ** 2).sum(-1)
    expected = np.concatenate([np.exp(-square / (2 * 0.49)), np.ones((5, 1))], 1)
    np.testing.assert_allclose(decoder.features(z).numpy(), expected)
    assert decoder(z).abs().max() == 0
    nn.init.normal_(decoder.weight)
    torch.testing.assert_close(decoder(z), torch.from_numpy(expected) @ decoder.weight)


def test_a_learned_prior_starts_uniform_and_stays_normalised_on_another_grid() -> None:
    prior = LearnedPrior(1, 0.4)
    model = Ellipse(interval_grid(0.0, 3.0, 21), regulariser=prior)
    assert model.latent_energy.abs().max() == 0
    nn.init.normal_(prior.layers[-1].weight)
    for fine in (model, model.on_grid(interval_grid(0.0, 3.0, 200))):
        mass = (fine.grid.log_measure - fine.latent_energy / 0.4).exp().sum()
        assert mass.item() == pytest.approx(1.0, abs=1e-5)
    assert set(model.state_dict()) >= {"regulariser.layers.0.weight"}


def test_latents_that_memorise_need_a_regulariser() -> None:
    none, *regularised = memorising(epochs=60)
    assert none.on < 0.05
    assert none.off < 0.1  # as low as on the data, for all that it tells
    for row in regularised:
        assert row.contrast > 10 * none.contrast, row
    assert all(row.off > 10 * none.off for row in regularised[:2])


def test_draws_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (neural_horn(generator=_generator(s)).state_dict() for s in (3, 3, 4))
    LearnedPrior(2, generator=_generator(0))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: L2(-1.0), "strength"),
        (lambda: L1(math.inf), "strength"),
        (lambda: LearnedPrior(0), "dim"),
        (lambda: LearnedPrior(2, hidden=0), "hidden"),
        (lambda: NeuralDecoder(0), "latent_dim"),
        (lambda: NeuralDecoder(hidden=()), "hidden"),
        (lambda: NeuralDecoder(code_dim=-1), "code_dim"),
        (lambda: NeuralDecoder(domain=(1.0, 1.0)), "domain"),
        (lambda: HornPredictor(outputs=0), "outputs"),
        (lambda: RBFDecoder(torch.zeros(3), 1.0, 2), "centres"),
        (lambda: RBFDecoder(torch.zeros(3, 2), 0.0, 2), "width"),
        (lambda: Ellipse(sobol_grid(4, 2)), "grid"),
        (lambda: Ellipse().on_grid(sobol_grid(4, 2)), "grid"),
        (lambda: Horn().learn_beta(math.inf), "beta"),
        (lambda: Ellipse().log_density(torch.zeros(1, 2), beta=math.inf), "beta"),
        (lambda: neural_horn().free_energy(torch.zeros(1, 2)), "x is missing: DecoderModel"),
        (lambda: DecoderModel(NeuralDecoder()).manifold(torch.zeros(1)), "x must be absent"),
    ],
)
def test_bad_values_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make()
