"""Training: minibatch descent on a loss, cold (beta = inf) or warm, that can stop and go on.

A run is a function of the model it is given, the data and the :class:`TrainConfig`: the shuffling
has its own generator, and the learning rate follows from the step's number. A checkpoint holds all
that changes, so that a resumed run ends where an uninterrupted one does, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lebm_kernels.datasets import Dataset
from lebm_kernels.losses import Loss, energy_loss
from lebm_kernels.models import LatentModel

CHECKPOINT_FORMAT = 1

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""The learning rate's factor as a function of the share of the steps that is done, in [0, 1)."""

# Keeps the order of the batches apart from data that were drawn from the same seed.
_SHUFFLING = 0x5F3759DF


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, beside the model, the data and the loss.

    Attributes:
        beta: inverse temperature, in [0, inf]; infinity is zero-temperature training.
        epochs: passes over the data.
        batch_size: observations a step; ``None`` takes them all.
        learning_rate: the optimizer's rate at the first step.
        schedule: ``"cosine"`` falls to zero at the last step, ``"constant"`` stays.
        optimizer: name of a class of ``torch.optim``.
        optimizer_options: its further keyword arguments, numbers, strings and booleans.
        seed: of the shuffling.
        backend: as in :func:`lebm_kernels.free_energy`.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    beta: float = math.inf
    epochs: int = 100
    batch_size: int | None = None
    learning_rate: float = 0.03
    schedule: str = "cosine"
    optimizer: str = "Adam"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    backend: str | None = None

    def __post_init__(self) -> None:
        """Check each field."""
        _require(self.beta >= 0.0, "beta", self.beta, "a number in [0, inf]")
        _require(_is_count(self.epochs, 0), "epochs", self.epochs, "an integer of at least 0")
        _require(
            self.batch_size is None or _is_count(self.batch_size, 1),
            "batch_size",
            self.batch_size,
            "None or an integer of at least 1",
        )
        _require(
            0.0 < self.learning_rate < math.inf,
            "learning_rate",
            self.learning_rate,
            "positive and finite",
        )
        _require(
            self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {sorted(SCHEDULES)}"
        )
        _require(
            _optimizer_class(self.optimizer) is not None,
            "optimizer",
            self.optimizer,
            "the name of a class of torch.optim",
        )
        known = _is_count(self.seed, 0) and self.seed < 2**63
        _require(known, "seed", self.seed, "an integer of at least 0 and below 2^63")


@dataclass(frozen=True)
class TrainResult:
    """What a run did; the trained model is the one that was given.

    Attributes:
        config: the configuration of the run.
        history: mean loss over each epoch, while it ran.
        initial: mean free energy of the data at ``config.beta`` before the first step.
        final: the same after the last.
        seconds: wall time of this call, without the part before a resumed checkpoint.
    """

    config: TrainConfig
    history: list[float]
    initial: float
    final: float
    seconds: float


@torch.no_grad()
def mean_free_energy(
    model: LatentModel, data: Dataset, *, beta: float = math.inf, backend: str | None = None
) -> float:
    """The mean free energy of the data, in the units of ``y`` squared."""
    data = data.to(model.decoded)
    return float(model.free_energy(data.y, data.x, beta=beta, backend=backend).mean())


