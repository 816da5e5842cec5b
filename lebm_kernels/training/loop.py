"""Training: minibatch descent on a loss, cold (beta = inf) or warm, which can be resumed.

The result depends only on the model, the data, the loss and the :class:`TrainConfig`: the shuffling
has its own generator, and the learning rate and the temperature depend only on the number of the
step. A checkpoint holds everything that changes during a run, so a resumed run ends bit for bit
like an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lebm_kernels.checks import (
    check_boolean,
    check_callable,
    check_count,
    check_kind,
    check_path,
    check_seed,
    count_not_finite,
    is_count,
    number,
    plain,
    shown,
)
from lebm_kernels.extras import MissingExtraError, needs
from lebm_kernels.files import claimed
from lebm_kernels.models.latent_model import LatentModel
from lebm_kernels.models.modes import evaluation_mode
from lebm_kernels.training import checkpoints, fingerprints
from lebm_kernels.training.curves import CsvCurves, Epoch, TensorBoardCurves
from lebm_kernels.training.datasets import Dataset
from lebm_kernels.training.losses import Loss, energy_loss
from lebm_kernels.training.schedules import SCHEDULES, Annealing

# Makes the shuffling independent of data that were drawn from the same seed.
_SHUFFLING_SEED = 0x5F3759DF

# PyTorch's optimizers keep their counters of steps on the default device. Without another default
# that is the CPU, where they can be read.
_OPTIMIZERS_DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run.

    NumPy's numbers, and arrays and tensors without dimensions, become Python's numbers.

    Attributes:
        beta: inverse temperature, in [0, inf]; infinity is zero-temperature training. A learned
            beta that the model has already is ignored, and stays as it is, unless ``learn_beta``
            is set.
        annealing: how beta changes over the steps until it reaches ``beta``; ``None`` keeps it
            constant.
        learn_beta: whether the model learns beta, starting at the learned beta that it has
            already, or else at ``beta``. Use a loss with a best beta, such as
            :func:`lebm_kernels.training.likelihood.density_loss`.
        epochs: passes over the data, at least 0; ``patience`` may end the run earlier.
        batch_size: observations per step, at least 1; ``None`` takes all.
        slice_size: observations whose loss and gradient are computed at once, at least 1; ``None``
            takes the whole batch. Smaller slices need less memory. The gradients of the slices add
            up to that of the batch if the loss is a mean over the observations.
        patience: epochs without a better validation loss after which the run ends, at least 1,
            counted after the annealing; ``None`` never stops early.
        learning_rate: the optimizer's rate at the first step, positive and finite.
        schedule: ``"cosine"`` lowers the rate to zero at the last step; ``"constant"`` keeps it.
        optimizer: name of a class of ``torch.optim``.
        optimizer_options: further keyword arguments of the optimizer: numbers, strings, booleans
            and None, or tuples, lists and dicts of them.
        seed: of the shuffling, in [0, 2^63).
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        ValueError: a field is out of range; the message names it.
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
        _require(isinstance(self.learn_beta, bool), "learn_beta", self.learn_beta, "True or False")
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
            "positive and finite where it is learned",
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
            "the name of a class of torch.optim for dense gradients",
        )
        named = self.backend is None or isinstance(self.backend, str)
        _require(named, "backend", self.backend, "None or the name of a backend")
        check_seed("seed", self.seed)
        for name in ("beta", "learning_rate"):  # a tensor cannot take an integer beyond 64 bits
            object.__setattr__(self, name, number(getattr(self, name)))

    def _make_plain(self) -> None:
        """Replace NumPy's numbers by Python's, because a checkpoint holds no others."""
        for f in fields(self):
            value = plain(getattr(self, f.name))
            _require(not getattr(value, "ndim", 0), f.name, value, "a single value")
            object.__setattr__(self, f.name, value)
        options = self.optimizer_options
        _require(isinstance(options, dict), "optimizer_options", options, "a dict")
        object.__setattr__(self, "optimizer_options", _plain_options(options))


@dataclass(frozen=True)
class TrainResult:
    """The records and results of a run; the run trains its model in place.

    Attributes:
        config: the configuration of the run.
        records: the record of each epoch.
        initial: mean free energy of the data before the first step, in the units of ``y`` squared,
            at ``config.beta`` or at the model's learned beta.
        final: the same after training.
        best_epoch: number of the epoch with the least validation loss, whose parameters the model
            has now; ``None`` without validation data.
        seconds: wall time of this call; the time before a resumed checkpoint does not count.
    """

    config: TrainConfig
    records: list[Epoch]
    initial: float
    final: float
    best_epoch: int | None
    seconds: float

    @property
    def history(self) -> list[float]:
        """The mean loss of each epoch's steps."""
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
        model: the model whose free energy is evaluated, in evaluation mode; each of its modules is
            then put back in the mode it had.
        data: observations, moved to the model's device and dtype.
        beta: inverse temperature.
        backend: as in :func:`lebm_kernels.free_energy`.
        slice_size: observations evaluated at once, at least 1; ``None`` takes all. A conditional
            decoder decodes the grid for each observation, so slices save memory.

    Raises:
        TypeError: ``data`` isn't a :class:`~lebm_kernels.training.datasets.Dataset`.
        ValueError: ``slice_size`` is out of range, or the model does not accept the data.
    """
    check_kind("model", model, LatentModel, "a LatentModel")
    check_kind("data", data, Dataset, "a Dataset")
    if slice_size is not None:
        check_count("slice_size", slice_size, 1)
    with evaluation_mode(model):
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
    """Train a model in place. A run that is refused before its first step leaves it unchanged.

    Steps run in the modes in which the model's modules are: ``model.eval()`` before would also
    train without Dropout. Everything else runs in evaluation mode: the validation loss,
    ``initial`` and ``final``. For the validation loss this includes the modules that the loss
    holds, for example in its attributes, but not those in a closure.

    Args:
        model: the model, which is changed; it determines the device and dtype of the run.
        data: observations, moved to the model's device and dtype.
        config: see :class:`TrainConfig`.
        loss: the function to minimise; see :mod:`lebm_kernels.training.losses`.
        validation: observations whose loss is computed after each epoch, at the final temperature.
            The model ends with the parameters of the epoch with the least validation loss.
        make_optimizer: makes the optimizer from the parameters, instead of ``config.optimizer``.
            The learning rate still follows the config.
        curves: CSV file to write, one line after each epoch; see
            :class:`lebm_kernels.training.curves.Epoch` for its columns.
        tensorboard: folder for the same curves in TensorBoard's format; needs TensorBoard.
        checkpoint: file for the run's state. Its folder is made. The file is replaced atomically,
            so an interruption leaves the previous state intact.
        checkpoint_every: epochs between two writes; the last epoch is always written.
        resume: continue from ``checkpoint``, which must have the same config, data, model, loss and
            optimizer: their settings and all tensors are compared by value, but for the parameters
            and buffers that the checkpoint restores. Under a constant schedule without annealing
            ``epochs`` may differ.
        progress: whether to show a progress bar, which needs the extra ``cli``; ``None`` shows it
            if standard error is a terminal and the extra is installed.
        on_epoch: called with the number of epochs done and the epoch's mean loss, after each epoch
            and after its checkpoint, if any.

    Returns:
        The records and results of the run.

    Raises:
        TypeError: ``model``, ``data``, ``validation``, ``config`` or ``loss`` has the wrong type.
        ValueError: an argument is out of range, the data aren't finite, or the checkpoint belongs
            to another run.
        FileNotFoundError: ``resume`` is set and there is no checkpoint.
        BlockingIOError: another run, of this process or another, writes ``checkpoint``, ``curves``
            or ``tensorboard``.
        OSError: a file cannot be written, for example because the disk is full. What was written
            before is kept.
        FloatingPointError: the loss is not finite.

    Warns:
        UserWarning: once a resumption, where something of the run cannot be compared, such as a
            lambda, a closure or an object of unknown content; the message names it.

    Example:
        >>> from lebm_kernels.training.datasets import ellipse_data
        >>> from lebm_kernels.models.latent_model import Ellipse
        >>> model = Ellipse(radii=torch.tensor([1.0, 0.5]))
        >>> config = TrainConfig(epochs=5, learning_rate=0.1)
        >>> result = train(model, ellipse_data(), config, progress=False)
        >>> result.final < result.initial
        True
    """
    check_kind("model", model, LatentModel, "a LatentModel")
    for name, observations in (("data", data), ("validation", validation)):
        if name == "data" or observations is not None:
            _check_data(name, observations)
    check_kind("config", config, TrainConfig, "a TrainConfig")
    check_callable("loss", loss, "a function like those of lebm_kernels.training.losses")
    for name, function in (("make_optimizer", make_optimizer), ("on_epoch", on_epoch)):
        if function is not None:
            check_callable(name, function, "None or a function", may_be_class=True)
    for name, path in (
        ("curves", curves),
        ("tensorboard", tensorboard),
        ("checkpoint", checkpoint),
    ):
        check_path(name, path)
    check_boolean("resume", resume)
    if progress is not None:
        check_boolean("progress", progress)
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
    tqdm = _tqdm(progress)
    start = time.perf_counter()
    files = [Path(path) for path in (checkpoint, curves, tensorboard) if path is not None]
    with claimed(*files), ExitStack() as opened:
        with _beta_restored_if_refused(model):
            run = _Run(model, data, validation, config, loss, make_optimizer)
            if checkpoint is not None:
                run.identify()
            earlier = run.read(Path(checkpoint)) if resume and checkpoint is not None else None
            if earlier is None:
                run.initial = run.mean_free_energy()
            writers: list[CsvCurves | TensorBoardCurves] = []
            if curves is not None:
                writers.append(opened.enter_context(closing(CsvCurves(curves, run.records))))
            if tensorboard is not None:
                events = TensorBoardCurves(tensorboard, run.records)
                writers.append(opened.enter_context(closing(events)))
        if earlier is not None:
            run.load(earlier)

        for _ in _progress_bar(run, tqdm, progress):
            record = run.epoch()
            if checkpoint is not None and (record.number % checkpoint_every == 0 or run.is_over()):
                run.save(Path(checkpoint))
            for writer in writers:
                writer.add(record)
            if on_epoch is not None:
                on_epoch(record.number, record.loss)

    run.restore_best()
    best_epoch = None if run.best is None else run.best[0]
    seconds = time.perf_counter() - start
    return TrainResult(
        config, list(run.records), run.initial, run.mean_free_energy(), best_epoch, seconds
    )


class _Run:
    """The state of a run, with its epochs and its checkpoints."""

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
        with _default_device(_OPTIMIZERS_DEVICE):
            self.optimizer = (
                _make_optimizer(parameters, config)
                if make_optimizer is None
                else make_optimizer(parameters)
            )
        self.generator = torch.Generator().manual_seed(config.seed ^ _SHUFFLING_SEED)
        self.initial = math.nan
        """The mean free energy before the first step, which :func:`train` or a checkpoint sets."""
        self.records: list[Epoch] = []
        self.best: tuple[int, dict[str, Tensor]] | None = None
        """Number and parameters of the epoch with the least validation loss."""

    def identify(self) -> None:
        """Describe the run for its checkpoints, before an evaluation, which may change a part."""
        self.identity = fingerprints.identity(
            asdict(self.config),
            data=self.data,
            validation=self.validation,
            model=self.model,
            loss=self.loss,
            optimizer=self.optimizer,
        )

    def epoch(self) -> Epoch:
        """Pass once over the data in a new order, and record the epoch."""
        order = torch.randperm(len(self.data), generator=self.generator, device="cpu")
        batches = order.split(self.config.batch_size or len(self.data))
        done = len(self.records)
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        rate, beta = self.config.learning_rate, self.last_beta()
        for i, index in enumerate(batches):
            progress = (done + i / len(batches)) / self.config.epochs
            rate = self.config.learning_rate * SCHEDULES[self.config.schedule](progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if self.config.annealing is not None:
                beta = self.config.annealing.beta(progress, self.config.beta)
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
        """The model's learned beta, or the config's."""
        learned = self.model.beta if self.config.learn_beta else None
        return self.config.beta if learned is None else learned.detach()

    def mean_free_energy(self) -> float:
        """The mean free energy of the data at the last beta."""
        return mean_free_energy(
            self.model,
            self.data,
            beta=self.last_beta(),
            backend=self.config.backend,
            slice_size=self.config.slice_size,
        )

    def is_over(self) -> bool:
        """Whether all epochs are done, or ``patience`` ends the run."""
        config, done = self.config, len(self.records)
        if done >= config.epochs:
            return True
        if config.patience is None or self.best is None:
            return False
        annealed = config.annealing.share * config.epochs if config.annealing is not None else 0
        return done - max(self.best[0], math.ceil(annealed)) >= config.patience

    def restore_best(self) -> None:
        """Give the model the parameters of the best epoch, if there is one."""
        if self.best is not None:
            self.model.load_state_dict(self.best[1])

    def _validate(self) -> float:
        if self.validation is None:
            return math.nan
        # Not under no_grad: a loss may differentiate in its observations.
        total = 0.0
        modules = fingerprints.instances(nn.Module, self.loss)
        with evaluation_mode(self.model, *modules):
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
        default = torch.get_default_device()

        # Any: PyTorch declares that a closure returns a float, but its optimizers accept a tensor.
        def evaluate() -> Any:
            with _default_device(default):
                return total_loss()

        def total_loss() -> Tensor:
            self.optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64, device="cpu")
            for part in _slices(batch, self.config.slice_size):
                learned = self.model.beta if self.config.learn_beta else None
                value = self._loss(part, beta if learned is None else learned)
                if len(part) < len(batch):
                    value = value * (len(part) / len(batch))
                value.backward()
                total += value.detach().cpu()
            return total

        # All optimizers accept a closure; those that evaluate several times per step need one.
        try:
            with _default_device(_OPTIMIZERS_DEVICE):
                result: Any = self.optimizer.step(evaluate)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            rate = self.config.learning_rate
            raise FloatingPointError(
                f"a step overflows {self.model.z.dtype}; a learning_rate below {rate} may help"
            ) from error
        return torch.as_tensor(result, device="cpu").detach()

    def _loss(self, part: Dataset, beta: Any) -> Tensor:
        return self.loss(self.model, part.y, part.x, beta=beta, backend=self.config.backend)

    def save(self, path: Path) -> None:
        """Write the state to a checkpoint."""
        checkpoints.write(
            path,
            {
                "identity": self.identity,
                "generators": [g.get_state() for g in self._generators()],
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "shuffling": self.generator.get_state(),
                # A model or a loss may draw from the global generator; the shuffling does not.
                "global_rng": torch.get_rng_state(),
                "initial": self.initial,
                "records": [tuple(record) for record in self.records],
                "best": self.best,
            },
        )

    def read(self, path: Path) -> dict[str, Any]:
        """Read the state from a checkpoint of the same run; the model does not change yet."""
        state = checkpoints.read(path)
        # With a constant rate and temperature no step depends on the number of epochs.
        steady = self.config.schedule == "constant" and self.config.annealing is None
        free = {"epochs"} if steady else set()
        fingerprints.check_identity(path, state["identity"], self.identity, free)
        if len(state["records"]) > self.config.epochs:
            raise ValueError(
                f"epochs must be at least {len(state['records'])} to resume from checkpoint "
                f"{path}, got {self.config.epochs}"
            )
        self.initial = state["initial"]
        self.records = [Epoch(*record) for record in state["records"]]
        self.best = None if state["best"] is None else tuple(state["best"])
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Restore the model, the optimizer and the generators from the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        for generator, saved in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["shuffling"])
        torch.set_rng_state(state["global_rng"])

    def _generators(self) -> list[torch.Generator]:
        return fingerprints.instances(torch.Generator, self.model, self.loss)


@contextmanager
def _beta_restored_if_refused(model: LatentModel) -> Iterator[None]:
    """Take back after an exception that the model learns beta."""
    log_beta = model.log_beta
    try:
        yield
    except BaseException:
        model.log_beta = log_beta
        raise


def _tqdm(progress: bool | None) -> Any:
    """The class of the progress bar, or None where there is none to show."""
    try:
        with needs("cli"):
            from tqdm import tqdm
    except MissingExtraError:
        if progress:
            raise
        return None
    return tqdm


def _progress_bar(run: _Run, tqdm: Any, progress: bool | None) -> Iterator[int]:
    if tqdm is None:
        while not run.is_over():
            yield len(run.records)
        return
    done, epochs = len(run.records), run.config.epochs
    temperature = "cold" if run.config.beta == math.inf else f"beta {run.config.beta:g}"
    # disable=None: tqdm prints nothing if standard error is not a terminal.
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
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer_options must suit {config.optimizer}, "
            f"got {config.optimizer_options}: {error}"
        ) from error


def _plain_options(value: Any) -> Any:
    """Keyword arguments, or one of them, with Python's numbers, which a checkpoint can hold."""
    if isinstance(value, dict):
        return {name: _plain_options(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain_options, value))
    value = plain(value)
    expected = "numbers, strings, booleans and None, or tuples, lists and dicts of them"
    known = value is None or isinstance(value, (bool, int, float, str))
    _require(known, "optimizer_options", value, expected)
    return value


def _default_device(device: torch.device) -> AbstractContextManager[object]:
    """Make it PyTorch's default device, where it is not."""
    # Where it is, torch.device would still slow every call.
    return nullcontext() if torch.get_default_device() == device else device


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
    others = (torch.optim.Optimizer, torch.optim.SparseAdam)
    return found if is_optimizer and found not in others else None


def _check_data(name: str, data: Dataset | None) -> None:
    """Check type and values here, because the loss would be NaN only after the first epoch."""
    hint = f", such as Dataset({name})" if isinstance(data, Tensor) else ""
    check_kind(name, data, Dataset, f"a Dataset{hint}")
    assert data is not None
    for part, values in (("y", data.y), ("x", data.x)):
        if values is None or not values.is_floating_point():
            continue
        if bad := count_not_finite(values):
            raise ValueError(
                f"{name} must be finite to train on, got {part} with NaN or infinities in {bad} of "
                f"{len(data)} observations"
            )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
