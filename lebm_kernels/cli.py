"""The command line, ``lebm``: what runs here, training, figures, and a demonstration of all.

A mistake of the user's is answered by one line that names the option, and exit code 2.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from typer.core import TyperGroup

# PyTorch takes seconds to import: the commands do it, so that --help and a mistyped option don't.
if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from lebm_kernels.benchmarking import Comparison
    from lebm_kernels.datasets import Dataset
    from lebm_kernels.gradient_checks import GradientCheck, Subject
    from lebm_kernels.losses import Loss
    from lebm_kernels.models import LatentModel
    from lebm_kernels.sweeps import Point
    from lebm_kernels.training import TrainResult

_FINE_GRID = 1536

#: A decoder of conditions decodes the grid for each observation: so many fit everywhere.
_AT_ONCE = 256

#: Columns of a table that goes to a file or a pipe.
_PIPE_WIDTH = 140

console: Console = Console()


class _OneLineErrors(TyperGroup):
    """Shows a usage error as one line instead of typer's panel."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run and, in standalone mode, exit."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            # Usage errors are known by their method: their class lives in a private module.
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            message = " ".join(error.format_message().split())
            print(f"lebm: error: {message}", file=sys.stderr)
            sys.exit(2)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


app: typer.Typer = typer.Typer(
    cls=_OneLineErrors,
    help="Fused free energies of latent-variable energy-based models.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


class Recipe(str, Enum):
    """What can be trained, as the command line spells it."""

    ellipse = "ellipse"
    horn = "horn"
    neural_horn = "neural-horn"


class LossName(str, Enum):
    """What training minimises, as the command line spells it."""

    energy = "energy"
    hinge = "hinge"
    log = "log"


class NegativesName(str, Enum):
    """Where a contrastive loss takes its samples."""

    box = "box"
    noise = "noise"
    offending = "offending"


#: The distance from an observation at which a contrastive sample is taken.
_AWAY = 0.5


#: What the demonstration trains: the figure's models.
_DEMO = (Recipe.ellipse, Recipe.horn)

# Of the digits that a mapping restores, whose pixels lie in [0, 1].
_NOISE = 0.2


#: The option that sets each argument of the library whose errors can reach the user.
_OPTIONS = {
    "beta": "--beta",
    "epochs": "--epochs",
    "learning_rate": "--learning-rate",
    "backend": "--backend",
    "margin": "--margin",
    "loss": "--loss",
    "seed": "--seed",
    "latents": "--latents",
    "bumps": "--bumps",
    "width": "--width",
    "decay": "--decay",
    "iterations": "--iterations",
    "checkpoint": "--resume",
    "data": "--resume",
    "M": "--queries",
    "N": "--latents",
    "D": "--dims",
    "backward": "--gradients",
    "threads": "--threads",
    "provider": "--provider",
}


@contextmanager
def _errors_by_option() -> Iterator[None]:
    """Turn an error about an argument, which it names first, into one about its option."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
        option = _OPTIONS.get(str(error).partition(" ")[0])
        if option is None:
            raise
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from error
    except FloatingPointError as error:
        raise typer.BadParameter(str(error), param_hint="'--learning-rate'") from error


def _folder(path: Path) -> Path:
    """Make the output folder before the work whose results it is to hold."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = f"cannot write to the folder {path}: {error.strerror}"
        raise typer.BadParameter(reason, param_hint="'--output'") from error
    return path


@contextmanager
def _one_thread() -> Iterator[None]:
    """For work on tiny tensors: on a busy machine, waiting for a second thread costs far more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _temperature(beta: float) -> str:
    """``cold`` or ``beta-1``: part of file names."""
    return "cold" if beta == math.inf else f"beta-{beta:g}"


@app.command()
def info() -> None:
    """Print versions, the machine, and which backends can run here."""
    import lebm_kernels
    from lebm_kernels.environment import describe

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for title, value in describe().items():
        facts.add_row(title, escape(value))
    console.print(facts, highlight=False)
    console.print()

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", no_wrap=True)
    table.add_column("runs on", no_wrap=True)
    table.add_column("how, or why not", overflow="fold")
    for row in lebm_kernels.backends():
        table.add_row(row.name, ", ".join(row.devices) or "-", escape(row.reason))
    console.print(table, highlight=False)


@app.command()
def train(
    model: Annotated[list[Recipe], typer.Argument(help="What to train, one or more.")],
    beta: Annotated[
        float, typer.Option(help="Inverse temperature in [0, inf]; inf is cold.")
    ] = math.inf,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="the model's own")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At the first step.", show_default="the model's own")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="A name of `lebm info`.", show_default="the fastest here")
    ] = None,
    loss: Annotated[LossName, typer.Option(help="What is minimised.")] = LossName.energy,
    negatives: Annotated[
        NegativesName, typer.Option(help="Contrastive samples of a hinge or log loss.")
    ] = NegativesName.noise,
    margin: Annotated[float, typer.Option(help="Of the hinge, in squares of y.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the data, the start and the order.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for checkpoint and figures.")] = Path("out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
) -> None:
    """Train models on data drawn for them; keep checkpoints and curves, draw what was learned."""
    changes: dict[str, Any] = {
        name: value
        for name, value in (("epochs", epochs), ("learning_rate", learning_rate))
        if value is not None
    }
    folder = _folder(output)
    with _errors_by_option():
        runs = [
            _train(
                recipe.value,
                folder,
                beta=beta,
                seed=seed,
                backend=backend,
                resume=resume,
                contrast=(loss, negatives, margin),
                **changes,
            )
            for recipe in model
        ]
    console.print(_training_table(runs))
    for run in runs:
        _save(_manifold(run), folder / f"{run.title}-manifold.png")
        _save(_maps(run), folder / f"{run.title}-free-energy.png")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: see it run.")] = False,
) -> None:
    """Train both models cold and warm, draw them, time the operation, check its gradients."""
    from lebm_kernels.figures import cold_and_warm_figure
    from lebm_kernels.practicum import WARM_BETA

    start = time.perf_counter()
    folder = _folder(output)
    changes: dict[str, Any] = {"epochs": 2} if quick else {}
    runs = []
    for recipe in _DEMO:
        cold, warm = (
            _train(recipe.value, folder, beta=beta, **changes) for beta in (math.inf, WARM_BETA)
        )
        runs += [cold, warm]
        for run in (cold, warm):
            _save(_manifold(run), folder / f"{run.title}-manifold.png")
        maps = cold_and_warm_figure(
            cold.trained, warm.trained, beta=WARM_BETA, x=_section(cold), data=cold.data
        )
        _save(maps, folder / f"{recipe.value}-cold-and-warm.png")
    console.print(_training_table(runs))

    from lebm_kernels.benchmarking import comparison_table

    console.print(comparison_table(_demo_timings(quick)))
    passed = _print_gradient_verdict()
    console.print(f"lebm demo took {time.perf_counter() - start:.0f} s", highlight=False)
    if not passed:
        raise typer.Exit(1)


class Direction(str, Enum):
    """What a step of a benchmark does, as the command line spells it."""

    forward = "forward"
    backward = "backward"
    both = "both"


class Precision(str, Enum):
    """A dtype, as the command line spells it."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


#: Seconds that a sweep may take, quick or not, and the rounds of a case.
_BENCH_BUDGET = {True: 45.0, False: 780.0}
_BENCH_ROUNDS = {True: 3, False: 7}


@app.command()
def bench(
    queries: Annotated[list[int] | None, typer.Option(help="M; repeat for several.")] = None,
    latents: Annotated[list[int] | None, typer.Option(help="N; repeat for several.")] = None,
    dims: Annotated[list[int] | None, typer.Option(help="D; repeat for several.")] = None,
    beta: Annotated[list[float] | None, typer.Option(help="In [0, inf]; repeatable.")] = None,
    dtype: Annotated[list[Precision] | None, typer.Option(help="Of the inputs.")] = None,
    direction: Annotated[Direction, typer.Option(help="Of the sizes given.")] = Direction.both,
    gradients: Annotated[
        list[str] | None, typer.Option(help="Arguments to differentiate.", show_default="y decoded")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help="Only this one; the first is compared with.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Of PyTorch.", show_default="PyTorch's choice")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int | None, typer.Option(help="Of a case, at most.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds in all.", show_default="45 quick, else 780")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, under a minute.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for JSON, CSV and pictures.")
    ] = Path("out/bench"),
) -> None:
    """Check our backends and their peers against float64, then time them and measure memory.

    Without sizes, a sweep along latents, dimensions, temperatures and threads.
    """
    import torch

    from lebm_kernels.benchmarking import comparison_table
    from lebm_kernels.environment import describe
    from lebm_kernels.figures.benchmarks import FIGURES
    from lebm_kernels.sweeps import (
        BOTH,
        chosen_sweep,
        default_sweep,
        measure,
        records,
        steps,
        write_csv,
        write_json,
    )

    start = time.perf_counter()
    folder = _folder(output)
    rounds = _BENCH_ROUNDS[quick] if rounds is None else rounds
    budget = _BENCH_BUDGET[quick] if budget is None else budget
    if rounds < 1:
        raise typer.BadParameter(f"must be at least 1, got {rounds}", param_hint="'--rounds'")
    if not budget > 0:
        raise typer.BadParameter(f"must be above 0, got {budget:g}", param_hint="'--budget'")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        reason = "PyTorch sees no GPU" if device == "cuda" else f"no cpu or cuda: {device!r}"
        raise typer.BadParameter(reason, param_hint="'--device'")
    wanted = tuple(gradients or BOTH)
    directions: list[tuple[str, ...]] = [] if direction == Direction.backward else [()]
    if direction != Direction.forward:
        directions.append(wanted)
    with _errors_by_option():
        if any((queries, latents, dims, beta, dtype, gradients, threads)):
            points = chosen_sweep(
                queries=queries or [1024],
                latents=latents or [4096],
                dims=dims or [2],
                betas=beta or [1.0],
                dtypes=[_torch_dtype(precision) for precision in dtype or [Precision.float32]],
                directions=directions,
                threads=threads or [torch.get_num_threads()],
                device=device,
                names=provider or (),
            )
        else:
            points = default_sweep(device, quick=quick, names=provider or ())
    rows, comparisons, left_out = [], [], []
    facts = describe()
    with _progress() as progress:
        task = progress.add_task("", total=steps(points, rounds))
        ends = {id(p): steps(points[: i + 1], rounds) for i, p in enumerate(points)}

        def notify(point: Point, text: str) -> None:
            title = f"{point.case}, {point.case.direction}: {text}"
            progress.update(task, advance=1, description=escape(title))

        def done(point: Point) -> None:
            progress.update(task, completed=ends[id(point)])

        for point, comparison in measure(
            points, rounds=rounds, budget=budget, notify=notify, done=done
        ):
            if comparison is None:
                left_out.append(point)
                continue
            comparisons.append(comparison)
            rows += records(point, comparison)
            # After each: a run of minutes may be cut short.
            write_json(folder / "bench.json", facts, rows)
            write_csv(folder / "bench.csv", rows)
    _print_wide(comparison_table(comparisons))
    for point in left_out:
        title = escape(f"{point.case}, {point.case.direction}")
        console.print(f"not begun, the budget was spent: {title}", highlight=False)
    for name in ("bench.json", "bench.csv"):
        console.print(f"wrote {folder / name}", highlight=False, soft_wrap=True)
    for name, draw in FIGURES.items():
        figure = draw(rows)
        if figure is not None:
            for suffix in ("png", "svg"):
                _save(figure, folder / f"bench-{name}.{suffix}")
    console.print(
        f"{facts['processor']}, {facts['instruction set in use']}, {facts['threads']} threads, "
        f"PyTorch {facts['PyTorch']}; lebm bench took {time.perf_counter() - start:.0f} s",
        highlight=False,
    )


