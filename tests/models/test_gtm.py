"""The topographic mapping: EM against EM with responsibilities held, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from lebm_kernels.models import DecoderModel, Ellipse
from lebm_kernels.models.gtm import fit, mean_log_density, restore, topographic_mapping
from lebm_kernels.training import TrainConfig, train
from lebm_kernels.training.datasets import Dataset, digits
from lebm_kernels.training.likelihood import density_loss

DOUBLE = torch.float64


def _sheet(num: int = 60, D: int = 5, seed: int = 0) -> torch.Tensor:
    """Noisy points of a bent sheet in D dimensions, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, num, generator=generator, dtype=DOUBLE) * 2 - 1
    sheet = torch.stack([2 * u, v, u * v, torch.sin(2 * u), v**2], 1)[:, :D]
    return sheet + 0.05 * torch.randn(num, D, generator=generator, dtype=DOUBLE) + 3.0


def _textbook(y, features, weight, beta, decay, iterations):
    """Bishop, Svensen and Williams's EM, with the matrix of responsibilities, by numpy."""
    M, D = y.shape
    history = []
    for _ in range(iterations):
        square = ((y[:, None] - features @ weight) ** 2).sum(-1)
        log = logsumexp(-beta * square, axis=1) - math.log(len(features))
        history.append(float((log + 0.5 * D * math.log(beta / math.pi)).mean()))
        share = softmax(-beta * square, axis=1)
        penalty = np.full(features.shape[1], decay / (2 * beta))
        penalty[-1] = 0
        system = features.T @ (share.sum(0)[:, None] * features) + np.diag(penalty)
        weight = np.linalg.solve(system, features.T @ (share.T @ y))
        square = ((y[:, None] - features @ weight) ** 2).sum(-1)
        beta = M * D / (2 * (share * square).sum())
    return weight, beta, history


@pytest.mark.parametrize("decay", [0.1, 5.0])
def test_em_is_the_textbooks(decay: float) -> None:
    y = _sheet()
    model = topographic_mapping(y, latents=5, bumps=3)
    features = model.decoder.features(model.z).numpy()
    start = model.decoder.weight.detach().numpy().copy()
    # The textbook's decay is in the units of 1/y^2.
    absolute = decay / y.numpy().var(0).mean()
    expected = _textbook(y.numpy(), features, start, model.beta.item(), absolute, 12)
    history = fit(model, y, iterations=12, decay=decay)
    np.testing.assert_allclose(history, expected[2], rtol=1e-8)
    np.testing.assert_allclose(model.decoder.weight.detach(), expected[0], rtol=1e-5, atol=1e-6)
    assert model.beta.item() == pytest.approx(expected[1], rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
def test_em_never_lowers_what_it_maximises(dtype: torch.dtype) -> None:
    y = _sheet(90).to(dtype)
    decay = 0.3
    absolute = decay / y.double().numpy().var(0).mean()
    model = topographic_mapping(y, latents=7, bumps=4)
    values = []
    for _ in range(25):
        density = fit(model, y, iterations=1, decay=decay)[0]
        assert density == pytest.approx(values[-1][0] if values else density, rel=1e-4)
        penalty = absolute / 2 * model.decoder.weight[:-1].square().sum().item() / len(y)
        values.append((mean_log_density(model, y), penalty))
    objective = np.array([density - penalty for density, penalty in values])
    assert (np.diff(objective) > -1e-5 * np.abs(objective[1:])).all()
    assert values[-1][0] > values[0][0] + 0.1


def test_em_ends_where_the_gradient_of_the_likelihood_vanishes() -> None:
    y = _sheet(40)
    model = topographic_mapping(y, latents=4, bumps=2)
    fit(model, y, iterations=700, decay=0.0)
    density_loss(model, y, beta=model.beta).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-6, name


def test_descent_with_learned_beta_comes_to_what_em_finds() -> None:
    y = _sheet(40)
    model, other = (topographic_mapping(y, latents=4, bumps=2) for _ in range(2))
    fit(model, y, iterations=300, decay=0.0)
    config = TrainConfig(
        beta=1.0,
        learn_beta=True,
        epochs=15,
        optimizer="LBFGS",
        learning_rate=1.0,
        schedule="constant",
        optimizer_options={"line_search_fn": "strong_wolfe"},
    )
    result = train(other, Dataset(y), config, loss=density_loss)
    assert -result.history[-1] == pytest.approx(mean_log_density(model, y), abs=2e-3)
    assert other.beta.item() == pytest.approx(model.beta.item(), rel=0.02)
    assert result.records[-1].beta == pytest.approx(other.beta.item())


def test_its_density_is_scikit_learns() -> None:
    y = _sheet()
    model = topographic_mapping(y, latents=4, bumps=3)
    fit(model, y, iterations=5)
    variance = 0.5 / model.beta.item()
    mixture = GaussianMixture(16, covariance_type="spherical")
    mixture.weights_ = np.full(16, 1 / 16)
    mixture.means_ = model.manifold().detach().numpy()
    mixture.covariances_ = np.full(16, variance)
    mixture.precisions_cholesky_ = np.full(16, variance**-0.5)
    assert mean_log_density(model, y) == pytest.approx(mixture.score(y.numpy()), rel=1e-10)


def test_it_starts_in_the_plane_of_the_principal_components() -> None:
    y = _sheet(200)
    # Bumps as wide as the grid bend least: the plane itself is nearly among their sums.
    model = topographic_mapping(y, latents=6, bumps=6, width=2.0)
    points = model.manifold().detach().numpy()
    pca = PCA().fit(y.numpy())
    inside = pca.transform(points)
    assert np.abs(inside[:, 2:]).max() < 0.02
    np.testing.assert_allclose(
        inside[:, :2].std(0), np.sqrt(pca.explained_variance_[:2]), rtol=0.02
    )


def test_held_out_digits_are_likelier_than_under_a_gaussian_mixture_of_as_many_parameters() -> None:
    data = digits()
    y, held_out = data.train.y[::2], data.test.y
    model = topographic_mapping(y, latents=12, bumps=6)
    fit(model, y, iterations=20)
    mixture = GaussianMixture(36, covariance_type="spherical", random_state=0, max_iter=500)
    mixture.fit(y.double().numpy())
    assert mean_log_density(model, held_out) > mixture.score(held_out.double().numpy())


def test_digits_are_scikit_learns_in_two_parts() -> None:
    data = digits(0.25, seed=3)
    assert (len(data.train), len(data.test)) == (1348, 449)
    found = load_digits()
    pixels = torch.cat([data.train.y, data.test.y])
    label = torch.cat([data.train_label, data.test_label])
    rows = np.column_stack([pixels.numpy() * 16, label.numpy()])
    expected = np.column_stack([found.data, found.target])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))
    assert torch.equal(digits(0.25, seed=3).test.y, data.test.y)
    assert not torch.equal(digits(0.25, seed=4).test.y, data.test.y)


