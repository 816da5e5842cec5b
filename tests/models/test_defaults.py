"""PyTorch's default dtype and device: followed by what is made, ignored by what is computed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

import lebm_kernels
from lebm_kernels import free_energy, posterior, sample_latent
from lebm_kernels.diagnostics.accuracy import BETAS
from lebm_kernels.models import (
    L1,
    L2,
    DecoderModel,
    Ellipse,
    EllipseDecoder,
    Horn,
    HornPredictor,
    LatentModel,
    LearnedPrior,
    NeuralDecoder,
    RBFDecoder,
    circle,
    denoise,
    gauss_legendre_grid,
    gtm,
    infer,
    infer_on_grid,
    interval_grid,
    neural_horn,
    periodic_grid,
    product_grid,
    sample,
    sobol_grid,
)
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training import (
    GaussianNoise,
    HingeLoss,
    LogLoss,
    MostOffending,
    TrainConfig,
    UniformBox,
    density_loss,
    digits,
    ellipse_data,
    horn_data,
    mean_free_energy,
    train,
)
from lebm_kernels.training.datasets import Dataset

FORWARD = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
PACKAGE = Path(lebm_kernels.__file__).parent


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def meta() -> Iterator[None]:
    """Another default device, where no number can be read."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


MADE: dict[str, Callable[[], Any]] = {
    "Ellipse": Ellipse,
    "Ellipse of a generator": lambda: Ellipse(generator=_generator()),
    "Horn": Horn,
    "Horn of a generator": lambda: Horn(generator=_generator()),
    "neural horn": lambda: neural_horn(generator=_generator()),
    "DecoderModel": lambda: DecoderModel(
        NeuralDecoder(generator=_generator()), regulariser=LearnedPrior(1, generator=_generator())
    ),
    "a learned beta": lambda: Ellipse().learn_beta(2.0),
    "EllipseDecoder": EllipseDecoder,
    "HornPredictor": HornPredictor,
    "NeuralDecoder": lambda: NeuralDecoder(code_dim=2),
    "RBFDecoder": lambda: RBFDecoder(torch.zeros(3, 1), 1.0, 2),
    "LearnedPrior": lambda: LearnedPrior(1),
    "periodic_grid": periodic_grid,
    "interval_grid": lambda: interval_grid(0.0, 1.0, 5),
    "gauss_legendre_grid": lambda: gauss_legendre_grid(0.0, 1.0, 5),
    "sobol_grid": lambda: sobol_grid(8, 2),
    "scrambled sobol_grid": lambda: sobol_grid(8, 2, seed=1),
    "product_grid": lambda: product_grid(periodic_grid(3), interval_grid(0.0, 1.0, 2)),
    "ellipse_data": lambda: ellipse_data(generator=_generator()),
    "horn_data": lambda: horn_data(30),
    "digits": lambda: digits().train,
}


def _tensors(made: Any) -> list[Tensor]:
    if isinstance(made, nn.Module):
        return [*made.parameters(), *made.buffers()]
    return [x for x in vars(made).values() if isinstance(x, Tensor)]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_what_is_made_has_the_default_dtype(make: Callable[[], Any], dtype: torch.dtype) -> None:
    tensors = _tensors(make())
    assert tensors
    assert {x.dtype for x in tensors} == {dtype}
    assert {x.device.type for x in tensors} == {"cpu"}


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_what_is_made_is_on_the_default_device(make: Callable[[], Any]) -> None:
    tensors = _tensors(make())
    assert {x.device.type for x in tensors} == {"meta"}
    with torch.device("cpu"):
        assert {x.device.type for x in _tensors(make())} == {"cpu"}


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: periodic_grid(4, **options),
        lambda **options: interval_grid(0.0, 1.0, 4, **options),
        lambda **options: gauss_legendre_grid(0.0, 1.0, 4, **options),
        lambda **options: sobol_grid(4, 2, seed=3, **options),
        lambda **options: ellipse_data(4, generator=_generator(), **options),
        lambda **options: horn_data(4, generator=_generator(), **options),
        lambda **options: digits(**options).test,
    ],
    ids=["periodic", "interval", "gauss_legendre", "sobol", "ellipse", "horn", "digits"],
)
def test_a_named_device_and_dtype_are_those_of_the_result(make: Callable[..., Any]) -> None:
    made = _tensors(make(device="cpu", dtype=torch.float64))
    torch.set_default_device(None)
    expected = _tensors(make(dtype=torch.float64))
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)


