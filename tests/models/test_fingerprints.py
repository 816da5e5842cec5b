"""A run resumes only as the run that it was: what differs is named, what is unknown too."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lebm_kernels.models import (
    L1,
    L2,
    DecoderModel,
    Ellipse,
    LatentGrid,
    LatentModel,
    LearnedPrior,
    NeuralDecoder,
    RBFDecoder,
    gauss_legendre_grid,
    interval_grid,
    periodic_grid,
)
from lebm_kernels.training import GaussianNoise, HingeLoss, MostOffending, TrainConfig, train
from lebm_kernels.training.datasets import Dataset, ellipse_data
from lebm_kernels.training.fingerprints import describe, instances
from lebm_kernels.training.losses import energy_loss, hinge

CONFIG = TrainConfig(epochs=2, beta=2.0, schedule="constant")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ellipse(**options: Any) -> Ellipse:
    return Ellipse(options.pop("grid", None), radii=torch.tensor([1.0, 0.5]), **options)


def _bumps(width: float = 0.5, shift: float = 0.0) -> DecoderModel:
    centres = torch.linspace(0.0, 6.0, 5).unsqueeze(1) + shift
    return DecoderModel(RBFDecoder(centres, width, 2))


def _network(dropout: float = 0.1, **options: Any) -> DecoderModel:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(1, 4, **options), nn.Dropout(dropout), nn.Linear(4, 2))
    return DecoderModel(decoder)


def squares(
    model: LatentModel, y: Tensor, x: Tensor | None = None, power: int = 2, **_: Any
) -> Any:
    return (model(y, x, beta=2.0) ** power).mean()


class Weighted:
    """A loss that is an object of a plain class."""

    def __init__(self, factor: float, settings: object = None) -> None:
        self.factor, self.settings = factor, settings

    def __call__(self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: Any) -> Tensor:
        return self.factor * model(y, x, beta=2.0).mean()

    def method(self, *args: Any, **options: Any) -> Tensor:
        return self(*args, **options)


class Module(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight), persistent=False)

    def forward(self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: Any) -> Tensor:
        return self.weight * model(y, x, beta=2.0).mean()


@dataclass
class Drawn:
    """A loss whose generator lies in an object in a tuple."""

    sources: tuple[Any, ...]

    def __call__(self, model: LatentModel, y: Tensor, x: Tensor | None = None, **_: Any) -> Tensor:
        y_hat = self.sources[0](model, y, x)
        return hinge(model(y, x, beta=2.0), model(y_hat, x, beta=2.0))


def _run(
    path: Path, model: LatentModel, loss: Any = energy_loss, *, resume: bool = False, **options: Any
) -> None:
    config = options.pop("config", CONFIG)
    data = options.pop("data", ellipse_data(generator=_generator()))
    options |= {"progress": False, "checkpoint": path, "resume": resume}
    train(model, data, config, loss=loss, **options)


MODELS: dict[str, tuple[Callable[[], LatentModel], Callable[[], LatentModel], str]] = {
    "number of latents": (
        _ellipse,
        lambda: _ellipse(grid=periodic_grid(47)),
        r"model\.z was torch.float32 \[48\] \w+, is torch.float32 \[47\] \w+",
    ),
    "quadrature": (
        lambda: DecoderModel(NeuralDecoder(generator=_generator()), grid=interval_grid(0, 6, 9)),
        lambda: DecoderModel(
            NeuralDecoder(generator=_generator()),
            grid=LatentGrid(interval_grid(0, 6, 9).z, torch.zeros(9)),
        ),
        r"model\.log_weight was torch.float32 \[9\] \w+, is torch.float32 \[9\] \w+",
    ),
    "rule": (
        lambda: DecoderModel(NeuralDecoder(generator=_generator()), grid=interval_grid(0, 6, 9)),
        lambda: DecoderModel(
            NeuralDecoder(generator=_generator()), grid=gauss_legendre_grid(0, 6, 9)
        ),
        r"model\.z was .*, is .*; model\.log_weight was .*, is .*",
    ),
    "no weights": (
        lambda: _ellipse(grid=LatentGrid(periodic_grid().z, torch.zeros(48))),
        _ellipse,
        r"model\.log_weight was torch.float32 \[48\] \w+, is None",
    ),
    "regulariser": (
        lambda: _ellipse(regulariser=L2(0.1)),
        lambda: _ellipse(regulariser=L1(0.1)),
        r"model\.regulariser was lebm_kernels\.[\w.]+\.L2, is lebm_kernels\.[\w.]+\.L1",
    ),
    "no regulariser": (
        lambda: _ellipse(regulariser=L2(0.1)),
        _ellipse,
        r"model\.regulariser was lebm_kernels\.models\.regularisers\.L2, is None",
    ),
    "strength": (
        lambda: _ellipse(regulariser=L2(0.1)),
        lambda: _ellipse(regulariser=L2(0.5)),
        r"model\.regulariser\.strength was 0\.1, is 0\.5",
    ),
    "prior's strength": (
        lambda: _ellipse(regulariser=LearnedPrior(1, 0.1, generator=_generator())),
        lambda: _ellipse(regulariser=LearnedPrior(1, 0.2, generator=_generator())),
        r"model\.regulariser\.strength was 0\.1, is 0\.2",
    ),
    "width": (_bumps, lambda: _bumps(0.6), r"model\.decoder\.width was 0\.5, is 0\.6"),
    "centres": (
        _bumps,
        lambda: _bumps(shift=0.1),
        r"model\.decoder\.centres was torch.float32 \[5, 1\] \w+, is torch.float32 \[5, 1\] \w+",
    ),
    "domain": (
        lambda: DecoderModel(NeuralDecoder(generator=_generator())),
        lambda: DecoderModel(NeuralDecoder(domain=(0.0, 1.0), generator=_generator())),
        r"model\.decoder\.domain\[1\] was 6\.28\d*, is 1",
    ),
    "dropout": (_network, lambda: _network(0.2), r"model\.decoder\.1\.p was 0\.1, is 0\.2"),
    "mode": (_network, lambda: _network().eval(), r"model\.training was True, is False; .*"),
    "layer": (
        _network,
        lambda: _network(bias=False),
        r"model\.decoder\.0\.bias was torch.float32 \[4\], is None",
    ),
    "frozen": (
        _ellipse,
        lambda: _ellipse().requires_grad_(False),
        r"model\.decoder\.radii was torch.float32 \[2\], is torch.float32 \[2\] without gradient",
    ),
}


@pytest.mark.parametrize(("make", "other", "words"), MODELS.values(), ids=MODELS.keys())
def test_another_model_is_refused_by_what_differs(
    tmp_path: Path, make: Callable[[], LatentModel], other: Callable[[], LatentModel], words: str
) -> None:
    path = tmp_path / "run.pt"
    _run(path, make())
    _run(path, make(), resume=True)
    with pytest.raises(ValueError, match=rf"^model must be that of checkpoint .* resume: {words}$"):
        _run(path, other(), resume=True)


def _lambda_partial(margin: float) -> Any:
    return functools.partial(squares, power=margin)


def _edited(body: str, weight: float = 1.0) -> Any:
    """A function of a module, as it is before and after an edit."""
    names: dict[str, Any] = {"__name__": "my_losses"}
    exec(f"def loss(model, y, x=None, w={weight}, **_):\n    return w * {body}\n", names)
    return names["loss"]


LOSSES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "function": (
        lambda: energy_loss,
        lambda: squares,
        r"loss was lebm_kernels\.training\.losses\.energy_loss, is .*test_fingerprints\.squares",
    ),
    "partial": (
        lambda: functools.partial(squares, power=2),
        lambda: functools.partial(squares, power=4),
        r"loss\.keywords\['power'\] was 2, is 4",
    ),
    "partial's function": (
        lambda: functools.partial(squares),
        lambda: functools.partial(energy_loss),
        r"loss\.func was .*squares, is .*energy_loss",
    ),
    "partial or not": (
        lambda: functools.partial(squares),
        lambda: squares,
        r"loss was functools\.partial, is .*squares",
    ),
    "defaults": (
        lambda: _edited("model(y, x, beta=2.0).mean()", 1.0),
        lambda: _edited("model(y, x, beta=2.0).mean()", 9.0),
        r"loss\.__defaults__\[1\] was 1, is 9",
    ),
    "code": (
        lambda: _edited("model(y, x, beta=2.0).mean()"),
        lambda: _edited("model(y, x, beta=2.0).mean() * 77"),
        r"loss\.__code__ was code \w+, is code \w+",
    ),
    "constant in the code": (
        lambda: _edited("model(y, x, beta=2.0).mean()"),
        lambda: _edited("model(y, x, beta=3.0).mean()"),
        r"loss\.__code__\.co_consts\[\d\] was 2, is 3",
    ),
    "field": (
        lambda: HingeLoss(GaussianNoise(0.5, _generator()), 1.0),
        lambda: HingeLoss(GaussianNoise(0.5, _generator()), 2.0),
        r"loss\.margin was 1, is 2",
    ),
    "nested field": (
        lambda: HingeLoss(MostOffending(0.5, GaussianNoise(0.5, _generator()), max_steps=2)),
        lambda: HingeLoss(MostOffending(0.5, GaussianNoise(0.6, _generator()), max_steps=2)),
        r"loss\.negatives\.start\.std was 0\.5, is 0\.6",
    ),
    "object": (lambda: Weighted(1.0), lambda: Weighted(100.0), r"loss\.factor was 1, is 100"),
    "method": (
        lambda: Weighted(1.0).method,
        lambda: Weighted(2.0).method,
        r"loss\.__self__\.factor was 1, is 2",
    ),
    "module": (
        lambda: Module(1.0),
        lambda: Module(2.0),
        r"loss\.weight was 1, is 2",
    ),
    "dictionary": (
        lambda: Weighted(1.0, {"a": (1, 2)}),
        lambda: Weighted(1.0, {"a": (1, 3)}),
        r"loss\.settings\['a'\]\[1\] was 2, is 3",
    ),
    "array": (
        lambda: Weighted(1.0, np.zeros(3)),
        lambda: Weighted(1.0, np.ones(3)),
        r"loss\.settings was float64 \[3\] \w+, is float64 \[3\] \w+",
    ),
}


@pytest.mark.parametrize(("make", "other", "words"), LOSSES.values(), ids=LOSSES.keys())
def test_another_loss_is_refused_by_what_differs(
    tmp_path: Path, make: Callable[[], Any], other: Callable[[], Any], words: str
) -> None:
    path = tmp_path / "run.pt"
    _run(path, _ellipse(), make())
    _run(path, _ellipse(), make(), resume=True)
    with pytest.raises(ValueError, match=rf"^loss must be that of checkpoint .* resume: {words}$"):
        _run(path, _ellipse(), other(), resume=True)


def test_other_data_or_another_optimizer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def sgd(momentum: float) -> Any:
        return functools.partial(torch.optim.SGD, lr=0.1, momentum=momentum)

    _run(path, _ellipse(), make_optimizer=sgd(0.5))
    _run(path, _ellipse(), make_optimizer=sgd(0.5), resume=True)
    words = r"optimizer must be .* optimizer\.param_groups\[0\]\['momentum'\] was 0\.5, is 0\.9$"
    with pytest.raises(ValueError, match=words):
        _run(path, _ellipse(), make_optimizer=sgd(0.9), resume=True)
    with pytest.raises(ValueError, match=r"optimizer was .*\.SGD, is .*\.Adam$"):
        _run(path, _ellipse(), make_optimizer=functools.partial(torch.optim.Adam), resume=True)
    other = Dataset(ellipse_data(generator=_generator(1)).y)
    with pytest.raises(ValueError, match=r"^data must be .*: data\.y was torch.float32 \[24, 2\]"):
        _run(path, _ellipse(), make_optimizer=sgd(0.5), data=other, resume=True)


def test_an_error_names_three_differences_and_counts_the_others(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    _run(path, _network())
    other = DecoderModel(nn.Sequential(*(nn.Linear(1, n, bias=False) for n in (1, 1, 2))))
    with pytest.raises(ValueError, match=r"to resume: .*;.*;.*; and \d+ more$") as caught:
        _run(path, other, resume=True)
    assert "\n" not in str(caught.value)


def test_a_hook_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    _run(path, _ellipse())
    model = _ellipse()
    model.register_forward_hook(lambda module, given, result: 100 * result)
    with pytest.raises(ValueError, match=r"model\.hook was absent, is .*<lambda>"):
        _run(path, model, resume=True)


def _closure(factor: float) -> Any:
    return lambda model, y, x=None, **_: factor * model(y, x, beta=2.0).mean()


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (
        lambda: lambda model, y, x=None, **_: model(y, x, beta=2.0).mean(),
        r"loss, .*<lambda>",
    ),
    "closure": (lambda: _closure(2.0), r"loss, .*_closure"),
    "partial of a lambda": (
        lambda: functools.partial(lambda model, y, x=None, **_: model(y, x, beta=2.0).mean()),
        r"loss\.func, .*<lambda>",
    ),
    "object of unknown content": (lambda: Weighted(1.0, object()), r"loss\.settings, .*object"),
}


@pytest.mark.parametrize(("make", "words"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_cannot_be_compared_is_named_once(
    tmp_path: Path, make: Callable[[], Any], words: str
) -> None:
    path = tmp_path / "run.pt"
    _run(path, _ellipse(), make())
    with pytest.warns(UserWarning, match=rf"may belong to a run that differs in {words}") as seen:
        _run(path, _ellipse(), make(), resume=True)
    assert len(seen) == 1
    with pytest.raises(ValueError, match=r"^loss must be that of checkpoint"):
        _run(path, _ellipse(), resume=True)


def test_equal_runs_need_not_be_identical_objects(tmp_path: Path) -> None:
    """Numbers by value, whatever their type; parameters and buffers that are restored; devices."""
    path = tmp_path / "run.pt"
    _run(path, _ellipse(regulariser=L2(1)), HingeLoss(GaussianNoise(1, _generator()), 1))
    other = _ellipse(regulariser=L2(np.float64(1.0)))  # type: ignore[arg-type]
    loss = HingeLoss(GaussianNoise(1.0, _generator(7)), torch.tensor(1.0))  # type: ignore[arg-type]
    with torch.no_grad():
        other.decoder.radii.fill_(7.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(path, other, loss, resume=True)
    norm = DecoderModel(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)))
    _run(path, norm)
    _run(path, norm, resume=True)  # its statistics are others by now


class Recurrent(nn.Module):
    """A recurrent layer keeps its parameters in a list, too, and weak references to them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(1, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z)[0]


