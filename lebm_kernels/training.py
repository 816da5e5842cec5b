"""Training: minibatch descent on a loss, cold (beta = inf) or warm, that can stop and go on.

A run is a function of the model it is given, the data and the :class:`TrainConfig`: the shuffling
has its own generator, and the learning rate and the temperature follow from the step's number. A
checkpoint holds all that changes, so that a resumed run ends where an uninterrupted one does, bit
for bit.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lebm_kernels import checkpoints
from lebm_kernels.checks import check_count, count_not_finite, is_count, number, plain
from lebm_kernels.curves import CsvCurves, Epoch, TensorBoardCurves
from lebm_kernels.datasets import Dataset
from lebm_kernels.extras import MissingExtraError, needs
from lebm_kernels.losses import Loss, energy_loss
from lebm_kernels.models import LatentModel
from lebm_kernels.schedules import SCHEDULES, Annealing

# Keeps the order of the batches apart from data that were drawn from the same seed.
_SHUFFLING = 0x5F3759DF


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, beside the model, the data and the loss.

    Attributes:
        beta: inverse temperature, in [0, inf]; infinity is zero-temperature training.
        annealing: how beta gets there along the steps; ``None`` starts at it.
        learn_beta: beta is where it starts, and the model learns it. The loss must hold against
            its growth, as :func:`lebm_kernels.likelihood.density_loss` does.
        epochs: passes over the data, if no early stop ends them.
        batch_size: observations a step; ``None`` takes them all.
        slice_size: observations whose loss and gradient are computed at once. A batch is taken in
            slices and their gradients add up to its own, where the loss is a mean over the
            observations; ``None`` takes it whole. It bounds the memory and decides nothing else.
        patience: epochs without a better validation loss that end the run, counted after the
            annealing; ``None`` never stops early.
        learning_rate: the optimizer's rate at the first step.
        schedule: ``"cosine"`` falls to zero at the last step, ``"constant"`` stays.
        optimizer: name of a class of ``torch.optim``.
        optimizer_options: its further keyword arguments: numbers, strings, booleans and None, or
            tuples, lists and dicts of them.
        seed: of the shuffling.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        ValueError: a field is out of range; the message names it.

    NumPy's numbers, arrays and tensors of no dimensions too, become Python's.
    """

    beta: float = math.inf
    annealing: Annealing | None = None
    learn_beta: bool = False
    epochs: int = 100
    batch_size: int | None = None
    slice_size: int | None = None
    patience: int | None = None
    learning_rate: float = 0.03
    schedule: str = "cosine"
    optimizer: str = "Adam"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    backend: str | None = None

    def __post_init__(self) -> None:
        """Check each field."""
        self._make_plain()
        _require(number(self.beta) >= 0.0, "beta", self.beta, "a number in [0, inf]")
        _require(is_count(self.epochs, 0), "epochs", self.epochs, "an integer of at least 0")
        for name in ("batch_size", "slice_size", "patience"):
            value = getattr(self, name)
            whole = value is None or is_count(value, 1)
            _require(whole, name, value, "None or an integer of at least 1")
        _require(
            self.annealing is None or isinstance(self.annealing, Annealing),
            "annealing",
            self.annealing,
            "None or an Annealing",
        )
        _require(
            not self.learn_beta or self.annealing is None,
            "annealing",
            self.annealing,
            "None where beta is learned",
        )
        _require(
            not self.learn_beta or 0.0 < self.beta < math.inf,
            "beta",
            self.beta,
            "positive and finite to be learned",
        )
        _require(
            0.0 < number(self.learning_rate) < math.inf,
            "learning_rate",
            self.learning_rate,
            "positive and finite",
        )
        _require(
            str(self.schedule) in SCHEDULES,
            "schedule",
            self.schedule,
            f"one of {sorted(SCHEDULES)}",
        )
        _require(
            _optimizer_class(self.optimizer) is not None,
            "optimizer",
            self.optimizer,
            "the name of a class of torch.optim",
        )
        known = is_count(self.seed, 0) and self.seed < 2**63
        _require(known, "seed", self.seed, "an integer of at least 0 and below 2^63")

    def _make_plain(self) -> None:
        """Make Python's numbers of NumPy's: a checkpoint holds nothing else."""
        for f in fields(self):
            value = plain(getattr(self, f.name))
            _require(not getattr(value, "ndim", 0), f.name, value, "a single value")
            object.__setattr__(self, f.name, value)
        options = self.optimizer_options
        _require(isinstance(options, dict), "optimizer_options", options, "a dict")
        object.__setattr__(self, "optimizer_options", _plain_options(options))