def train(
    model: LatentModel,
    data: Dataset,
    config: TrainConfig,
    *,
    loss: Loss = energy_loss,
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
        checkpoint: file to keep the run's state in. Its folder is made; the file is replaced in
            one step, so that an interruption leaves the previous state whole.
        checkpoint_every: epochs between two writes; the last epoch is always written.
        resume: go on from ``checkpoint``, which must be of the same config and data. With the
            constant schedule ``epochs`` may differ, to train on.
        progress: show a progress bar; ``None`` shows it where standard error is a terminal.
        on_epoch: called after each epoch, and its checkpoint if one was due, with the number of
            epochs done and the epoch's mean loss.

    Returns:
        What the run did.

    Raises:
        ValueError: an argument is out of range, or the checkpoint is of another run.
        FileNotFoundError: ``resume`` is asked for and there is no checkpoint.
        FloatingPointError: the loss is no longer finite.
    """
    _require(
        _is_count(checkpoint_every, 1),
        "checkpoint_every",
        checkpoint_every,
        "an integer of at least 1",
    )
    if resume and checkpoint is None:
        raise ValueError("checkpoint must be given to resume from, got None")
    start = time.perf_counter()
    data = data.to(model.decoded)
    run = _Run(model, data, config, loss)
    if resume and checkpoint is not None:
        run.load(Path(checkpoint))

    for _ in _progress_bar(run, progress):
        value = run.epoch()
        if checkpoint is not None and (
            len(run.history) % checkpoint_every == 0 or len(run.history) == config.epochs
        ):
            run.save(Path(checkpoint))
        if on_epoch is not None:
            on_epoch(len(run.history), value)

    final = mean_free_energy(model, data, beta=config.beta, backend=config.backend)
    return TrainResult(config, list(run.history), run.initial, final, time.perf_counter() - start)


class _Run:
    """The state of a run, its step and its checkpoint."""

    def __init__(self, model: LatentModel, data: Dataset, config: TrainConfig, loss: Loss) -> None:
        self.model, self.data, self.config, self.loss = model, data, config, loss
        optimizer = _optimizer_class(config.optimizer)
        assert optimizer is not None  # the config has been checked
        try:
            self.optimizer: torch.optim.Optimizer = optimizer(
                model.parameters(), lr=config.learning_rate, **config.optimizer_options
            )
        except TypeError as error:
            raise ValueError(
                f"optimizer_options must suit {config.optimizer}, "
                f"got {config.optimizer_options}: {error}"
            ) from error
        self.generator = torch.Generator().manual_seed(config.seed ^ _SHUFFLING)
        self.initial = mean_free_energy(model, data, beta=config.beta, backend=config.backend)
        self.history: list[float] = []

    def epoch(self) -> float:
        """Pass once over the data in a new order; return the mean loss on the way."""
        order = torch.randperm(len(self.data), generator=self.generator)
        batches = order.split(self.config.batch_size or len(self.data))
        total = torch.zeros((), dtype=torch.float64)
        for i, index in enumerate(batches):
            share = (len(self.history) + i / len(batches)) / self.config.epochs
            rate = self.config.learning_rate * SCHEDULES[self.config.schedule](share)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            total += self._step(self.data[index.to(self.data.y.device)]) * len(index)
        value = float(total) / len(self.data)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} in epoch {len(self.history) + 1}; "
                f"a learning_rate below {self.config.learning_rate} may help"
            )
        self.history.append(value)
        return value

    def _step(self, batch: Dataset) -> Tensor:
        # PyTorch types a closure's value as a float; its optimizers take a tensor.
        def evaluate() -> Any:
            self.optimizer.zero_grad()
            value = self.loss(
                self.model,
                batch.y,
                batch.x,
                beta=self.config.beta,
                backend=self.config.backend,
            )
            value.backward()
            return value

        # A closure serves every optimizer, those that evaluate more than once a step too.
        return torch.as_tensor(self.optimizer.step(evaluate)).detach().cpu()

    def save(self, path: Path) -> None:
        """Write the state to a file beside ``path``, then put it in its place in one step."""
        state = {
            "format": CHECKPOINT_FORMAT,
            "config": asdict(self.config),
            "data": _fingerprint(self.data),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            # The shuffling never draws from it, but a model or a loss may.
            "global_rng": torch.get_rng_state(),
            "initial": self.initial,
            "history": self.history,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Take up the state of a checkpoint of the same run."""
        if not path.exists():
            raise FileNotFoundError(f"checkpoint {path} does not exist: nothing to resume from")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise ValueError(f"checkpoint {path} cannot be read: it is damaged or none") from error
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"checkpoint {path} is not one of format {CHECKPOINT_FORMAT}")
        mine = asdict(self.config)
        # Under a constant rate no step depends on how many there are, so that one can train on.
        free = {"epochs"} if self.config.schedule == "constant" else set()
        for name in (f.name for f in fields(TrainConfig)):
            if name not in free and state["config"][name] != mine[name]:
                raise ValueError(
                    f"{name} must be that of checkpoint {path}, "
                    f"{state['config'][name]!r}, to resume, got {mine[name]!r}"
                )
        if len(state["history"]) > self.config.epochs:
            raise ValueError(
                f"epochs must be at least the {len(state['history'])} that checkpoint {path} "
                f"has done, got {self.config.epochs}"
            )
        if state["data"] != _fingerprint(self.data):
            raise ValueError(f"data must be that of checkpoint {path} to resume, got other data")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_rng"])
        self.initial = state["initial"]
        self.history = state["history"]


def _progress_bar(run: _Run, progress: bool | None) -> Iterator[int]:
    from tqdm import tqdm

    done, epochs = len(run.history), run.config.epochs
    temperature = "cold" if run.config.beta == math.inf else f"beta {run.config.beta:g}"
    # disable=None: tqdm itself stays silent where standard error is no terminal.
    with tqdm(
        total=epochs,
        initial=done,
        desc=f"{type(run.model).__name__}, {temperature}",
        unit="epoch",
        disable=None if progress is None else not progress,
    ) as bar:
        for epoch in range(done, epochs):
            yield epoch
            bar.set_postfix(loss=f"{run.history[-1]:.4g}", refresh=False)
            bar.update()


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer] | None:
    found = getattr(torch.optim, name, None)
    is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    return found if is_optimizer and found is not torch.optim.Optimizer else None


def _fingerprint(data: Dataset) -> str:
    digest = hashlib.sha256()
    for tensor in (data.y, data.x):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