def test_bad_values_are_named() -> None:
    y = _sheet()
    model = topographic_mapping(y, latents=3, bumps=2)
    for make, named in (
        (lambda: topographic_mapping(y[0]), "y"),
        (lambda: topographic_mapping(y[:, :1]), "y"),
        (lambda: topographic_mapping(torch.ones(5, 3)), "y"),
        (lambda: topographic_mapping(y, latents=1), "latents"),
        (lambda: topographic_mapping(y, bumps=1), "bumps"),
        (lambda: topographic_mapping(y, width=0.0), "width"),
        (lambda: topographic_mapping(y, width=1e-200), "width"),
        (lambda: topographic_mapping(y, width=1e200), "width"),
        (lambda: topographic_mapping(y.float(), width=1e-25), "width"),
        (lambda: topographic_mapping(y.float(), width=1e25), "width"),
        (lambda: topographic_mapping(y, width="a"), "width"),  # type: ignore[arg-type]
        (lambda: fit(model, y, iterations=-1), "iterations"),
        (lambda: fit(model, y, decay=math.nan), "decay"),
        (lambda: fit(model, y, decay="x"), "decay"),  # type: ignore[arg-type]
        (lambda: fit(DecoderModel(torch.nn.Identity()), y), "model"),
        (lambda: mean_log_density(Ellipse(), y), "model"),
        (lambda: digits(1.0), "held_out"),
    ):
        with pytest.raises(ValueError, match=rf"^{named} must"):
            make()


FLOATS = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])

ROW = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
DEGENERATE = {
    "corner": torch.tensor([[0.0, 0], [1, 0], [0, 1]]),
    "square": torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]).repeat(5, 1),
    "one hot": torch.eye(10).repeat(20, 1),
    "fewer points than bumps": torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]),
    "constant column": torch.cat([_sheet(30)[:, :2], torch.ones(30, 1, dtype=DOUBLE)], 1),
    "lattice": torch.cartesian_prod(ROW, 2 * ROW),
    "far away": _sheet(30) + 1e5,
    "large": _sheet(30) * 1e15,
    "small": _sheet(30) * 1e-12,
}


