"""``lebm train``: train models by name. ``lebm demo`` uses the functions of this module too."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import typer
from rich import box
from rich.table import Table

from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.errors import errors_by_option
from lebm_kernels.cli.shared import console, save, writable, wrote

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lebm_kernels.models.latent_model import LatentModel
    from lebm_kernels.training.datasets import Dataset
    from lebm_kernels.training.loop import TrainResult
    from lebm_kernels.training.losses import Loss

#: Latents of a grid that is fine enough to hide the coarseness of the training grid.
_FINE_GRID = 1536

#: Observations evaluated at once: a conditional decoder decodes the grid for each of them, and the
#: points of this many fit in memory.
_SLICE_SIZE = 256

#: Distance of contrastive samples from an observation: radius and standard deviation.
_NEGATIVE_DISTANCE = 0.5


class Recipe(str, Enum):
    """The models to train, as spelled on the command line."""

    ellipse = "ellipse"
    horn = "horn"
    neural_horn = "neural-horn"


class LossName(str, Enum):
    """The losses, as spelled on the command line."""

    energy = "energy"
    hinge = "hinge"
    log = "log"


class NegativesName(str, Enum):
    """The sources of contrastive samples, as spelled on the command line."""

    box = "box"
    noise = "noise"
    offending = "offending"


def train(
    context: typer.Context,
    model: Annotated[list[Recipe], typer.Argument(help="Models to train, one or more.")],
    beta: Annotated[
        float, typer.Option(help="Inverse temperature in [0, inf]; inf is cold.")
    ] = math.inf,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the model's own")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate at the first step.", show_default="the model's own"),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="One of the backends of `lebm info`.", show_default="the fastest here"),
    ] = None,
    loss: Annotated[LossName, typer.Option(help="Loss to minimise.")] = LossName.energy,
    negatives: Annotated[
        NegativesName | None,
        typer.Option(help="Contrastive samples of the hinge and log losses.", show_default="noise"),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Margin of the hinge loss, in units of y squared, at least 0.", show_default="1"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, first parameters and shuffling.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder for checkpoints, curves and figures.")
    ] = Path("out"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the checkpoint; no option may differ."),
    ] = False,
) -> None:
    """Train models on synthetic data, write checkpoints and curves, and draw the models."""
    changes: dict[str, Any] = {
        name: value
        for name, value in (("epochs", epochs), ("learning_rate", learning_rate))
        if value is not None
    }
    _check_contrast(loss, negatives, margin)
    contrast = (loss, negatives or NegativesName.noise, 1.0 if margin is None else margin)
    folder = writable(context, output)
    with errors_by_option():
        runs = [
            train_recipe(
                recipe.value,
                folder,
                beta=beta,
                seed=seed,
                backend=backend,
                resume=resume,
                contrast=contrast,
                **changes,
            )
            for recipe in model
        ]
    console.print(training_table(runs))
    for run in runs:
        for path in run.files:
            wrote(path)
        save(manifold(run), folder / f"{run.title}-manifold")
        save(_maps(run), folder / f"{run.title}-free-energy")


def _check_contrast(loss: LossName, negatives: NegativesName | None, margin: float | None) -> None:
    """Refuse options that the loss does not use, and a margin below 0."""
    if negatives is not None and loss == LossName.energy:
        reason = "the energy loss has no contrastive samples: choose --loss hinge or log"
        raise typer.BadParameter(reason, param_hint="'--negatives'")
    if margin is None:
        return
    if loss != LossName.hinge:
        reason = f"the {loss.value} loss has no margin: choose --loss hinge"
        raise typer.BadParameter(reason, param_hint="'--margin'")
    if not 0.0 <= margin < math.inf:
        reason = f"must be at least 0 and finite, got {margin:g}"
        raise typer.BadParameter(reason, param_hint="'--margin'")


class Run(NamedTuple):
    """A recipe's model before and after training, with its data and results.

    ``files`` are those of the checkpoint and the curves that this run has written.
    """

    title: str
    untrained: LatentModel
    trained: LatentModel
    data: Dataset
    result: TrainResult
    held_out: Dataset
    files: tuple[Path, ...]


def train_recipe(
    recipe: str,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    contrast: tuple[LossName, NegativesName, float] = (LossName.energy, NegativesName.noise, 1.0),
    **changes: Any,
) -> Run:
    """Train a recipe, and write its checkpoint and curves to the folder.

    Args:
        recipe: a name of :data:`lebm_kernels.practicum.recipes.RECIPES`.
        folder: for the files.
        seed: of the data, the first parameters, the shuffling and the contrastive samples.
        resume: whether to continue from the checkpoint in the folder.
        contrast: loss, source of contrastive samples, and margin.
        changes: fields of the recipe's configuration to replace.
    """
    from lebm_kernels.practicum.recipes import RECIPES
    from lebm_kernels.training.loop import train

    model, data, config = RECIPES[recipe].start(seed, **changes)
    untrained = copy.deepcopy(model)
    name, negatives, margin = contrast
    kind = "" if name == LossName.energy else f"{name.value}-{negatives.value}-"
    title = f"{recipe}-{kind}{temperature(config.beta)}"
    checkpoint, curves = files = (folder / f"{title}.pt", folder / f"{title}.csv")
    before = [_state(path) for path in files]
    with thread_count(1):
        result = train(
            model,
            data,
            config,
            loss=_loss(name, negatives, margin, data, seed),
            checkpoint=checkpoint,
            curves=curves,
            resume=resume,
        )
    # A run of no epochs writes no checkpoint, but one of an earlier run may be in the folder.
    written = tuple(path for path, old in zip(files, before, strict=True) if _state(path) != old)
    return Run(title, untrained, model, data, result, RECIPES[recipe].held_out(seed), written)


def _state(path: Path) -> tuple[int, int] | None:
    """Inode and time of modification, which change when a file is written; None without a file."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _loss(
    name: LossName, negatives: NegativesName, margin: float, data: Dataset, seed: int
) -> Loss:
    """The loss of that name. Samples come from the seed; the box is that of the data."""
    from lebm_kernels.training.losses import HingeLoss, LogLoss, energy_loss
    from lebm_kernels.training.negatives import GaussianNoise, MostOffending, Negatives, UniformBox

    if name == LossName.energy:
        return energy_loss
    generator = torch.Generator().manual_seed(seed)
    low, high = (tuple(corner.tolist()) for corner in data.y.aminmax(dim=0))
    box = UniformBox(low, high, generator)
    source: Negatives = box
    if negatives == NegativesName.noise:
        source = GaussianNoise(_NEGATIVE_DISTANCE, generator)
    elif negatives == NegativesName.offending:
        source = MostOffending(_NEGATIVE_DISTANCE, box)
    return HingeLoss(source, margin) if name == LossName.hinge else LogLoss(source)


