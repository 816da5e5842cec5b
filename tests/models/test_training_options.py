"""Training's further ways: annealing, a learned beta, slices, validation, curves, optimizers."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lebm_kernels.models import DecoderModel, Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.models.decoders import circle
from lebm_kernels.models.grids import periodic_grid
from lebm_kernels.practicum.demonstrations import collapsing
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training import TrainConfig, free_energies, mean_free_energy, train
from lebm_kernels.training.curves import Epoch
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data
from lebm_kernels.training.likelihood import density_loss
from lebm_kernels.training.losses import HingeLoss, LogLoss, energy_loss
from lebm_kernels.training.negatives import GaussianNoise, MostOffending
from lebm_kernels.training.schedules import Annealing


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _horn(seed: int = 0, num: int = 40) -> tuple[Horn, Dataset]:
    generator = _generator(seed)
    data = horn_data(num, generator=generator)
    return Horn(generator=generator), data


def _parameters(model: LatentModel) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("radii", [(2.0, 1.5), (0.3, 4.0), (1.0, 1.0)])
def test_the_cold_ellipse_recovers_the_radii_of_noiseless_data(radii) -> None:
    # On the grid's own angles, so that nothing is left at the optimum.
    y = circle(periodic_grid().z) * torch.tensor(radii)
    model = Ellipse(radii=torch.tensor([1.5, 2.5]))
    result = train(model, Dataset(y), TrainConfig(epochs=250, learning_rate=0.1))
    np.testing.assert_allclose(model.scale().detach().abs().numpy(), radii, rtol=1e-3)
    assert result.final < 1e-6


def test_warm_radii_shrink_and_collapse_where_beta_is_below_the_threshold() -> None:
    rows = collapsing((0.5, 0.9, 1.2, 3.0, math.inf), epochs=200)
    assert [row.predicted for row in rows] == [
        (True, True), (True, True), (False, True), (False, False), (False, False)
    ]  # fmt: skip
    for row in rows:
        for radius, zero in zip(row.radii, row.predicted, strict=True):
            assert radius < 1e-3 if zero else radius > 0.3, row
    first = [row.radii[0] for row in rows]
    assert first[1:] == sorted(first[1:])
    assert first[-1] == pytest.approx(2.0, abs=0.05)
    assert first[-2] < 1.8


def test_annealing_rises_by_a_constant_factor_and_then_jumps() -> None:
    seen = []

    def loss(model, y, x=None, *, beta=math.inf, **options) -> Tensor:
        seen.append(beta)
        return energy_loss(model, y, x, beta=beta, **options)

    model, data = _horn()
    config = TrainConfig(annealing=Annealing(0.1, 100.0, 0.6), epochs=5, batch_size=20)
    result = train(model, data, config, loss=loss)
    expected = [*np.geomspace(0.1, 100.0, 7)[:6], *[math.inf] * 4]
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
    assert [record.beta for record in result.records] == seen[1::2]
    assert result.final == pytest.approx(mean_free_energy(model, data))  # cold, as it ends


class _Origin(nn.Module):
    """All latents at the origin: the model is one Gaussian."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.zeros(len(z), 3).to(z)


def test_a_learned_beta_comes_to_that_of_least_variance_left() -> None:
    y = torch.randn(50, 3, generator=_generator(0)).double() * 0.7
    model = DecoderModel(_Origin()).double()
    config = TrainConfig(beta=1.0, learn_beta=True, epochs=150, learning_rate=0.2)
    result = train(model, Dataset(y), config, loss=density_loss)
    best = 3 / (2 * y.square().sum(1).mean().item())
    assert model.beta.item() == pytest.approx(best, rel=1e-4)
    assert result.records[-1].beta == model.beta.item()
    assert result.initial == pytest.approx(y.square().sum(1).mean().item())


