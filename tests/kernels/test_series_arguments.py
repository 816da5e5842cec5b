"""Whatever else an argument may be, where many queries share series: extreme temperatures and
scales, latents without end or weight, layouts, halves, batches, and gradients wanted singly.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from support.accuracy import assert_accurate, assert_gradients_accurate, gradients
from support.oracle import exact
from support.subset import check, check_posterior, chosen, fewer, restricted, tiled
from torch import Tensor

from lebm_kernels import free_energy
from lebm_kernels.diagnostics import promise

# Enough queries for series to be made, and latents for three layers of blocks.
M, N = 520, 1100


def sharing(
    backend: str, dtype: torch.dtype, D: int, beta: float = 1.0, N: int = N
) -> dict[str, Tensor]:
    return tiled(backend, M, N, D, beta=torch.tensor(beta), dtype=dtype)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 1e-30, math.inf])
def test_extreme_temperatures(backend: str, dtype: torch.dtype, beta: float, D: int) -> None:
    arguments = sharing(backend, dtype, D, beta)
    arguments["scale"] = torch.tensor([-1.3, 0.6], dtype=dtype)[:D]
    check(backend, arguments, 3)
    check_posterior(backend, arguments, 3)


@pytest.mark.parametrize("D", [1, 2])
def test_a_temperature_for_each_query(backend: str, dtype: torch.dtype, D: int) -> None:
    arguments = sharing(backend, dtype, D)
    betas = torch.tensor([0.0, 1e-30, 1e-6, 0.1, 1.0, 50.0, 1e5, math.inf], dtype=dtype)
    arguments["beta"] = betas.repeat(M)[: len(arguments["y"])]
    check(backend, arguments, 4)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 50.0, 1e4])
def test_the_posterior(backend: str, dtype: torch.dtype, beta: float, D: int) -> None:
    arguments = sharing(backend, dtype, D, beta)
    check_posterior(backend, arguments, 3)
    arguments["scale"] = torch.tensor([-1.3, 0.6], dtype=dtype)[:D]
    arguments["latent_energy"] = torch.rand(N, dtype=dtype)
    check_posterior(backend, arguments, 3)


SCALES = ([0.0, 0.0], [1e-20, 1e-20], [-1e-5, 1.0], [-2.0, -0.5])


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("beta", [1e-3, 2.0, 1e4])
def test_scales(backend: str, dtype: torch.dtype, beta: float, scale: list[float], D: int) -> None:
    arguments = sharing(backend, dtype, D, beta)
    arguments["scale"] = torch.tensor(scale, dtype=dtype)[:D]
    check(backend, arguments, 3)


# A block of 512 latents, one of 128, and some in each.
GONE = {"blocks": slice(0, 512), "leaf": slice(256, 384), "some": slice(0, None, 7)}


def without_end(kind: str, arguments: dict[str, Tensor]) -> Tensor:
    """Makes energies infinite; returns which latents keep a finite one."""
    gone = torch.zeros(len(arguments["decoded"]), dtype=torch.bool)
    gone[GONE[kind]] = True
    arguments["latent_energy"] = torch.rand_like(arguments["decoded"][:, 0])
    arguments["latent_energy"][gone] = math.inf
    if kind != "some":  # blocks of their own, however latents are sorted
        arguments["decoded"][gone] += 9
    return ~gone


@pytest.mark.parametrize("kind", GONE)
@pytest.mark.parametrize("beta", [0.05, 2.0, 1e3, math.inf])
def test_infinite_latent_energies(backend: str, dtype: torch.dtype, kind: str, beta: float) -> None:
    arguments = sharing(backend, dtype, 2, beta)
    check_rest(backend, arguments, without_end(kind, arguments))


# The native backend alone: in plain PyTorch, 0 times an infinite difference is NaN.
@pytest.mark.parametrize("kind", GONE)
@pytest.mark.parametrize("beta", [0.05, 2.0, 1e3, math.inf])
def test_latents_infinitely_far(
    pruning_backend: str, dtype: torch.dtype, kind: str, beta: float
) -> None:
    arguments = sharing(pruning_backend, dtype, 2, beta)
    rest = without_end(kind, arguments)
    arguments["decoded"][~rest] = torch.tensor([math.inf, -math.inf], dtype=dtype)
    arguments["latent_energy"][~rest] = 0
    check_rest(pruning_backend, arguments, rest)


def check_rest(backend: str, arguments: dict[str, Tensor], rest: Tensor) -> None:
    """F and its gradients are those of ``rest``, the latents of finite energy."""
    dtype, beta = arguments["y"].dtype, float(arguments["beta"])
    some = chosen(len(arguments["y"]), 3)
    few = restricted(arguments, some)
    finite = {**few, "decoded": few["decoded"][rest], "latent_energy": few["latent_energy"][rest]}
    function = partial(free_energy, backend=backend)
    # They keep their share of the weights, and have none of the posterior.
    lost = 0 if beta == math.inf else math.log(len(rest) / int(rest.sum())) / beta
    truth = exact(**finite)
    value = function(**arguments)[some].double().numpy()
    bound = promise.allowed(truth.magnitude + lost, dtype)
    assert (np.abs(value - truth.free_energy - lost) <= bound).all()
    grad = torch.zeros(len(arguments["y"]), dtype=dtype)
    grad[some] = 1
    found = restricted(gradients(function, arguments, grad), some)
    assert (found["decoded"][~rest] == 0).all()
    assert (found["latent_energy"][~rest] == 0).all()
    found.update({name: found[name][rest] for name in ("decoded", "latent_energy")})
    if lost:
        found["beta"] = found["beta"] + len(some) * lost / beta
    assert_gradients_accurate(found, finite, grad[some])


def test_all_latents_without_end(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2)
    arguments["latent_energy"] = torch.full((N,), math.inf, dtype=dtype)
    assert (free_energy(**arguments, backend=backend) == math.inf).all()


@pytest.mark.parametrize("tol", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize(("D", "beta"), [(1, 0.5), (1, 300.0), (2, 0.5), (2, 30.0), (2, 3e3)])
def test_tol(backend: str, dtype: torch.dtype, D: int, beta: float, tol: float) -> None:
    # The pruned share of the sum can only raise F, and by -log(1 - tol)/beta at most.
    arguments = sharing(backend, dtype, D, beta)
    some = chosen(len(arguments["y"]), 8)
    truth = exact(**restricted(arguments, some))
    value = free_energy(**arguments, tol=tol, backend=backend)[some].double().numpy()
    slack = promise.allowed(truth.magnitude, dtype)
    assert (value - truth.free_energy >= -slack).all()
    assert (value - truth.free_energy <= slack - math.log1p(-tol) / beta).all()


@pytest.mark.parametrize("shared", ["nothing", "latents", "queries"])
def test_batches(backend: str, dtype: torch.dtype, shared: str) -> None:
    m = fewer(backend, M)
    arguments = {
        "y": torch.randn(3 if shared != "queries" else 1, m, 2, dtype=dtype),
        "decoded": torch.randn(3 if shared != "latents" else 1, 300, 2, dtype=dtype),
        "beta": torch.tensor([[0.3], [2.0], [60.0]], dtype=dtype),
    }
    function = partial(free_energy, backend=backend)
    value = function(**arguments)
    assert value.shape == (3, m)
    some = chosen(m, 3)
    few = {**arguments, "y": arguments["y"][:, some]}
    assert_accurate(value[:, some], **few)
    grad = torch.zeros(3, m, dtype=dtype)
    grad[:, some] = torch.randn(3, len(some), dtype=dtype)
    found = gradients(function, arguments, grad)
    found["y"] = found["y"][:, some]
    assert_gradients_accurate(found, few, grad[:, some])


def laid_out(layout: str, x: Tensor) -> Tensor:
    """The same numbers, or for ``expanded`` the first repeated, lying elsewhere."""
    if layout == "strided":
        return x.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3]
    if layout == "transposed":
        return x.T.contiguous().T
    return x[:1].expand_as(x)


@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded"])
@pytest.mark.parametrize("name", ["y", "decoded", "scale"])
def test_layouts(backend: str, dtype: torch.dtype, name: str, layout: str) -> None:
    arguments = sharing(backend, dtype, 2)
    arguments["scale"] = 1 + 0.1 * torch.randn_like(arguments["y"])
    arguments[name] = laid_out(layout, arguments[name])
    assert layout == "expanded" or not arguments[name].is_contiguous()
    check(backend, arguments, 3)


def test_a_shared_temperature_laid_out_for_each_query(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2)
    arguments["beta"] = arguments["beta"].expand(len(arguments["y"]))
    check(backend, arguments, 4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("beta", [0.3, 30.0, math.inf])
def test_halves(backend: str, half: torch.dtype, beta: float) -> None:
    arguments = sharing(backend, torch.float32, 2, beta)
    if beta == math.inf:  # of half numbers many are equal
        arguments["y"] += 5
    for name in ("y", "decoded"):
        arguments[name] = arguments[name].to(half)
    some = chosen(len(arguments["y"]), 4)
    few = restricted(arguments, some)
    function = partial(free_energy, backend=backend)
    assert_accurate(function(**arguments)[some], **few)
    grad = torch.zeros(len(arguments["y"]))
    grad[some] = torch.randn(len(some))
    found = restricted(gradients(function, arguments, grad), some)
    assert_gradients_accurate(found, few, grad[some])


def test_every_choice_of_gradients(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2, N=300)
    arguments["scale"] = torch.tensor([1.2, -0.7], dtype=dtype)
    arguments["latent_energy"] = torch.rand(300, dtype=dtype)
    some = chosen(len(arguments["y"]), 2)
    few = restricted(arguments, some)
    grad = torch.zeros(len(arguments["y"]), dtype=dtype)
    grad[some] = torch.randn(len(some), dtype=dtype)
    function = partial(free_energy, backend=backend)
    everything = restricted(gradients(function, arguments, grad), some)
    for choice in product([False, True], repeat=len(arguments)):
        wanted = [name for name, chosen_ in zip(arguments, choice, strict=True) if chosen_]
        if not wanted:
            continue
        leaves: dict[str, Any] = {
            name: x.clone().requires_grad_(name in wanted) for name, x in arguments.items()
        }
        value = function(**leaves)
        assert_accurate(value[some].detach(), **few)
        found = torch.autograd.grad(value, [leaves[name] for name in wanted], grad)
        part = restricted(dict(zip(wanted, found, strict=True)), some)
        assert_gradients_accurate({**everything, **part}, few, grad[some])


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("beta", [1.0, 50.0, math.inf])
def test_tiles_cut_in_pieces(
    pruning_backend: str, dtype: torch.dtype, beta: float, threads: int
) -> None:
    # Of so few tiles, seven threads each take a part of the latents.
    arguments = sharing(pruning_backend, dtype, 2, beta, N=3000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(pruning_backend, arguments, 3)
        check_posterior(pruning_backend, arguments, 3)
    finally:
        torch.set_num_threads(before)
