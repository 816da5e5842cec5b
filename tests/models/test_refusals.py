"""What models, grids, decoders and what stands on them refuse, and by which name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch

from lebm_kernels.benchmarks.cases import Case
from lebm_kernels.models import (
    L1,
    L2,
    DecoderModel,
    Ellipse,
    EllipseDecoder,
    Horn,
    LatentGrid,
    LatentModel,
    LearnedPrior,
    circle,
    gauss_legendre_grid,
    gtm,
    inference,
    interval_grid,
    neural_horn,
    periodic_grid,
)
from lebm_kernels.models.decoders import HornPredictor, NeuralDecoder, RBFDecoder
from lebm_kernels.models.descent import descend
from lebm_kernels.models.grids import product_grid, sobol_grid
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training import (
    Annealing,
    GaussianNoise,
    HingeLoss,
    LogLoss,
    MostOffending,
    TrainConfig,
    UniformBox,
    density_loss,
    energy_loss,
    free_energies,
    hinge,
    log_ratio,
    mean_free_energy,
    outside_balls,
    train,
)
from lebm_kernels.training.datasets import Dataset, digits, ellipse_data, horn_data, horn_radii
from lebm_kernels.training.negatives import Negatives

MODEL = Ellipse(radii=torch.tensor([2.0, 1.5]))
Y = torch.randn(4, 2)


def mapping() -> DecoderModel:
    return gtm.topographic_mapping(torch.randn(20, 3), latents=4, bumps=3)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "denoised integers": (lambda: inference.denoise(MODEL, Y.long()), TypeError, "y"),
    "a word to start from": (
        lambda: inference.infer(MODEL, Y, start="a"),  # type: ignore[arg-type]
        TypeError,
        "start",
    ),
    "a start that is none": (
        lambda: inference.infer(MODEL, Y, start=math.nan),
        ValueError,
        "start",
    ),
    "points for a grid": (lambda: MODEL.on_grid(Y), TypeError, "grid"),  # type: ignore[arg-type]
    "no grid": (lambda: MODEL.on_grid(None), TypeError, "grid"),  # type: ignore[arg-type]
    "points in a product": (lambda: product_grid(Y), TypeError, "grids"),  # type: ignore[arg-type]
    "a word for a seed": (
        lambda: sobol_grid(4, 2, seed="a"),  # type: ignore[arg-type]
        ValueError,
        "seed",
    ),
    "a seed below zero": (lambda: digits(seed=-1), ValueError, "seed"),
    "a list of observations": (
        lambda: gtm.fit(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "a list to restore": (
        lambda: gtm.restore(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "a list of what is seen": (
        lambda: gtm.restore(mapping(), torch.zeros(1, 3), [True] * 3),  # type: ignore[arg-type]
        TypeError,
        "seen",
    ),
    "a list to score": (
        lambda: gtm.mean_log_density(mapping(), [[0.0] * 3]),  # type: ignore[arg-type]
        TypeError,
        "y",
    ),
    "observations of NaN": (
        lambda: gtm.topographic_mapping(torch.full((5, 3), math.nan)),
        ValueError,
        "y",
    ),
    "infinite observations": (
        lambda: gtm.fit(mapping(), torch.full((5, 3), math.inf)),
        ValueError,
        "y",
    ),
    "observations of another size": (
        lambda: gtm.restore(mapping(), torch.zeros(5, 2)),
        ValueError,
        "y",
    ),
    "a loss by name": (
        lambda: train(MODEL, ellipse_data(), TrainConfig(), loss="hinge"),  # type: ignore[arg-type]
        TypeError,
        "loss",
    ),
    "a list of centres": (
        lambda: RBFDecoder([[0.0]], 1.0, 2),  # type: ignore[arg-type]
        TypeError,
        "centres",
    ),
    "one number of units": (
        lambda: NeuralDecoder(hidden=32),  # type: ignore[arg-type]
        ValueError,
        "hidden",
    ),
    "one end": (lambda: NeuralDecoder(domain=1.0), ValueError, "domain"),  # type: ignore[arg-type]
    "three ends": (
        lambda: HornPredictor(domain=(0, 1, 2)),  # type: ignore[arg-type]
        ValueError,
        "domain",
    ),
    "an empty interval": (lambda: HornPredictor(domain=(1.0, 1.0)), ValueError, "domain"),
    "an end at infinity": (lambda: HornPredictor(domain=(0.0, math.inf)), ValueError, "domain"),
    "slices of nothing": (
        lambda: mean_free_energy(MODEL, ellipse_data(), slice_size=0),
        ValueError,
        "slice_size",
    ),
    "slices of half": (
        lambda: free_energies(MODEL, ellipse_data(), slice_size=0.5),  # type: ignore[arg-type]
        ValueError,
        "slice_size",
    ),
    "half a query": (lambda: Case(1.5, 2, 2), ValueError, "M"),  # type: ignore[arg-type]
    "a word for beta": (lambda: Case(1, 2, 2, beta="a"), ValueError, "beta"),  # type: ignore[arg-type]
}

REFUSED |= {
    "no decoder": (lambda: DecoderModel(None), TypeError, "decoder"),  # type: ignore[arg-type]
    "the class of a decoder": (
        lambda: DecoderModel(NeuralDecoder),  # type: ignore[arg-type]
        TypeError,
        "decoder",
    ),
    "a word for a predictor": (
        lambda: DecoderModel(NeuralDecoder(), "f"),  # type: ignore[arg-type]
        TypeError,
        "predictor",
    ),
    "a number for a regulariser": (
        lambda: Ellipse(regulariser=0.1),  # type: ignore[arg-type]
        TypeError,
        "regulariser",
    ),
    "no model": (lambda: inference.infer_on_grid(None, Y), TypeError, "model"),  # type: ignore[arg-type]
    "no model to train on": (lambda: energy_loss(None, Y), TypeError, "model"),  # type: ignore[arg-type]
    "a seed for a generator": (
        lambda: Ellipse(generator=3),  # type: ignore[arg-type]
        TypeError,
        "generator",
    ),
    "a seed beside radii": (
        lambda: Ellipse(radii=torch.ones(2), generator=3),  # type: ignore[arg-type]
        TypeError,
        "generator",
    ),
    "the name of a dtype": (
        lambda: periodic_grid(dtype="float32"),  # type: ignore[arg-type]
        TypeError,
        "dtype",
    ),
    "a dtype of integers": (lambda: sobol_grid(4, 2, dtype=torch.int64), TypeError, "dtype"),
    "an unknown device": (lambda: periodic_grid(device="moon"), ValueError, "device"),
    "a seed of 71 bits": (lambda: sobol_grid(4, 2, seed=2**70), ValueError, "seed"),
    "more points than fit": (lambda: periodic_grid(2**62), ValueError, "num"),
    "more draws than fit": (
        lambda: MODEL.sample_latent(Y, num_samples=2**62),
        ValueError,
        "num_samples",
    ),
    "sparse gradients": (lambda: TrainConfig(optimizer="SparseAdam"), ValueError, "optimizer"),
    "a negative momentum": (
        lambda: train(
            MODEL,
            ellipse_data(),
            TrainConfig(optimizer="SGD", optimizer_options={"momentum": -1.0}),
            progress=False,
        ),
        ValueError,
        "optimizer_options",
    ),
    "a number to call": (
        lambda: gtm.fit(mapping(), torch.randn(9, 3), on_iteration=3),  # type: ignore[arg-type]
        TypeError,
        "on_iteration",
    ),
    "no source": (lambda: HingeLoss(None), TypeError, "negatives"),  # type: ignore[arg-type]
    "a negative margin": (lambda: HingeLoss(GaussianNoise(1.0), -1.0), ValueError, "margin"),
    "no margin": (lambda: hinge(Y, Y, None), ValueError, "margin"),  # type: ignore[arg-type]
    "no radius": (lambda: MostOffending(0.0, GaussianNoise(1.0)), ValueError, "radius"),
    "no start": (lambda: MostOffending(1.0, None), TypeError, "start"),  # type: ignore[arg-type]
    "no starts": (lambda: MostOffending(1.0, GaussianNoise(1.0), 0), ValueError, "num_starts"),
    "steps below zero": (
        lambda: MostOffending(1.0, GaussianNoise(1.0), 1, -1),
        ValueError,
        "max_steps",
    ),
    "conditions in a column, one each": (
        lambda: Horn().decode_each(torch.zeros(4), torch.rand(4, 1)),
        ValueError,
        "x",
    ),
    "conditions in a column, in the descent": (
        lambda: MostOffending(1.0, GaussianNoise(1.0))(Horn(), Y, torch.rand(4, 1)),
        ValueError,
        "x",
    ),
    "latents of another grid": (
        lambda: DecoderModel(NeuralDecoder()).decode(torch.zeros(4, 2)),
        ValueError,
        "z",
    ),
}


@pytest.mark.parametrize(("call", "error", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused_by_name(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=rf"^{name} must"):
        call()


NOISE = GaussianNoise(0.5)
GRID: dict[str, Any] = {"dtype": None, "device": None}
DRAWN: dict[str, Any] = {"generator": None, **GRID}
OF_MODEL: dict[str, Any] = {"model": MODEL, "y": Y, "x": None}
QUERIES: dict[str, Any] = {"y": Y, "x": torch.rand(4), "beta": 1.0, "backend": None}

# Valid calls of the public functions, by keywords. Each keyword is replaced by each of BAD.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "LatentGrid": (LatentGrid, {"z": torch.zeros(3), "log_weight": torch.zeros(3)}),
    "periodic_grid": (periodic_grid, {"num": 4, "period": 1.0, **GRID}),
    "interval_grid": (interval_grid, {"low": 0.0, "high": 1.0, "num": 3, **GRID}),
    "gauss_legendre_grid": (gauss_legendre_grid, {"low": 0.0, "high": 1.0, "num": 3, **GRID}),
    "sobol_grid": (sobol_grid, {"num": 3, "dim": 2, "low": 0.0, "high": 1.0, "seed": 1, **GRID}),
    "circle": (circle, {"z": torch.zeros(3)}),
    "EllipseDecoder": (EllipseDecoder, {"radii": torch.ones(2), "generator": None}),
    "HornPredictor": (HornPredictor, {"domain": (0.0, 1.0), "outputs": 2, "generator": None}),
    "NeuralDecoder": (
        NeuralDecoder,
        {
            "latent_dim": 1,
            "outputs": 2,
            "code_dim": 0,
            "hidden": (3,),
            "domain": (0.0, 1.0),
            "generator": None,
        },
    ),
    "RBFDecoder": (RBFDecoder, {"centres": torch.zeros(3, 1), "width": 1.0, "outputs": 2}),
    "Ellipse": (Ellipse, {"grid": None, "radii": None, "regulariser": None, "generator": None}),
    "Horn": (Horn, {"grid": None, "regulariser": None, "generator": None}),
    "DecoderModel": (
        DecoderModel,
        {"decoder": NeuralDecoder(), "predictor": None, "grid": None, "regulariser": None},
    ),
    "neural_horn": (
        neural_horn,
        {"grid": None, "code_dim": 2, "hidden": (3,), "generator": None},
    ),
    "L1": (L1, {"strength": 1.0}),
    "L2": (L2, {"strength": 1.0}),
    "LearnedPrior": (LearnedPrior, {"dim": 1, "strength": 1.0, "hidden": 3, "generator": None}),
    "learn_beta": (Ellipse().learn_beta, {"beta": 1.0}),
    "on_grid": (MODEL.on_grid, {"grid": periodic_grid()}),
    "model.free_energy": (Horn().free_energy, QUERIES),
    "model.posterior": (neural_horn().posterior, QUERIES),
    "model.log_density": (Horn().log_density, QUERIES),
    "model.sample_latent": (
        MODEL.sample_latent,
        {"y": Y, "num_samples": 2, "beta": 1.0, "generator": None},
    ),
    "model.decode": (DecoderModel(NeuralDecoder()).decode, {"z": torch.zeros(3)}),
    "model.decode_each": (Horn().decode_each, {"z": torch.zeros(4), "x": torch.rand(4)}),
    "model.manifold": (Horn().manifold, {"x": torch.rand(4)}),
    "infer_on_grid": (inference.infer_on_grid, {**OF_MODEL, "backend": None}),
    "infer": (
        inference.infer,
        {**OF_MODEL, "start": None, "method": "gradient", "max_steps": 1, "tol": None},
    ),
    "denoise": (
        inference.denoise,
        {**OF_MODEL, "beta": 1.0, "method": "gradient", "max_steps": 1, "tol": None},
    ),
    "sample": (
        inference.sample,
        {**OF_MODEL, "num_samples": 2, "beta": 1.0, "generator": None},
    ),
    "descend": (
        descend,
        {
            "function": lambda point, rows: point.square().sum(1),
            "start": torch.ones(2, 2),
            "method": "gradient",
            "max_steps": 1,
            "tol": None,
            "project": None,
        },
    ),
    "topographic_mapping": (
        gtm.topographic_mapping,
        {"y": torch.randn(9, 3), "latents": 3, "bumps": 2, "width": 1.0},
    ),
    "fit": (
        gtm.fit,
        {
            "model": mapping(),
            "y": torch.randn(9, 3),
            "iterations": 1,
            "decay": 0.1,
            "backend": None,
            "on_iteration": None,
        },
    ),
    "mean_log_density": (gtm.mean_log_density, {"model": mapping(), "y": torch.randn(9, 3)}),
    "restore": (gtm.restore, {"model": mapping(), "y": torch.randn(9, 3), "seen": None}),
    "Dataset": (Dataset, {"y": Y, "x": torch.rand(4)}),
    "ellipse_data": (ellipse_data, {"num": 3, "noise": 0.1, **DRAWN}),
    "horn_data": (horn_data, {"num": 3, "noise": 0.1, **DRAWN}),
    "digits": (digits, {"held_out": 0.2, "seed": 0, **GRID}),
    "horn_radii": (horn_radii, {"x": torch.rand(4)}),
    "density_loss": (density_loss, {**OF_MODEL, "beta": 1.0, "backend": None}),
    "energy_loss": (energy_loss, {**OF_MODEL, "beta": 1.0, "backend": None}),
    "HingeLoss": (HingeLoss, {"negatives": NOISE, "margin": 1.0}),
    "LogLoss": (LogLoss, {"negatives": NOISE}),
    "HingeLoss()": (HingeLoss(NOISE), {**OF_MODEL, "beta": 1.0, "backend": None}),
    "hinge": (hinge, {"f": torch.rand(4), "f_hat": torch.rand(4), "margin": 1.0}),
    "log_ratio": (log_ratio, {"f": torch.rand(4), "f_hat": torch.rand(4)}),
    "UniformBox": (UniformBox, {"low": -1.0, "high": 1.0, "generator": None}),
    "UniformBox()": (partial(UniformBox(-1.0, 1.0), MODEL), {"y": Y}),
    "GaussianNoise": (GaussianNoise, {"std": 1.0, "generator": None}),
    "GaussianNoise()": (partial(NOISE, MODEL), {"y": Y}),
    "MostOffending": (
        MostOffending,
        {"radius": 1.0, "start": NOISE, "num_starts": 1, "max_steps": 1},
    ),
    "MostOffending()": (
        MostOffending(0.1, NOISE, 1, 1),
        {**OF_MODEL, "beta": 1.0, "backend": None},
    ),
    "outside_balls": (outside_balls, {"centres": Y, "radius": 1.0}),
    "Annealing": (Annealing, {"start": 1.0, "end": 2.0, "share": 0.5}),
    "TrainConfig": (
        TrainConfig,
        {f.name: getattr(TrainConfig(beta=1.0), f.name) for f in fields(TrainConfig)},
    ),
    "mean_free_energy": (
        mean_free_energy,
        {"model": MODEL, "data": Dataset(Y), "beta": 1.0, "backend": None, "slice_size": None},
    ),
    "train": (
        train,
        {
            "model": Ellipse(),
            "data": Dataset(Y),
            "config": TrainConfig(epochs=0),
            "loss": energy_loss,
            "validation": None,
            "make_optimizer": None,
            "tensorboard": None,
            "checkpoint_every": 1,
            "progress": False,
            "on_epoch": None,
        },
    ),
    "held_out": (RECIPES["ellipse"].held_out, {"seed": 0, "num": 3}),
}
BAD: dict[str, Any] = {
    "None": None,
    "a word": "a",
    "-1": -1,
    "NaN": math.nan,
    "2**70": 2**70,
    "True": True,
    "1j": 1j,
    "a list": [1],
    "an object": object(),
    "integers": torch.zeros(4, 2, dtype=torch.int64),
}
EACH = [(call, name) for call, (_, given) in CALLS.items() for name in given]


@pytest.mark.parametrize(("call", "name"), EACH, ids=[f"{c}-{n}" for c, n in EACH])
def test_bad_values_are_accepted_or_refused_by_name_in_one_line(call: str, name: str) -> None:
    function, given = CALLS[call]
    function(**given)
    num_refused = 0
    for words, bad in BAD.items():
        try:
            function(**{**given, name: bad})
        except (TypeError, ValueError) as error:
            message = str(error)
        else:
            continue
        num_refused += 1
        assert re.match(rf"({name}|low) (must|is missing)", message), f"{words}: {message}"
        assert "\n" not in message
    assert num_refused >= 4, "the argument is not looked at"


@pytest.mark.parametrize("make", [Horn, neural_horn])
@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4, 1, 1), (3,)])
def test_conditions_of_another_shape_do_not_broadcast(
    make: Callable[[], LatentModel], shape: tuple[int, ...]
) -> None:
    model, x = make(), torch.rand(shape)
    for call in (
        lambda: model(Y, x),
        lambda: model.posterior(Y, x),
        lambda: model.log_density(Y, x, beta=1.0),
        lambda: model.sample_latent(Y, x, num_samples=2),
        lambda: model.decode_each(torch.zeros(4), x),
        lambda: inference.infer(model, Y, x),
        lambda: inference.denoise(model, Y, x),
        lambda: inference.sample(model, Y, x, num_samples=2),
        lambda: energy_loss(model, Y, x),
        lambda: HingeLoss(NOISE)(model, Y, x),
        lambda: MostOffending(0.1, NOISE)(model, Y, x),
        lambda: Dataset(Y, x),
    ):
        with pytest.raises(ValueError, match=r"^x must (have|broadcast)"):
            call()


@pytest.mark.parametrize("start", [GaussianNoise(0.5), UniformBox(-3.0, 3.0)])
@pytest.mark.parametrize("make", [Ellipse, Horn])
def test_a_nan_stays_in_its_own_contrastive_sample(
    start: Negatives, make: Callable[[], LatentModel]
) -> None:
    model = make()
    y = torch.randn(6, 2)
    y[2, 0] = math.nan
    x = torch.rand(6) if model.conditional else None
    y_hat = MostOffending(0.3, start, 3, 5)(model, y, x, beta=2.0)
    others = [i for i in range(6) if i != 2]
    assert y_hat[others].isfinite().all()
    distance = torch.cdist(y_hat[others].double(), y[others].double())
    nearest = distance.diagonal() if model.conditional else distance.amin(1)
    assert (nearest >= 0.3).all()


def test_a_start_with_nan_is_not_the_lowest() -> None:
    starts = iter([torch.full((4, 2), math.nan), Y + 1.0])

    def start(*_: object, **__: object) -> torch.Tensor:
        return next(starts)

    assert MostOffending(0.1, start, 2, 3)(MODEL, Y, beta=2.0).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("learn", "own", "used"),
    [(False, None, 2.0), (False, 5.0, 2.0), (True, None, 2.0), (True, 5.0, 5.0)],
)
def test_the_models_own_beta_counts_where_it_is_learned(
    learn: bool, own: float | None, used: float
) -> None:
    model = Ellipse(radii=torch.ones(2))
    if own is not None:
        model.learn_beta(own)
    seen = []

    def loss(*arguments: Any, beta: Any, **options: Any) -> torch.Tensor:
        seen.append(float(torch.as_tensor(beta).detach()))
        return density_loss(*arguments, beta=beta, **options)

    config = TrainConfig(beta=2.0, learn_beta=learn, epochs=2, learning_rate=0.1)
    train(model, ellipse_data(), config, loss=loss, progress=False)
    assert seen[0] == pytest.approx(used)
    assert (seen[1] != seen[0]) == learn
    if own is not None and not learn:
        assert model.beta is not None
        assert model.beta.item() == pytest.approx(own)


def test_half_precision_can_be_resumed(tmp_path: Any) -> None:
    """Whatever trains can be kept: NumPy knows no bfloat16."""
    data = Dataset(ellipse_data().y.bfloat16())
    config = TrainConfig(epochs=2, schedule="constant")
    path = tmp_path / "checkpoint.pt"

    def model() -> Ellipse:
        return Ellipse(radii=torch.tensor([2.0, 1.5])).to(torch.bfloat16)

    straight, resumed = model(), model()
    train(straight, data, TrainConfig(epochs=3, schedule="constant"), progress=False)
    train(resumed, data, config, checkpoint=path, progress=False)
    resumed = model()
    config = TrainConfig(epochs=3, schedule="constant")
    train(resumed, data, config, checkpoint=path, resume=True, progress=False)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    other_data = Dataset(data.y[:-1])
    with pytest.raises(ValueError, match=r"^data must be that of checkpoint"):
        train(model(), other_data, config, checkpoint=path, resume=True, progress=False)