@pytest.mark.parametrize("size", [1, 7, 40])
def test_slices_of_a_batch_take_the_steps_of_the_batch(size: int) -> None:
    seen = []

    def loss(model, y, x=None, **options) -> Tensor:
        seen.append(len(y))
        return energy_loss(model, y, x, **options)

    ends, histories = [], []
    for slice_size in (None, size):
        model, data = _horn()
        config = TrainConfig(epochs=3, batch_size=25, beta=2.0, slice_size=slice_size)
        seen.clear()
        result = train(model.double(), data, config, loss=loss)
        ends.append(_parameters(model))
        histories.append(result.history)
    assert max(seen) == min(size, 25)
    assert sum(seen) == 3 * 40
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-12)
    for whole, sliced in zip(*ends, strict=True):
        torch.testing.assert_close(whole, sliced, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [Ellipse, neural_horn])
def test_free_energies_in_slices_are_those_of_the_whole(make) -> None:
    model = make(generator=_generator(0))
    data = horn_data(23, generator=_generator(1))
    data = data if model.conditional else Dataset(data.y)
    whole = free_energies(model, data, beta=0.4)
    expected = model.free_energy(data.y, data.x, beta=0.4).detach()
    assert torch.equal(whole, expected)
    for size in (1, 5, 100):
        torch.testing.assert_close(free_energies(model, data, beta=0.4, slice_size=size), expected)


def _squares(model, y, x=None, *, beta=math.inf, backend=None) -> Tensor:
    """A loss whose steps are known: the first radius is pulled to the first components."""
    return (model.decoder.radii[0] - y[:, 0]).square().mean()


def _pulled(epochs: int = 20, patience: int | None = 4, **options: Any) -> tuple[Ellipse, Any]:
    """Train towards 5, in steps of r_k = 5 - 4 * 0.9^k, with 2 for the validation data."""
    model = Ellipse(radii=torch.tensor([1.0, 1.0])).double()
    config = TrainConfig(
        epochs=epochs,
        patience=patience,
        optimizer="SGD",
        learning_rate=0.05,
        schedule="constant",
        annealing=options.pop("annealing", None),
    )
    data, validation = (Dataset(torch.full((4, 2), value)) for value in (5.0, 2.0))
    return model, train(model, data, config, loss=_squares, validation=validation, **options)


def test_a_run_stops_early_and_leaves_the_best_parameters() -> None:
    model, result = _pulled()
    radius = 5 - 4 * 0.9 ** np.arange(1, 8)
    np.testing.assert_allclose([r.validation for r in result.records], (radius - 2) ** 2)
    assert (result.best_epoch, len(result.records)) == (3, 7)
    assert model.scale()[0].item() == pytest.approx(radius[2])


def test_without_patience_it_goes_on_and_still_leaves_the_best() -> None:
    model, result = _pulled(patience=None)
    assert (result.best_epoch, len(result.records)) == (3, 20)
    assert model.scale()[0].item() == pytest.approx(5 - 4 * 0.9**3)


def test_patience_begins_after_the_annealing() -> None:
    _, result = _pulled(annealing=Annealing(1.0, 2.0, 0.5))
    assert (result.best_epoch, len(result.records)) == (3, 14)


class _StoppedError(Exception):
    pass