def _density(model: DecoderModel, y: torch.Tensor) -> float:
    """The mean log-density, by numpy in float64, from the model's own numbers."""
    decoded, beta = model.manifold().detach().double().numpy(), math.exp(model.log_beta.item())
    square = ((y.double().numpy()[:, None] - decoded) ** 2).sum(-1)
    log = logsumexp(-beta * square, axis=1) - math.log(len(decoded))
    return float((log + 0.5 * y.shape[1] * math.log(beta / math.pi)).mean())


@FLOATS
@pytest.mark.parametrize("decay", [0.1, 0.0])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data_are_fitted(kind: str, decay: float, dtype: torch.dtype) -> None:
    y = DEGENERATE[kind].to(dtype)
    model = topographic_mapping(y, latents=5, bumps=4)
    first = _density(model, y)
    history = fit(model, y, iterations=40, decay=decay)
    assert history[0] == pytest.approx(first, abs=0.02)
    # The density of float32's rounded model, too, is the one that was reported.
    assert _density(model, y) == pytest.approx(history[-1], abs=0.02)
    assert mean_log_density(model, y) == pytest.approx(history[-1], abs=0.02)
    # With a prior the density may fall a little while what is maximised rises.
    assert np.diff(history).min() > (-1e-3 if decay else -1e-4)
    assert history[-1] > history[0] + 0.5


