"""Training: what the recipes reach, exact resumption, seeds, and errors by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from lebm_kernels.files import claimed
from lebm_kernels.models import Ellipse, Horn, LatentModel, neural_horn
from lebm_kernels.models.grids import periodic_grid
from lebm_kernels.practicum.recipes import RECIPES
from lebm_kernels.training import TrainConfig, mean_free_energy, train
from lebm_kernels.training.datasets import Dataset, ellipse_data, horn_data, horn_radii
from lebm_kernels.training.losses import HingeLoss, energy_loss
from lebm_kernels.training.negatives import GaussianNoise
from lebm_kernels.training.schedules import Annealing

SHORT = TrainConfig(epochs=6, batch_size=16, learning_rate=0.03)


def _horn(seed: int = 0) -> tuple[Horn, Dataset]:
    generator = torch.Generator().manual_seed(seed)
    data = horn_data(40, generator=generator)
    return Horn(generator=generator), data


def _parameters(model: LatentModel) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def _best_radii(data: Dataset, beta: float) -> tuple[float, npt.NDArray[np.float64]]:
    """The least mean F that two radii give the data on 48 points, and the radii: by scipy."""
    y = data.y.double().numpy()
    z = 2 * np.pi * np.arange(48) / 48
    circle = np.stack([np.cos(z), np.sin(z)], 1)

    def mean_free(radii: npt.NDArray[np.float64]) -> float:
        energy = ((y[:, None] - radii * circle) ** 2).sum(-1)
        if beta == math.inf:
            return float(energy.min(1).mean())
        return float(-(logsumexp(-beta * energy, axis=1) - np.log(48)).mean() / beta)

    # Cold, the mean is a patchwork of parabolas with many minima: start among them.
    starts = [(2 + i, 1.5 + j) for i in (-0.03, 0.0, 0.03) for j in (-0.03, 0.0, 0.03)]
    found = [minimize(mean_free, start, method="Nelder-Mead") for start in starts]
    best = min(found, key=lambda result: result.fun)
    return best.fun, best.x


@pytest.mark.parametrize("seed", range(5))
def test_cold_ellipse_reaches_what_its_grid_and_data_permit(seed: int) -> None:
    model, data, config = RECIPES["ellipse"].start(seed)
    untrained = mean_free_energy(model, data)
    result = train(model, data, config)
    assert result.initial == pytest.approx(untrained)
    assert result.final == pytest.approx(mean_free_energy(model, data))
    assert result.final < untrained
    best, _ = _best_radii(data, math.inf)
    assert 0.999 * best < result.final < 1.15 * best
    assert (model.scale().abs() - torch.tensor([2.0, 1.5])).abs().max() < 0.06
    # Against the curve itself, without the 48 points' own spacing, only the noise is left.
    assert mean_free_energy(model.on_grid(periodic_grid(1536)), data) < 0.004


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_warm_ellipse_finds_the_radii_of_least_free_energy(beta: float) -> None:
    model, data, config = RECIPES["ellipse"].start(1, beta=beta)
    result = train(model, data, config)
    best, radii = _best_radii(data, beta)
    assert result.final == pytest.approx(best, rel=1e-4)
    np.testing.assert_allclose(model.scale().detach().abs().numpy(), radii, rtol=5e-3)


def test_cold_horn_finds_the_radii_at_both_ends() -> None:
    model, data, config = RECIPES["horn"].start(0)
    result = train(model, data, config)
    assert result.final < result.initial / 50
    x = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(model.scale(x).detach().abs(), horn_radii(x), rtol=0.1, atol=0)


class _StoppedError(Exception):
    pass


def _noisy_loss(model: LatentModel, y: Tensor, x: Tensor | None = None, **options) -> Tensor:
    """A loss that draws from the global generator, as a contrastive one may."""
    return energy_loss(model, y + 0.1 * torch.randn_like(y), x, **options)


@pytest.mark.parametrize("stop", [2, 3, 5])
@pytest.mark.parametrize(
    "config",
    [
        SHORT,
        TrainConfig(epochs=6, batch_size=7, beta=3.0, schedule="constant", learning_rate=0.01),
        TrainConfig(
            epochs=6, optimizer="SGD", optimizer_options={"momentum": 0.9}, learning_rate=1e-3
        ),
        TrainConfig(epochs=6, optimizer="LBFGS", learning_rate=0.1),
    ],
    ids=["cold", "warm", "momentum", "closure"],
)
def test_a_resumed_run_is_the_straight_run_bit_for_bit(
    tmp_path: Path, config: TrainConfig, stop: int
) -> None:
    path = tmp_path / "deep" / "run.pt"

    def interrupt(epoch: int, _: float) -> None:
        if epoch == stop:
            raise _StoppedError

    torch.manual_seed(0)
    straight, data = _horn()
    expected = train(straight, data, config, loss=_noisy_loss)

    torch.manual_seed(0)
    model, _ = _horn()
    options: dict[str, Any] = {"loss": _noisy_loss, "checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(_StoppedError):
        train(model, data, config, on_epoch=interrupt, **options)
    # The state of the model in hand and of the global generator must not matter.
    torch.manual_seed(99)
    resumed, _ = _horn(7)
    result = train(resumed, data, config, resume=True, **options)

    assert _same(_parameters(resumed), _parameters(straight))
    assert result.history == expected.history
    assert (result.initial, result.final) == (expected.initial, expected.final)
    assert len(result.history) == 6
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    model, data = _horn()
    first = train(model, data, SHORT, checkpoint=tmp_path / "run.pt")
    again, _ = _horn(3)
    second = train(again, data, SHORT, checkpoint=tmp_path / "run.pt", resume=True)
    assert _same(_parameters(model), _parameters(again))
    assert (first.history, first.final) == (second.history, second.final)


def test_a_constant_rate_can_train_on(tmp_path: Path) -> None:
    straight, data = _horn()
    train(straight, data, TrainConfig(epochs=5, batch_size=16, schedule="constant"))
    model, _ = _horn()
    for epochs, resume in ((2, False), (5, True)):
        config = TrainConfig(epochs=epochs, batch_size=16, schedule="constant")
        train(model, data, config, checkpoint=tmp_path / "run.pt", resume=resume)
    assert _same(_parameters(model), _parameters(straight))


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "run.pt"
    model, data = _horn()
    train(model, data, SHORT, checkpoint=path)
    before = path.read_bytes()

    def torn(state, file) -> None:
        file.write(b"half a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        train(model, data, SHORT, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta": 1.0}, "beta"),
        ({"seed": 1}, "seed"),
        ({"epochs": 7}, "epochs"),
        ({"optimizer_options": {"amsgrad": True}}, "optimizer_options"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    tmp_path: Path, change: dict, named: str
) -> None:
    model, data = _horn()
    train(model, data, SHORT, checkpoint=tmp_path / "run.pt")
    other = TrainConfig(**{**SHORT.__dict__, **change})
    with pytest.raises(ValueError, match=rf"^{named} must be that of checkpoint"):
        train(model, data, other, checkpoint=tmp_path / "run.pt", resume=True)


def test_a_checkpoint_of_other_data_or_none_is_refused(tmp_path: Path) -> None:
    model, data = _horn()
    path = tmp_path / "run.pt"
    with pytest.raises(FileNotFoundError, match=r"run\.pt does not exist"):
        train(model, data, SHORT, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="checkpoint must be given"):
        train(model, data, SHORT, resume=True)
    train(model, data, SHORT, checkpoint=path)
    with pytest.raises(ValueError, match="data must be that of checkpoint"):
        train(model, _horn(1)[1], SHORT, checkpoint=path, resume=True)
    with pytest.raises(
        ValueError, match=r"^model must be that of checkpoint.*Horn, is .*DecoderModel"
    ):
        train(neural_horn(), data, SHORT, checkpoint=path, resume=True)
    torch.save({"format": 0}, path)
    with pytest.raises(ValueError, match="must have format"):
        train(model, data, SHORT, checkpoint=path, resume=True)


class Counted(Ellipse):
    """Counts its evaluations."""

    evaluations = 0

    def free_energy(self, *args: Any, **options: Any) -> Tensor:
        self.evaluations += 1
        return super().free_energy(*args, **options)


LEARNING = {"epochs": 2, "beta": 2.0, "learn_beta": True, "optimizer": "SGD"}

# How a run is refused: its options, the fields of its config, and the error.
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception]]] = {
    "claimed": ({"checkpoint": "claimed.pt"}, {}, BlockingIOError),
    "another seed": ({"checkpoint": "run.pt", "resume": True}, {"seed": 5}, ValueError),
    "fewer epochs": ({"checkpoint": "run.pt", "resume": True}, {"epochs": 1}, ValueError),
    "no checkpoint": ({"checkpoint": "none.pt", "resume": True}, {}, FileNotFoundError),
    "damaged checkpoint": ({"checkpoint": "damaged.pt", "resume": True}, {}, ValueError),
    "optimizer_options": ({}, {"optimizer_options": {"no": 1}}, ValueError),
    "curves": ({"checkpoint": "run.pt", "resume": True, "curves": "run.pt/x"}, {}, OSError),
    "curves are a folder": ({"checkpoint": "run.pt", "resume": True, "curves": "."}, {}, OSError),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refused_run_leaves_its_model_unchanged(
    refusal: tuple[dict[str, Any], dict[str, Any], type[Exception]], tmp_path: Path
) -> None:
    options, changed, error = refusal
    fields = {**LEARNING, "schedule": "constant", **changed}
    data = ellipse_data(generator=torch.Generator().manual_seed(0))
    earlier = TrainConfig(**{**LEARNING, "schedule": "constant"})
    train(Counted(), data, earlier, checkpoint=tmp_path / "run.pt", progress=False)
    (tmp_path / "damaged.pt").write_text("")
    paths = {k: tmp_path / v if isinstance(v, str) else v for k, v in options.items()}
    model = Counted()
    state, random = [p.tolist() for p in model.parameters()], torch.get_rng_state()
    with claimed(tmp_path / "claimed.pt"), pytest.raises(error):
        train(model, data, TrainConfig(**fields), progress=False, **paths)
    assert model.log_beta is None
    assert [p.tolist() for p in model.parameters()] == state
    assert model.evaluations == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_a_run_of_unfit_data_leaves_its_model_and_its_curves_unchanged(tmp_path: Path) -> None:
    model, curves = Ellipse(), tmp_path / "run.csv"
    curves.write_text("earlier")
    with pytest.raises(ValueError, match="y"):
        train(model, Dataset(torch.ones(4, 3)), TrainConfig(**LEARNING), curves=curves)
    assert model.log_beta is None
    assert curves.read_text() == "earlier"


def test_a_seed_decides_a_run_and_another_seed_another() -> None:
    ends: list[list[Tensor]] = []
    for seed in (3, 3, 4):
        model, data, config = RECIPES["horn"].start(seed, epochs=1)
        torch.manual_seed(len(ends))
        train(model, data, config)
        ends.append(_parameters(model))
    assert _same(ends[0], ends[1])
    assert not _same(ends[0], ends[2])


def test_the_shuffling_alone_follows_the_configs_seed() -> None:
    ends = []
    for seed in (0, 1):
        model, data = _horn()
        train(model, data, TrainConfig(epochs=1, batch_size=8, seed=seed))
        ends.append(_parameters(model))
    assert not _same(ends[0], ends[1])


def test_history_is_the_mean_loss_over_observations_of_uneven_batches() -> None:
    model, data = _horn()
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=1e-30, schedule="constant")
    result = train(model, data, config)
    assert result.history == pytest.approx([result.initial] * 2, rel=1e-5)


def test_float64_models_train_in_float64() -> None:
    model, data = _horn()
    train(model.double(), data, SHORT)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_diverging_run_stops_and_says_so() -> None:
    model, data = _horn()
    config = TrainConfig(epochs=200, optimizer="SGD", learning_rate=1e6)
    with pytest.raises(FloatingPointError, match=r"epoch \d+.*learning_rate"):
        train(model, data, config)


def test_progress_is_shown_when_asked_and_silent_otherwise(capsys) -> None:
    model, data = _horn()
    train(model, data, SHORT)
    assert capsys.readouterr().err == ""
    train(model, data, SHORT, progress=True)
    shown = capsys.readouterr().err
    assert "Horn, cold" in shown
    assert "6/6" in shown


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", -1.0),
        ("beta", math.nan),
        ("beta", True),
        ("beta", "1"),
        ("epochs", True),
        ("epochs", -1),
        ("epochs", 2.5),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("schedule", "linear"),
        ("optimizer", "adamant"),
        ("optimizer", "Optimizer"),
        ("seed", -1),
    ],
)
def test_bad_fields_are_named_with_their_values(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got {value!r}"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_train_and_are_kept_as_pythons(tmp_path: Path) -> None:
    config = TrainConfig(
        beta=np.float32(2.0),
        annealing=Annealing(np.float64(1.0), np.float32(2.0), np.float64(0.5)),
        epochs=np.int64(2),
        batch_size=np.int32(100),
        learning_rate=np.float64(0.01),
        seed=np.uint8(3),
    )
    plain = TrainConfig(2.0, Annealing(1.0, 2.0, 0.5), False, 2, 100, learning_rate=0.01, seed=3)
    straight, resumed = _horn()[0], _horn()[0]
    wanted = train(straight, _horn()[1], plain)
    train(resumed, _horn()[1], config, checkpoint=tmp_path / "run.pt")
    found = train(resumed, _horn()[1], plain, checkpoint=tmp_path / "run.pt", resume=True)
    assert found.history == wanted.history


def test_options_of_numpys_numbers_can_be_resumed_with(tmp_path: Path) -> None:
    """And so can a rate and a temperature that are arrays of no dimensions."""
    decay, rates = np.float64(0.125), (np.float32(0.75), np.array(0.5))
    config = TrainConfig(
        beta=np.array(2.0),  # type: ignore[arg-type]
        epochs=np.array(2),  # type: ignore[arg-type]
        learning_rate=torch.tensor(0.25),  # type: ignore[arg-type]
        optimizer_options={"weight_decay": decay, "betas": rates, "amsgrad": np.bool_(True)},
    )
    options = {"weight_decay": 0.125, "betas": (0.75, 0.5), "amsgrad": True}
    assert config == TrainConfig(2.0, epochs=2, learning_rate=0.25, optimizer_options=options)
    path = tmp_path / "run.pt"
    model, data = _horn()
    wanted = train(model, data, config, checkpoint=path)
    found = train(_horn()[0], data, config, checkpoint=path, resume=True)
    assert found.history == wanted.history


@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("optimizer_options", {"weight_decay": np.zeros(2)}, np.zeros(2)),
        ("optimizer_options", {"betas": [0.5, 1j]}, 1j),
        ("optimizer_options", [("nesterov", True)], [("nesterov", True)]),
        ("learning_rate", np.full(1, 0.5), np.full(1, 0.5)),
        ("beta", torch.ones(1), torch.ones(1)),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(name: str, value: Any, given: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {re.escape(repr(given))}"):
        TrainConfig(**{name: value})


def test_a_loss_of_numpys_numbers_is_that_of_pythons(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for margin in (0.5, np.float32(0.5)):
        loss = HingeLoss(GaussianNoise(margin, torch.Generator().manual_seed(0)), margin)
        train(*_horn(), SHORT, loss=loss, checkpoint=path, resume=path.exists())
    with pytest.raises(ValueError, match=r"^loss must be that of checkpoint"):
        train(*_horn(), SHORT, loss=HingeLoss(loss.negatives, 0.25), checkpoint=path, resume=True)


def test_what_is_no_data_set_model_or_config_is_named() -> None:
    model, data = _horn()
    wrong: list[tuple[str, Any, str]] = [
        ("data", data.y, r"a Dataset, such as Dataset\(data\), got Tensor"),
        ("data", None, "a Dataset, got NoneType"),
        ("validation", [data], "a Dataset, got list"),
        ("model", torch.nn.Linear(1, 2), "a LatentModel, got Linear"),
        ("config", {"epochs": 3}, "a TrainConfig, got dict"),
    ]
    for name, value, words in wrong:
        given: dict[str, Any] = {"model": model, "data": data, "config": SHORT, name: value}
        with pytest.raises(TypeError, match=rf"^{name} must be {words}$"):
            train(**given)
    with pytest.raises(TypeError, match=r"^data must be a Dataset"):
        mean_free_energy(model, data.y)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["y", "x"])
def test_data_that_are_not_finite_are_no_matter_of_the_learning_rate(part: str, bad: float) -> None:
    model, data = _horn()
    getattr(data, part)[7] = bad
    words = rf"finite to train on, got {part} with NaN or infinities in 1 of {len(data)} obs"
    with pytest.raises(ValueError, match=f"^data must be {words}"):
        train(model, data, SHORT)
    with pytest.raises(ValueError, match=f"^validation must be {words}"):
        train(model, _horn()[1], SHORT, validation=data)


def test_a_loss_that_was_never_finite_is_no_matter_of_the_learning_rate() -> None:
    model = Ellipse()
    far = Dataset(torch.full((3, 2), 1e25))
    with pytest.raises(FloatingPointError, match=r"^the loss is .* in epoch 1; before the .*inf$"):
        train(model, far, SHORT)


def test_other_bad_arguments_are_named() -> None:
    model, data = _horn()
    with pytest.raises(ValueError, match=r"optimizer_options must suit Adam.*wings"):
        train(model, data, TrainConfig(optimizer_options={"wings": 2}))
    with pytest.raises(ValueError, match="checkpoint_every must be"):
        train(model, data, SHORT, checkpoint_every=0)
    with pytest.raises(ValueError, match="x must be absent"):
        train(Ellipse(), data, SHORT)