def _interrupt_at(stop: int):
    def interrupt(epoch: int, _: float) -> None:
        if epoch == stop:
            raise _StoppedError

    return interrupt


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_early_stop_is_the_straight_one(tmp_path: Path, stop: int) -> None:
    straight, expected = _pulled(curves=tmp_path / "straight.csv")
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 2}
    options["curves"] = tmp_path / "resumed.csv"
    with pytest.raises(_StoppedError):
        _pulled(on_epoch=_interrupt_at(stop), **options)
    for _ in range(2):  # the second finds a finished run
        model, result = _pulled(resume=True, **options)
        assert _same(_parameters(model), _parameters(straight))
        assert result.records == expected.records
        assert (result.best_epoch, result.final) == (expected.best_epoch, expected.final)
    texts = [(tmp_path / f"{name}.csv").read_text() for name in ("straight", "resumed")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (TrainConfig(epochs=6, batch_size=16, annealing=Annealing(0.1, 50.0)), energy_loss),
        (TrainConfig(epochs=6, batch_size=16, slice_size=5, beta=2.0), energy_loss),
        (TrainConfig(epochs=6, batch_size=16, learn_beta=True, beta=2.0), density_loss),
    ],
    ids=["annealed", "sliced", "learned beta"],
)
def test_a_resumed_run_is_the_straight_run_bit_for_bit(tmp_path: Path, config, loss) -> None:
    path = tmp_path / "run.pt"
    _, validation = _horn(5)
    options: dict[str, Any] = {"loss": loss, "validation": validation}
    straight, data = _horn()
    expected = train(straight, data, config, **options)
    options |= {"checkpoint": path, "checkpoint_every": 2}
    model, _ = _horn()
    with pytest.raises(_StoppedError):
        train(model, data, config, on_epoch=_interrupt_at(3), **options)
    resumed, _ = _horn(7)
    result = train(resumed, data, config, resume=True, **options)
    assert _same(_parameters(resumed), _parameters(straight))
    assert result.records == expected.records
    assert (result.best_epoch, result.final) == (expected.best_epoch, expected.final)
    with pytest.raises(ValueError, match=r"^validation must be that of checkpoint"):
        train(resumed, data, config, resume=True, **{**options, "validation": data})


def test_curves_hold_every_digit_of_every_epoch(tmp_path: Path) -> None:
    model, data = _horn()
    path = tmp_path / "new" / "curves.csv"
    lines = []

    def count(epoch: int, _: float) -> None:
        lines.append(len(path.read_text().splitlines()))

    config = TrainConfig(epochs=3, batch_size=16, beta=0.5)
    result = train(model, data, config, curves=path, validation=data, on_epoch=count)
    assert lines == [2, 3, 4]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [Epoch(int(row.pop("number")), *map(float, row.values())) for row in rows] == (
        result.records
    )
    assert rows[0].keys() == {"loss", "validation", "beta", "learning_rate"}