def section(run: Run) -> float | None:
    """The condition of the section to draw, the middle of [0, 1]; None for unconditional models."""
    return 0.5 if run.trained.conditional else None


def manifold(run: Run) -> Figure:
    """The figure of the manifold before and after training, with the data."""
    from lebm_kernels.figures.manifolds import manifold_figure

    trained = "Trained" if run.result.history else "After 0 epochs"
    figure = manifold_figure(run.untrained, run.trained, run.data, titles=("Untrained", trained))
    if run.result.history and run.result.config.beta != math.inf:
        figure.suptitle(f"{figure.get_suptitle()}, trained warm (β = {run.result.config.beta:g})")
    return figure


def _maps(run: Run) -> Figure:
    from lebm_kernels.figures.maps import free_energy_figure

    return free_energy_figure(run.trained, x=section(run), data=run.data)


def training_table(runs: Sequence[Run]) -> Table:
    """A table of the mean free energy of each run's data, before and after training."""
    from lebm_kernels.models.grids import periodic_grid
    from lebm_kernels.training.loop import mean_free_energy

    table = Table(title="mean free energy of the data", box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    # F on the training grid includes an error from its coarseness; a fine grid removes it.
    titles = ("before", "after", f"on {_FINE_GRID} latents", "held out", "epochs", "time")
    for title in titles:
        table.add_column(title, justify="right")
    for run in runs:
        result = run.result
        fine = mean_free_energy(
            run.trained.on_grid(periodic_grid(_FINE_GRID)),
            run.data,
            beta=result.config.beta,
            backend=result.config.backend,
            slice_size=_SLICE_SIZE,
        )
        held_out = mean_free_energy(
            run.trained,
            run.held_out,
            beta=result.config.beta,
            backend=result.config.backend,
            slice_size=_SLICE_SIZE,
        )
        table.add_row(
            run.title,
            f"{result.initial:.4g}",
            f"{result.final:.4g}",
            f"{fine:.4g}",
            f"{held_out:.4g}",
            str(len(result.history)),
            f"{result.seconds:.1f} s",
        )
    return table


def temperature(beta: float) -> str:
    """The temperature in file names: ``cold``, or for example ``beta-1``."""
    return "cold" if beta == math.inf else f"beta-{beta:g}"
