"""Evaluations run in evaluation mode, and leave every module in the mode that it had."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lebm_kernels.models import (
    DecoderModel,
    LatentModel,
    denoise,
    gtm,
    infer,
    infer_on_grid,
    sample,
)
from lebm_kernels.models.modes import evaluation_mode
from lebm_kernels.training import (
    HingeLoss,
    MostOffending,
    TrainConfig,
    UniformBox,
    density_loss,
    free_energies,
    mean_free_energy,
    train,
)
from lebm_kernels.training.datasets import Dataset, ellipse_data


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DATA = ellipse_data(generator=_generator(0))
VALIDATION = ellipse_data(generator=_generator(1))
STILL = TrainConfig(
    epochs=4, beta=2.0, optimizer="SGD", learning_rate=1e-30, schedule="constant", batch_size=12
)


def _model() -> DecoderModel:
    """Dropout, BatchNorm, a layer whose hook changes a buffer; one BatchNorm is frozen."""
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Linear(1, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 2)),
        nn.BatchNorm1d(2),
    )
    decoder[4].eval()
    return DecoderModel(decoder)


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


EVALUATIONS: dict[str, Callable[[DecoderModel], Any]] = {
    "free_energies": lambda model: free_energies(model, DATA, beta=2.0),
    "mean_free_energy": lambda model: mean_free_energy(model, DATA, beta=2.0, slice_size=5),
    "mean_log_density": lambda model: gtm.mean_log_density(model, DATA.y),
    "infer_on_grid": lambda model: infer_on_grid(model, DATA.y),
    "infer": lambda model: infer(model, DATA.y, max_steps=3),
    "denoise": lambda model: denoise(model, DATA.y, beta=2.0, max_steps=3),
    "sample": lambda model: sample(model, DATA.y, num_samples=3, generator=_generator(0)),
    "MostOffending": lambda model: MostOffending(
        0.1, UniformBox(-3.0, 3.0, _generator(0)), max_steps=3
    )(model, DATA.y, beta=2.0),
}


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_an_evaluation_is_that_of_eval_mode_and_leaves_no_trace(
    evaluate: Callable[[DecoderModel], Any],
) -> None:
    model = _model().learn_beta(2.0)
    modes, buffers = _modes(model), _buffers(model)
    found = evaluate(model)
    assert _modes(model) == modes
    assert all(map(torch.equal, _buffers(model), buffers))
    model.eval()
    torch.testing.assert_close(found, evaluate(model), rtol=0, atol=0)


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_modes_are_restored_after_an_exception(evaluate: Callable[[DecoderModel], Any]) -> None:
    model = _model().learn_beta(2.0)
    modes = _modes(model)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    model.decoder.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        evaluate(model)
    assert _modes(model) == modes


@pytest.mark.parametrize("loss", [None, density_loss], ids=["energy", "density"])
def test_the_validation_loss_of_unchanged_parameters_is_that_of_eval_mode(loss: Any) -> None:
    model = _model()
    # The buffers stand still as the parameters do.
    model.decoder[3] = nn.Linear(8, 2)
    model.decoder[1].momentum = 0.0
    modes = _modes(model)
    options = {} if loss is None else {"loss": loss}
    result = train(model, DATA, STILL, validation=VALIDATION, progress=False, **options)
    assert _modes(model) == modes
    model.eval()
    loss = loss or (lambda m, y, **o: m.free_energy(y, **o).mean())
    expected = loss(model, VALIDATION.y, beta=2.0).item()
    assert [record.validation for record in result.records] == [expected] * 4
    assert result.final == mean_free_energy(model, DATA, beta=2.0)


def test_the_best_epoch_is_the_one_of_the_model_in_eval_mode() -> None:
    model, values = _model(), []

    def keep(epoch: int, _: float) -> None:
        values.append(mean_free_energy(model, VALIDATION, beta=2.0))

    config = TrainConfig(epochs=8, beta=2.0, learning_rate=0.05, patience=8)
    result = train(model, DATA, config, validation=VALIDATION, on_epoch=keep, progress=False)
    assert [record.validation for record in result.records] == pytest.approx(values, rel=1e-6)
    assert result.best_epoch == 1 + values.index(min(values))
    assert result.final == mean_free_energy(model, DATA, beta=2.0)


@pytest.mark.parametrize("validation", [None, VALIDATION], ids=["alone", "validated"])
def test_batch_norm_counts_the_batches_of_training_alone(validation: Dataset | None) -> None:
    model = _model()
    result = train(model, DATA, STILL, validation=validation, progress=False)
    epochs = result.best_epoch or 4
    assert model.decoder[1].num_batches_tracked == 2 * epochs  # of 2 batches each
    assert model.decoder[4].num_batches_tracked == 0  # frozen


def test_drawing_negatives_counts_no_batches() -> None:
    model = _model()
    loss = HingeLoss(MostOffending(0.1, UniformBox(-3.0, 3.0, _generator(0)), max_steps=3))
    train(model, DATA, STILL, loss=loss, progress=False)
    assert model.decoder[1].num_batches_tracked == 16  # F of the data and of the samples


def test_a_loss_that_is_a_module_is_validated_in_eval_mode() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bool] = []

        def forward(self, model, y, x=None, *, beta=math.inf, backend=None) -> Tensor:
            self.seen.append(self.training)
            return model(y, x, beta=beta).mean()

    loss = Loss()
    train(_model(), DATA, STILL, loss=loss, validation=VALIDATION, progress=False)
    assert loss.seen == [True, True, False] * 4


class Noting(nn.Module):
    """Notes the modes in which it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, y: Tensor) -> Tensor:
        self.seen.append(self.training)
        return y