@FLOATS
@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.tensor([[1.0, 2.0]]), r"shape \[M, D\] with M, D >= 2, got \[1, 2\]"),
        (torch.full((9, 3), 0.1), "vary by more than its rounding, got 9 observations"),
        (torch.zeros(5, 3), "vary by more than its rounding, got 5 observations"),
        (torch.rand(2, 4), "vary in at least two dimensions"),
        (torch.arange(9)[:, None] * torch.tensor([1.0, 3.0, 0.5]), "vary in at least two dimen"),
        (torch.cat([torch.rand(9, 1), torch.ones(9, 3)], 1), "vary in at least two dimensions"),
        (_sheet(9) * 1e300, "finite in torch.float32|largest number between 1e-140 and 5e.151"),
    ],
)
def test_data_without_a_mapping_are_refused(
    y: torch.Tensor, words: str, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=f"^y must (be |have )?(its )?({words})"):
        topographic_mapping(y.to(dtype), latents=3, bumps=2)


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_squares_beyond_float32_are_refused_there(factor: float) -> None:
    y = _sheet(9) * factor
    for data in (y, y + 7 * factor):
        assert topographic_mapping(data, latents=3, bumps=2).beta.item() > 0
    words = r"between 2e-13 and 7e\+16 in torch\.float32, got "
    with pytest.raises(ValueError, match=f"^y must have its largest number {words}"):
        topographic_mapping(y.float(), latents=3, bumps=2)
    with pytest.raises(ValueError, match=f"^y must have its largest number {words}"):
        fit(topographic_mapping(_sheet().float(), latents=3, bumps=2), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_refused(dtype: torch.dtype) -> None:
    y = _sheet()
    with pytest.raises(TypeError, match=rf"^y must be float32 or float64, got {dtype}"):
        topographic_mapping(y.to(dtype))
    model = topographic_mapping(y, latents=3, bumps=2).to(dtype)
    with pytest.raises(TypeError, match=rf"^model must be float32 or float64, got {dtype}"):
        fit(model, y)


@FLOATS
@pytest.mark.parametrize("power", [-40, -13, 1, 30, 40])
def test_other_units_give_the_same_mapping_in_those_units(power: int, dtype: torch.dtype) -> None:
    y, factor = _sheet(40).to(dtype), 2.0**power
    model, other = (topographic_mapping(data, latents=4, bumps=3) for data in (y, y * factor))
    history = fit(model, y, iterations=10)
    in_units = fit(other, y * factor, iterations=10)
    shift = y.shape[1] * math.log(factor)
    close = {"rtol": 0.0, "atol": 1e-4 if dtype == torch.float32 else 1e-9}
    np.testing.assert_allclose(np.array(in_units) + shift, history, **close)
    torch.testing.assert_close(other.manifold() / factor, model.manifold(), **close)
    found, expected = mean_log_density(other, y * factor), mean_log_density(model, y)
    np.testing.assert_allclose(found + shift, expected, **close)


@pytest.mark.parametrize("width", [1e-15, 1e-3, 1e3, 1e15])
def test_bumps_of_extreme_widths_are_fitted(width: float) -> None:
    y = _sheet().float()
    model = topographic_mapping(y, latents=5, bumps=3, width=width)
    # Without a prior, which would lower the density where it shrinks W.
    history = fit(model, y, iterations=10, decay=0.0)
    assert np.diff(history).min() > -1e-6
    assert mean_log_density(model, y) > history[-1] - 0.02


@pytest.mark.parametrize("decay", [1e10, 1e100, 1e300])
def test_with_a_large_decay_only_the_constant_is_left(decay: float) -> None:
    # Then the density is that of one Gaussian.
    y = _sheet()
    model = topographic_mapping(y, latents=4, bumps=3)
    fit(model, y, iterations=5, decay=decay)
    centre = y.mean(0)
    np.testing.assert_allclose(model.manifold().detach(), centre.expand(16, 5), rtol=1e-6)
    assert 0.5 / model.beta.item() == pytest.approx((y - centre).square().mean().item(), rel=1e-6)


def test_what_is_not_seen_is_restored_by_what_is(any_backend: str) -> None:
    y = _sheet()
    model = topographic_mapping(y, latents=5, bumps=3)
    fit(model, y, iterations=5)
    seen = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[0] = False  # then the prior's mean
    seen[1] = True
    spoilt = torch.where(seen, y, torch.nan)
    decoded, beta = model.manifold().detach().numpy(), model.beta.item()
    square = (seen.numpy()[:, None] * (y.numpy()[:, None] - decoded) ** 2).sum(-1)
    expected = softmax(-beta * square, axis=1) @ decoded
    found = restore(model, spoilt, seen, backend=any_backend)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    everything = restore(model, y, torch.ones(5, dtype=torch.bool), backend=any_backend)
    torch.testing.assert_close(everything, restore(model, y, backend=any_backend))


def test_observations_that_are_no_tensor_are_named() -> None:
    for y, got in (([[0.0, 1.0]], "list"), (torch.ones(4, 3, dtype=torch.int64), "torch.int64")):
        with pytest.raises(TypeError, match=rf"^y must be a floating-point tensor .*, got {got}$"):
            topographic_mapping(y)  # type: ignore[arg-type]


def test_restoring_says_what_is_wrong() -> None:
    y = _sheet(8)
    model = topographic_mapping(y, latents=3, bumps=2)
    with pytest.raises(TypeError, match=r"seen must be a boolean tensor, got torch\.float64"):
        restore(model, y, torch.ones_like(y))
    with pytest.raises(ValueError, match=r"seen must broadcast to \[8, 5\], got \[4\]"):
        restore(model, y, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="learned beta"):
        restore(DecoderModel(model.decoder, grid=model.grid), y)


def _check_refusal(model, y, error, words) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        fit(model, y, iterations=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (torch.empty(0, 5, dtype=DOUBLE), ValueError, r"y must have shape \[M, 5\] with M >= 1"),
        (torch.ones(4, 3, dtype=DOUBLE), ValueError, r"y must have shape \[M, 5\]"),
        (torch.full((4, 5), math.nan, dtype=DOUBLE), ValueError, "y must be finite"),
        (torch.full((4, 5), 1e200, dtype=DOUBLE), ValueError, "y must have its largest number"),
        (torch.eye(5, dtype=DOUBLE) * 1e-300, ValueError, "y must have its largest number"),
        (torch.full((4, 5), 7.0, dtype=DOUBLE), ValueError, "y must vary by more than its round"),
        (torch.rand(1, 5, dtype=DOUBLE), ValueError, "y must vary by more than its rounding"),
    ],
)
def test_what_cannot_be_fitted_leaves_the_model_alone(y, error, words) -> None:
    _check_refusal(topographic_mapping(_sheet(), latents=5, bumps=3), y, error, words)


@pytest.mark.parametrize(("ours", "theirs"), [(1e90, 1e-90), (1e-90, 1e90), (1e-70, 1e84)])
def test_a_mapping_of_another_world_is_refused(ours: float, theirs: float) -> None:
    model = topographic_mapping(_sheet() * ours, latents=5, bumps=3)
    _check_refusal(model, _sheet() * theirs, FloatingPointError, "log-density is ")