@app.command()
def gradcheck(
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeatable.", show_default="all")
    ] = None,
    cases: Annotated[int, typer.Option(help="Random ones, beside the nasty ones.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the cases.")] = 0,
    picture: Annotated[
        bool, typer.Option("--picture", help="Draw the error of F from beta = 0 to infinity.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for the picture.")
    ] = Path("out"),
) -> None:
    """Check F and its gradients on every backend, instruction set and dtype; 1 if one is wrong.

    float64 against finite differences, to second order; the other dtypes against float64 by the
    README's promise.
    """
    import lebm_kernels
    from lebm_kernels.gradient_checks import (
        check_subject,
        nasty_cases,
        random_cases,
        standard_cases,
        subjects,
    )

    known = [row.name for row in lebm_kernels.backends()]
    for name in backend or ():
        if name not in known:
            reason = f"must be among {', '.join(known)}, got {name!r}"
            raise typer.BadParameter(reason, param_hint="'--backend'")
    if cases < 0:
        raise typer.BadParameter(f"must be at least 0, got {cases}", param_hint="'--cases'")
    folder = _folder(output) if picture else None
    problems = [*standard_cases(seed), *random_cases(seed, cases), *nasty_cases(seed)]
    tasks = [(subject, precision) for subject in subjects(backend) for precision in Precision]
    checks = []
    with _progress() as progress, _one_thread():
        for subject, precision in progress.track(tasks, description="checking"):
            checks.append(check_subject(subject, problems, _torch_dtype(precision), twice=True))
    _print_wide(_gradient_table(checks))
    failed = [check for group in checks for check in group if not check.ok]
    for check in failed:
        what = f"{check.subject}, {check.dtype}, {check.argument}: {check.message}"
        console.print(f"  {escape(what)}", highlight=False)
    if folder is not None:
        _draw_accuracy(folder, [group[0].subject for group in checks], seed)
    count = sum(len(group) for group in checks)
    console.print(f"FAILED {len(failed)} of {count}" if failed else f"passed {count}")
    if failed:
        raise typer.Exit(1)


