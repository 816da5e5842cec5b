"""A bad number stays in its row."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import gradients
from torch import Tensor

from lebm_kernels import free_energy, posterior

Spoiler = Callable[[dict[str, Any]], Tensor]

BAD = 5  # the query that goes wrong


def problem(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "y": torch.randn(17, 3, dtype=dtype),
        "decoded": torch.randn(123, 3, dtype=dtype),
        "beta": torch.rand(17, dtype=dtype) + 0.5,
        "scale": torch.rand(17, 3, dtype=dtype) + 0.5,
    }


SPOILERS: dict[str, Spoiler] = {
    "y": lambda x: x["y"][BAD, 1].fill_(math.nan),
    "scale": lambda x: x["scale"][BAD, 2].fill_(math.nan),
    "beta": lambda x: x["beta"][BAD].fill_(math.nan),
    "negative beta": lambda x: x["beta"][BAD].fill_(-1.0),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
@pytest.mark.parametrize("beta", [None, 0.0, 1e-7, 1e4, math.inf])
def test_stays_in_its_row(
    any_backend: str, dtype: torch.dtype, spoil: Spoiler, beta: float | None
) -> None:
    good = problem(dtype)
    if beta is not None:
        good["beta"].fill_(beta)
    spoilt = {name: x.clone() for name, x in good.items()}
    spoil(spoilt)
    others = torch.arange(17) != BAD
    function = partial(free_energy, backend=any_backend)
    value = function(**spoilt)
    assert value[BAD].isnan()
    torch.testing.assert_close(value[others], function(**good)[others])

    grad = torch.ones(17, dtype=dtype)
    found, wanted = gradients(function, spoilt, grad), gradients(function, good, grad)
    for name in ("y", "beta", "scale"):
        torch.testing.assert_close(found[name][others], wanted[name][others])
    assert found["y"][BAD].isnan().any()

    one, other = (posterior(**x, backend=any_backend) for x in (spoilt, good))
    assert one.free_energy[BAD].isnan()
    assert 0 <= one.index[BAD] < 123
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a[others], b[others])


@pytest.mark.parametrize("name", ["decoded", "latent_energy", "log_weight"])
def test_in_a_latent_shows_everywhere(any_backend: str, name: str) -> None:
    # Every query sums over every latent: none may look healthy.
    arguments = problem(torch.float32)
    arguments["latent_energy"] = torch.zeros(123)
    arguments["log_weight"] = torch.zeros(123)
    for place in (0, 60, 122):
        spoilt = {key: x.clone() for key, x in arguments.items()}
        spoilt[name][place] = math.nan
        for beta in (0.0, 1.0, math.inf):
            spoilt["beta"] = torch.tensor(beta)
            assert free_energy(**spoilt, backend=any_backend).isnan().all()


def test_no_latent_left_is_no_free_energy(any_backend: str) -> None:
    arguments = problem(torch.float32)
    arguments["log_weight"] = torch.full((123,), -math.inf)
    assert free_energy(**arguments, backend=any_backend).isnan().all()
