"""``lebm gtm``: fit a topographic mapping of digits, and compare it with Gaussian mixtures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from lebm_kernels.benchmarks.threads import thread_count
from lebm_kernels.cli.errors import errors_by_option
from lebm_kernels.cli.shared import LARGEST_SEED, console, save, writable
from lebm_kernels.extras import needs

#: Standard deviation of the noise on the digits to restore, whose pixels lie in [0, 1].
_NOISE = 0.2

#: Squared, it is below the largest size of a tensor.
_LARGEST_SIDE = 10_000


def gtm(
    context: typer.Context,
    latents: Annotated[
        int, typer.Option(max=_LARGEST_SIDE, help="Latents per side of the square grid.")
    ] = 20,
    bumps: Annotated[
        int, typer.Option(max=_LARGEST_SIDE, help="Radial basis functions per side.")
    ] = 10,
    width: Annotated[
        float, typer.Option(help="Width of a bump, in distances of neighbours.")
    ] = 1.0,
    decay: Annotated[
        float, typer.Option(help="Precision of the weights' prior, times the pixels' variance.")
    ] = 0.1,
    iterations: Annotated[int, typer.Option(help="Iterations of expectation-maximisation.")] = 60,
    backend: Annotated[
        str | None,
        typer.Option(help="One of the backends of `lebm info`.", show_default="the fastest here"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(max=LARGEST_SEED, help="Seed of the split into training and held-out data."),
    ] = 0,
    output: Annotated[
        Path, typer.Option(help="Folder for the map and the restored digits.")
    ] = Path("out"),
) -> None:
    """Fit a Generative Topographic Mapping to digits; compare it with Gaussian mixtures."""
    folder = writable(context, output)
    with needs("models"):
        from sklearn.mixture import GaussianMixture
    from lebm_kernels.figures.latents import latent_map_figure, restored_images_figure
    from lebm_kernels.models.gtm import fit, mean_log_density, restore, topographic_mapping
    from lebm_kernels.training.datasets import digits

    with errors_by_option():
        data = digits(seed=seed)
    table = Table(title="mean log-density of digits, nats", box=box.SIMPLE_HEAD)
    for title in ("model", "Gaussians", "parameters", "training", "held out", "time"):
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    with errors_by_option(not_finite="--width"), thread_count(1):
        start = time.perf_counter()
        model = topographic_mapping(data.train.y, latents=latents, bumps=bumps, width=width)
        fit(model, data.train.y, iterations=iterations, decay=decay, backend=backend)
        seconds = time.perf_counter() - start
    parts = (data.train.y, data.test.y)
    scores = [mean_log_density(model, part, backend=backend) for part in parts]
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = [("topographic mapping", len(model.z), count, scores, seconds)]
    for number in sorted({min(n, len(data.train)) for n in (bumps**2, latents**2)}):
        start = time.perf_counter()
        mixture = GaussianMixture(number, covariance_type="spherical", random_state=seed % 2**32)
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
    # Restore the hidden lower half of each digit. The mean of all digits is the baseline.
    hidden = (
        torch.arange(data.test.y.shape[1], device=data.test.y.device) >= data.test.y.shape[1] // 2
    )
    guesses = {
        "the posterior mean": restore(model, data.test.y, ~hidden, backend=backend),
        "the mean of all digits": data.train.y.mean(0).expand_as(data.test.y),
    }
    for name, guess in guesses.items():
        error = (guess - data.test.y)[:, hidden].square().mean().sqrt()
        console.print(f"hidden half, by {name}: root mean square error {error:.3f}")
    save(latent_map_figure(model, data.test, data.test_label), folder / "gtm-digits")
    firsts = [int((data.test_label == digit).nonzero()[0]) for digit in data.test_label.unique()]
    figure = restored_images_figure(
        model, data.test.y[firsts], noise=_NOISE, generator=torch.Generator().manual_seed(seed)
    )
    save(figure, folder / "gtm-restored")