def _formula(model: LatentModel, y: Tensor, beta: float, x: Tensor | None = None) -> Any:
    decoded = model.manifold(x).detach().double().numpy()
    decoded = decoded if decoded.ndim == 3 else decoded[None]
    energy = ((y.double().numpy()[:, None] - decoded) ** 2).sum(-1)
    return -(logsumexp(-beta * energy, axis=1) - np.log(energy.shape[1])) / beta


@pytest.mark.parametrize("make", [Ellipse, Horn, neural_horn])
def test_models_compute_in_the_default_dtype(make: Any, dtype: torch.dtype) -> None:
    model = make(generator=_generator())
    y, x = torch.randn(5, 2), torch.rand(5) if model.conditional else None
    found = model(y, x, beta=2.0)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = dtype == torch.float64
    # In bfloat16 the radii times the circle are rounded in the formula, and not in the operation.
    rtol = 1e-12 if exact else 3 * torch.finfo(dtype).eps
    np.testing.assert_allclose(
        found.detach(), _formula(model, y, 2.0, x), rtol=rtol, atol=0 if exact else 0.1
    )


def test_training_runs_in_the_default_dtype(dtype: torch.dtype) -> None:
    for name in ("ellipse", "horn"):
        model, data, config = RECIPES[name].start(0, epochs=2)
        result = train(model, data, config, progress=False)
        assert result.final < result.initial
        assert next(model.parameters()).dtype == dtype


@FORWARD
def test_results_do_not_take_the_default_dtype() -> None:
    """Everything of float32 stays float32 under a default of float64."""
    y, decoded, weight = torch.randn(4, 2), torch.randn(6, 2), torch.randn(6)
    energy = torch.rand(4, 6)
    found: list[list[Tensor]] = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            found.append([*_results(y, decoded, weight, energy)])
        finally:
            torch.set_default_dtype(torch.float32)
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def _results(y: Tensor, decoded: Tensor, weight: Tensor, energy: Tensor) -> Iterator[Tensor]:
    for backend in ("native", "chunked", "reference"):
        for beta in (0.0, 0.5, torch.inf):
            options = {"log_weight": weight, "latent_energy": weight, "backend": backend}
            leaf = y.clone().requires_grad_()
            value = free_energy(leaf, decoded, beta, **options)  # type: ignore[arg-type]
            yield from (value, *torch.autograd.grad(value.sum(), leaf))
            yield from posterior(y, decoded, beta, **options)  # type: ignore[arg-type]
    leaf = y.clone().requires_grad_()
    first = torch.autograd.grad(free_energy(leaf, decoded, 2.0).sum(), leaf, create_graph=True)[0]
    yield torch.autograd.grad(first.square().sum(), leaf)[0]
    yield torch.func.jvp(lambda q: free_energy(q, decoded, 2.0), (y,), (decoded[:4],))[1]
    yield sample_latent(y, decoded, num_samples=5, generator=_generator())
    for beta in (0.0, 2.0, torch.inf, torch.full_like(y[:, 0], 2.0)):
        yield lebm_kernels.softmin(energy, beta, 1, weight)
        yield lebm_kernels.softmax(energy, beta, 1)
        yield lebm_kernels.softargmin(energy, beta, 1, weight)
        yield lebm_kernels.softargmax(energy, beta, 1)


@FORWARD
def test_the_functions_ignore_the_default_device() -> None:
    y, decoded, weight = torch.randn(4, 2), torch.randn(6, 2), torch.randn(6)
    energy = torch.rand(4, 6)
    expected = [*_results(y, decoded, weight, energy)]
    torch.set_default_device("meta")
    try:
        found = [*_results(y, decoded, weight, energy)]
    finally:
        torch.set_default_device(None)
    # A default device is a mode, in which softmin and its family take another way: see
    # soft_minimum.py.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def _models() -> Iterator[LatentModel]:
    grid = product_grid(periodic_grid(6), interval_grid(0.5, 1.5, 3))
    yield Ellipse(radii=torch.tensor([1.0, 0.5])).learn_beta(2.0)
    yield Horn(generator=_generator())
    yield neural_horn(generator=_generator())
    decoder = NeuralDecoder(2, generator=_generator())
    for regulariser in (L1(0.1), L2(0.1), LearnedPrior(2, generator=_generator())):
        yield DecoderModel(decoder, grid=grid, regulariser=regulariser)