def _torch_dtype(precision: Precision) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, precision.value)
    return dtype


def _gradient_table(checks: Sequence[Sequence[GradientCheck]]) -> Table:
    """One line a backend and dtype: its worst argument, and where that is."""
    import torch

    table = Table(title="F and its gradients", box=box.SIMPLE_HEAD)
    for title in ("backend", "dtype", "against"):
        table.add_column(title, no_wrap=True)
    for title in ("checks", "largest error", "of"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("in")
    table.add_column("verdict")
    for group in checks:
        worst = max(group, key=lambda check: check.error)
        failures = sum(not check.ok for check in group)
        double = group[0].dtype == torch.float64
        table.add_row(
            str(worst.subject),
            str(worst.dtype).removeprefix("torch."),
            "differences" if double else "float64",
            str(sum(check.cases for check in group)),
            f"{worst.error:.1%} of allowed",
            worst.argument,
            escape(worst.place),
            f"[red]FAILED {failures}[/red]" if failures else "[green]ok[/green]",
        )
    return table


def _draw_accuracy(folder: Path, checked: Sequence[Subject], seed: int) -> None:
    from lebm_kernels.figures.benchmarks import accuracy_figure
    from lebm_kernels.gradient_checks import BETAS, accuracy

    with _one_thread(), console.status("accuracy"):
        errors = {str(subject): accuracy(subject, seed) for subject in dict.fromkeys(checked)}
        errors["eager, expansion (mm)"] = accuracy(None, seed)
    figure = accuracy_figure(BETAS, errors)
    for suffix in ("png", "svg"):
        _save(figure, folder / f"accuracy.{suffix}")


def _print_wide(table: Table) -> None:
    """In a file or a pipe a table is as wide as it needs to be."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=_PIPE_WIDTH).print(table)


def _progress() -> Progress:
    """A bar with what happens and the time left."""
    return Progress(
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )


@app.command()
def gtm(
    latents: Annotated[int, typer.Option(help="Latents a side of the square grid.")] = 20,
    bumps: Annotated[int, typer.Option(help="Radial basis functions a side.")] = 10,
    width: Annotated[float, typer.Option(help="Of a bump, in distances of neighbours.")] = 1.0,
    decay: Annotated[float, typer.Option(help="Precision of the weights' prior.")] = 0.1,
    iterations: Annotated[int, typer.Option(help="Of expectation-maximisation.")] = 60,
    backend: Annotated[
        str | None, typer.Option(help="A name of `lebm info`.", show_default="the fastest here")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split in training and held-out data.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder for the map and the restored digits.")
    ] = Path("out"),
) -> None:
    """Fit a Generative Topographic Mapping to digits, beside mixtures of spherical Gaussians."""
    folder = _folder(output)
    try:
        from sklearn.mixture import GaussianMixture
    except ModuleNotFoundError:
        raise typer.BadParameter(
            "the digits are scikit-learn's, which is not installed", param_hint="'gtm'"
        ) from None
    import torch

    from lebm_kernels.datasets import digits
    from lebm_kernels.figures import latent_map_figure, restored_images_figure
    from lebm_kernels.gtm import fit, mean_log_density, restore, topographic_mapping

    data = digits(seed=seed)
    table = Table(title="mean log-density of digits, nats", box=box.SIMPLE_HEAD)
    for title in ("model", "Gaussians", "parameters", "training", "held out", "time"):
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    with _errors_by_option(), _one_thread():
        start = time.perf_counter()
        model = topographic_mapping(data.train.y, latents=latents, bumps=bumps, width=width)
        fit(model, data.train.y, iterations=iterations, decay=decay, backend=backend)
        seconds = time.perf_counter() - start
    parts = (data.train.y, data.test.y)
    scores = [mean_log_density(model, part) for part in parts]
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = [("topographic mapping", len(model.z), count, scores, seconds)]
    for number in sorted({min(n, len(data.train)) for n in (bumps**2, latents**2)}):
        start = time.perf_counter()
        mixture = GaussianMixture(number, covariance_type="spherical", random_state=seed)
        mixture.fit(data.train.y.double().numpy())
        seconds = time.perf_counter() - start
        scores = [mixture.score(part.double().numpy()) for part in parts]
        count = number * (data.train.y.shape[1] + 2) - 1
        rows.append(("GaussianMixture", number, count, scores, seconds))
    for name, gaussians, count, scores, seconds in rows:
        table.add_row(
            name,
            str(gaussians),
            str(count),
            *(f"{score:.2f}" for score in scores),
            f"{seconds:.2f} s",
        )
    console.print(table)
    # The lower half of each, hidden; beside it what knows no digit, the mean of all.
    hidden = torch.arange(data.test.y.shape[1]) >= data.test.y.shape[1] // 2
    guesses = {
        "the posterior mean": restore(model, data.test.y, ~hidden, backend=backend),
        "the mean of all": data.train.y.mean(0).expand_as(data.test.y),
    }
    for name, guess in guesses.items():
        error = (guess - data.test.y)[:, hidden].square().mean().sqrt()
        console.print(f"hidden half, by {name}: root mean square error {error:.3f}")
    _save(latent_map_figure(model, data.test, data.test_label), folder / "gtm-digits.png")
    firsts = [int((data.test_label == digit).nonzero()[0]) for digit in data.test_label.unique()]
    figure = restored_images_figure(
        model, data.test.y[firsts], noise=_NOISE, generator=torch.Generator().manual_seed(seed)
    )
    _save(figure, folder / "gtm-restored.png")


class Shown(str, Enum):
    """What can be shown to go wrong."""

    memorising = "memorising"
    collapsing = "collapsing"


@app.command()
def show(what: Annotated[Shown, typer.Argument(help="What goes wrong.")]) -> None:
    """Show by training how latents memorise, or how an ellipse collapses when it is too warm."""
    with _one_thread():
        table = _memorising_table() if what == Shown.memorising else _collapsing_table()
    console.print(table)


class Drawn(str, Enum):
    """The practicum's figures, as the command line spells them."""

    energies = "energies"
    restored = "restored"
    gradient = "gradient"
    surface = "surface"
    section = "section"
    likelihood = "likelihood"
    sections = "sections"
    pulls = "pulls"
    horn_data = "horn-data"
    horn = "horn"


@app.command()
def figures(
    names: Annotated[
        list[Drawn] | None, typer.Argument(help="Which figures.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data, the start and the order.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder for the figures.")
    ] = Path("out/practicum"),
) -> None:
    """Draw the practicum's figures from models trained on the spot, in PNG and in SVG."""
    from lebm_kernels.practicum import FIGURES, Practicum

    start = time.perf_counter()
    folder = _folder(output)
    run = Practicum(seed)
    for name in names or Drawn:
        with _errors_by_option(), _one_thread(), console.status(f"drawing {name.value}"):
            figure = FIGURES[name.value](run)
        for suffix in ("png", "svg"):
            _save(figure, folder / f"{name.value}.{suffix}")
    console.print(f"lebm figures took {time.perf_counter() - start:.0f} s", highlight=False)


def _memorising_table() -> Table:
    from lebm_kernels.demonstrations import MEMORISING_DIM, memorising

    title = f"{MEMORISING_DIM}-dimensional latents: mean free energy"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("regulariser")
    for column in ("on held-out data", "off the data", "contrast", "of none's"):
        table.add_column(column, justify="right")
    rows = memorising()
    for row in rows:
        share = f"{row.contrast / rows[0].contrast:.1f} x"
        values = (row.on, row.off, row.contrast)
        table.add_row(row.regulariser, *(f"{value:.3f}" for value in values), share)
    return table


def _collapsing_table() -> Table:
    from lebm_kernels.demonstrations import collapsing

    table = Table(title="ellipse trained warm", box=box.SIMPLE_HEAD)
    for column in ("β · 2 <y₁²>", "β", "radii found", "to collapse"):
        table.add_column(column, justify="right")
    for row in collapsing():
        collapse = ", ".join("yes" if zero else "no" for zero in row.predicted)
        radii = ", ".join(f"{radius:.4f}" for radius in row.radii)
        table.add_row(f"{row.ratio:g}", f"{row.beta:.4g}", radii, collapse)
    return table


def _demo_timings(quick: bool) -> list[Comparison]:
    """The operation on a large grid, forward and forward + backward, against its peers."""
    from lebm_kernels.benchmarking import compare
    from lebm_kernels.cases import Case
    from lebm_kernels.providers import default_backend

    ours = default_backend()
    peers = ["eager, expansion (mm)", "eager, cdist"]
    if not quick:  # compiling takes longer than all the rest of a quick run
        peers.append("torch.compile, unrolled")
    M, N = (64, 256) if quick else (4096, 16384)
    comparisons = []
    with console.status("timing") as status:
        # The reference, made for truth alone, would take minutes for all the queries.
        for names, queries in (([ours, *peers], M), ([ours, "reference"], M // 32)):
            for backward in ((), ("y", "decoded")):
                case = Case(queries, N, 2, backward=backward)
                comparisons.append(
                    compare(
                        case,
                        names,
                        rounds=5,
                        budget=8.0,
                        notify=partial(_tell, status, case.direction),
                    )
                )
    return comparisons


def _tell(status: Status, what: str, text: str) -> None:
    status.update(f"{what}: {text}")


def _print_gradient_verdict() -> bool:
    """Run gradcheck; print one line, and one more for each failure."""
    from lebm_kernels.gradient_checks import check_gradients

    with console.status("gradcheck in float64"), _one_thread():
        checks = check_gradients()
    failed = [check for check in checks if not check.ok]
    backends = ", ".join(dict.fromkeys(check.backend for check in checks))
    arguments = ", ".join(dict.fromkeys(check.argument for check in checks))
    verdict = f"FAILED {len(failed)} of {len(checks)}" if failed else "passed"
    console.print(f"gradcheck {verdict}: {backends}; {arguments}", highlight=False)
    for check in failed:
        console.print(f"  {check.backend}, {check.argument}: {escape(check.message)}")
    return not failed


class _Trained(NamedTuple):
    title: str
    untrained: LatentModel
    trained: LatentModel
    data: Dataset
    result: TrainResult
    held_out: Dataset


def _train(
    recipe: str,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    contrast: tuple[LossName, NegativesName, float] = (LossName.energy, NegativesName.noise, 1.0),
    **changes: Any,
) -> _Trained:
    """Train a recipe from its seed, keeping its checkpoint in the folder."""
    from lebm_kernels.recipes import RECIPES
    from lebm_kernels.training import train

    model, data, config = RECIPES[recipe].start(seed, **changes)
    untrained = copy.deepcopy(model)
    name, negatives, margin = contrast
    kind = "" if name == LossName.energy else f"{name.value}-{negatives.value}-"
    title = f"{recipe}-{kind}{_temperature(config.beta)}"
    with _one_thread():
        result = train(
            model,
            data,
            config,
            loss=_loss(name, negatives, margin, data, seed),
            checkpoint=folder / f"{title}.pt",
            curves=folder / f"{title}.csv",
            resume=resume,
        )
    return _Trained(title, untrained, model, data, result, RECIPES[recipe].held_out(seed))


def _loss(
    name: LossName, negatives: NegativesName, margin: float, data: Dataset, seed: int
) -> Loss:
    """The loss of that name; its samples are drawn from the seed, boxes are about the data."""
    import torch

    from lebm_kernels.losses import HingeLoss, LogLoss, energy_loss
    from lebm_kernels.negatives import GaussianNoise, MostOffending, Negatives, UniformBox

    if name == LossName.energy:
        return energy_loss
    generator = torch.Generator().manual_seed(seed)
    low, high = (tuple(corner.tolist()) for corner in data.y.aminmax(dim=0))
    box = UniformBox(low, high, generator)
    source: Negatives = box
    if negatives == NegativesName.noise:
        source = GaussianNoise(_AWAY, generator)
    elif negatives == NegativesName.offending:
        source = MostOffending(_AWAY, box)
    return HingeLoss(source, margin) if name == LossName.hinge else LogLoss(source)


def _section(run: _Trained) -> float | None:
    """The x whose map is drawn: the middle of a conditional model's."""
    return 0.5 if run.trained.conditional else None


def _manifold(run: _Trained) -> Figure:
    from lebm_kernels.figures import manifold_figure

    figure = manifold_figure(run.untrained, run.trained, run.data)
    if run.result.config.beta != math.inf:
        figure.suptitle(f"{figure.get_suptitle()}, trained warm (β = {run.result.config.beta:g})")
    return figure


def _maps(run: _Trained) -> Figure:
    from lebm_kernels.figures import free_energy_figure

    return free_energy_figure(run.trained, x=_section(run), data=run.data)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    # Without a date and with a salt of ours, an SVG is a function of what it shows.
    with rc_context({"svg.hashsalt": "lebm"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _training_table(runs: Sequence[_Trained]) -> Table:
    from lebm_kernels.grids import periodic_grid
    from lebm_kernels.training import mean_free_energy

    table = Table(title="mean free energy of the data", box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    # The training grid's own coarseness is part of its F: a fine one shows what was learned.
    titles = ("before", "after", f"on {_FINE_GRID} latents", "held out", "epochs", "time")
    for title in titles:
        table.add_column(title, justify="right")
    for run in runs:
        result = run.result
        fine = mean_free_energy(
            run.trained.on_grid(periodic_grid(_FINE_GRID)),
            run.data,
            beta=result.config.beta,
            slice_size=_AT_ONCE,
        )
        held_out = mean_free_energy(
            run.trained, run.held_out, beta=result.config.beta, slice_size=_AT_ONCE
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``lebm`` with these arguments (the process's own if absent), and exit."""
    app(args=arguments, prog_name="lebm")