def noted(model: LatentModel, y: Tensor, x: Tensor | None = None, *, extra, **_: Any) -> Tensor:
    return model(extra(y), x, beta=2.0).mean()


class Plain:
    def __init__(self, extra: Any) -> None:
        self.extra = extra

    def __call__(self, model: LatentModel, y: Tensor, x: Any = None, **_: Any) -> Tensor:
        return noted(model, y, x, extra=self.extra)


@dataclass
class InList:
    extras: list[Any]

    def __call__(self, model: LatentModel, y: Tensor, x: Any = None, **_: Any) -> Tensor:
        return noted(model, y, x, extra=self.extras[0])


class Unregistered(nn.Module):
    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.extras = (extra,)

    def forward(self, model: LatentModel, y: Tensor, x: Any = None, **_: Any) -> Tensor:
        return noted(model, y, x, extra=self.extras[0])


@dataclass
class Start:
    """A sampler that holds a module."""

    extra: Any

    def __call__(self, model: LatentModel, y: Tensor, x: Any = None, **_: Any) -> Tensor:
        return self.extra(y) + 0.1


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "partial": lambda extra: functools.partial(noted, extra=extra),
    "object": Plain,
    "method": lambda extra: Plain(extra).__call__,
    "dataclass": lambda extra: InList([extra]),
    "module": Unregistered,
    "sampler": lambda extra: HingeLoss(Start(extra)),
    "nested": lambda extra: functools.partial(Plain(nn.Sequential(extra))),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS.keys())
def test_modules_that_a_loss_holds_are_validated_in_eval_mode(hold: Any) -> None:
    extra = Noting()
    train(_model(), DATA, STILL, loss=hold(extra), validation=VALIDATION, progress=False)
    assert extra.seen == [True, True, False] * 4
    assert extra.training


def test_modes_are_restored_after_a_failing_validation() -> None:
    model = _model()
    modes = _modes(model)
    far = Dataset(torch.full((1, 2), 1e25))
    with pytest.raises(FloatingPointError, match="validation loss"):
        train(model, DATA, STILL, validation=far, progress=False)
    assert _modes(model) == modes


def test_a_module_that_does_more_in_train_does_it() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    parts = nn.Sequential(Merging(1, 1), nn.Sequential(Merging(1, 1), nn.Dropout()))
    parts[1][1].eval()
    modes = _modes(parts)
    with evaluation_mode(parts):
        assert parts[0].merged
        assert parts[1][0].merged
        assert not any(_modes(parts))
    assert not parts[0].merged
    assert not parts[1][0].merged
    assert _modes(parts) == modes
