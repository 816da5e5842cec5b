"""Grids of many blocks and many queries, in any order, at the low D where blocks are left out.

Latents without an order may be sorted into compact blocks: results must be those of the caller's
order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support import subset
from support.accuracy import gradients
from support.oracle import exact
from support.subset import check_index, restricted, tiled
from torch import Tensor

from lebm_kernels import free_energy, posterior
from lebm_kernels.diagnostics import promise

BETAS = (1e-3, 0.1, 1.0, 30.0, 1e4, 1e12, math.inf)
PER_QUERY = ("y", "beta", "scale")

# Sizes at which queries come in tiles, and latents in blocks that are sorted.
M, N = 260, 600


def with_scale(arguments: dict[str, Any]) -> None:
    """A scale for each query: of both signs, and zero in one dimension or in all."""
    scale = torch.randn_like(arguments["y"])
    scale[::5] = 0.0
    scale[1::5, 0] = 0.0
    arguments["scale"] = scale


def with_latent_energy(arguments: dict[str, Any]) -> None:
    arguments["latent_energy"] = torch.rand_like(arguments["decoded"][:, 0])


def with_log_weight(arguments: dict[str, Any]) -> None:
    arguments["log_weight"] = torch.randn_like(arguments["decoded"][:, 0])


def check_with_index(backend: str, arguments: dict[str, Any]) -> None:
    """F, all gradients and the index of the minimum, of some queries."""
    subset.check(backend, arguments, 8)
    check_index(backend, arguments, 8)


@pytest.mark.parametrize(
    ("M", "N", "D"),
    [
        (1, 511, 2),
        (31, 3000, 1),
        (32, 513, 3),
        (33, 512, 2),
        (255, 1025, 1),
        (256, 1024, 2),
        (257, 1023, 3),
        (288, 1537, 2),
        (300, 511, 1),
        (700, 513, 2),
        (300, 5000, 3),
    ],
)
def test_ragged_blocks(backend: str, dtype: torch.dtype, M: int, N: int, D: int) -> None:
    check_with_index(backend, tiled(backend, M, N, D, beta=BETAS, dtype=dtype))


@pytest.mark.parametrize(
    ("beta", "D"), [(0.0, 2), (1e-12, 2), *((b, 2) for b in BETAS), (0.1, 1), (1.0, 3), (30.0, 1)]
)
def test_one_temperature(backend: str, dtype: torch.dtype, beta: float, D: int) -> None:
    arguments = tiled(backend, M, N, D, beta=BETAS, dtype=dtype)
    arguments["beta"].fill_(beta)
    check_with_index(backend, arguments)


@pytest.mark.parametrize(
    ("D", "weighted"), [(1, False), (1, True), (2, False), (2, True), (3, False), (4, True)]
)
def test_all_arguments(backend: str, dtype: torch.dtype, D: int, weighted: bool) -> None:
    arguments = tiled(backend, M, N, D, beta=BETAS, dtype=dtype)
    with_scale(arguments)
    with_latent_energy(arguments)
    if weighted:
        with_log_weight(arguments)
    check_with_index(backend, arguments)
    arguments["beta"].fill_(3.0)
    check_with_index(backend, arguments)
    del arguments["scale"]
    check_with_index(backend, arguments)


def curve(N: int, dtype: torch.dtype) -> Tensor:
    z = torch.arange(N, dtype=dtype) * (2 * math.pi / N)
    return torch.stack((2 * z.cos(), 1.5 * z.sin()), -1)[torch.randperm(N)]


def place(kind: str, arguments: dict[str, Any]) -> None:
    """Latents and queries of one kind."""
    y, decoded = arguments["y"], arguments["decoded"]
    M, N = len(y), len(decoded)
    if kind == "curve":
        decoded.copy_(curve(N, decoded.dtype))
        y[::3] = decoded[:M][::3] * 1.05
        y[1::3] *= 20
    elif kind == "clusters":
        centres = 1e6 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]], dtype=y.dtype)
        decoded += centres[torch.randint(3, (N,))]
        y += centres[torch.randint(3, (M,))]
    elif kind == "outlier":
        decoded[17] = 1e10
    elif kind == "equal":
        decoded.copy_(decoded[:1].clone().expand(N, 2))
    elif kind == "on latents":
        y.copy_(decoded[torch.randint(N, (M,))])
    elif kind == "offset":
        decoded += 100
        y += 100
    elif kind == "tiny":
        decoded *= 1e-9
        y *= 1e-9


KINDS = ("curve", "clusters", "outlier", "equal", "on latents", "offset", "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(backend: str, dtype: torch.dtype, kind: str) -> None:
    arguments = tiled(backend, M, N, 2, beta=BETAS, dtype=dtype)
    place(kind, arguments)
    check_with_index(backend, arguments)
    for beta in (1e-3, 3.0):
        arguments["beta"].fill_(beta)
        check_with_index(backend, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_scaled(backend: str, dtype: torch.dtype, kind: str) -> None:
    arguments = tiled(backend, M, N, 2, beta=BETAS, dtype=dtype)
    place(kind, arguments)
    with_scale(arguments)
    with_latent_energy(arguments)
    check_with_index(backend, arguments)


@pytest.mark.parametrize("D", [1, 2, 3])
@pytest.mark.parametrize("full", [False, True], ids=["least", "all"])
def test_the_order_of_latents_does_not_matter(
    backend: str, dtype: torch.dtype, full: bool, D: int
) -> None:
    betas = (1e-3, 0.1, 1.0, math.inf)
    arguments = tiled(backend, 321, 1600, D, beta=betas, dtype=dtype)
    arguments["decoded"] = arguments["decoded"].sort(0).values
    if full:
        with_scale(arguments)
        with_latent_energy(arguments)
        with_log_weight(arguments)
    order = torch.randperm(1600)
    shuffled = {
        name: x if name in PER_QUERY else x[order].contiguous() for name, x in arguments.items()
    }
    function = partial(free_energy, backend=backend)
    torch.testing.assert_close(function(**shuffled), function(**arguments))
    grad = torch.randn(len(arguments["y"]), dtype=dtype)
    found, wanted = (gradients(function, x, grad) for x in (shuffled, arguments))
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for name, slope in wanted.items():
        expected = slope if name in PER_QUERY else slope[order]
        torch.testing.assert_close(found[name], expected, **close)
    one, other = (posterior(**x, backend=backend) for x in (shuffled, arguments))
    for a, b in zip(one[:4], other[:4], strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize(("D", "beta"), [(1, math.inf), (2, 0.1), (2, math.inf), (3, 1e4)])
def test_the_first_of_equals_in_the_callers_order(
    backend: str, dtype: torch.dtype, beta: float, D: int
) -> None:
    # Whole numbers: energies are exact, many latents coincide and many more are equally near.
    generator = torch.Generator().manual_seed(D)
    decoded = torch.randint(-6, 7, (1100, D), generator=generator).to(dtype)
    y = torch.randint(-12, 13, (300, D), generator=generator).to(dtype) / 2
    energy = (y[:, None] - decoded).square().sum(-1)
    wanted = torch.from_numpy(energy.numpy().argmin(-1))
    assert torch.equal(posterior(y, decoded, beta, backend=backend).index, wanted)
    # Every latent twice, in two different orders.
    decoded = torch.randn(850, D, dtype=dtype)
    order = torch.randperm(850)
    y = torch.cat((torch.randn(300, D, dtype=dtype), decoded[:50]))
    index = posterior(y, torch.cat((decoded, decoded[order])), beta, backend=backend).index
    assert (index < 850).all()
    assert torch.equal(index[300:], torch.arange(50))


@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize(("D", "beta"), [(1, 0.1), (1, 1e3), (2, 10.0), (2, 1e3), (3, 10.0)])
def test_tol(backend: str, dtype: torch.dtype, D: int, beta: float, tol: float) -> None:
    # The pruned share of the sum can only raise F, and by -log(1 - tol)/beta at most.
    arguments = tiled(backend, M, 2100, D, beta=BETAS, dtype=dtype)
    arguments["beta"].fill_(beta)
    some = torch.arange(0, len(arguments["y"]), 13)
    truth = exact(**restricted(arguments, some))
    value = free_energy(**arguments, tol=tol, backend=backend)[some]
    slack = promise.allowed(torch.from_numpy(truth.magnitude.astype(float)), dtype)
    error = value.double() - torch.from_numpy(truth.free_energy.astype(float))
    assert (error >= -slack).all()
    assert (error <= slack - math.log1p(-tol) / beta).all()
