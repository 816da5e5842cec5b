"""Enough queries of one temperature for the forms of the pair loop that need them.

Values are computed without gradients, or with those of the latents alone: what is summed beside F
decides on the form.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.subset import fewer
from torch import Tensor

from lebm_kernels import free_energy

# Ragged: not all of the last tile's places hold queries.
M, N = 581, 701


def spread(D: int) -> tuple[Tensor, Tensor]:
    return torch.randn(M, D), torch.randn(N, D)


def offset(D: int) -> tuple[Tensor, Tensor]:
    """Far from the origin, and close together."""
    return 3 + 0.05 * torch.randn(M, D), 3 + 0.05 * torch.randn(N, D)


def lone(D: int) -> tuple[Tensor, Tensor]:
    """One latent is near, and no sample of the latents finds it."""
    decoded = 9 + 0.1 * torch.randn(N, D)
    decoded[N // 3 + 1] = 0.1
    return 0.3 * torch.randn(M, D), decoded


def mixed(D: int) -> tuple[Tensor, Tensor]:
    """Some queries are far from the origin, and some infinitely far from a latent."""
    y, decoded = spread(D)
    y[::97] *= 10
    decoded[5] = torch.inf
    return y, decoded


def spoilt(D: int) -> tuple[Tensor, Tensor]:
    y, decoded = spread(D)
    y[7] = torch.nan
    y[37, 0] = torch.inf
    return y, decoded


LAYOUTS = {layout.__name__: layout for layout in (spread, offset, lone, mixed, spoilt)}


def laid_out(backend: str, layout: str, D: int, beta: Any) -> dict[str, Any]:
    y, decoded = LAYOUTS[layout](D)
    return {"y": y[: fewer(backend, M)], "decoded": decoded, "beta": beta}


@pytest.mark.parametrize("beta", [1e-6, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("D", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(backend: str, layout: str, D: int, beta: float) -> None:
    arguments = laid_out(backend, layout, D, beta)
    value = free_energy(**arguments, backend=backend)
    finite = arguments["y"].isfinite().all(-1)
    far = arguments["y"].isinf().any(-1)
    assert bool((value[far] == torch.inf).all())
    assert bool(value[~finite & ~far].isnan().all())
    arguments["y"] = arguments["y"][finite]
    assert_accurate(value[finite], **arguments)


def test_temperatures_side_by_side(backend: str) -> None:
    beta = torch.logspace(-7, 7, M)[: fewer(backend, M)]
    beta[::50] = torch.inf
    beta[1::50] = 0.0
    arguments = laid_out(backend, "spread", 2, beta)
    assert_accurate(free_energy(**arguments, backend=backend), **arguments)


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("D", [1, 2, 4])
@pytest.mark.parametrize("layout", ["spread", "offset", "lone"])
def test_gradients_of_the_latents_alone(backend: str, layout: str, D: int, beta: float) -> None:
    arguments = laid_out(backend, layout, D, torch.tensor(beta))
    grad = torch.randn(len(arguments["y"]))

    def function(decoded: Tensor) -> Tensor:
        return free_energy(**{**arguments, "decoded": decoded}, backend=backend)

    found = gradients(function, {"decoded": arguments["decoded"]}, grad)
    everything = gradients(free_energy, arguments, grad)
    assert_gradients_accurate({**everything, **found}, arguments, grad)


@pytest.mark.parametrize("D", [1, 2, 3, 4])
@pytest.mark.parametrize("with_energies", [False, True], ids=["plain", "energies"])
def test_gradients_of_the_queries_arguments(backend: str, D: int, with_energies: bool) -> None:
    """As the ellipse with a temperature to learn has them: all but the latents'."""
    y, decoded = spread(D)
    y = y[: fewer(backend, M)]
    beta = torch.logspace(-6, 4, len(y))
    beta[::50] = torch.inf
    beta[1::50] = 0.0
    arguments = {"y": y, "decoded": decoded, "beta": beta, "scale": torch.rand(len(y), D) + 0.5}
    fixed = {"decoded"}
    if with_energies:
        arguments["latent_energy"] = torch.rand(N)
        fixed.add("latent_energy")
    grad = torch.randn(len(y))
    some = {name: x for name, x in arguments.items() if name not in fixed}

    def function(**given: Tensor) -> Tensor:
        return free_energy(**{**arguments, **given}, backend=backend)

    everything = gradients(free_energy, arguments, grad)
    assert_gradients_accurate({**everything, **gradients(function, some, grad)}, arguments, grad)
