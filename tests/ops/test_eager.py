"""The short way of plain calls and the operator: the same bits, F and gradients."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from support.accuracy import gradients
from support.problems import problem
from torch import Tensor

from lebm_kernels import free_energy
from lebm_kernels.arguments import TENSORS, plain
from lebm_kernels.backends import native
from lebm_kernels.ops import eager

pytestmark = pytest.mark.skipif(native.call_rows is None, reason="the extension is missing")

# One query, few, and so many that series are made; latents in one block, in some, and streamed.
SIZES = [(1, 1, 1), (5, 33, 3), (24, 48, 2), (3, 5000, 2), (300, 700, 5), (520, 300, 2)]

POINTS = ("y", "decoded")


def by_operator(**arguments: Any) -> Tensor:
    """F through the operator, as where the short way cannot run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "can_run", lambda: False)
        return free_energy(**arguments)


def both_ways(arguments: dict[str, Any]) -> None:
    """Assert that either gives the same F, and the same gradients wanted together or singly."""
    given = plain(*(arguments.get(row.name) for row in TENSORS))
    assert given is not None, "these arguments do not take the short way"
    assert eager.can_run()
    value = eager.free_energy(given)
    assert torch.equal(free_energy(**arguments), value)
    assert torch.equal(by_operator(**arguments), value)
    grad = torch.randn_like(value)
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    numbers = {name: x for name, x in arguments.items() if name not in tensors}
    for wanted in (tensors, *({name: x} for name, x in tensors.items())):
        others = {name: x for name, x in tensors.items() if name not in wanted}
        ways = (partial(way, **others, **numbers) for way in (free_energy, by_operator))
        found, again = (gradients(way, wanted, grad) for way in ways)
        for name, slope in found.items():
            assert torch.equal(slope, again[name]), name


def temperature(kind: str, M: int, dtype: torch.dtype) -> float | Tensor:
    numbers = {"number": 2.0, "integer": 2, "infinity": math.inf}
    if kind in numbers:
        return numbers[kind]
    if kind == "scalar":
        return torch.tensor(0.3, dtype=dtype)
    betas = torch.tensor([0.0, 1e-9, 0.1, 1.0, 30.0, 1e4, math.inf], dtype=dtype)
    return betas.repeat(M)[:M]


@pytest.mark.parametrize("beta", ["number", "integer", "infinity", "scalar", "a query"])
@pytest.mark.parametrize(("M", "N", "D"), SIZES)
def test_temperatures(dtype: torch.dtype, M: int, N: int, D: int, beta: str) -> None:
    both_ways({**problem(M, N, D, dtype=dtype, names=POINTS), "beta": temperature(beta, M, dtype)})


@pytest.mark.parametrize("shared", [True, False], ids=["scale", "scales"])
@pytest.mark.parametrize(("M", "N", "D"), SIZES)
def test_options(dtype: torch.dtype, M: int, N: int, D: int, shared: bool) -> None:
    options = {
        "scale": torch.randn((D,) if shared else (M, D), dtype=dtype),
        "log_weight": torch.randn(N, dtype=dtype),
        "latent_energy": torch.rand(N, dtype=dtype),
    }
    for count in range(len(options) + 1):
        for names in combinations(options, count):
            more = {name: options[name] for name in names}
            both_ways({**problem(M, N, D, dtype=dtype, names=POINTS), "beta": 1.5, **more})


@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded"])
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    arguments = {**problem(40, 70, 2, dtype=dtype, names=POINTS), "beta": 1.5}
    for name in ("y", "decoded"):
        x = arguments[name]
        arguments[name] = {
            "strided": x.repeat_interleave(2, 1)[:, ::2],
            "transposed": x.T.contiguous().T,
            "expanded": x[:1].expand_as(x),
        }[layout]
    both_ways(arguments)


def test_nothing_to_do(dtype: torch.dtype) -> None:
    both_ways({**problem(0, 7, 2, dtype=dtype, names=POINTS), "beta": 1.5})