def test_tensorboard_is_written_where_installed_and_refused_where_not(
    tmp_path: Path, monkeypatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    model, data = _horn()
    config = TrainConfig(epochs=2, beta=0.5)
    result = train(model, data, config, tensorboard=tmp_path)
    expected: list[tuple[str, float, int]] = []
    for record in result.records:
        names = ("loss", "beta", "learning_rate")  # no validation data, no such scalar
        expected += [(name, getattr(record, name), record.number) for name in names]
    assert written == [*expected, ("closed", 0.0, 0)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"^tensorboard must be None"):
        train(model, data, config, tensorboard=tmp_path)


def test_any_optimizer_can_be_made_from_the_parameters() -> None:
    rates = []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return Recorded([{"params": [p]} for p in parameters], lr=1.0, momentum=0.5)

    ends = []
    for options in ({}, {"make_optimizer": make}):
        model, data = _horn()
        config = TrainConfig(
            epochs=3, optimizer="SGD", optimizer_options={"momentum": 0.5}, learning_rate=1e-3
        )
        train(model, data, config, **options)
        ends.append(_parameters(model))
    assert _same(*ends)
    expected = [[1e-3 * (1 + math.cos(math.pi * k / 3)) / 2] * 6 for k in range(3)]
    np.testing.assert_allclose(rates, expected)


def test_the_neural_horn_learns_a_curve_and_its_growth() -> None:
    model, data, config = RECIPES["neural-horn"].start(0, epochs=10)
    train(model, data, config)
    held_out = RECIPES["neural-horn"].held_out(0, 300)
    assert held_out.x is not None
    assert mean_free_energy(model, held_out) < 2.0  # 33 where nothing is learned
    for x in (0.1, 0.9):
        near = (held_out.x - x).abs() < 0.1
        part = Dataset(held_out.y[near], held_out.x[near])
        spread = part.y.square().sum(1).mean().item()
        assert mean_free_energy(model, part) < spread / 10


def test_recipes_of_one_kind_of_data_hold_out_the_same_and_no_training_data() -> None:
    horn, neural = (RECIPES[name].held_out(3, 50) for name in ("horn", "neural-horn"))
    assert torch.equal(horn.y, neural.y)
    for seed in range(4):
        _, data, _ = RECIPES["horn"].start(seed)
        assert not torch.isin(horn.y, data.y).any()


def test_a_warm_recipe_anneals_no_further_than_its_beta() -> None:
    _, _, config = RECIPES["neural-horn"].start(0, beta=1.0)
    assert config.annealing == Annealing(0.03, 1.0, 0.7)
    _, _, config = RECIPES["neural-horn"].start(0, beta=0.01)
    assert config.annealing == Annealing(0.01, 0.01, 0.7)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"slice_size": 0}, "slice_size"),
        ({"patience": 0}, "patience"),
        ({"patience": 1.5}, "patience"),
        ({"learn_beta": True}, "beta"),
        ({"optimizer": 3}, "optimizer"),
        ({"schedule": []}, "schedule"),
        ({"annealing": 0.5}, "annealing"),
        ({"learn_beta": True, "beta": 1.0, "annealing": Annealing(1.0, 2.0)}, "annealing"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named} must be"):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((0.0, 1.0), "start"),
        ((1.0, math.inf), "end"),
        ((1.0, 2.0, 0.0), "share"),
        ((np.ones(1), 2.0), "start"),
    ],
)
def test_bad_annealings_are_named(values: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named} must be"):
        Annealing(*values)


def test_patience_needs_validation_data_and_they_a_finite_loss() -> None:
    model = Ellipse(generator=_generator(0))
    data = ellipse_data(generator=_generator(0))
    with pytest.raises(ValueError, match=r"^patience must be None without"):
        train(model, data, TrainConfig(patience=3))
    bad = Dataset(torch.full((1, 2), 1e25))
    with pytest.raises(FloatingPointError, match="validation loss is inf in epoch 1"):
        train(model, data, TrainConfig(epochs=2), validation=bad)


def test_a_resumed_run_goes_on_with_the_draws_of_its_loss(tmp_path: Path) -> None:
    def contrastive() -> HingeLoss:
        start = GaussianNoise(0.5, generator=_generator(3))
        return HingeLoss(MostOffending(0.1, start, max_steps=2))

    def run(epochs: int, **options: Any) -> Tensor:
        config = TrainConfig(epochs=epochs, schedule="constant", batch_size=10)
        model, data = Ellipse(generator=_generator(0)), ellipse_data(generator=_generator(1))
        train(model, data, config, loss=contrastive(), progress=False, **options)
        return model.scale().detach()

    straight = run(4)
    run(2, checkpoint=tmp_path / "run.pt")
    assert torch.equal(run(4, checkpoint=tmp_path / "run.pt", resume=True), straight)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (energy_loss, "HingeLoss, is .*energy_loss"),
        (LogLoss(GaussianNoise(0.5)), "HingeLoss, is .*LogLoss"),
        (HingeLoss(GaussianNoise(0.5), margin=2.0), "margin was 1, is 2"),
    ],
)
def test_a_run_is_not_resumed_with_another_loss(tmp_path: Path, other, words: str) -> None:
    model, data = _horn()
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "progress": False}
    loss = HingeLoss(GaussianNoise(0.5))
    train(model, data, TrainConfig(epochs=1), loss=loss, **options)
    with pytest.raises(ValueError, match=rf"^loss must be that of checkpoint .*{words}$"):
        train(model, data, TrainConfig(epochs=1), loss=other, resume=True, **options)
