"""The problems that gradients are checked on: standard, random and nasty ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Arguments = dict[str, Tensor]

TIED_MINIMA = "ties, beta inf"
"""The title of the case whose minima are equal: its gradient jumps."""


def _problem(generator: torch.Generator, M: int, N: int, D: int, beta: float) -> Arguments:
    """Every argument, in float64, from or near the standard normal distribution."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    return {
        "y": normal(M, D),
        "decoded": normal(N, D),
        "beta": beta * (1 + 0.1 * normal(M).abs()),
        "scale": 1 + 0.3 * normal(D),
        "log_weight": normal(N),
        "latent_energy": normal(N).abs(),
    }


def standard_cases(seed: int) -> Iterator[tuple[str, Arguments]]:
    """Hot, warm and cold, with a shared scale or one for each query."""
    generator = torch.Generator().manual_seed(seed)
    for title, beta in (
        ("hot, shared scale", 1e-2),
        ("warm, a scale a query", 0.8),
        ("cold, shared scale", 20.0),
    ):
        arguments = _problem(generator, 3, 5, 2, beta)
        if "query" in title:
            noise = torch.randn(3, 2, generator=generator, dtype=torch.float64, device="cpu")
            arguments["scale"] = 1 + 0.3 * noise
        yield title, arguments


def random_cases(seed: int, count: int) -> Iterator[tuple[str, Arguments]]:
    """Sizes up to 4 queries, 9 latents and 5 dimensions, beta from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(seed + 1)
    for number in range(count):
        M, N, D = (
            int(torch.randint(1, most + 1, (), generator=generator, device="cpu"))
            for most in (4, 9, 5)
        )
        power = float(torch.rand((), generator=generator, dtype=torch.float32, device="cpu"))
        beta = 10.0 ** (6 * power - 3)
        arguments = _problem(generator, M, N, D, beta)
        yield f"random {number}: {M} x {N}, D {D}, beta {beta:.2g}", arguments


def nasty_cases(seed: int) -> Iterator[tuple[str, Arguments]]:
    """Where kernels go wrong: far or offset data, ties, dropped latents, batches, extreme beta."""
    generator = torch.Generator().manual_seed(seed + 2)

    def problem(beta: float) -> Arguments:
        return _problem(generator, 3, 6, 2, beta)

    far = problem(1.0)
    far["y"] = far["y"] + 30
    yield "far queries", far
    offset = problem(1.0)
    offset["y"], offset["decoded"] = offset["y"] + 100, offset["decoded"] + 100
    offset["scale"] = torch.ones_like(offset["scale"])
    yield "data offset by 100", offset
    for beta in (1.0, math.inf):
        tied = problem(beta)
        # Only pairs of equal latents: of three equal energies, a difference quotient of the
        # minimum is not the gradient.
        for name in ("decoded", "log_weight", "latent_energy"):
            tied[name] = torch.cat((tied[name], tied[name]))
        yield TIED_MINIMA if beta == math.inf else f"ties, beta {beta:g}", tied
    dropped = problem(1.0)
    dropped["log_weight"][::2] = -math.inf
    yield "dropped latents", dropped
    for beta in (0.0, 1e-7, 1e4, math.inf):
        yield f"beta {beta:g}", problem(beta)
    batch = problem(1.0)
    shift = torch.randn(3, 1, 1, 1, generator=generator, dtype=torch.float64, device="cpu")
    batch["y"] = torch.stack((batch["y"], batch["y"] + 0.5))
    batch["decoded"] = batch["decoded"] + shift
    yield "batch", batch