@pytest.mark.parametrize("number", range(6))
def test_models_and_inference_ignore_the_default_device(number: int) -> None:
    def run() -> Iterator[Any]:
        options = {"beta": 2.0}
        yield model(y, x, **options)
        yield from model.posterior(y, x, **options)
        yield model.log_density(y, x, **options)
        yield model.sample_latent(y, x, num_samples=3, generator=_generator())
        yield from infer_on_grid(model, y, x)
        for method in ("gradient", "cg", "lbfgs"):
            yield from infer(model, y, x, start=0.3, method=method, max_steps=5)
            yield from denoise(model, y, x, beta=2.0, method=method, max_steps=5)
        yield from sample(model, y, x, num_samples=3, generator=_generator())
        yield model.on_grid(model.grid)(y, x)
        start = UniformBox((-3.0, -3.0), 3.0, _generator())
        for negatives in (start, GaussianNoise(0.5, _generator()), MostOffending(0.1, start, 2, 5)):
            yield LogLoss(negatives)(model, y, x, beta=2.0)

    model = [*_models()][number]
    y = torch.randn(4, 2, generator=_generator())
    x = torch.rand(4, generator=_generator()) if model.conditional else None
    expected = [*run()]
    torch.set_default_device("meta")
    try:
        found = [*run()]
    finally:
        torch.set_default_device(None)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        ("Adam", None),
        ("Adagrad", density_loss),
        ("LBFGS", None),
        ("RMSprop", HingeLoss(MostOffending(0.1, UniformBox(-3.0, 3.0), max_steps=3))),
    ],
)
def test_training_ignores_the_default_device(optimizer: str, loss: Any, tmp_path: Path) -> None:
    def run(name: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = neural_horn(periodic_grid(8, device="cpu"), generator=_generator())
        options: dict[str, Any] = {"validation": data, "progress": False}
        if loss is not None:
            options["loss"] = loss
        options["checkpoint"] = tmp_path / name
        for epochs in (1, 2):
            config = TrainConfig(
                beta=2.0,
                epochs=epochs,
                batch_size=7,
                slice_size=3,
                schedule="constant",
                learning_rate=1e-2,
                optimizer=optimizer,
                optimizer_options={"max_iter": 2} if optimizer == "LBFGS" else {},
            )
            train(model, data, config, resume=epochs == 2, **options)
        return [p.detach() for p in model.parameters()]

    data = horn_data(20, generator=_generator())
    expected = run("cpu")
    torch.set_default_device("meta")
    try:
        found = run("meta")
        assert mean_free_energy(Horn(periodic_grid(device="cpu")), data) > 0.0
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, expected))


def test_the_loss_sees_the_users_default_device() -> None:
    seen = []

    def loss(model: LatentModel, y: Tensor, x: Tensor | None = None, **options: Any) -> Tensor:
        seen.append(torch.get_default_device().type)
        return model(y, x, **options).mean()

    model, data = Ellipse(radii=torch.ones(2)), ellipse_data()
    with torch.device("meta"):
        train(model, data, TrainConfig(epochs=2), loss=loss, validation=data, progress=False)
    assert seen == ["meta"] * 4


def test_the_mapping_ignores_the_default_device() -> None:
    def run() -> Iterator[Any]:
        model = gtm.topographic_mapping(y, latents=4, bumps=3)
        yield torch.tensor(gtm.fit(model, y, iterations=3), device="cpu")
        yield torch.tensor(gtm.mean_log_density(model, y), device="cpu")
        yield gtm.restore(model, y, seen)

    y = torch.randn(30, 3, generator=_generator())
    seen = torch.rand(30, 3, generator=_generator()) < 0.7
    expected = [*run()]
    torch.set_default_device("meta")
    try:
        found = [*run()]
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("default", ["dtype", "device"])
def test_figures_and_diagnostics_ignore_the_defaults(default: str) -> None:
    from lebm_kernels.diagnostics.accuracy import accuracy
    from lebm_kernels.figures import latents, manifolds, maps, overview, sections

    generator = _generator()
    model, data = Ellipse(radii=torch.tensor([2.0, 1.5])), ellipse_data(generator=generator)
    horn, horns = Horn(generator=generator), horn_data(50, generator=generator)
    mapping = gtm.topographic_mapping(torch.rand(30, 4), latents=4, bumps=3)
    images = torch.rand(2, 4)
    if default == "dtype":
        torch.set_default_dtype(torch.bfloat16)
    else:
        torch.set_default_device("meta")
    try:
        latents.energy_curves_figure(model, data)
        latents.restored_figure(model, data.y)
        latents.restored_images_figure(mapping, images, noise=0.1, generator=generator)
        manifolds.manifold_figure(model, model, data)
        manifolds.manifold_figure(horn, horn, horns)
        manifolds.horn_points_figure(horn, horn, horns)
        maps.free_energy_figure(model, data=data)
        maps.gradient_figure(model, data.y)
        overview.overview_figure(model, data)
        sections.section_figure(model)
        sections.sections_figure([("one", model)], (torch.inf, 1.0))
        sections.surface_figure(model)
        assert len(accuracy(None)) == len(BETAS)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


