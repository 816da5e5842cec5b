"""Ragged sizes, leading dimensions, memory layouts and dtypes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support.accuracy import assert_accurate, check, gradients

from lebm_kernels import free_energy, posterior

SIZES = (1, 2, 3, 17, 255, 507)


@pytest.mark.parametrize("M", SIZES)
@pytest.mark.parametrize("N", SIZES)
def test_ragged_sizes(backend: str, M: int, N: int) -> None:
    D = 2 if M * N > 10_000 else 1 + (M + N) % 7
    arguments: dict[str, Any] = {
        "y": torch.randn(M, D),
        "decoded": torch.randn(N, D),
        "beta": torch.tensor(2.0),
    }
    check(backend, arguments)
    if M * N < 10_000:
        arguments["scale"] = torch.rand(M, D) + 0.5
        arguments["log_weight"] = torch.randn(N)
        arguments["latent_energy"] = torch.rand(N)
        check(backend, {name: x.double() for name, x in arguments.items()})


@pytest.mark.parametrize("D", [*range(1, 20), 31, 32, 33, 63, 64, 65, 130])
def test_ragged_dimensions(backend: str, D: int) -> None:
    check(
        backend,
        {
            "y": torch.randn(5, D),
            "decoded": torch.randn(37, D),
            "beta": torch.tensor(0.3),
            "scale": torch.rand(D) + 0.5,
        },
    )


LEADING = {
    "y": {"y": (4, 3, 7, 2)},
    "decoded": {"decoded": (4, 3, 11, 2)},
    "beta": {"beta": (4, 3, 7)},
    "several betas": {"beta": (5, 1)},
    "scale": {"scale": (4, 3, 7, 2)},
    "log_weight": {"log_weight": (4, 3, 11)},
    "latent_energy": {"latent_energy": (4, 3, 11)},
    "crossed": {"y": (4, 1, 7, 2), "decoded": (3, 11, 2), "beta": (1, 1, 1)},
    "crossed weights": {"log_weight": (3, 11), "latent_energy": (4, 1, 11), "scale": (7, 2)},
    "one query for many": {"y": (1, 2), "beta": (7,), "scale": (1, 2)},
    "a grid for each query": {"y": (6, 1, 2), "decoded": (6, 11, 2), "beta": (6, 1)},
    "all": {
        "y": (2, 1, 7, 2),
        "decoded": (4, 11, 2),
        "beta": (2, 1, 7),
        "scale": (4, 1, 2),
        "log_weight": (4, 11),
        "latent_energy": (2, 1, 11),
    },
}


@pytest.mark.parametrize("shapes", LEADING.values(), ids=LEADING.keys())
def test_leading_dimensions_broadcast(any_backend: str, shapes: dict[str, tuple[int, ...]]) -> None:
    default = {
        "y": (7, 2),
        "decoded": (11, 2),
        "beta": (),
        "scale": (2,),
        "log_weight": (11,),
        "latent_energy": (11,),
    }
    arguments: dict[str, Any] = {
        name: torch.rand(shapes.get(name, shape), dtype=torch.float64) + 0.2
        for name, shape in default.items()
    }
    value = check(any_backend, arguments)
    found = posterior(**arguments, backend=any_backend)
    shape = value.shape
    torch.testing.assert_close(found.free_energy, value)
    assert found.mean.shape == (*shape, 2)
    assert found.energy.shape == found.relative_entropy.shape == found.index.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_layout_does_not_matter(backend: str, dtype: torch.dtype) -> None:
    y, decoded = torch.randn(17, 3, dtype=dtype), torch.randn(123, 3, dtype=dtype)
    scale, row = torch.rand(17, 3, dtype=dtype) + 0.5, torch.randn(123, dtype=dtype)
    plain: dict[str, Any] = {
        "y": y,
        "decoded": decoded,
        "beta": torch.rand(17, dtype=dtype),
        "scale": scale,
        "log_weight": row,
        "latent_energy": row.abs(),
    }
    odd: dict[str, Any] = {
        "y": y.T.contiguous().T,
        "decoded": torch.randn(246, 5, dtype=dtype)[::2, 1:4],
        "beta": torch.stack((plain["beta"], plain["beta"]), -1)[:, 1],
        "scale": torch.cat((scale, scale), -1)[:, 3:],
        "log_weight": row.flip(0).as_strided((123,), (1,)).flip(0),
        "latent_energy": torch.stack((row.abs(), row), -1)[:, 0],
    }
    odd["decoded"].copy_(decoded)
    assert not any(odd[name].is_contiguous() for name in ("y", "decoded", "beta", "scale"))
    grad = torch.randn(34, dtype=dtype)[::2]
    function = partial(free_energy, backend=backend)
    assert torch.equal(function(**odd), function(**plain))
    expected = gradients(function, plain, grad.contiguous())
    for name, found in gradients(function, odd, grad).items():
        assert torch.equal(found, expected[name])


def test_expanded_inputs(backend: str) -> None:
    y, decoded, row = torch.randn(1, 3), torch.randn(1, 3), torch.randn(1)
    few: dict[str, Any] = {"y": y, "decoded": decoded, "log_weight": row, "latent_energy": row}
    expanded: dict[str, Any] = {
        "y": y.expand(9, 3),
        "decoded": decoded.expand(33, 3),
        "log_weight": row.expand(33),
        "latent_energy": row.expand(33),
    }
    function = partial(free_energy, beta=1.5, backend=backend)
    torch.testing.assert_close(function(**expanded), function(**few).expand(9))
    # An incoming gradient with stride zero, as sum() makes it.
    leaves = [x.detach().requires_grad_() for x in expanded.values()]
    function(**dict(zip(expanded, leaves, strict=True))).sum().backward()
    one = gradients(function, few, torch.ones(1))
    torch.testing.assert_close(leaves[0].grad, one["y"].expand(9, 3))
    torch.testing.assert_close(leaves[1].grad, 9 * one["decoded"].expand(33, 3) / 33)


def test_no_queries(any_backend: str) -> None:
    arguments: dict[str, Any] = {
        "y": torch.randn(0, 2),
        "decoded": torch.randn(5, 2),
        "beta": torch.rand(0),
        "scale": torch.rand(0, 2),
        "log_weight": torch.randn(5),
        "latent_energy": torch.randn(5),
    }
    function = partial(free_energy, backend=any_backend)
    assert function(**arguments).shape == (0,)
    found = gradients(function, arguments, torch.empty(0))
    for name, x in arguments.items():
        assert torch.equal(found[name], torch.zeros_like(x))
    assert posterior(**arguments, backend=any_backend).mean.shape == (0, 2)


def test_no_grids(any_backend: str) -> None:
    y, decoded = torch.randn(0, 4, 2), torch.randn(0, 5, 2)
    assert free_energy(y, decoded, backend=any_backend).shape == (0, 4)
    found = posterior(y, decoded, backend=any_backend)
    assert found.mean.shape == (0, 4, 2)
    assert found.index.shape == (0, 4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(any_backend: str, half: torch.dtype) -> None:
    y, decoded = torch.randn(17, 3).to(half), torch.randn(255, 3).to(half)
    options: dict[str, Any] = {
        "scale": torch.rand(3).to(half),
        "log_weight": torch.randn(255).to(half),
    }
    for beta in (0.0, 1.0, 1e4, math.inf, torch.rand(17)):
        value = free_energy(y, decoded, beta, backend=any_backend, **options)
        assert value.dtype == torch.float32
        assert_accurate(value, y, decoded, beta, **options)
    found = posterior(y, decoded, backend=any_backend)
    assert found.mean.dtype == found.energy.dtype == torch.float32


def test_float64_stays_float64(any_backend: str) -> None:
    found = posterior(torch.randn(3, 2).double(), torch.randn(5, 2).double(), backend=any_backend)
    assert [x.dtype for x in found] == [torch.float64] * 4 + [torch.int64]
