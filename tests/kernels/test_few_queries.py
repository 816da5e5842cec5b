"""Few queries over long grids, many over short ones, and a grid of its own for every query.

The native backend unpacks long grids of plain latents as it sweeps them, and writes down others:
every way must find the same. Sizes lie about blocks of 512 latents and shares of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.problems import MIXED_BETAS, PLAIN, problem
from torch import Tensor

from lebm_kernels import free_energy, posterior


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Numbers of threads that share the work in different ways."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check_twice(backend: str, arguments: dict[str, Any]) -> None:
    """F, and all gradients, within the promise and the same bits again."""
    function = partial(free_energy, backend=backend)
    value = function(**arguments)
    assert_accurate(value, **arguments)
    grad = torch.randn_like(value)
    found = gradients(function, arguments, grad)
    assert_gradients_accurate(found, arguments, grad)
    assert torch.equal(function(**arguments), value)
    for name, again in gradients(function, arguments, grad).items():
        assert torch.equal(again, found[name])


@pytest.mark.parametrize(("M", "N", "D"), [(1, 4096, 2), (3, 4097, 1), (7, 6001, 2), (9, 5000, 3)])
def test_long_grids(backend: str, threads: int, M: int, N: int, D: int) -> None:
    check_twice(backend, problem(M, N, D, beta=MIXED_BETAS, names=PLAIN))


def test_whole_tiles_of_queries_over_a_long_grid(backend: str) -> None:
    check_twice(backend, problem(64, 4500, 4, beta=MIXED_BETAS, names=PLAIN))


@pytest.mark.parametrize("D", [1, 2, 3, 4])
def test_long_grids_in_double_precision(backend: str, D: int) -> None:
    check_twice(backend, problem(7, 4611, D, beta=MIXED_BETAS, dtype=torch.float64, names=PLAIN))


@pytest.mark.parametrize("name", ["scale", "log_weight", "dropped", "latent_energy"])
def test_long_grids_with_more_arguments(backend: str, name: str) -> None:
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    if name == "scale":
        arguments["scale"] = torch.randn(7, 2)
    else:
        row = torch.randn(4611)
        if name == "dropped":
            row[::3] = -math.inf
            row[512:1024] = -math.inf
        arguments["latent_energy" if name == "latent_energy" else "log_weight"] = row
    check_twice(backend, arguments)


@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded", "shifted", "far"])
def test_long_grids_of_any_layout(backend: str, layout: str) -> None:
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    decoded: Tensor = arguments["decoded"]
    arguments["decoded"] = {
        "strided": torch.randn(4611, 4)[:, ::2],
        "transposed": decoded.T.contiguous().T,
        "expanded": decoded[:1].expand(4611, 2),
        "shifted": torch.randn(4612 * 2)[1:-1].view(4611, 2),
        "far": decoded + 1e4,
    }[layout]
    if layout == "far":
        arguments["y"] = arguments["y"] + 1e4
    function = partial(free_energy, backend=backend)
    dense = {**arguments, "decoded": arguments["decoded"].contiguous()}
    check_twice(backend, dense)
    torch.testing.assert_close(function(**arguments), function(**dense))
    grad = torch.randn(7)
    for a, b in zip(
        gradients(function, arguments, grad).values(),
        gradients(function, dense, grad).values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_long_grids_in_half_precision(backend: str) -> None:
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    for name in ("y", "decoded"):
        arguments[name] = arguments[name].half()
    check_twice(backend, arguments)


@pytest.mark.parametrize("place", [0, 700, 4610])
def test_infinite_latents_of_long_grids(backend: str, threads: int, place: int) -> None:
    # Infinitely far, a latent counts in the weights alone: as one with an energy of infinity.
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    arguments["beta"] = torch.tensor([0.1, 1.0, 2.0, 3.0, 30.0, 1e4, math.inf])
    energy = torch.zeros(4611)
    energy[place] = math.inf
    wanted = free_energy(**arguments, latent_energy=energy, backend=backend)
    arguments["decoded"][place, 1] = math.inf
    torch.testing.assert_close(free_energy(**arguments, backend=backend), wanted)
    if backend == "native":  # in plain PyTorch, 0 times an infinite difference is not a number
        found = gradients(partial(free_energy, backend=backend), arguments, torch.ones(7))
        assert found["decoded"][place].eq(0).all()
        assert found["y"].isfinite().all()


@pytest.mark.parametrize("place", [0, 700, 4610])
def test_latents_that_are_not_numbers_in_long_grids(backend: str, place: int) -> None:
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    arguments["decoded"][place, 0] = math.nan
    assert free_energy(**arguments, backend=backend).isnan().all()
    found = gradients(partial(free_energy, backend=backend), arguments, torch.ones(7))
    assert found["decoded"].isnan().all()


def test_one_latent_too_far_to_average(backend: str) -> None:
    arguments = problem(3, 4611, 2, dtype=torch.float64, names=PLAIN)
    arguments["decoded"][700] = 1e40
    check_twice(backend, arguments)


def test_the_posterior_over_long_grids(backend: str, threads: int) -> None:
    arguments = problem(7, 4611, 2, beta=MIXED_BETAS, names=PLAIN)
    found = posterior(**arguments, backend=backend)
    energy = (arguments["y"].double()[:, None] - arguments["decoded"].double()).square().sum(-1)
    assert torch.equal(found.index, energy.argmin(-1))
    wide = posterior(**{name: x.double() for name, x in arguments.items()}, backend="chunked")
    torch.testing.assert_close(found.mean.double(), wide.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("N", [1, 15, 16, 17, 48, 64, 127, 129, 511])
@pytest.mark.parametrize("D", [1, 2, 4, 5])
def test_short_grids(backend: str, dtype: torch.dtype, N: int, D: int) -> None:
    check_twice(backend, problem(35, N, D, beta=MIXED_BETAS, dtype=dtype, names=PLAIN))


@pytest.mark.parametrize(("B", "N"), [(1, 600), (5, 64), (40, 65), (3, 4500)])
def test_a_grid_for_every_query(backend: str, threads: int, B: int, N: int) -> None:
    arguments = {
        "y": torch.randn(B, 1, 2),
        "decoded": torch.randn(B, N, 2),
        "beta": torch.tensor(MIXED_BETAS).repeat(B)[:B, None],
    }
    check_twice(backend, arguments)


def test_vectorised_jacobian(backend: str) -> None:
    # vmap over the backward of a forward that ran outside.
    given = problem(5, 11, dtype=torch.float64, names=("y", "decoded"))

    def value(y: Tensor, decoded: Tensor) -> Tensor:
        return free_energy(y, decoded, 2.0, backend=backend)

    tensors = tuple(given.values())
    found = torch.autograd.functional.jacobian(value, tensors, vectorize=True)
    wanted = torch.autograd.functional.jacobian(value, tensors)
    torch.testing.assert_close(found, wanted)