@dataclass(frozen=True)
class TrainResult:
    """What a run did; the trained model is the one that was given.

    Attributes:
        config: the configuration of the run.
        records: what each epoch left.
        initial: mean free energy of the data before the first step, at ``config.beta`` or, where
            beta is learned, at the model's.
        final: the same of the model as it was left.
        best_epoch: number of the epoch of least validation loss, whose parameters the model was
            left with; ``None`` without validation data.
        seconds: wall time of this call, without the part before a resumed checkpoint.
    """

    config: TrainConfig
    records: list[Epoch]
    initial: float
    final: float
    best_epoch: int | None
    seconds: float

    @property
    def history(self) -> list[float]:
        """Mean loss over each epoch, while it ran."""
        return [record.loss for record in self.records]


@torch.no_grad()
def free_energies(
    model: LatentModel,
    data: Dataset,
    *,
    beta: float | Tensor = math.inf,
    backend: str | None = None,
    slice_size: int | None = None,
) -> Tensor:
    """The free energy of each observation, ``[num]``, without gradients.

    Args:
        model: gives the free energies.
        data: observations, moved to the model's device and dtype.
        beta: inverse temperature.
        backend: as in :func:`lebm_kernels.free_energy`.
        slice_size: observations that are taken at once, for data that a conditional decoder
            can't decode all together; ``None`` takes all.

    Raises:
        TypeError: ``data`` is no :class:`~lebm_kernels.datasets.Dataset`.
        ValueError: ``slice_size`` is below 1, or what the model refuses.
    """
    _check_kind("data", data, Dataset, "a Dataset")
    if slice_size is not None:
        check_count("slice_size", slice_size, 1)
    parts = [
        model.free_energy(part.y, part.x, beta=beta, backend=backend)
        for part in _slices(data.to(model.z), slice_size)
    ]
    return torch.cat(parts)


def mean_free_energy(
    model: LatentModel,
    data: Dataset,
    *,
    beta: float | Tensor = math.inf,
    backend: str | None = None,
    slice_size: int | None = None,
) -> float:
    """The mean of :func:`free_energies`, in the units of ``y`` squared."""
    options: dict[str, Any] = {"beta": beta, "backend": backend, "slice_size": slice_size}
    return float(free_energies(model, data, **options).mean())