def test_parameters_that_a_module_keeps_twice_are_restored(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    _run(path, DecoderModel(Recurrent()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(path, DecoderModel(Recurrent()), resume=True)


def test_parameters_of_a_loss_are_compared_by_value(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def loss(weight: float) -> Module:
        module = Module(1.0)
        module.factor = nn.Parameter(torch.full((2,), weight))
        return module

    _run(path, _ellipse(), loss(1.0))
    _run(path, _ellipse(), loss(1.0), resume=True)
    with pytest.raises(
        ValueError, match=r"to resume: loss\.factor was torch\.float32 \[2\] \w+, is"
    ):
        _run(path, _ellipse(), loss(2.0), resume=True)


def test_generators_everywhere_go_on_where_they_were(tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> Tensor:
        model = _ellipse()
        loss = functools.partial(Drawn((Weighted2(GaussianNoise(0.5, _generator(3))),)))
        config = TrainConfig(epochs=epochs, schedule="constant", learning_rate=0.1)
        data = ellipse_data(generator=_generator())
        train(model, data, config, loss=loss, progress=False, **options)
        return model.scale().detach()

    straight = run(4)
    run(2, checkpoint=tmp_path / "run.pt")
    assert torch.equal(run(4, checkpoint=tmp_path / "run.pt", resume=True), straight)


class Weighted2:
    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self, *args: Any) -> Tensor:
        return self.source(*args)


def test_an_object_may_refer_to_itself() -> None:
    loss = Weighted(1.0)
    loss.settings = [loss, generator := _generator()]
    assert describe("loss", loss)["loss.factor"] == "1"
    assert instances(torch.Generator, loss) == [generator]
    sparse = torch.eye(2).to_sparse()
    assert describe("x", sparse)["x"] == "torch.float32 tensor (not compared)"
    assert describe("x", {math.nan, 1})["x"] == "set of 1, nan"
