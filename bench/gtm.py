"""Compare a topographic mapping of digits with ugtm and mixtures: ``python bench/gtm.py --help``.

All models get the same split of scikit-learn's digits. ugtm (``pip install ugtm``) implements the
same algorithm, and gets the same latents, bumps, widths and decay.

The measured time is that until the held-out log-density is within ``--margin`` nats of the best
value that both reach. Each number of iterations is a separate run; the fastest run that reaches the
value counts. The two programs end in different local optima, with held-out densities that differ by
some tenths in either direction. Therefore ``--splits N`` also compares them on N random splits of
the same sizes, after the same number of iterations.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

from lebm_kernels.models.gtm import fit, mean_log_density, topographic_mapping
from lebm_kernels.training.datasets import digits

ITERATIONS = (1, 2, 4, 8, 16, 32, 64)


class Run(NamedTuple):
    iterations: int
    seconds: float
    train: float
    held_out: float


def equal_gaussians(y: Any, means: Any, variance: float) -> float:
    """The mean log-density of a mixture of equal spherical Gaussians, in float64."""
    square = ((y[:, None] - means) ** 2).sum(-1)
    log = logsumexp(-square / (2 * variance), axis=1) - math.log(len(means))
    return float((log - 0.5 * y.shape[1] * math.log(2 * math.pi * variance)).mean())


def ours(train: Any, test: Any, options: argparse.Namespace, iterations: int) -> Run:
    y, held_out = (torch.from_numpy(part).to(options.dtype) for part in (train, test))
    start = time.perf_counter()
    model = topographic_mapping(
        y, latents=options.latents, bumps=options.bumps, width=options.width
    )
    # ugtm's decay is in the units of 1/y^2, ours in those of the variance's inverse.
    decay = options.decay * float(y.var(0, correction=0).mean())
    fit(model, y, iterations=iterations, decay=decay)
    seconds = time.perf_counter() - start
    return Run(iterations, seconds, mean_log_density(model, y), mean_log_density(model, held_out))


def ugtm(train: Any, test: Any, options: argparse.Namespace, iterations: int) -> Run:
    from ugtm import ugtm_gtm

    start = time.perf_counter()
    # ugtm's width multiplies the squared distance.
    first = ugtm_gtm.initialize(train, options.latents, options.bumps, options.width**2)
    found = ugtm_gtm.optimize(train, first, options.decay, iterations, verbose=False)
    seconds = time.perf_counter() - start
    densities = (equal_gaussians(y, found.matY.T, found.betaInv) for y in (train, test))
    return Run(iterations, seconds, *densities)


def mixture(train: Any, test: Any, components: int) -> Run:
    start = time.perf_counter()
    found = GaussianMixture(components, covariance_type="spherical", random_state=0).fit(train)
    seconds = time.perf_counter() - start
    return Run(found.n_iter_, seconds, found.score(train), found.score(test))


def compare_splits(images: Any, size: int, options: argparse.Namespace) -> None:
    """Print the held-out densities of both on random splits, and their paired difference."""
    densities: list[tuple[float, ...]] = []
    for seed in track(range(options.splits), "random splits", transient=True):
        shuffled = images[np.random.default_rng(seed).permutation(len(images))]
        parts = shuffled[:size], shuffled[size:]
        runs = (provider(*parts, options, options.iterations) for provider in (ours, ugtm))
        densities.append(tuple(run.held_out for run in runs))
    names = ("ours", "ugtm", "ours - ugtm")
    columns = (*zip(*densities, strict=True), [pair[0] - pair[1] for pair in densities])
    print(f"held out on {options.splits} random splits, {options.iterations} iterations, nats:")
    for name, values in zip(names, columns, strict=True):
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(f"  {name}: {statistics.mean(values):.3f} +- {error:.3f} (standard error)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=20)
    parser.add_argument("--bumps", type=int, default=10)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--margin", type=float, default=0.1)
    parser.add_argument("--splits", type=int, default=0, help="random splits to compare on")
    parser.add_argument("--iterations", type=int, default=32, help="on each random split")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--double", action="store_true", help="fit ours in float64")
    options = parser.parse_args()
    options.dtype = torch.float64 if options.double else torch.float32
    torch.set_num_threads(options.threads)
    data = digits()
    train, test = (part.y.double().numpy() for part in (data.train, data.test))

    providers: dict[str, Callable[..., Run]] = {"ours": ours}
    try:
        import ugtm as _  # noqa: F401

        providers["ugtm"] = ugtm
    except ImportError as error:
        print(f"ugtm was not timed: {error}")
    ours(train, test, options, 1)  # warm up
    runs = {
        name: [provider(train, test, options, n) for n in ITERATIONS]
        for name, provider in providers.items()
    }
    level = min(max(run.held_out for run in found) for found in runs.values()) - options.margin

    console = Console()
    table = Table(title="mean log-density of digits, nats", box=box.SIMPLE_HEAD)
    for title in ("model", "iterations", "training", "held out", "time"):
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    rows = [(name, run) for name, found in runs.items() for run in found]
    for components in (37, 100, options.latents**2):
        rows.append((f"GaussianMixture, {components}", mixture(train, test, components)))
    for name, run in rows:
        densities = (f"{run.train:.3f}", f"{run.held_out:.3f}")
        table.add_row(name, str(run.iterations), *densities, f"{run.seconds:.3f} s")
    console.print(table)
    for name, found in runs.items():
        times = [run.seconds for run in found if run.held_out >= level]
        reached = f"{min(times):.3f} s" if times else "not reached"
        print(f"{name}: {reached} to {level:.3f} nats held out")
    if options.splits and "ugtm" in providers:
        compare_splits(np.concatenate((train, test)), len(train), options)


if __name__ == "__main__":
    main()