def train(
    model: LatentModel,
    data: Dataset,
    config: TrainConfig,
    *,
    loss: Loss = energy_loss,
    validation: Dataset | None = None,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    curves: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 20,
    resume: bool = False,
    progress: bool | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a model in place.

    Args:
        model: changed in place; its device and dtype are the run's.
        data: observations, moved to the model's device and dtype.
        config: see :class:`TrainConfig`.
        loss: what is minimised; see :mod:`lebm_kernels.losses`.
        validation: observations whose loss is taken after each epoch, at the last temperature. The
            model ends with the parameters of the epoch where it was least.
        make_optimizer: makes the optimizer from the parameters, instead of the config's by name;
            the learning rate is still the config's, by its schedule.
        curves: CSV file that a line is added to after each epoch; see
            :class:`lebm_kernels.curves.Epoch`.
        tensorboard: folder for the same in TensorBoard's format, where it is installed.
        checkpoint: file to keep the run's state in. Its folder is made; the file is replaced in
            one step, so that an interruption leaves the previous state whole.
        checkpoint_every: epochs between two writes; the last epoch is always written.
        resume: go on from ``checkpoint``, which must be of the same config, data and loss. With the
            constant schedule ``epochs`` may differ, to train on.
        progress: show a progress bar (needs the extra ``cli``); ``None`` shows it if standard error
            is a terminal and the extra is installed.
        on_epoch: called after each epoch, and its checkpoint if one was due, with the number of
            epochs done and the epoch's mean loss.

    Returns:
        What the run did.

    Raises:
        TypeError: ``model``, ``data``, ``validation``, ``config`` or ``loss`` is something else.
        ValueError: an argument is out of range, the data aren't finite, or the checkpoint is of
            another run.
        FileNotFoundError: ``resume`` is asked for and there is no checkpoint.
        FloatingPointError: the loss is no longer finite.

    Example:
        >>> from lebm_kernels.datasets import ellipse_data
        >>> from lebm_kernels.models import Ellipse
        >>> model = Ellipse(radii=torch.tensor([1.0, 0.5]))
        >>> config = TrainConfig(epochs=5, learning_rate=0.1)
        >>> result = train(model, ellipse_data(), config, progress=False)
        >>> result.final < result.initial
        True
    """
    _check_kind("model", model, LatentModel, "a LatentModel")
    for name, observations in (("data", data), ("validation", validation)):
        if name == "data" or observations is not None:
            _check_data(name, observations)
    _check_kind("config", config, TrainConfig, "a TrainConfig")
    _check_kind("loss", loss, Callable, "a function as those of lebm_kernels.losses")  # type: ignore[arg-type]
    _require(
        is_count(checkpoint_every, 1),
        "checkpoint_every",
        checkpoint_every,
        "an integer of at least 1",
    )
    if resume and checkpoint is None:
        raise ValueError("checkpoint must be given to resume from, got None")
    _require(
        config.patience is None or validation is not None,
        "patience",
        config.patience,
        "None without validation data",
    )
    start = time.perf_counter()
    run = _Run(model, data, validation, config, loss, make_optimizer)
    if resume and checkpoint is not None:
        run.load(Path(checkpoint))
    writers: list[CsvCurves | TensorBoardCurves] = []
    if curves is not None:
        writers.append(CsvCurves(curves, run.records))
    if tensorboard is not None:
        writers.append(TensorBoardCurves(tensorboard, run.records))

    try:
        for _ in _progress_bar(run, progress):
            record = run.epoch()
            if checkpoint is not None and (record.number % checkpoint_every == 0 or run.is_over()):
                run.save(Path(checkpoint))
            for writer in writers:
                writer.add(record)
            if on_epoch is not None:
                on_epoch(record.number, record.loss)
    finally:
        for writer in writers:
            writer.close()

    run.restore_best()
    best_epoch = None if run.best is None else run.best[0]
    seconds = time.perf_counter() - start
    return TrainResult(
        config, list(run.records), run.initial, run.mean_free_energy(), best_epoch, seconds
    )


class _Run:
    """The state of a run, its step and its checkpoint."""

    def __init__(
        self,
        model: LatentModel,
        data: Dataset,
        validation: Dataset | None,
        config: TrainConfig,
        loss: Loss,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None,
    ) -> None:
        self.model, self.config, self.loss = model, config, loss
        self.data = data.to(model.z)
        self.validation = None if validation is None else validation.to(model.z)
        if config.learn_beta and model.log_beta is None:
            model.learn_beta(config.beta)
        parameters = list(model.parameters())
        self.optimizer = (
            _make_optimizer(parameters, config)
            if make_optimizer is None
            else make_optimizer(parameters)
        )
        self.generator = torch.Generator().manual_seed(config.seed ^ _SHUFFLING)
        self.initial = self.mean_free_energy()
        self.records: list[Epoch] = []
        self.best: tuple[int, dict[str, Tensor]] | None = None
        """Number and parameters of the epoch of least validation loss."""

    def epoch(self) -> Epoch:
        """Pass once over the data in a new order; record it."""
        order = torch.randperm(len(self.data), generator=self.generator)
        batches = order.split(self.config.batch_size or len(self.data))
        done = len(self.records)
        total = torch.zeros((), dtype=torch.float64)
        rate, beta = self.config.learning_rate, self.last_beta()
        for i, index in enumerate(batches):
            share = (done + i / len(batches)) / self.config.epochs
            rate = self.config.learning_rate * SCHEDULES[self.config.schedule](share)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if self.config.annealing is not None:
                beta = self.config.annealing.beta(share, self.config.beta)
            total += self._step(self.data[index.to(self.data.y.device)], beta) * len(index)
        value = float(total) / len(self.data)
        if not math.isfinite(value):
            hint = f"a learning_rate below {self.config.learning_rate} may help"
            if not math.isfinite(self.initial):
                hint = f"before the first step the mean free energy of the data was {self.initial}"
            raise FloatingPointError(f"the loss is {value} in epoch {done + 1}; {hint}")
        beta = float(self.last_beta()) if self.config.learn_beta else beta
        self.records.append(Epoch(done + 1, value, self._validate(), float(beta), rate))
        return self.records[-1]

    def last_beta(self) -> float | Tensor:
        """The temperature that the run is for: learned as it is, or the config's."""
        learned = self.model.beta if self.config.learn_beta else None
        return self.config.beta if learned is None else learned.detach()

    def mean_free_energy(self) -> float:
        """Of the data, at the temperature that the run is for."""
        return mean_free_energy(
            self.model,
            self.data,
            beta=self.last_beta(),
            backend=self.config.backend,
            slice_size=self.config.slice_size,
        )

    def is_over(self) -> bool:
        """Whether all epochs are done, or the validation loss has not improved for too long."""
        config, done = self.config, len(self.records)
        if done >= config.epochs:
            return True
        if config.patience is None or self.best is None:
            return False
        warm = 0 if config.annealing is None else math.ceil(config.annealing.share * config.epochs)
        return done - max(self.best[0], warm) >= config.patience

    def restore_best(self) -> None:
        """Leave the model with the parameters of the best epoch, where one is known."""
        if self.best is not None:
            self.model.load_state_dict(self.best[1])

    def _validate(self) -> float:
        if self.validation is None:
            return math.nan
        # With gradients: a loss may need those of its observations.
        total = 0.0
        for part in _slices(self.validation, self.config.slice_size):
            total += float(self._loss(part, self.last_beta()).detach()) * len(part)
        value = total / len(self.validation)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the validation loss is {value} in epoch {len(self.records) + 1}"
            )
        least = min((record.validation for record in self.records), default=math.inf)
        if value < least:
            self.best = len(self.records) + 1, copy.deepcopy(self.model.state_dict())
        return value

    def _step(self, batch: Dataset, beta: float | Tensor) -> Tensor:
        # PyTorch types a closure's value as a float; its optimizers take a tensor.
        def evaluate() -> Any:
            self.optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            for part in _slices(batch, self.config.slice_size):
                now = self.model.beta if self.config.learn_beta else None
                value = self._loss(part, beta if now is None else now)
                if len(part) < len(batch):
                    value = value * (len(part) / len(batch))
                value.backward()
                total += value.detach().cpu()
            return total

        # A closure serves every optimizer, those that evaluate more than once a step too.
        return torch.as_tensor(self.optimizer.step(evaluate)).detach().cpu()

    def _loss(self, part: Dataset, beta: Any) -> Tensor:
        return self.loss(self.model, part.y, part.x, beta=beta, backend=self.config.backend)

    def save(self, path: Path) -> None:
        """Write the state to a checkpoint."""
        checkpoints.write(
            path,
            {
                **self._identity(),
                "loss_generators": [g.get_state() for g in checkpoints.generators(self.loss)],
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                # The shuffling never draws from it, but a model or a loss may.
                "global_rng": torch.get_rng_state(),
                "initial": self.initial,
                "records": [tuple(record) for record in self.records],
                "best": self.best,
            },
        )

    def load(self, path: Path) -> None:
        """Take up the state of a checkpoint of the same run."""
        state = checkpoints.read(path)
        # Under a constant rate no step depends on how many there are, so that one can train on.
        steady = self.config.schedule == "constant" and self.config.annealing is None
        free = {"epochs"} if steady else set()
        checkpoints.check_identity(path, state, self._identity(), free)
        if len(state["records"]) > self.config.epochs:
            raise ValueError(
                f"epochs must be at least the {len(state['records'])} that checkpoint {path} "
                f"has done, got {self.config.epochs}"
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(
                f"model must be that of checkpoint {path} to resume, got one of other parameters: "
                f"{' '.join(str(error).split())}"
            ) from error
        drawn = state["loss_generators"]
        for generator, its_state in zip(checkpoints.generators(self.loss), drawn, strict=True):
            generator.set_state(its_state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_rng"])
        self.initial = state["initial"]
        self.records = [Epoch(*record) for record in state["records"]]
        self.best = None if state["best"] is None else tuple(state["best"])

    def _identity(self) -> dict[str, Any]:
        return checkpoints.identity(asdict(self.config), self.data, self.validation, self.loss)


def _progress_bar(run: _Run, progress: bool | None) -> Iterator[int]:
    try:
        with needs("cli"):
            from tqdm import tqdm
    except MissingExtraError:
        if progress:
            raise
        while not run.is_over():
            yield len(run.records)
        return
    done, epochs = len(run.records), run.config.epochs
    temperature = "cold" if run.config.beta == math.inf else f"beta {run.config.beta:g}"
    # disable=None: tqdm itself stays silent where standard error is no terminal.
    with tqdm(
        total=epochs,
        initial=done,
        desc=f"{type(run.model).__name__}, {temperature}",
        unit="epoch",
        disable=None if progress is None else not progress,
    ) as bar:
        while not run.is_over():
            yield len(run.records)
            bar.set_postfix(loss=f"{run.records[-1].loss:.4g}", refresh=False)
            bar.update()


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    optimizer = _optimizer_class(config.optimizer)
    assert optimizer is not None  # the config has been checked
    try:
        return optimizer(parameters, lr=config.learning_rate, **config.optimizer_options)
    except TypeError as error:
        raise ValueError(
            f"optimizer_options must suit {config.optimizer}, "
            f"got {config.optimizer_options}: {error}"
        ) from error


def _plain_options(value: Any) -> Any:
    """Keyword arguments, or one of them, as Python's own: what a checkpoint can be read with."""
    if isinstance(value, dict):
        return {name: _plain_options(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain_options, value))
    value = plain(value)
    expected = "numbers, strings, booleans and None, or tuples, lists and dicts of them"
    known = value is None or isinstance(value, (bool, int, float, str))
    _require(known, "optimizer_options", value, expected)
    return value


def _slices(data: Dataset, size: int | None) -> Iterator[Dataset]:
    """The observations in order, at most ``size`` at once."""
    if size is None or size >= len(data):
        yield data
        return
    for y, x in zip(
        data.y.split(size),
        [None] * len(data) if data.x is None else data.x.split(size),
        strict=False,
    ):
        yield Dataset(y, x)


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer] | None:
    found = getattr(torch.optim, str(name), None)
    is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    return found if is_optimizer and found is not torch.optim.Optimizer else None


def _check_data(name: str, data: Dataset | None) -> None:
    """Refuse what a loss would only be told of by being no number, after the first epoch."""
    _check_kind(name, data, Dataset, "a Dataset")
    assert data is not None
    for part, values in (("y", data.y), ("x", data.x)):
        if values is None or not values.is_floating_point():
            continue
        if bad := count_not_finite(values):
            raise ValueError(
                f"{name} must be finite to train on, got {part} with NaN or infinities in {bad} of "
                f"{len(data)} observations"
            )


def _check_kind(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        given = type(value).__name__
        hint = f", as Dataset({name}) makes of y" if isinstance(value, Tensor) else ""
        raise TypeError(f"{name} must be {expected}{hint}, got {given}")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