# What the default device would decide. torch.Generator() is always the CPU's.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal"),
    *("ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
    *("tril_indices", "triu_indices"),
}


def test_every_new_tensor_names_its_device() -> None:
    unnamed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.")):
                continue
            names = {keyword.arg for keyword in node.keywords}  # None: of a dictionary
            if ast.unparse(node.func)[6:] in FACTORIES and not names & {"device", None}:
                unnamed.append(f"{path.name}:{node.lineno}")
    assert unnamed == []


class _Wide(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return circle(z.squeeze(-1)).double()


Y = torch.zeros(3, 2)
MIXED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "radii": (
        lambda: Ellipse(periodic_grid(), radii=torch.ones(2).double())(Y),
        TypeError,
        "decoder.radii must be torch.float32 as the grid of Ellipse is, got torch.float64",
    ),
    "decoder": (
        lambda: DecoderModel(nn.Linear(1, 2).double())(Y),
        TypeError,
        "decoder.weight must be torch.float32 as the grid of DecoderModel is, got torch.float64",
    ),
    "grid": (
        lambda: DecoderModel(nn.Linear(1, 2), grid=periodic_grid(dtype=torch.float64))(Y.double()),
        TypeError,
        "decoder.weight must be torch.float64 as the grid of DecoderModel is, got torch.float32",
    ),
    "bumps": (
        lambda: DecoderModel(RBFDecoder(torch.zeros(3, 1).double(), 1.0, 2))(Y),
        TypeError,
        "decoder.weight must be torch.float32 as the grid of DecoderModel is, got torch.float64",
    ),
    "predictor": (
        lambda: DecoderModel(NeuralDecoder(code_dim=2), HornPredictor().double())(
            Y, torch.zeros(3)
        ),
        TypeError,
        (
            "predictor.layers.0.weight must be torch.float32 as the grid of DecoderModel is, "
            "got torch.float64"
        ),
    ),
    "prior": (
        lambda: Ellipse(regulariser=LearnedPrior(1).double())(Y),
        TypeError,
        (
            "regulariser.layers.0.weight must be torch.float32 as the grid of Ellipse is, "
            "got torch.float64"
        ),
    ),
    "device": (
        lambda: DecoderModel(nn.Linear(1, 2, device="meta"))(Y),
        ValueError,
        "decoder.weight must be on cpu as the grid of DecoderModel is, got meta",
    ),
    "y": (
        lambda: Ellipse()(Y.double()),
        TypeError,
        "y must be torch.float32 as Ellipse decodes to, got torch.float64",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), MIXED.values(), ids=MIXED.keys())
def test_a_mismatch_names_the_part_of_the_model(
    call: Callable[[], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == words


def test_a_decoder_may_cast() -> None:
    y = torch.randn(3, 2, generator=_generator()).double()
    model = DecoderModel(_Wide())
    np.testing.assert_allclose(model(y, beta=2.0), _formula(model, y, 2.0))


def test_the_models_follow_their_grid_or_radii() -> None:
    grid = periodic_grid(dtype=torch.float64)
    for model in (Ellipse(grid), Horn(grid), neural_horn(grid)):
        assert {x.dtype for x in _tensors(model)} == {torch.float64}
    assert {x.dtype for x in _tensors(Ellipse(radii=torch.ones(2).double()))} == {torch.float64}
    assert Dataset(ellipse_data(dtype=torch.float64).y).y.dtype == torch.float64
