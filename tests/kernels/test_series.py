"""Many queries that share beta and scale, over many latents at D = 1 and 2: whole blocks of latents
are summed as power series there, and blocks of blocks where these reach.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.accuracy import assert_accurate, gradients
from support.subset import check, tiled
from torch import Tensor

from lebm_kernels import free_energy

# Enough queries for series to be made, and latents for three layers of blocks.
M, N = 600, 2100


def sharing(
    backend: str,
    dtype: torch.dtype,
    D: int,
    beta: float,
    *,
    M: int = M,
    N: int = N,
    scaled: bool = False,
) -> dict[str, Tensor]:
    """Queries that share beta and, where ``scaled``, a scale of both signs."""
    arguments = tiled(backend, M, N, D, beta=torch.tensor(beta), dtype=dtype)
    if scaled:
        arguments["scale"] = torch.tensor([-1.3, 0.6], dtype=dtype)[:D]
    return arguments


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("beta", [1e-9, 1e-4, 0.02, 0.3, 1.0, 5.0, 40.0, 1e3, 1e6, 1e12])
def test_temperatures(backend: str, dtype: torch.dtype, D: int, beta: float, scaled: bool) -> None:
    check(backend, sharing(backend, dtype, D, beta, scaled=scaled))


@pytest.mark.parametrize(
    ("M", "N"), [(511, 2100), (512, 129), (513, 128), (600, 513), (545, 9000), (3000, 640)]
)
@pytest.mark.parametrize("D", [1, 2])
def test_sizes(backend: str, dtype: torch.dtype, M: int, N: int, D: int) -> None:
    check(backend, sharing(backend, dtype, D, 2.0, M=M, N=N))


def place(kind: str, y: Tensor, decoded: Tensor) -> None:
    """Latents and queries of one kind."""
    N = len(decoded)
    angle = torch.arange(N, dtype=y.dtype) * (2 * math.pi / N)
    ring = torch.stack((angle.cos(), 0.7 * angle.sin()), -1)
    if kind == "ring":
        # A query at the centre, to which all latents are far and none is nearer.
        decoded.copy_(ring[torch.randperm(N)])
        y.copy_(0.02 * y)
        y[0] = 0
    elif kind == "curve":
        decoded.copy_(ring[torch.randperm(N)])
        y.copy_(decoded[: len(y)] + 0.01 * y)
        y[0] = decoded[0]
    elif kind == "offset":
        decoded += 100
        y += 100
    elif kind == "clusters":
        centres = 1e6 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]], dtype=y.dtype)
        decoded += centres[torch.randint(3, (N,))]
        y += centres[torch.randint(3, (len(y),))]
    elif kind == "outlier":
        decoded[17] = 1e10
        y[-1] = 1e10
    elif kind == "equal":
        decoded.copy_(decoded[:1].clone().expand_as(decoded))
        y[0] = decoded[0]
    elif kind == "line":
        decoded[:, 1] = 0.25
    elif kind == "far":
        y *= 1e4
    elif kind == "repeated":
        decoded.copy_(decoded[:7].repeat(N // 7, 1))
        y[:7] = decoded[:7]


@pytest.mark.parametrize("beta", [0.05, 1.0, 300.0, 1e4])
@pytest.mark.parametrize(
    "kind",
    ["ring", "curve", "offset", "clusters", "outlier", "equal", "line", "far", "repeated"],
)
def test_layouts(backend: str, dtype: torch.dtype, kind: str, beta: float) -> None:
    arguments = sharing(backend, dtype, 2, beta)
    place(kind, arguments["y"], arguments["decoded"])
    check(backend, arguments)


@pytest.mark.parametrize("beta", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("D", [1, 2])
def test_latent_energies(backend: str, dtype: torch.dtype, D: int, beta: float) -> None:
    arguments = sharing(backend, dtype, D, beta, scaled=True)
    arguments["latent_energy"] = torch.rand(N, dtype=dtype) - 0.5
    check(backend, arguments)
    arguments["latent_energy"][::3] = 40 / max(beta, 1.0)
    arguments["latent_energy"][5] = -40 / max(beta, 1.0)
    check(backend, arguments)


def test_latents_of_infinite_energy(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2, 1.0)
    arguments["latent_energy"] = torch.zeros(N, dtype=dtype)
    arguments["latent_energy"][::2] = math.inf
    function = partial(free_energy, backend=backend)
    some = slice(0, 20)
    few = {**arguments, "y": arguments["y"][some]}
    assert_accurate(function(**arguments)[some], **few)


def test_nan_stays_in_its_row(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2, 1.0)
    clean = free_energy(**arguments, backend=backend)
    arguments["y"][[3, 17]] = math.nan
    found = free_energy(**arguments, backend=backend)
    rows = torch.isnan(found)
    assert rows.nonzero().flatten().tolist() == [3, 17]
    torch.testing.assert_close(found[~rows], clean[~rows], rtol=1e-5, atol=1e-5)


def test_tolerance_of_the_caller(backend: str) -> None:
    """The share of the sum that is left out is at most ``tol``."""
    arguments = sharing(backend, torch.float64, 2, 30.0)
    exact = free_energy(**arguments, backend="reference")
    for tol in (1e-12, 1e-6, 1e-3):
        found = free_energy(**arguments, tol=tol, backend=backend)
        excess = 30.0 * (found - exact)
        assert (excess > -1e-12).all()
        assert (excess <= -math.log1p(-tol) + 1e-12).all()


def test_threads_agree_and_repeat(backend: str, dtype: torch.dtype) -> None:
    arguments = sharing(backend, dtype, 2, 3.0, M=1500, N=5000)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 7, 7):
            torch.set_num_threads(count)
            results.append(
                gradients(
                    partial(free_energy, backend=backend),
                    arguments,
                    torch.ones(len(arguments["y"]), dtype=dtype),
                )
            )
    finally:
        torch.set_num_threads(threads)
    eps = torch.finfo(dtype).eps
    for name, last in results[-1].items():
        assert torch.equal(results[-2][name], last)
        for other in results[:-2]:
            # Not the promise: how much the order of the sums may show.
            slack = 64 * eps * float(last.abs().max())
            torch.testing.assert_close(other[name], last, rtol=0, atol=slack)
